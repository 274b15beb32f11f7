"""Bodies from outside: what they cost before they are refused, and in which thread they are parsed."""

import asyncio
import json
import threading
from collections.abc import Iterator
from typing import Annotated, Any

import pytest
from fastapi import Request
from pydantic import ValidationError, field_validator

from llmd.api.admin.table import ROUTES as ADMIN_ROUTES
from llmd.api.http import body, routes
from llmd.api.http.app import application
from llmd.api.openai.bodies import ChatBody
from llmd.daemon import limits
from llmd.daemon.composition import CLIENT_ROUTES
from llmd.daemon.errors import BadRequest
from llmd.daemon.identity.principal import Principal

ALICE = Principal("alice", "infer", "", "")
APP = application((), lambda _: ALICE)


def request(data: bytes) -> Request:
    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": data, "more_body": False}

    scope = {"type": "http", "headers": [(b"content-type", b"application/json")], "principal": ALICE, "app": APP}
    return Request(scope, receive)


@pytest.mark.parametrize(("size", "thread"), [(100, True), (body.LARGE_BYTES + 1, False)])
async def test_a_large_body_is_parsed_and_validated_beside_the_event_loop(
    size: int, thread: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[str] = []
    parse = body.parse

    def noted(data: bytes) -> dict[str, Any]:
        threads.append(threading.current_thread().name)
        return parse(data)

    class Text(body.Body):
        a: str

        @field_validator("a")
        @classmethod
        def note(cls, a: str) -> str:
            threads.append(threading.current_thread().name)
            return a

    monkeypatch.setattr(body, "parse", noted)
    assert (await body.read(request(json.dumps({"a": "x" * size}).encode()), Text)).a
    assert len(threads) == 2 and (set(threads) == {threading.current_thread().name}) is thread


def test_too_many_values_are_refused_before_they_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json, "loads", lambda *_, **__: pytest.fail("it was parsed"))
    for data in (b"[" + b"1," * 200_000 + b"1]", b'{"a": [' + rb'"\"",' * 200_000 + b"1]}", b"[" * 200_000):
        with pytest.raises(BadRequest, match="holds more than"):
            body.parse(data)


def test_commas_and_brackets_in_a_text_are_no_values() -> None:
    text = ', [{ \\" ' * (limits.MAX_JSON_NODES // 2)
    assert body.parse(json.dumps({"a": text}).encode())["a"] == text


@pytest.mark.parametrize(
    ("raw", "refused"),
    [(r"\u0000", True), (r"a\\\u0000", True), (r"\\u0000", False), (r"\\\\u0000 \\u0000", False), (r"\u00000", True)],
)
def test_a_text_that_speaks_of_nul_holds_none(raw: str, refused: bool) -> None:
    for data in (b'{"a": "%s"}' % raw.encode(), b'{"%s": 1}' % raw.encode()):
        if refused:
            with pytest.raises(BadRequest, match="NUL"):
                body.parse(data)
        else:
            assert body.parse(data) == json.loads(data) and "\0" not in str(body.parse(data))


async def test_large_bodies_of_one_client_have_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """One is read at a time, a few come in, and another client's is read beside it."""
    inside, most, order = 0, 0, list[str]()
    lock, gate = threading.Lock(), threading.Semaphore(0)

    class Text(body.Body):
        a: str

    def slow(data: bytes) -> dict[str, Any]:
        nonlocal inside, most
        with lock:
            inside += 1
            most = max(most, inside)
        gate.acquire()
        with lock:
            inside -= 1
            order.append(json.loads(data)["a"][:3])
        return {"a": "x"}

    monkeypatch.setattr(body, "parse", slow)

    def asked(name: str, text: str) -> Request:
        made = request(json.dumps({"a": text * body.LARGE_BYTES}).encode())
        made.scope["principal"] = Principal(name, "infer", "", "")
        return made

    mine = [asyncio.create_task(body.read(asked("alice", "a"), Text)) for _ in range(10)]
    await asyncio.sleep(0.05)
    theirs = asyncio.create_task(body.read(asked("bob", "b"), Text))
    await asyncio.sleep(0.05)
    gate.release(11)
    await asyncio.gather(*mine, theirs)
    assert most == 2 and order.index("bbb") <= 2 and len(order) == 11
    assert not APP.state.aside.gate._owners and not APP.state.reading._owners


async def test_of_one_client_a_few_large_bodies_come_in_at_once() -> None:
    came: list[int] = []
    whole = asyncio.Event()

    def asked(number: int) -> Request:
        parts = [b'{"a": "' + b"x" * body.LARGE_BYTES, b'"}']

        async def receive() -> dict[str, Any]:
            if len(parts) == 1:
                came.append(number)
                await whole.wait()
            return {"type": "http.request", "body": parts.pop(0), "more_body": bool(parts)}

        return Request(request(b"").scope, receive)

    class Text(body.Body):
        a: str

    reading = [asyncio.create_task(body.read(asked(n), Text)) for n in range(10)]
    await asyncio.sleep(0.05)
    assert came == list(range(body.LARGE_AT_ONCE))
    whole.set()
    await asyncio.gather(*reading)
    assert came == list(range(10))


@pytest.mark.parametrize("turn", [{}, 1, {"role": "user", "content": [{}] * 1000}])
def test_one_error_of_a_list_is_enough(turn: Any) -> None:
    """Each costs, and one is told."""
    with pytest.raises(ValidationError) as e:
        ChatBody.model_validate({"messages": [turn] * 1000})
    assert e.value.error_count() < 5


async def test_of_bodies_that_are_not_small_one_is_read_in_a_turn_of_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    turns, read = [0], list[tuple[int, str]]()

    class Text(body.Body):
        a: str

    def noted(data: bytes) -> dict[str, Any]:
        read.append((turns[0], threading.current_thread().name))
        return {"a": "x"}

    async def count() -> None:
        while True:
            turns[0] += 1
            await asyncio.sleep(0)

    monkeypatch.setattr(body, "parse", noted)
    counting = asyncio.create_task(count())
    data = json.dumps({"a": "x" * body.SMALL_BYTES}).encode()
    await asyncio.gather(*(body.read(request(data), Text) for _ in range(10)))
    counting.cancel()
    assert len({turn for turn, _ in read}) == 10 and {thread for _, thread in read} == {threading.main_thread().name}


# --- bad bodies are cheap

CHAT = {"messages": [{"role": "user", "content": "x"}]}
UNKNOWN = {f"k{i}": 1 for i in range(7000)}
BAD: dict[str, dict[str, Any]] = {
    "unknown keys": {**CHAT, **UNKNOWN},
    "unknown keys of an object": {**CHAT, "stream_options": UNKNOWN},
    "unknown keys of a tool": {**CHAT, "tools": [{"type": "function", "function": {"name": "a", **UNKNOWN}}]},
    "biases": {**CHAT, "logit_bias": {f"x{i}": [] for i in range(9000)}},
    "labels": {**CHAT, "metadata": {f"x{i}": [] for i in range(9000)}},
    "stops": {**CHAT, "stop": [[]] * 21_000},
    "turns": {"messages": [[]] * 21_000},
    "annotations": {"messages": [{"role": "assistant", "annotations": [[]] * 21_000}]},
    "modalities": {**CHAT, "modalities": [[]] * 21_000},
    "tools": {**CHAT, "tools": [[]] * 21_000},
    "named tools": {**CHAT, "tool_choice": {"type": "allowed_tools", "allowed_tools": {"tools": [[]] * 21_000}}},
}


@pytest.mark.parametrize("what", BAD)
def test_what_is_wrong_a_thousand_times_is_few_errors(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[int] = []
    explain = body.explain

    def counting(errors: Any) -> BadRequest:
        counted.append(len(errors))
        return explain(errors)

    monkeypatch.setattr(body, "explain", counting)
    with pytest.raises(BadRequest) as e:
        body.made(json.dumps(BAD[what]).encode(), ChatBody)
    assert counted[0] <= 12 and len(e.value.message) < 200 and e.value.param


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"stop": ["a"] * 17}, "stop: give at most 16, not 17"),
        ({"stop": "a" * 1025}, "stop: string should have at most 1024 characters"),
        ({"stop": ["a" * 1025]}, "stop.0: string should have at most 1024 characters"),
        ({"stop": [5]}, "stop.0: input should be a valid string"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}] * 129}, "tools: give at most 128, not 129"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}] * 1025}]},
         "messages.0.content: give at most 1024, not 1025"),
        ({r"top\_k": 1}, r"there is no parameter 'top\_k' here; remove it"),
    ],
)  # fmt: skip
def test_what_is_too_many_of_one_kind_is_not_told_as_another_kind(fields: dict[str, Any], said: str) -> None:
    given = {"messages": [{"role": "user", "content": "hi"}], **fields}
    with pytest.raises(BadRequest) as e:
        body.made(json.dumps(given).encode(), ChatBody)
    assert e.value.message == said and e.value.param == next(iter(fields))


