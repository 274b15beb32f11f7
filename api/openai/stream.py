"""A worker's events as a client reads them: Server-Sent Events, or one JSON body.

The text of a token is the only part of an event that changes, so the rest is encoded once a stream.
"""

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from json.encoder import encode_basestring_ascii as quoted
from typing import Any

from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.types import Receive, Scope, Send

from llmd.daemon import limits
from llmd.daemon.engine.messages import ChosenLogprob, Failed, Finished, Text, TokenLogprob
from llmd.daemon.errors import from_wire
from llmd.daemon.serving.answer import Exchange

log = logging.getLogger("llmd.stream")

DONE = b"data: [DONE]\n\n"


def _data(value: Any) -> bytes:
    return b"data: " + json.dumps(value, separators=(",", ":")).encode() + b"\n\n"


@dataclass(slots=True)
class Shape:
    """The JSON that surrounds a text: chat or plain completions."""

    chat: bool
    id: str
    model: str
    logprobs: bool
    created: int = field(default_factory=lambda: int(time.time()))
    offsets: dict[int, int] = field(
        default_factory=dict
    )  # plain completions: where a choice's next token begins, in characters

    def head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def show_logprobs(self, entries: Sequence[ChosenLogprob], choice: int) -> dict[str, Any] | None:
        """As this route shows them; None where none were asked for."""
        if not self.logprobs or not entries:
            return None
        if self.chat:
            return {"content": [{**_token(e.chosen), "top_logprobs": [_token(t) for t in e.top]} for e in entries]}
        texts = [e.chosen.token.decode(errors="replace") for e in entries]
        at = self.offsets.get(choice, 0)
        starts = []
        for text in texts:
            starts.append(at)
            at += len(text)
        self.offsets[choice] = at
        return {
            "tokens": texts, "token_logprobs": [e.chosen.logprob for e in entries], "text_offset": starts,
            "top_logprobs": [{t.token.decode(errors="replace"): t.logprob for t in e.top} for e in entries],
        }  # fmt: skip


def _token(of: TokenLogprob) -> dict[str, Any]:
    return {"token": of.token.decode(errors="replace"), "logprob": of.logprob, "bytes": list(of.token)}


class EventEncoder:
    """One stream's events to bytes. `usage`: the client asked for a last event with the token counts."""

    def __init__(self, shape: Shape, *, usage: bool) -> None:
        self._shape, self._usage = shape, usage
        self._kind = "chat.completion.chunk" if shape.chat else "text_completion"
        start = json.dumps(shape.head(self._kind), separators=(",", ":"))[:-1]
        self._before = b"data: " + start.encode() + b',"choices":[{"index":'
        self._middle = b',"delta":{"content":' if shape.chat else b',"text":'
        closing = "}" if shape.chat else ""
        tail = ',"usage":null}' if usage else "}"
        self._after = f'{closing},"logprobs":null,"finish_reason":null}}]{tail}\n\n'.encode()

    def first(self, choices: int) -> bytes:
        """Chat: each choice begins with its role."""
        if not self._shape.chat:
            return b""
        return b"".join(
            self._event(c, {"delta": {"role": "assistant", "content": ""}}, None, None) for c in range(choices)
        )

    def text(self, event: Text) -> bytes:
        choice = event.choice
        shown = self._shape.show_logprobs(event.logprobs, choice)
        if shown is None:
            return b"%s%d%s%s%s" % (self._before, choice, self._middle, quoted(event.text).encode(), self._after)
        content: dict[str, Any] = {"delta": {"content": event.text}} if self._shape.chat else {"text": event.text}
        return self._event(choice, content, shown, None)

    def finished(self, event: Finished) -> bytes:
        content: dict[str, Any] = {"delta": {}} if self._shape.chat else {"text": ""}
        return self._event(event.choice, content, None, event.reason)

    def failed(self, event: Failed) -> bytes:
        error = from_wire(event.code, event.message, event.param)
        return b"event: error\n" + _data(error.body()) + DONE

    def end(self, usage: dict[str, Any]) -> bytes:
        if not self._usage:
            return DONE
        return _data({**self._shape.head(self._kind), "choices": [], "usage": usage}) + DONE

    def _event(
        self, choice: int, content: dict[str, Any], logprobs: dict[str, Any] | None, finish: str | None
    ) -> bytes:
        value = {
            **self._shape.head(self._kind),
            "choices": [{"index": choice, **content, "logprobs": logprobs, "finish_reason": finish}],
        }
        return _data({**value, "usage": None} if self._usage else value)


