"""One request to a model from its `admit` row to its `finish` row: exactly one of each, whatever happens between. One
that is refused before a model is to be asked has neither, and is counted among the refusals."""

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator, Callable, Hashable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial

from llmd.daemon import limits
from llmd.daemon.audit.log import AuditLog
from llmd.daemon.audit.refusals import Refusals
from llmd.daemon.errors import (
    AuditUnavailable,
    BadRequest,
    DeadlineExceeded,
    GpuLost,
    GpuOutOfMemory,
    LlmdError,
    WorkerLost,
    from_wire,
)
from llmd.daemon.gate import Aside
from llmd.daemon.identity.principal import Principal
from llmd.daemon.metrics import Metrics
from llmd.daemon.records import of_form
from llmd.daemon.serving.admission import Admission, Place
from llmd.daemon.serving.ask import Ask
from llmd.daemon.serving.holding import Check, Held, held
from llmd.daemon.serving.poison import Poison
from llmd.daemon.serving.pool import Pool
from llmd.daemon.serving.schemas import Schemas
from llmd.daemon.serving.stream import Stream
from llmd.daemon.serving.worker import Worker
from llmd.daemon.tasks import Tasks
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
from llmd.daemon.wire.worker import Ready

log = logging.getLogger("llmd.requests")

# a request that was cancelled is followed for so long
FOLLOW_SECONDS = 5.0
OUR_FAULTS = frozenset({LlmdError.code, WorkerLost.code, GpuLost.code, GpuOutOfMemory.code})


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
                        self._ends.add("stop" if event.reason == "tool_calls" else event.reason)
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


class Serving:
    """The way to ask a model: `async with serving.open(principal, ask) as answer`. Made once, by `main`."""

    def __init__(
        self,
        pool: Pool,
        admission: Admission,
        audit: AuditLog,
        metrics: Metrics,
        tasks: Tasks,
        *,
        schemas: Schemas | None = None,
        unaudited: Callable[[], bool] = lambda: False,
    ) -> None:
        self.pool, self.admission, self.audit, self.metrics = pool, admission, audit, metrics
        self.tasks, self._unaudited = tasks, unaudited
        self.aside = Aside()
        self.schemas = schemas or Schemas(self.aside)
        self.poison, self.refusals = Poison(), Refusals(audit)

    @property
    def serve_unaudited(self) -> bool:
        """Whether requests are answered that cannot be logged, as the configuration says now."""
        return self._unaudited()

    @asynccontextmanager
    async def open(self, principal: Principal, ask: Ask) -> AsyncIterator[Answer]:
        """In this order: 1. a name for the model; 2. it is there; 3. an answer can be held to its schemas; 4. it is not
        known to crash whoever answers it; 5. the model serves; 6. admission; 7. the `admit` row is on disk; 8. a worker
        has taken it. Raises the LlmdError of the first that refuses; the audit log's `refused` rows say of those before
        the `admit` row.

        Leaving the block, in whatever way, cancels what still runs, gives its place back and writes the `finish` row.
        """
        model, form = self._model(ask)
        books = _Books(self, principal, ask, model)
        outcome: tuple[str, str | None] = ("cancelled", None)
        try:
            worker, info, place, held = await self._admitted(books, principal.name, ask, model, form)
            books.stream = stream = worker.open(principal.name, held.work, place.leave)
            fit = partial(self.schemas.fit, principal.name)
            books.answer = answer = Answer(books.request_id, model, info.context, stream, ask.work, fit)
            try:
                with _deadline(stream, min(ask.seconds, limits.ACCEPT_SECONDS), "the model has not begun"):
                    await answer.accepted()
                with _deadline(stream, ask.seconds, "the answer was not complete"):
                    yield answer
            finally:
                outcome = answer.outcome()
                stream.cancel()
                if outcome[1] == WorkerLost.code:
                    self._blame(worker, books.digest)
                elif outcome[0] in ("error", "cancelled"):
                    # what it asked for may end the process after it has gone
                    asyncio.get_running_loop().call_later(FOLLOW_SECONDS, self._blame, worker, books.digest)
                else:
                    self.poison.answered(books.digest)
        except (asyncio.CancelledError, GeneratorExit):
            raise  # its client left
        except LlmdError as e:
            outcome = "error", e.code
            books.refused(e)
            raise
        except Exception:
            outcome = "error", LlmdError.code
            raise
        finally:
            books.finish(*outcome)

    async def _admitted(
        self, books: "_Books", owner: str, ask: Ask, model: str, form: str | None
    ) -> tuple[Worker, Ready, Place, Ask]:
        """Who answers a request, its place, its row on disk, and what its answer is held to: 2. to 7. of `open`."""
        if not self.pool.replacing(model):
            self.pool.serves(model, form=form)
        held = await self.schemas.check(owner, ask.schemas())
        await books.read()
        self.poison.check(books.digest)
        await self._successor(model, ask)
        self.pool.serves(model, form=form)
        place = self.admission.enter(model, ask.work.sequences, self.pool.find(model).slots)
        try:
            await books.admit()
            return *self.pool.serves(model, owner, ask, form), place, ask.held_to(held)
        except BaseException:
            place.leave()
            raise

    def _blame(self, worker: Worker, digest: Hashable) -> None:
        if worker.crashed:
            self.poison.crashed(digest, worker.pid)

    async def _successor(self, model: str, ask: Ask) -> None:
        """While the model's settings change, the queue holds who comes. Raises ModelNotReady where it is full, and
        DeadlineExceeded."""
        if not self.pool.replacing(model):
            return
        place = self.admission.wait(model, ask.work.sequences)
        try:
            async with asyncio.timeout(min(ask.seconds, limits.ACCEPT_SECONDS)):
                await self.pool.replaced(model)
        except TimeoutError as e:
            raise DeadlineExceeded(f"{model} is being deployed anew and was not ready in time; try again") from e
        finally:
            place.leave()

    def _model(self, ask: Ask) -> tuple[str, str | None]:
        """Its name, and the type of the form where one is asked for."""
        if ask.model is not None:
            model, form = of_form(ask.model)
            return (model, form) if self.pool.knows(model) else (ask.model, None)
        names = [d.model for d in self.pool.all()]
        if len(names) != 1:
            raise BadRequest(f"model is missing; deployed: {', '.join(names) or 'none'}", param="model")
        return names[0], None


