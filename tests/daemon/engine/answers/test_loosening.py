"""A tool's schema that need not hold is held to as far as it can be: what is odd about it takes nothing but itself
away, wherever it stands, in every format."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmd.api.openai.wanted import ToolDefinition
from llmd.daemon.engine.answers import grammar, loosening
from llmd.daemon.engine.answers.formats import CALLS, Calls, Syntax
from llmd.daemon.engine.answers.holdable import held
from llmd.daemon.engine.answers.judge import answer
from llmd.daemon.engine.answers.loosening import Loosening, shaped
from llmd.daemon.engine.answers.matching import Grammars
from llmd.daemon.engine.llama.runner import LlamaRunner
from llmd.daemon.kept import Kept
from llmd.daemon.wire.work import Tool, Wanted

TEXT = {"type": "string"}
# an odd schema, and what is left of it
ODD: dict[str, tuple[Any, Any]] = {
    "look-ahead": ({"type": "string", "pattern": r"^(?!\.)\d*$"}, TEXT),
    "look-behind": ({"type": "string", "pattern": "(?<=a)b", "minLength": 1}, {"type": "string", "minLength": 1}),
    "a back reference": ({"type": "string", "pattern": r"^(a)\1$"}, TEXT),
    "a word boundary": ({"type": "string", "pattern": r"\bword\b"}, TEXT),
    "a broken pattern": ({"type": "string", "pattern": "(["}, TEXT),
    "JavaScript's way to write one": ({"type": "string", "pattern": "/^a$/i"}, TEXT),
    "Python's end": ({"type": "string", "pattern": r"^a\Z"}, TEXT),
    "pattern null": ({"type": "string", "pattern": None}, TEXT),
    "pattern a number": ({"type": "string", "pattern": 5}, TEXT),
    "enum null": ({"type": "string", "enum": None}, TEXT),
    "enum empty": ({"type": "string", "enum": []}, TEXT),
    "enum of another type": ({"type": "integer", "enum": ["a"]}, {"type": "integer"}),
    "type null": ({"type": None, "enum": ["a"]}, {"enum": ["a"]}),
    "type any": ({"type": "any"}, {}),
    "type in capitals": ({"type": "STRING", "maxLength": 9}, {"maxLength": 9}),
    "a list with an unknown type": ({"type": ["string", "any"]}, {"type": ["string"]}),
    "no types": ({"type": []}, {}),
    "format null": ({"type": "string", "format": None}, TEXT),
    "items null": ({"type": "array", "items": None}, {"type": "array"}),
    "odd items": ({"type": "array", "items": {"type": "file"}, "maxItems": 3},
                  {"type": "array", "items": {}, "maxItems": 3}),
    "properties null": ({"type": "object", "properties": None}, {"type": "object"}),
    "properties a list": ({"type": "object", "properties": ["a"]}, {"type": "object"}),
    "required null": ({"type": "object", "properties": {"x": TEXT}, "required": None},
                      {"type": "object", "properties": {"x": TEXT}}),
    "required true": ({"type": "string", "required": True}, TEXT),
    "required names nothing": (
        {"type": "object", "properties": {"x": TEXT}, "required": ["x", "y"], "additionalProperties": False},
        {"type": "object", "properties": {"x": TEXT}, "required": ["x"], "additionalProperties": False}),
    "additionalProperties null": ({"type": "object", "additionalProperties": None}, {"type": "object"}),
    "odd names": (
        {"type": "object", "patternProperties": {"^(?!x)": TEXT, "^y": TEXT}, "additionalProperties": False},
        {"type": "object", "patternProperties": {"^y": TEXT}}),
    "anyOf null": ({"type": "string", "anyOf": None}, TEXT),
    "anyOf empty": ({"anyOf": []}, {}),
    "an odd choice": ({"anyOf": [TEXT, {"type": "wizard"}, None]}, {"anyOf": [TEXT, {}, {}]}),
    "what does not go together": ({"allOf": [TEXT, {"type": "integer"}, {"maxLength": 3}]},
                                  {"allOf": [TEXT, {"maxLength": 3}]}),
    "minimum a text": ({"type": "integer", "minimum": "0"}, {"type": "integer"}),
    "minimum null": ({"type": "integer", "minimum": None, "maximum": 5}, {"type": "integer", "maximum": 5}),
    "from more to less": ({"type": "integer", "minimum": 5, "maximum": 1}, {"type": "integer", "minimum": 5}),
    "multiples of nothing": ({"type": "number", "multipleOf": 0}, {"type": "number"}),
    "a length below nothing": ({"type": "string", "minLength": -1}, TEXT),
    "a length beyond everything": ({"type": "string", "maxLength": 10**12}, TEXT),
    "a length as a float": ({"type": "string", "minLength": 2.0}, {"type": "string", "minLength": 2}),
    "$ref to nothing": ({"$ref": "#/$defs/Place", "title": "t"}, {"title": "t"}),
    "$ref to an anchor": ({"$ref": "#place"}, {}),
    "$ref to elsewhere": ({"$ref": "https://example.com/place.json"}, {}),
    "$ref to itself": ({"$ref": "#/properties/odd", "title": "t"}, {"title": "t"}),
    "$ref a number": ({"$ref": 5}, {}),
    "another dialect": ({"$schema": "http://example.com/", "type": "string"}, TEXT),
    "null for a schema": (None, {}),
    "a text for a schema": ("string", {}),
    "description null": ({"type": "string", "description": None}, TEXT),
}  # fmt: skip
PLAIN: dict[str, Any] = {"city": TEXT, "days": {"type": "integer", "minimum": 1, "maximum": 9}}


def made(parameters: Any, *, strict: bool = False) -> Tool:
    function = {"name": "odd", "parameters": parameters, "strict": strict}
    return ToolDefinition.model_validate({"type": "function", "function": function}).engine(0)


def loose(parameters: Any) -> Any:
    """What calls of a tool are held to."""
    tool = made(parameters)
    return json.loads(held([(tool.parameters, "tools.odd", False)]).get(0, tool.parameters))


@pytest.mark.parametrize("what", ODD)
@pytest.mark.parametrize("required", [["odd"], ["city", "odd"], []])
def test_what_is_odd_takes_nothing_but_itself_away(what: str, required: list[str]) -> None:
    schema, left = ODD[what]
    whole = {"type": "object", "properties": {"odd": schema, **PLAIN}, "required": required}
    assert loose(whole) == {
        **whole, "properties": {"odd": left, **PLAIN}, "additionalProperties": False,
    }  # fmt: skip


@pytest.mark.parametrize("what", ODD)
def test_wherever_it_stands(what: str) -> None:
    schema, left = ODD[what]

    def around(inner: Any) -> Any:
        return {
            "type": "object",
            "$defs": {"Odd": inner, "Fine": {"type": "integer"}},
            "properties": {
                "tree": {"type": "array", "items": {"$ref": "#"}},
                "named": {"$ref": "#/$defs/Odd"},
                "fine": {"$ref": "#/$defs/Fine"},
                "each": {"type": "object", "additionalProperties": inner, "maxProperties": 2},
                "several": {"anyOf": [{"type": "object", "properties": {"deep": inner, **PLAIN}}, {"type": "null"}]},
            },
            "required": ["several", "fine"],
            "additionalProperties": False,
        }

    expected = around(left)
    if not isinstance(schema, dict):  # other properties are anything then, as where nothing is said of them
        del expected["properties"]["each"]["additionalProperties"]
    assert loose(around(schema)) == expected


ROOTS: dict[str, tuple[Any, Any]] = {
    "nothing": ({}, {"type": "object", "additionalProperties": False}),
    "null": (None, {"type": "object", "additionalProperties": False}),
    "properties null": ({"type": "object", "properties": None}, {"type": "object"}),
    "properties as PHP has them": ({"properties": []}, {"properties": {}}),
    "required null": ({"properties": PLAIN, "required": None}, {"properties": PLAIN}),
    "type null": ({"type": None, "properties": PLAIN}, {"properties": PLAIN}),
    "types": ({"type": ["object", "null"], "properties": PLAIN}, {"properties": PLAIN}),
    "another type": ({"type": "string"}, {}),
    "required names nothing": ({"properties": PLAIN, "required": ["city", "country"]},
                               {"properties": PLAIN, "required": ["city"]}),
    "a choice of nothing": ({"properties": PLAIN, "anyOf": [{"$ref": "#/$defs/A"}, {"required": ["days"]}]},
                            {"properties": PLAIN, "anyOf": [{}, {"required": ["days"]}]}),
    "another dialect": ({"$schema": "nowhere", "properties": PLAIN}, {"properties": PLAIN}),
    "draft 7": ({"$schema": "http://json-schema.org/draft-07/schema#", "properties": {"a": {"$ref": "#/definitions/A"}},
                 "definitions": {"A": TEXT}},
                {"$schema": "http://json-schema.org/draft-07/schema#", "properties": {"a": {"$ref": "#/definitions/A"}},
                 "definitions": {"A": TEXT}}),
}  # fmt: skip


@pytest.mark.parametrize("what", ROOTS)
def test_what_is_odd_about_the_whole(what: str) -> None:
    schema, left = ROOTS[what]
    closed = {"additionalProperties": False} if "properties" in left and "anyOf" not in left else {}
    assert loose(schema) == {**left, "type": "object", **closed}


@pytest.mark.parametrize("what", [*ODD, *ROOTS])
@pytest.mark.parametrize("calls", CALLS.values(), ids=CALLS)
def test_a_grammar_is_made_of_it_in_every_format(
    grammars: Grammars, tokens: dict[str, int], calls: Calls, what: str
) -> None:
    schema = {"properties": {"odd": ODD[what][0], "tree": {"$ref": "#"}}} if what in ODD else ROOTS[what][0]
    tool = made(schema)
    tools = (Tool("now", "{}", '{"type": "object"}'), Tool("odd", "{}", json.dumps(loose(schema))))
    for must in (False, True):
        text = grammar.answer(Syntax(calls), Wanted(None, tools, must_call=must), tokens)
        assert grammars.compiled(text).start()
    assert json.loads(tool.definition)["function"]["parameters"]["type"] == "object"


@pytest.fixture(scope="module")
def tokens(runner: LlamaRunner) -> dict[str, int]:
    return runner.vocabulary.lexicon().tokens()


@pytest.fixture(scope="module")
def grammars(runner: LlamaRunner) -> Grammars:
    return Grammars(runner.vocabulary.lexicon())


def test_one_that_must_hold_is_refused_by_name() -> None:
    for what, (schema, left) in ODD.items():
        if schema == left or what in ("description null", "a length as a float"):
            continue
        tool = made({"type": "object", "properties": {"x": schema}, "required": ["x"]}, strict=True)
        said = answer(json.dumps(["schemas", [[tool.parameters, "tools.odd", True]], ""]).encode(), Kept(1, 1))
        assert not said["ok"] and said["message"].startswith("tools.odd:") and said["param"] == "tools", what


def test_what_is_fine_is_not_touched() -> None:
    tool = made({"type": "object", "properties": {**PLAIN, "unit": {"enum": [None, "C"], "default": None}}})
    assert held([(tool.parameters, "tools.odd", False)]) == {}
    fine = {"const": None, "default": None, "enum": [None], "examples": [None], "x-vendor": None, "nullable": True}
    assert shaped(fine) == fine


def test_what_costs_too_many_trials_is_left_out() -> None:
    asked: list[Any] = []

    def refuses(schema: Any) -> bool:
        asked.append(schema)
        return "wizard" in json.dumps(schema)

    properties = {str(i): {"type": "wizard"} for i in range(2000)}
    first = Loosening(refuses)
    assert first.of({"type": "object", "properties": properties, "required": ["0"]}) == {}
    assert len(asked) <= loosening.MAX_TRIALS + 2
    # the others of one request are what they are
    assert first.of({"type": "object", "properties": PLAIN}) == {"type": "object", "properties": PLAIN}


def test_a_few_odd_ones_among_many_cost_a_few_trials() -> None:
    asked: list[Any] = []

    def refuses(schema: Any) -> bool:
        asked.append(schema)
        return "wizard" in json.dumps(schema)

    properties = {str(i): {"type": "wizard" if i == 77 else "string"} for i in range(512)}
    found = Loosening(refuses).of({"type": "object", "properties": properties})
    assert found["properties"] == properties | {"77": {}} and len(asked) < 50


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 99)
    | st.sampled_from(["string", "object", "#", "#/properties/a", "(", "a"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from([
            "type", "properties", "items", "required", "enum", "const", "anyOf", "allOf", "oneOf", "$ref", "pattern",
            "additionalProperties", "patternProperties", "minimum", "maximum", "minLength", "maxItems", "$defs", "a",
            "prefixItems", "format", "not", "minProperties", "multipleOf", "exclusiveMinimum", "$id", "$schema",
        ]), inner, max_size=4,
    ),
    max_leaves=12,
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.sampled_from(["a", "b", "c"]), JSON, max_size=3))
def test_whatever_a_tool_brings_its_calls_can_be_held_to_what_is_left(properties: Any) -> None:
    tool = made({"type": "object", "properties": properties, "required": [*properties]})
    left = held([(tool.parameters, "tools.odd", False)]).get(0, tool.parameters)
    assert held([(left, "tools.odd", False)]) == {}
