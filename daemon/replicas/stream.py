"""One request's events on their way from a worker process to whoever asked."""

import asyncio
from collections.abc import Callable
from typing import Protocol

from llmd.daemon import limits
from llmd.daemon.errors import ClientTooSlow, LlmdError
from llmd.daemon.metrics import ModelMetrics
from llmd.daemon.wire.control import Cancel
from llmd.daemon.wire.events import Answered, Event, Failed, Finished, Reasoning, Text, ToolCalled


class Source(Protocol):
    """The worker's side."""

    metrics: ModelMetrics
    loop: asyncio.AbstractEventLoop

    def send(self, message: Cancel) -> None: ...

    def forget(self, stream: "Stream") -> None: ...


class Stream:
    """One request's events. One consumer calls `next`; the worker's side calls `feed`."""

    __slots__ = (
        "_events",
        "_loop",
        "_on_end",
        "_waiter",
        "_worker",
        "began",
        "counted",
        "ended",
        "first",
        "id",
        "last",
        "left",
        "most",
        "owed",
        "tokens",
    )

    def __init__(
        self, worker: Source, id_: int, choices: int, on_end: Callable[[], None], *, counted: bool = True
    ) -> None:
        self._worker, self.id, self._on_end, self._loop = worker, id_, on_end, worker.loop
        self.counted = counted  # in the metrics
        loop = self._loop
        self._events: list[Event] = []
        self._waiter: asyncio.Future[None] | None = None
        self.left = choices  # choices that have not finished
        self.ended = False
        self.owed = 0  # bytes that wait for the client
        self.tokens = [0] * choices
        self.began = loop.time()
        self.first: float | None = None  # when the first token came
        self.last = [0.0] * choices
        self.most: tuple[int, LlmdError] | None = None  # tokens of a choice, and how it ends that has more

    @property
    def read_out(self) -> bool:
        """It has ended and no event waits: `next` would wait for ever."""
        return self.ended and not self._events

    async def next(self) -> list[Event]:
        """All events that have come since the last call, at least one. Not to be called once `read_out`."""
        if not self._events:
            self._waiter = self._loop.create_future()
            await self._waiter
        events, self._events, self.owed = self._events, [], 0
        return events

    def feed(self, event: Event) -> None:
        if self.ended:
            return
        match event:
            case Text() | Reasoning() | ToolCalled():
                self._count(event)
                self.owed += event.weight()
            case Finished():
                self._count(event)
                self.left -= 1
            case Failed() | Answered():
                self.left = 0
        if self.owed > limits.MAX_STREAM_BACKLOG and self.left:
            self.fail(ClientTooSlow("the client does not read its stream"))
            return
        if self.most and self.left and max(self.tokens) > self.most[0]:
            self.fail(self.most[1])
            return
        if not self.left:
            self._end()
        self._append(event)

    def cancel(self) -> None:
        """Stop the work. No event follows. May be called at any time, also after the end."""
        if not self.ended:
            self._end()
            self._worker.send(Cancel(self.id))

    def fail(self, error: LlmdError) -> None:
        """Stop the work; a Failed is the last event. May be called at any time, also after the end."""
        if not self.ended:
            self.cancel()
            self._append(Failed(self.id, error.code, error.message, error.param))

    def _end(self) -> None:
        self.ended = True
        self._worker.forget(self)
        self._on_end()

    def _append(self, event: Event) -> None:
        self._events.append(event)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _count(self, event: Text | Reasoning | ToolCalled | Finished) -> None:
        metrics, now, choice = self._worker.metrics, self._loop.time(), event.choice
        if choice < 0:
            raise ValueError("there is no such choice")
        fresh = event.tokens - self.tokens[choice]
        if not self.counted:
            self.first = self.first or now
        elif self.first is None:
            self.first = now
            metrics.ttft(now - self.began)
            metrics.cached(event.cached)
        elif self.last[choice] and fresh > 0:
            metrics.gap((now - self.last[choice]) / fresh)
        if self.counted:
            metrics.output(fresh)
        self.tokens[choice], self.last[choice] = event.tokens, now