def containers(schema: Any) -> Iterator[dict[str, Any]]:
    """Every list and dict in what the library makes of a model."""
    if isinstance(schema, dict):
        if schema.get("type") in ("list", "dict"):
            yield schema
        for part in schema.values():
            yield from containers(part)
    elif isinstance(schema, list | tuple):
        for part in schema:
            yield from containers(part)


BODIES = sorted({kind for route in (*CLIENT_ROUTES, *ADMIN_ROUTES) if (kind := routes._body(route.endpoint))}, key=str)


@pytest.mark.parametrize("kind", BODIES)
def test_every_list_ends_with_its_first_error_and_every_dict_is_counted(kind: type[body.Body]) -> None:
    """Of every body that a route takes: a new field is not forgotten."""
    for found in containers(kind.__pydantic_core_schema__):
        if found["type"] == "list":
            assert found.get("fail_fast"), found
        elif found.get("values_schema", {"type": "any"})["type"] != "any":
            assert found.get("max_length"), found


def test_a_dict_with_a_bound_is_counted_before_its_entries_are_looked_at() -> None:
    class Few(body.Body):
        some: Annotated[dict[str, int], body.few(3)]

    assert Few(some={"a": 1}).some == {"a": 1}
    with pytest.raises(ValidationError) as e:
        Few.model_validate({"some": {str(n): "no number" for n in range(4)}})
    assert e.value.error_count() == 1


@pytest.mark.parametrize(
    ("value", "thread"),
    [(['a, [b], {c}: \\"d\\"'] * (limits.LARGE_VALUES // 2), False), ([1] * limits.LARGE_VALUES, True)],
)
async def test_many_values_are_parsed_beside_the_event_loop(
    value: Any, thread: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However few bytes they are; what stands in texts is none."""
    threads: list[str] = []
    made = body.made

    def noted(data: bytes, kind: Any) -> Any:
        threads.append(threading.current_thread().name)
        return made(data, kind)

    class List(body.Body):
        a: list[Any]

    monkeypatch.setattr(body, "made", noted)
    data = json.dumps({"a": value}).encode()
    assert len(data) < body.LARGE_BYTES
    given = request(data)
    assert (await body.read(given, List)).a == value and given.scope["large"] is thread
    assert (threads != [threading.main_thread().name]) is thread
