"""A request that is being answered: what its client reads, and what of it has not begun yet."""

from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace

from llmd.daemon.errors import ContextExceeded, LlmdError, from_wire
from llmd.daemon.identity.policy import Bounds
from llmd.daemon.identity.principal import Principal
from llmd.daemon.replicas.stream import Stream
from llmd.daemon.replicas.worker import Worker
from llmd.daemon.serving.ask import Ask
from llmd.daemon.serving.books import Usage
from llmd.daemon.serving.holding import Check, Held, held
from llmd.daemon.serving.queued import Place
from llmd.daemon.serving.quotas import NO_RATES, Rates
from llmd.daemon.state.records import type_of
from llmd.daemon.wire.events import Answered, Event, Failed, Finished, Reasoning, Started, Text, ToolCalled
from llmd.daemon.wire.work import Work


class Answer:
    """An open request. `async for events in answer` gives what has come since the last time, a list, until the last
    event has been read (`wire/events.py` says which that is): what waits can go out in one write.

    A Failed is an event like others: the dialect says how it looks after its first byte. `context` is tokens a slot.
    `check` is asked whether what a choice said fits its schema, before its end is shown. `rates`: what is left of the
    client's limits.
    """

    def __init__(
        self,
        request_id: str,
        model: str,
        context: int,
        stream: Stream,
        work: Work,
        check: Check | None = None,
        counted: Callable[[int], None] = lambda tokens: None,
        rates: Rates = NO_RATES,
    ) -> None:
        self.request_id, self.model, self.context, self.rates = request_id, model, context, rates
        self.prompt_tokens = 0  # of the prompts that have begun
        self._counted = counted  # is told what each has
        self.reasoning_tokens = 0  # of those generated, of the choices that have ended
        self._choices = work.choices  # of each prompt
        self._cached: dict[int, int] = {}  # of each prompt's first choice: the others' prompt is that one's
        self._stream = stream
        self._unread: list[Event] = []
        self._ends: set[str] = set()
        self._error: str | None = None
        self._check = check
        self._held = held(work.wanted) if check else None

    def __aiter__(self) -> AsyncIterator[list[Event]]:
        return self

    async def __anext__(self) -> list[Event]:
        if self._unread:
            events, self._unread = self._unread, []
            return events
        if self._error or self._stream.read_out:
            raise StopAsyncIteration
        return await self._next()

    @property
    def choices(self) -> int:
        return len(self._stream.tokens)

    @property
    def cached_tokens(self) -> int:
        """Of the prompts, found in prefixes that earlier requests had left."""
        return sum(self._cached.values())

    @property
    def completion_tokens(self) -> int:
        """Generated so far, by all choices."""
        return sum(self._stream.tokens)

    async def accepted(self) -> None:
        """Until the worker has taken it. Raises the LlmdError that refuses it."""
        events = await self._next()
        if isinstance(events[0], Failed):
            raise from_wire(events[0].code, events[0].message, events[0].param)
        self._unread = events

    @property
    def used(self) -> Usage:
        return Usage(self.prompt_tokens, self.cached_tokens, self.completion_tokens, self._stream.first)

    def outcome(self) -> tuple[str, str | None]:
        """How it stands: how its work ended, `cancelled` while it runs; and the error's code."""
        if self._error:
            return "error", self._error
        if not self._stream.ended:
            return "cancelled", None
        return ("length" if "length" in self._ends else min(self._ends, default="cancelled")), None

    async def _next(self) -> list[Event]:
        events = await self._stream.next()
        if self._held and self._check:
            events = await self._fitting(events, self._held, self._check)
        for event in events:
            match event:
                case Started():
                    self.prompt_tokens += event.prompt_tokens
                    self._counted(event.prompt_tokens)
                case Text() | Reasoning() | ToolCalled() | Finished():
                    if event.choice % self._choices == 0:
                        self._cached[event.choice] = event.cached
                    if isinstance(event, Finished):
                        self._ends.add(event.reason)
                        self.reasoning_tokens += event.reasoning
                case Answered():
                    self._ends.add("ok")
                case Failed():
                    self._error = event.code
        return events

    async def _fitting(self, events: list[Event], held: Held, check: Check) -> list[Event]:
        """The events up to an answer that does not fit: that is the end of them all."""
        for i, event in enumerate(events):
            try:
                await check(held.note(event))
            except LlmdError as e:
                self._stream.cancel()
                return [*events[:i], Failed(0, e.code, e.message, e.param)]
        return events


@dataclass(slots=True)
class Running:
    """A request that forms of its model answer. `parts` have not begun; `counting` is of all its prompts."""

    principal: Principal
    ask: Ask
    stream: Stream
    place: Place
    parts: deque[Work]
    begun: int = 0  # sequences
    forms: set[str] = field(default_factory=set)
    workers: list[Worker] = field(default_factory=list)
    counting: Stream | None = None

    async def check(self, worker: Worker) -> None:
        """Of several prompts none begins where one of them cannot be answered. Raises the LlmdError that says why."""
        if (check := self.ask.work.check()) is None:
            return
        self.counting = Stream(worker, 1, lambda ended: None, counted=False)
        self._open(worker, self.counting, check)
        (event,) = await self.counting.next()
        if isinstance(event, Failed):
            raise from_wire(event.code, event.message, event.param)

    def begin(self, worker: Worker) -> None:
        """Its next part does."""
        part = self.parts.popleft()
        self._open(worker, self.stream, part)
        self.begun += part.sequences
        self.place.opened()

    def _open(self, worker: Worker, stream: Stream, work: Work) -> None:
        self.forms.add(type_of(worker.settings.form))
        if worker not in self.workers:
            self.workers.append(worker)
        bounds = (self.ask.bounds.context or 0, self.ask.bounds.output or 0)
        worker.begin(stream, self.principal.name, work, self.begun, bounds=bounds, weight=self.ask.weight)

    def fail(self, error: LlmdError) -> None:
        """It ends with that."""
        if self.counting:
            self.counting.fail(error)
        self.stream.fail(error)

    def cancel(self) -> None:
        """Its client hears no more of it."""
        if self.counting:
            self.counting.cancel()
        self.stream.cancel()

    def ended(self, sequences: int) -> None:
        """So many of its sequences have; whatever ends its stream ends what waits of it too."""
        if self.stream.ended:
            self.place.drop()
        self.place.ended(sequences)

    def bound(self, bounds: Bounds) -> None:
        """It has begun with other ones: it ends where it goes beyond these."""
        if bounds == self.ask.bounds:
            return
        self.ask = replace(self.ask, bounds=bounds)
        most = [] if bounds.output is None else [bounds.output]
        if bounds.context is not None:
            # of several prompts only the sum is known
            most.append(bounds.context - self.place.prompt_tokens // max(1, self.place.prompts))
        why = "the answer, or the prompt with it, has more tokens than you may have now"
        self.stream.most = (min(most), ContextExceeded(why)) if most else None
