"""Long answers: keep-alive comments, clients that leave or stop reading, and blocks that are left whatever happens."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from sse_starlette import EventSourceResponse
from starlette.requests import ClientDisconnect

from llmd.api.http.streams import EventStream, Opened, progress, until_left
from llmd.daemon import limits
from llmd.daemon.errors import LlmdError, QueueFull


class Source:
    """A stream whose parts a test queues; None ends it."""

    def __init__(self, *parts: bytes | None) -> None:
        self.queue: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.ended_by: BaseException | str | None = None
        for part in parts:
            self.queue.put_nowait(part)

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Opened]:
        try:
            yield Opened({"X-Request-Id": "req-1"}, self._events())
            self.ended_by = "its end"
        except BaseException as e:
            self.ended_by = e
            raise

    async def _events(self) -> AsyncIterator[bytes]:
        while (part := await self.queue.get()) is not None:
            yield part


class Client:
    """What a client of one request sees."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []
        self.left = asyncio.Event()
        self.cut = asyncio.Event()

    @property
    def body(self) -> bytes:
        return b"".join(m.get("body", b"") for m in self.messages)

    async def receive(self) -> dict[str, str]:
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        if b"stuck" in message.get("body", b""):
            await self.cut.wait()
            raise ConnectionResetError
        self.messages.append(message)

    async def ask(self, source: Source) -> None:
        scope = {"type": "http", "method": "POST", "extensions": {"abort": self.cut.set}}
        async with asyncio.timeout(5):
            await EventStream(source.open())(scope, self.receive, self.send)


async def test_it_begins_with_the_streams_headers_and_ends_with_it() -> None:
    client, source = Client(), Source(b"data: a\n\n", b"data: b\n\n", None)
    await client.ask(source)
    start, *_, last = client.messages
    headers = dict(start["headers"])
    assert headers[b"content-type"].startswith(b"text/event-stream") and headers[b"x-request-id"] == b"req-1"
    assert client.body == b"data: a\n\ndata: b\n\n" and last["more_body"] is False
    assert source.ended_by == "its end"


async def test_what_refuses_it_before_the_first_byte_is_raised() -> None:
    @asynccontextmanager
    async def refused() -> AsyncIterator[Opened]:
        raise QueueFull("full")
        yield

    client = Client()
    with pytest.raises(QueueFull):
        await EventStream(refused())({"type": "http", "extensions": {}}, client.receive, client.send)
    assert client.messages == []


async def test_one_that_waits_long_to_begin_gets_comments_and_then_what_it_came_to(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits, "PING_SECONDS", 0.05)
    told = asyncio.Event()

    @asynccontextmanager
    async def late(error: LlmdError | None) -> AsyncIterator[Opened]:
        await told.wait()
        if error:
            raise error
        yield Opened({"X-Request-Id": "req-1"}, Source(b"data: a\n\n", None)._events())

    def failed(error: LlmdError) -> bytes:
        return f"event: error\ndata: {error.code}\n\n".encode()

    for error, end in ((None, b"data: a\n\n"), (QueueFull("full"), b"event: error\ndata: queue_full\n\n")):
        told.clear()
        client, scope = Client(), {"type": "http", "extensions": {}}
        task = asyncio.create_task(EventStream(late(error), failed)(scope, client.receive, client.send))
        async with asyncio.timeout(5):
            while client.body.count(b": keep-alive\n\n") < 3:
                await asyncio.sleep(0.01)
            told.set()
            await task
        kinds = [message["type"] for message in client.messages]
        assert kinds.count("http.response.start") == 1 and kinds[0] == "http.response.start"
        assert client.body.replace(b": keep-alive\n\n", b"") == end and not client.messages[-1]["more_body"]


async def test_an_idle_stream_gets_comments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "PING_SECONDS", 0.05)
    client, source = Client(), Source()
    task = asyncio.create_task(client.ask(source))
    while client.body.count(b": keep-alive\n\n") < 3:
        await asyncio.sleep(0.01)
    source.queue.put_nowait(None)
    await task
    assert client.body.replace(b": keep-alive\n\n", b"") == b"" and source.ended_by == "its end"


async def test_a_client_that_does_not_read_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "STALL_SECONDS", 0.2)
    client, source = Client(), Source(b"stuck", None)
    with pytest.raises(ConnectionResetError):
        await client.ask(source)
    assert isinstance(source.ended_by, ConnectionResetError)


async def test_a_client_that_leaves_cancels_the_stream() -> None:
    client, source = Client(), Source(b"data: a\n\n")
    task = asyncio.create_task(client.ask(source))
    while not client.body:
        await asyncio.sleep(0.01)
    client.left.set()
    await task
    assert isinstance(source.ended_by, asyncio.CancelledError)


async def test_a_client_that_leaves_cancels_a_block() -> None:
    client = Client()
    asyncio.get_running_loop().call_later(0.05, client.left.set)
    with pytest.raises(ClientDisconnect):
        async with until_left(client.receive):
            await asyncio.sleep(60)
    task = asyncio.current_task()
    assert task and not task.cancelling()


async def test_another_timeout_inside_a_block_stays_one() -> None:
    with pytest.raises(TimeoutError):
        async with until_left(Client().receive):
            raise TimeoutError


async def test_cancelling_from_outside_is_no_leaving() -> None:
    async def block() -> None:
        async with until_left(Client().receive):
            await asyncio.sleep(60)

    task = asyncio.create_task(block())
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_progress_is_events_and_a_late_error_is_the_last() -> None:
    """What comes a few times a second is sse-starlette's own response; benchmarks/results/sse.md has the figures."""

    async def values() -> AsyncIterator[dict[str, int]]:
        yield {"done": 1}
        raise QueueFull("full")

    client, response = Client(), progress(values())
    assert type(response) is EventSourceResponse and not issubclass(EventStream, EventSourceResponse)
    await response({"type": "http", "method": "POST", "extensions": {}}, client.receive, client.send)
    first, last, done = client.body.decode().strip().split("\n\n")
    assert done == "data: [DONE]"
    assert first == 'data: {"done": 1}'
    assert last.startswith("event: error\ndata: ") and "queue_full" in last