async def _events(exchange: Exchange, encoder: EventEncoder) -> AsyncIterator[bytes]:
    """Everything that waits goes out in one write: when tokens come faster than the client reads, writes grow, not
    queues."""
    yield encoder.first(exchange.choices)
    while True:
        out = bytearray()
        for event in await exchange.next():
            match event:
                case Text():
                    out += encoder.text(event)
                case Finished():
                    out += encoder.finished(event)
                case Failed():
                    yield bytes(out) + encoder.failed(event)
                    return
        if exchange.ended:
            yield bytes(out) + encoder.end(exchange.usage())
            return
        if out:
            yield bytes(out)


class StreamResponse(EventSourceResponse):
    """An SSE response whose exchange is closed whatever happens: read to its end, left by its client, or cut off."""

    def __init__(self, exchange: Exchange, shape: Shape, *, usage: bool) -> None:
        super().__init__(
            _events(exchange, EventEncoder(shape, usage=usage)), ping=limits.PING_SECONDS, sep="\n",
            ping_message_factory=lambda: ServerSentEvent(comment="keep-alive", sep="\n"),
            headers={"X-Request-Id": exchange.request_id},
        )  # fmt: skip
        self._exchange = exchange
        self._waits_since: float | None = None  # for the client to read

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        watch = asyncio.create_task(self._watch(scope), name="stalled reader")
        try:
            await super().__call__(scope, receive, send)
        finally:
            watch.cancel()
            self._exchange.close()

    async def _stream_response(self, send: Send) -> None:
        """sse-starlette's loop without its work for each event: a cancel scope, a log call and a type check took two
        thirds of the time (benchmarks/gateway.py). What comes from `_events` is encoded already, and `_watch` holds the
        time limit."""
        clock = asyncio.get_running_loop().time
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async for data in self.body_iterator:
            self._waits_since = clock()
            await send({"type": "http.response.body", "body": data, "more_body": True})
            self._waits_since = None
        async with self._send_lock:
            self.active = False
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _watch(self, scope: Scope) -> None:
        """Cut a client that has not read for STALL_SECONDS."""
        clock = asyncio.get_running_loop().time
        while self._waits_since is None or clock() - self._waits_since < limits.STALL_SECONDS:
            await asyncio.sleep(limits.STALL_SECONDS / 4)
        log.warning("a client did not read its stream for %.0f s: cut", limits.STALL_SECONDS)
        scope["extensions"]["abort"]()


async def whole(exchange: Exchange, shape: Shape) -> dict[str, Any]:
    """The exchange's answer as one JSON body. Raises the LlmdError that ended it."""
    texts = [""] * exchange.choices
    logprobs: list[list[ChosenLogprob]] = [[] for _ in texts]
    finishes: list[str | None] = [None] * exchange.choices
    while not exchange.ended:
        for event in await exchange.next():
            match event:
                case Text():
                    texts[event.choice] += event.text
                    logprobs[event.choice] += event.logprobs
                case Finished():
                    finishes[event.choice] = event.reason
                case Failed():
                    raise from_wire(event.code, event.message, event.param)
    choices = []
    for i, text in enumerate(texts):
        message = {"role": "assistant", "content": text, "refusal": None}
        content: dict[str, Any] = {"message": message} if shape.chat else {"text": text}
        choices.append(
            {"index": i, **content, "logprobs": shape.show_logprobs(logprobs[i], i), "finish_reason": finishes[i]}
        )
    kind = "chat.completion" if shape.chat else "text_completion"
    return {**shape.head(kind), "choices": choices, "usage": exchange.usage()}
