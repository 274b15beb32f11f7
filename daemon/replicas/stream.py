"""One request's events on their way from a worker process to whoever asked."""

import asyncio
from collections.abc import Callable
from typing import Protocol

from llmd.daemon import limits
from llmd.daemon.errors import ClientTooSlow, LlmdError
from llmd.daemon.metrics import ModelMetrics
from llmd.daemon.wire.control import Cancel
from llmd.daemon.wire.events import Answered, Event, Failed, Finished, Reasoning, Started, Text, ToolCalled, moved


class Source(Protocol):
    """A worker's side."""

    metrics: ModelMetrics
    loop: asyncio.AbstractEventLoop

    def send(self, message: Cancel) -> None: ...

    def forget(self, call: "Call", ended: int) -> None: ...


class Call:
    """A part of a request, as one worker answers it. `first`: its first choice's number; `left`: choices that have not
    finished."""

    __slots__ = ("first", "id", "left", "stream", "worker")

    def __init__(self, worker: Source, id_: int, stream: "Stream", choices: int, first: int = 0) -> None:
        self.worker, self.id, self.stream, self.left, self.first = worker, id_, stream, choices, first
        stream.calls.append(self)


class Stream:
    """One request's events, of `choices` in all, be they of several workers' processes. One consumer calls `next`; the
    workers' side calls `feed`. `on_end` is told how many of those that had begun have ended, each time some have."""

    __slots__ = (
        "_events",
        "_loop",
        "_metrics",
        "_on_end",
        "_waiter",
        "began",
        "calls",
        "counted",
        "ended",
        "first",
        "last",
        "left",
        "most",
        "owed",
        "tokens",
    )

    def __init__(self, worker: Source, choices: int, on_end: Callable[[int], None], *, counted: bool = True) -> None:
        self._metrics, self._on_end, self._loop = worker.metrics, on_end, worker.loop
        self.counted = counted  # in the metrics
        loop = self._loop
        self._events: list[Event] = []
        self._waiter: asyncio.Future[None] | None = None
        self.calls: list[Call] = []  # that have begun
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

    def feed(self, event: Event, call: Call) -> None:
        if self.ended:
            return
        if call.first:
            event = moved(event, call.first)
        match event:
            case Text() | Reasoning() | ToolCalled():
                self._count(event)
                self.owed += event.weight()
            case Finished():
                self._count(event)
                self._over(call)
            case Started():
                if self.counted:
                    self._metrics.prompt(event.prompt_tokens)
            case Failed() | Answered():
                self.left = 0
        if (self.owed > limits.MAX_STREAM_BACKLOG or self.most) and self.left and self._cut():
            return
        if not self.left:
            self._end(over=call)
        self._append(event)

    def _cut(self) -> bool:
        """It ends here, where its client does not read, or it has more tokens than it may."""
        if self.owed > limits.MAX_STREAM_BACKLOG:
            self.fail(ClientTooSlow("the client does not read its stream"))
        elif self.most and max(self.tokens) > self.most[0]:
            self.fail(self.most[1])
        return self.ended

    def cancel(self) -> None:
        """Stop the work. No event follows. May be called at any time, also after the end."""
        if not self.ended:
            self._end()

    def fail(self, error: LlmdError) -> None:
        """Stop the work; a Failed is the last event. May be called at any time, also after the end."""
        if not self.ended:
            self.cancel()
            self._append(Failed(0, error.code, error.message, error.param))

    def _over(self, call: Call) -> None:
        """One of its choices is."""
        if not call.left:
            raise ValueError("more choices finished than there are")
        self.left -= 1
        call.left -= 1
        call.worker.forget(call, 1)
        if self.left:
            self._on_end(1)

    def _end(self, over: Call | None = None) -> None:
        """What still runs is stopped, but for what is over."""
        self.ended = True
        left = 1 if over and not over.left else 0  # the last one to finish
        for call in self.calls:
            if call.left:
                left, ended, call.left = left + call.left, call.left, 0
                call.worker.forget(call, ended)
                if call is not over:
                    call.worker.send(Cancel(call.id))
        self._on_end(left)

    def _append(self, event: Event) -> None:
        self._events.append(event)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _count(self, event: Text | Reasoning | ToolCalled | Finished) -> None:
        metrics, now, choice = self._metrics, self._loop.time(), event.choice
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
