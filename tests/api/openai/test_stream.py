"""The SSE response alone: keep-alive comments, a client that stops reading, and bytes that are valid events."""

import asyncio
import json
from typing import Any

import pytest

from llmd.api.openai.stream import EventEncoder, Shape, StreamResponse
from llmd.daemon import limits
from llmd.daemon.engine.messages import ChosenLogprob, Event, Failed, Finished, Text, TokenLogprob


class Exchange:
    """Says what a test queues."""

    request_id, choices = "req-1", 1

    def __init__(self, *events: Event) -> None:
        self.queue: asyncio.Queue[Event] = asyncio.Queue()
        self.ended = self.closed = False
        for event in events:
            self.queue.put_nowait(event)

    async def next(self) -> list[Event]:
        event = await self.queue.get()
        self.ended = isinstance(event, Failed | Finished)
        return [event]

    def usage(self) -> dict[str, int]:
        return {"total_tokens": 1}

    def close(self) -> None:
        self.closed = True


def token(text: str) -> Text:
    return Text(1, 0, text, 1, 0)


END = Finished(1, 0, "stop", 1, 0)


async def serve(exchange: Any, send: Any, abort: Any = None) -> None:
    async def receive() -> dict[str, str]:
        await asyncio.sleep(60)
        return {"type": "http.disconnect"}

    response = StreamResponse(exchange, Shape(True, "chatcmpl-1", "m", False), usage=True)
    await response({"type": "http", "method": "POST", "extensions": {"abort": abort}}, receive, send)


def collector(parts: list[bytes]) -> Any:
    async def send(message: dict[str, Any]) -> None:
        parts.append(message.get("body", b""))

    return send


async def test_every_event_is_json_and_the_stream_ends_with_done() -> None:
    parts: list[bytes] = []
    exchange = Exchange(token('a "quoted"\n\u2028 🙂'), token("b"), END)
    await serve(exchange, collector(parts))
    events = [e for e in b"".join(parts).decode().split("\n\n") if e]
    assert events[-1] == "data: [DONE]" and exchange.closed
    values = [json.loads(e.removeprefix("data: ")) for e in events[:-1]]
    assert (
        "".join(v["choices"][0]["delta"].get("content", "") for v in values if v["choices"]) == 'a "quoted"\n\u2028 🙂b'
    )
    assert values[-1]["usage"] == {"total_tokens": 1} and values[-2]["choices"][0]["finish_reason"] == "stop"


async def test_an_error_after_the_first_byte_is_an_error_event() -> None:
    parts: list[bytes] = []
    await serve(Exchange(token("a"), Failed(1, "worker_lost", "lost")), collector(parts))
    text = b"".join(parts).decode()
    assert "event: error\ndata: " in text and '"code":"worker_lost"' in text and text.endswith("data: [DONE]\n\n")


async def test_an_idle_stream_gets_comments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "PING_SECONDS", 0.05)
    parts: list[bytes] = []
    exchange = Exchange()
    task = asyncio.create_task(serve(exchange, collector(parts)))
    await asyncio.sleep(0.3)
    exchange.queue.put_nowait(END)
    await task
    assert b"".join(parts).count(b": keep-alive\n\n") >= 3


async def test_a_client_that_does_not_read_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "STALL_SECONDS", 0.2)
    cut = asyncio.Event()

    async def send(message: dict[str, Any]) -> None:
        if b"stuck" in message.get("body", b""):
            await cut.wait()
            raise ConnectionResetError

    exchange = Exchange(token("stuck"), token("b"), END)
    with pytest.raises(ConnectionResetError):
        async with asyncio.timeout(2):
            await serve(exchange, send, cut.set)
    assert exchange.closed


def test_logprobs_of_plain_completions_count_characters() -> None:
    encoder = EventEncoder(Shape(False, "req-1", "m", True), usage=False)
    a = TokenLogprob(b" a", -0.1)
    entries = (ChosenLogprob(a, (a,)), ChosenLogprob(TokenLogprob(b"bc", -0.2), ()))
    body = encoder.text(Text(1, 0, " abc", 2, 0, entries))
    shown = json.loads(body.removeprefix(b"data: "))["choices"][0]["logprobs"]
    assert shown["tokens"] == [" a", "bc"] and shown["text_offset"] == [0, 2]
