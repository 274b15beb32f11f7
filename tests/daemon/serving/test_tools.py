"""Which tools an answer may call."""

import json
from typing import Any

import pytest

from llmd.daemon.errors import BadRequest
from llmd.daemon.serving.tools import Choice, tool
from llmd.daemon.wire.work import Tool, Wanted


def made(name: str, **parameters: Any) -> Tool:
    return tool(name, "", parameters, strict=False, where="tools.0")


A, B = made("a"), made("b")


@pytest.mark.parametrize(
    ("choice", "told", "wanted"),
    [
        (Choice(), (A, B), Wanted(None, (A, B))),
        (Choice(none=True), (), None),
        (Choice(must=True, parallel=False), (A, B), Wanted(None, (A, B), True, False)),
        (Choice(named=frozenset({"b"})), (A, B), Wanted(None, (B,))),
        (Choice(named=frozenset()), (A, B), None),
    ],
)
def test_the_model_is_told_of_more_than_it_may_call(
    choice: Choice, told: tuple[Tool, ...], wanted: Wanted | None
) -> None:
    assert choice.told([A, B]) == told and choice.wanted(None, told) == wanted
    held = choice.wanted("{}", told)
    assert held is not None and held.schema == "{}" and held.tools == (wanted.tools if wanted else ())


def test_a_choice_that_leaves_nothing_is_refused() -> None:
    for choice in (Choice(must=True), Choice(named=frozenset({"a"}))):
        with pytest.raises(BadRequest, match="there are no tools"):
            choice.wanted(None, ())
    with pytest.raises(BadRequest, match="not among tools"):
        Choice(named=frozenset({"a", "c"})).wanted(None, (A, B))
    with pytest.raises(BadRequest, match="same name"):
        Choice().told([A, A])


def test_what_a_tool_takes_is_an_object_that_is_closed_where_it_names_its_parts() -> None:
    assert json.loads(A.parameters) == {"type": "object", "additionalProperties": False}
    assert json.loads(made("a", anyOf=[{}]).parameters) == {"type": "object", "anyOf": [{}]}
    with pytest.raises(BadRequest, match=r"tools\.0: their type is object"):
        tool("a", "", {"type": "array"}, strict=True, where="tools.0")