@contextmanager
def _deadline(stream: Stream, seconds: float, what: str) -> Iterator[None]:
    """A stream that has not come so far in time fails."""
    late = DeadlineExceeded(f"{what} after {seconds:.0f} s; try again")
    timer = asyncio.get_running_loop().call_later(seconds, stream.fail, late)
    try:
        yield
    finally:
        timer.cancel()


class _Books:
    """One request's rows in the audit log, and its metrics."""

    def __init__(self, serving: Serving, principal: Principal, ask: Ask, model: str) -> None:
        self.request_id = "req-" + secrets.token_hex(12)
        self.stream: Stream | None = None
        self.answer: Answer | None = None
        self._serving, self._principal, self._ask, self._model = serving, principal, ask, model
        self._asked = self._written = False
        self._read = (0, "", "")  # the prompt's bytes and keyed hash, and the parameters' hash
        self._began = asyncio.get_running_loop().time()

    @property
    def digest(self) -> Hashable:
        """What equal requests have in common, once they are read."""
        return (self._model, self._ask.route, *self._read[1:])

    async def read(self) -> None:
        if self._ask.large:
            self._read = await self._serving.aside.run(self._principal.name, self._digested)
        else:
            self._read = self._digested()

    async def admit(self) -> None:
        """The `admit` row is on disk when this returns. Raises AuditUnavailable."""
        audit, by, ask = self._serving.audit, self._principal, self._ask
        size, mac, parameters = self._read
        try:
            await audit.admit(
                self.request_id,
                principal=by.name,
                serial=by.serial,
                address=by.address,
                route=ask.route,
                dialect=ask.dialect,
                model=self._model,
                digest=self._serving.pool.digest(self._model),
                params=parameters,
                prompt_mac=mac,
                prompt_bytes=size,
            )
            self._written = True
        except AuditUnavailable:
            if not self._serving.serve_unaudited:
                raise
        self._asked, self._began = True, asyncio.get_running_loop().time()

    def refused(self, error: LlmdError) -> None:
        """The log says of it in one way or the other."""
        by, error.logged = self._principal, True
        if not self._asked:
            self._serving.refusals.note(
                error, by.name, by.address, serial=by.serial, route=self._ask.route, model=self._model
            )

    def _digested(self) -> tuple[int, str, str]:
        prompt = self._ask.prompt()
        return len(prompt), self._serving.audit.prompt_mac(prompt), self._ask.parameters()

    def finish(self, outcome: str, error: str | None) -> None:
        serving, stream, answer = self._serving, self.stream, self.answer
        if error in OUR_FAULTS:
            about = {"request_id": self.request_id, "principal": self._principal.name, "model": self._model}
            log.warning("a request to %s ended with %s", self._model, error, extra=about)
        now = asyncio.get_running_loop().time()
        # a label that a client may choose freely would grow the metrics without bound
        known = self._model if serving.pool.digest(self._model) else ""
        serving.metrics.outcome(known, outcome)
        if error == LlmdError.code:
            serving.metrics.model(known).faults()
        first = stream.first if stream else None
        if first is not None:
            serving.admission.took(self._model, now - first)
        if self._written:
            serving.audit.finish(
                self.request_id,
                outcome,
                error=error,
                prompt_tokens=answer.prompt_tokens if answer else 0,
                cached_tokens=answer.cached_tokens if answer else 0,
                completion_tokens=answer.completion_tokens if answer else 0,
                queue_ms=round(1000 * ((first or now) - self._began), 3),
                generate_ms=round(1000 * (now - first), 3) if first is not None else 0.0,
            )
