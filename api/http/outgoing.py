"""How a response goes out, where uvicorn knows no better way."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from uvicorn.protocols.http.httptools_impl import RequestResponseCycle


class InOne(asyncio.Transport):
    """One response's way out. The head of one of known length waits for its body: one record and one packet, for which
    its reader is woken once. Any other is written as it comes, and past this one from then on."""

    def __init__(self, cycle: RequestResponseCycle, transport: asyncio.Transport) -> None:
        super().__init__()
        self._cycle, self._transport, self._head = cycle, transport, b""

    def write(self, data: bytes) -> None:  # type: ignore[override]
        cycle = self._cycle
        if not self._head and cycle.expected_content_length and cycle.scope["method"] != "HEAD":
            self._head = data
            return
        self._flush(data)

    def _flush(self, data: bytes = b"") -> None:
        self._cycle.transport = self._transport
        if self._head or data:
            self._transport.write(self._head + data)

    def is_closing(self) -> bool:
        return self._transport.is_closing()

    def close(self) -> None:
        self._flush()
        self._transport.close()


async def unchunked(cycle: RequestResponseCycle, send: Callable[[Any], Awaitable[None]], message: Any) -> None:
    """To a client of HTTP/1.0, which knows no chunks: a body of unknown length ends with the connection."""
    if message["type"] == "http.response.start":
        if not any(name.lower() == b"content-length" for name, _ in message["headers"]):
            cycle.chunked_encoding = False
    elif cycle.chunked_encoding is False and cycle.expected_content_length == 0 and not cycle.disconnected:
        cycle.transport.write(message.get("body", b"") if cycle.scope["method"] != "HEAD" else b"")
        message = {**message, "body": b""}
    await send(message)
