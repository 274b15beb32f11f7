"""Bodies from outside: what they cost before they are refused, and in which thread they are parsed."""

import json
import threading
from typing import Any

import pytest
from fastapi import Request
from pydantic import field_validator

from llmd.api.http import body
from llmd.daemon import limits
from llmd.daemon.errors import BadRequest


def request(data: bytes) -> Request:
    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": data, "more_body": False}

    return Request({"type": "http", "headers": [(b"content-type", b"application/json")]}, receive)


@pytest.mark.parametrize(("size", "thread"), [(100, True), (body.THREAD_BYTES + 1, False)])
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
