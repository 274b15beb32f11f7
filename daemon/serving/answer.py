"""One request to a model from its `admit` row to its `finish` row: exactly one of each, whatever happens between. One
that is refused before a model is to be asked has neither, and is counted among the refusals."""

import asyncio
from collections.abc import AsyncIterator, Callable, Hashable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial

from llmd.daemon import limits
from llmd.daemon.audit.log import AuditLog
from llmd.daemon.errors import ContextExceeded, DeadlineExceeded, LlmdError, WorkerLost, from_wire
from llmd.daemon.gate import Aside
from llmd.daemon.identity.policy import Bounds, InForce, Policy
from llmd.daemon.identity.principal import Principal
from llmd.daemon.metrics import Metrics
from llmd.daemon.replicas.pool import Pool
from llmd.daemon.replicas.routing import MOST
from llmd.daemon.replicas.stream import Stream
from llmd.daemon.replicas.worker import Worker
from llmd.daemon.serving.access import Access
from llmd.daemon.serving.admission import Admission, Place
from llmd.daemon.serving.ask import Ask
from llmd.daemon.serving.books import NOTHING, Books, Entry, Usage
from llmd.daemon.serving.holding import Check, Held, held
from llmd.daemon.serving.judging import Schemas
from llmd.daemon.serving.poison import Poison
from llmd.daemon.state.records import type_of
from llmd.daemon.tasks import Tasks
from llmd.daemon.wire.control import Ready
from llmd.daemon.wire.events import (
    Answered,
    Event,
    Failed,
    Finished,
    Reasoning,
    Started,
    Text,
    ToolCalled,
)
from llmd.daemon.wire.work import Work

# a request that was cancelled is followed for so long
FOLLOW_SECONDS = 5.0


class Answer:
    """An open request. `async for events in answer` gives what has come since the last time, a list, until the last
    event has been read (`wire/events.py` says which that is): what waits can go out in one write.

    A Failed is an event like others: the dialect says how it looks after its first byte. `context` is tokens a slot.
    `check` is asked whether what a choice said fits its schema, before its end is shown.
    """

    def __init__(
        self, request_id: str, model: str, context: int, stream: Stream, work: Work, check: Check | None = None
    ) -> None:
        self.request_id, self.model, self.context = request_id, model, context
        self.prompt_tokens = 0
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
                    self.prompt_tokens = event.prompt_tokens
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
                return [*events[:i], Failed(self._stream.id, e.code, e.message, e.param)]
        return events


