"""Answers that take long: they end when their client leaves, or when it does not read."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from llmd.api.http.error_answers import openai
from llmd.daemon import limits
from llmd.daemon.errors import LlmdError

log = logging.getLogger("llmd.stream")

PIECE_BYTES = 64 * 1024
KEEP_ALIVE = ServerSentEvent(comment="keep-alive", sep="\n").encode()


def event(data: str, name: str | None = None) -> bytes:
    """One event as it is sent."""
    return ServerSentEvent(data, event=name, sep="\n").encode()


def progress(values: AsyncIterator[Any]) -> Response:
    """A JSON value an event, as they come. An error that comes late is an `error` event. The last one is [DONE]: an
    answer without it was cut off."""

    async def events() -> AsyncIterator[ServerSentEvent]:
        try:
            async for value in values:
                yield ServerSentEvent(json.dumps(value), sep="\n")
        except LlmdError as e:
            yield ServerSentEvent(json.dumps(openai(e)), event="error", sep="\n")
        yield ServerSentEvent("[DONE]", sep="\n")

    response = EventSourceResponse(events(), ping=limits.PING_SECONDS, sep="\n", send_timeout=limits.STALL_SECONDS)
    del response.headers["Connection"]  # whether it is kept is the server's to say, once
    return response


@asynccontextmanager
async def until_left(receive: Receive) -> AsyncIterator[None]:
    """The block is cancelled when the client leaves, and ClientDisconnect raised. The body must have been read."""

    async def watch(left: asyncio.Timeout) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        left.reschedule(asyncio.get_running_loop().time())

    try:
        async with asyncio.timeout(None) as left:
            watching = asyncio.create_task(watch(left), name="client leaves")
            try:
                yield
            finally:
                watching.cancel()
    except TimeoutError:
        if left.expired():
            raise ClientDisconnect from None
        raise


@dataclass(frozen=True, slots=True)
class Opened:
    """A stream that can begin: its own headers, and its events in encoded form, as many at a time as there are."""

    headers: Mapping[str, str]
    events: AsyncIterator[bytes]


class EventStream(Response):
    """Server-Sent Events. What `opening` raises before its first event is an error like any other, or, where that has
    taken so long that the response has begun, with comments that it lives, what `failed` makes of it. Whatever happens,
    its block is left.

    It hands on what is encoded already; what sse-starlette's own response costs stands in benchmarks/results/sse.md.
    """

    media_type = "text/event-stream"

    def __init__(
        self, opening: AbstractAsyncContextManager[Opened], failed: Callable[[LlmdError], bytes] | None = None
    ) -> None:
        self.status_code, self.background = 200, None
        self.init_headers(MutableHeaders({"Cache-Control": "no-store", "X-Accel-Buffering": "no"}))
        self._opening, self._failed = opening, failed
        self._begins, self._begun = asyncio.Lock(), False
        self._sends_since: float | None = None  # when a send began that has not ended
        self._sent = 0.0  # when the last one ended

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with until_left(receive):
                keeper = asyncio.create_task(self._keep(scope, send), name="keep alive")
                try:
                    await self._answer(send)
                finally:
                    keeper.cancel()
                await send({"type": "http.response.body", "body": b"", "more_body": False})
        except ClientDisconnect:
            pass  # nobody reads what could be said

    async def _answer(self, send: Send) -> None:
        opened = None
        try:
            async with self._opening as opened:
                for name, value in opened.headers.items():
                    self.headers[name] = value
                await self._begin(send)
                async for data in opened.events:
                    await self._send(send, data)
        except LlmdError as e:
            if opened is not None or not self._begun or self._failed is None:
                raise
            await self._send(send, self._failed(e))

    async def _begin(self, send: Send) -> None:
        """Once."""
        async with self._begins:
            if not self._begun:
                self._begun = True
                await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})

    async def _send(self, send: Send, data: bytes) -> None:
        clock = asyncio.get_running_loop().time
        self._sends_since = clock()
        await send({"type": "http.response.body", "body": data, "more_body": True})
        self._sends_since, self._sent = None, clock()

    async def _ping(self, send: Send) -> None:
        if self._failed is not None or self._begun:
            await self._begin(send)
            await self._send(send, KEEP_ALIVE)

    async def _keep(self, scope: Scope, send: Send) -> None:
        """A comment while nothing comes, and the end of a client that has not read for STALL_SECONDS."""
        clock = asyncio.get_running_loop().time
        self._sent = clock()
        step, waited = min(limits.PING_SECONDS, limits.STALL_SECONDS) / 4, 0.0
        while waited < limits.STALL_SECONDS:
            since = self._sends_since
            await asyncio.sleep(step)
            # by these steps and not by the clock: where this process itself stood still, that is no client's fault
            waited = waited + step if since is not None and since == self._sends_since else 0.0
            if self._sends_since is None and clock() - self._sent >= limits.PING_SECONDS:
                ping = asyncio.create_task(self._ping(send))
                await asyncio.wait({ping}, timeout=limits.STALL_SECONDS)
        log.warning("a client did not read its stream for %.0f s: cut", limits.STALL_SECONDS)
        scope["extensions"]["abort"]()


class WholeJson(Response):
    """A JSON body of known length that goes out piece by piece: one write of megabytes would hold up every stream."""

    media_type = "application/json"

    def __init__(self, parts: Sequence[bytes], headers: Mapping[str, str]) -> None:
        self.status_code, self.background, self._parts = 200, None, parts
        self.init_headers({**headers, "Content-Length": str(sum(map(len, parts)))})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        piece = bytearray()
        for part in self._parts:
            piece += part
            if len(piece) >= PIECE_BYTES:
                await send({"type": "http.response.body", "body": bytes(piece), "more_body": True})
                await asyncio.sleep(0)
                piece.clear()
        await send({"type": "http.response.body", "body": bytes(piece), "more_body": False})
