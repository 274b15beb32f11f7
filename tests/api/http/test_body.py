"""Bodies from outside: what they cost before they are refused, and in which thread they are parsed."""

import asyncio
import json
import threading
from typing import Any

import pytest
from fastapi import Request
from pydantic import ValidationError, field_validator

from llmd.api.http import body
from llmd.api.http.app import application
from llmd.api.openai.schema import ChatBody
from llmd.daemon import limits
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


async def test_large_bodies_of_one_client_have_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """One is read at a time, a few come in, and another client's is next."""
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
    assert most == 1 and order.index("bbb") <= 1 and len(order) == 11
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