@dataclass(frozen=True, slots=True)
class _Running:
    """A request that a form of its model answers."""

    principal: Principal
    ask: Ask
    form: str
    stream: Stream
    answer: Answer

    def bound(self, bounds: Bounds) -> None:
        """It has begun with other ones: it ends where it goes beyond these."""
        if bounds == self.ask.bounds:
            return
        most = [] if bounds.output is None else [bounds.output]
        if bounds.context is not None:
            # of several prompts only the sum is known
            prompts = len(self.stream.tokens) // self.ask.work.choices
            most.append(bounds.context - self.answer.prompt_tokens // prompts)
        why = "the answer, or the prompt with it, has more tokens than you may have now"
        self.stream.most = (min(most), ContextExceeded(why)) if most else None


class Serving:
    """The way to ask a model: `async with serving.open(principal, ask) as answer`. Made once. `queue` tells
    how many sequences may wait for a slot, a model; `unaudited` whether requests are answered that cannot be logged;
    `policy` who may ask what."""

    def __init__(
        self,
        pool: Pool,
        queue: Callable[[], int],
        audit: AuditLog,
        metrics: Metrics,
        tasks: Tasks,
        *,
        schemas: Schemas | None = None,
        unaudited: Callable[[], bool] = lambda: False,
        policy: InForce | None = None,
    ) -> None:
        self.pool, self.audit, self.metrics, self.tasks = pool, audit, metrics, tasks
        self.admission = Admission(queue, lambda model: pool.find(model).slots)
        self.aside, self.poison = Aside(), Poison()
        self.schemas = schemas or Schemas(self.aside)
        self.books = Books(audit, metrics, self.aside, pool.digest, unaudited)
        self.policy = policy or InForce()
        self.policy.follow(self._policy_changed)
        self.access = Access(pool, self.policy)
        self._running: dict[Entry, _Running] = {}
        self.cut = 0  # running answers that a change of policy has ended

    @asynccontextmanager
    async def open(self, principal: Principal, ask: Ask) -> AsyncIterator[Answer]:
        """In this order: 1. a name for the model; 2. it is there, for this client; 3. an answer can be held to its
        schemas; 4. it is not known to crash whoever answers it; 5. the model serves; 6. admission; 7. the `admit` row
        is on disk; 8. a worker has taken it. Raises the LlmdError of the first that refuses; the audit log's `refused`
        rows say of those before the `admit` row.

        Leaving the block, in whatever way, cancels what still runs, gives its place back and writes the `finish` row.
        """
        ask = self.access.named(principal, ask)  # 1
        entry = self.books.open(principal, ask)
        outcome: tuple[str, str | None] = ("cancelled", None)
        used = NOTHING
        try:
            worker, info, place, held = await self._admitted(entry, principal, ask)
            bounds = held.bounds
            stream = worker.open(principal.name, held.work, place.leave, context=bounds.context, output=bounds.output)
            fit, context = partial(self.schemas.fit, principal.name), min(bounds.context or info.context, info.context)
            answer = Answer(entry.request_id, ask.model or "", context, stream, ask.work, fit)
            self._running[entry] = _Running(principal, held, type_of(worker.settings.form), stream, answer)
            try:
                with _deadline(stream, min(ask.seconds, limits.ACCEPT_SECONDS), "the model has not begun"):
                    await answer.accepted()  # 8
                with _deadline(stream, ask.seconds, "the answer was not complete"):
                    yield answer
            finally:
                outcome, used = answer.outcome(), answer.used
                del self._running[entry]
                stream.cancel()
                self._judge(entry, worker, *outcome)
        except (asyncio.CancelledError, GeneratorExit):
            raise  # its client left
        except LlmdError as e:
            outcome = "error", e.code
            entry.refused(e)
            raise
        except Exception:
            outcome = "error", LlmdError.code
            raise
        finally:
            if used.first is not None:
                self.admission.took(ask, asyncio.get_running_loop().time() - used.first)
            entry.finish(*outcome, used)

    async def _admitted(self, entry: Entry, principal: Principal, ask: Ask) -> tuple[Worker, Ready, Place, Ask]:
        """Who answers a request, its place, its row on disk, and what its answer is held to: 2. to 7. of `open`. Where
        it has waited, the policy may be another one."""
        model = ask.model or ""
        ask = self.access.judged(principal, ask)  # 2
        if not self.pool.comes(model):
            self.pool.serves(model, forms=ask.forms)
        held = await self.schemas.check(principal.name, ask.schemas())  # 3
        prompt = (await entry.read())[:MOST]  # the whole may be megabytes, and it may have to wait
        self.poison.check(entry.digest)  # 4
        await self._come(principal, ask)
        ask = self.access.judged(principal, ask)
        self.pool.serves(model, forms=ask.forms)  # 5
        place = self.admission.enter(principal, ask)  # 6
        try:
            await entry.admit()  # 7
            ask = self.access.judged(principal, ask)
            return *self.pool.serves(model, principal.name, prompt, ask.forms), place, ask.held_to(held)
        except BaseException:
            place.leave()
            raise

    def _judge(self, entry: Entry, worker: Worker, outcome: str, error: str | None) -> None:
        """Whether the request is one of those that end whoever answers them."""
        if error == WorkerLost.code:
            self._blame(worker, entry.digest)
        elif outcome in ("error", "cancelled"):
            # what it asked for may end the process after it has gone
            asyncio.get_running_loop().call_later(FOLLOW_SECONDS, self._blame, worker, entry.digest)
        else:
            self.poison.answered(entry.digest)

    def _blame(self, worker: Worker, digest: Hashable) -> None:
        if worker.crashed:
            self.poison.crashed(digest, worker.pid)

    async def _come(self, principal: Principal, ask: Ask) -> None:
        """Until the model has come, with other settings or because it is called, the queue holds who waits. Raises
        ModelNotReady where it is full, and DeadlineExceeded."""
        model = ask.model or ""
        if not self.pool.comes(model):
            return
        place = self.admission.wait(principal, ask)
        try:
            async with asyncio.timeout(min(ask.seconds, limits.ACCEPT_SECONDS)):
                await self.pool.called(model)
        except TimeoutError as e:
            raise DeadlineExceeded(f"{model} is being deployed anew and was not ready in time; try again") from e
        finally:
            place.leave()

    def _policy_changed(self, was: Policy, new: Policy) -> None:
        """What runs and may not any more ends now."""
        for entry, one in list(self._running.items()):
            if one.principal.local:
                continue
            if error := self.access.lost(one.principal, one.ask, one.form, was.of(one.principal.name)):
                entry.rule = error.rule
                one.stream.fail(error)
                self.cut += 1
            else:
                one.bound(self.access.bounds(one.principal, one.ask.model or "", frozenset({one.form})))


@contextmanager
def _deadline(stream: Stream, seconds: float, what: str) -> Iterator[None]:
    """A stream that has not come so far in time fails."""
    late = DeadlineExceeded(f"{what} after {seconds:.0f} s; try again")
    timer = asyncio.get_running_loop().call_later(seconds, stream.fail, late)
    try:
        yield
    finally:
        timer.cancel()
