"""One request to a model from its `admit` row to its `finish` row: exactly one of each, whatever happens between. One
that is refused before a model is to be asked has neither, and is counted among the refusals."""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Hashable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial

from llmd.daemon import limits
from llmd.daemon.audit.log import AuditLog
from llmd.daemon.errors import DeadlineExceeded, LlmdError, ModelNotReady, WorkerLost
from llmd.daemon.gate import Aside
from llmd.daemon.identity.policy import InForce, Policy
from llmd.daemon.identity.principal import Principal
from llmd.daemon.metrics import Metrics
from llmd.daemon.replicas.pool import Pool
from llmd.daemon.replicas.routing import MOST
from llmd.daemon.replicas.stream import Stream
from llmd.daemon.replicas.worker import Worker
from llmd.daemon.serving.access import Access
from llmd.daemon.serving.admission import Admission
from llmd.daemon.serving.ask import Ask
from llmd.daemon.serving.begun import Answer, Running
from llmd.daemon.serving.books import NOTHING, Books, Entry
from llmd.daemon.serving.judging import Schemas
from llmd.daemon.serving.metering import Meter
from llmd.daemon.serving.poison import Poison
from llmd.daemon.serving.queued import Place
from llmd.daemon.serving.quotas import NO_RATES, Count, Quotas, Today
from llmd.daemon.tasks import Tasks
from llmd.daemon.wire.control import Ready

# a request that was cancelled is followed for so long
FOLLOW_SECONDS = 5.0


class Serving:
    """The way to ask a model: `async with serving.open(principal, ask) as answer`. Made once. `queue` tells
    how many requests of a client may wait, a model; `unaudited` whether requests are answered that cannot be logged;
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
        self.admission = Admission(queue, pool.capacity, time.monotonic, pool.waits)
        pool.told = self.admission.changed
        self.aside, self.poison = Aside(), Poison()
        self.schemas = schemas or Schemas(self.aside)
        self.policy = policy or InForce()
        days = Today()
        meter = Meter(metrics, lambda: days()[0], lambda client: ",".join(self.policy.now.groups_of(client)))
        pool.spent = meter.spent
        self.books = Books(audit, metrics, self.aside, pool.digest, unaudited, meter)
        self.policy.follow(self._policy_changed)
        self.access = Access(pool, self.policy)
        self.quotas = Quotas(time.monotonic, days)
        self._running: dict[Entry, Running] = {}
        self.cut = 0  # running answers that a change of policy has ended

    @asynccontextmanager
    async def open(self, principal: Principal, ask: Ask) -> AsyncIterator[Answer]:
        """In this order: 1. a name for the model; 2. it is there, for this client; 3. an answer can be held to its
        schemas; 4. it is not known to crash whoever answers it; 5. the model serves; 6. there is room for it
        (`admission.py`); 7. the `admit` row is on disk; 8. its turn has come; 9. all its prompts can be answered;
        10. a worker has taken it. Raises the LlmdError of the first that refuses; the audit log's `refused` rows say of
        those before the `admit` row.

        Leaving the block, in whatever way, cancels what still runs, gives its place back and writes the `finish` row.
        """
        ask = self.access.named(principal, ask)  # 1
        entry = self.books.open(principal, ask)
        outcome: tuple[str, str | None] = ("cancelled", None)
        used = NOTHING
        clock = asyncio.get_running_loop().time
        until = clock() + ask.seconds
        try:
            admitted = await self._admitted(entry, principal, ask)
            place, count = admitted.place, admitted.count
            running, answer = self._run(entry, principal, admitted)
            try:
                left = until - clock()
                with _deadline(running, min(left, limits.ACCEPT_SECONDS), "the model has not begun"):
                    await running.check(admitted.worker)  # 9
                    self._begin(running, admitted.worker)
                    await answer.accepted()  # 10
                with _deadline(running, until - clock(), "the answer was not complete"):
                    yield answer
            finally:
                outcome, used = answer.outcome(), answer.used
                del self._running[entry]
                running.cancel()
                place.leave(used.prompt_tokens - used.cached_tokens, used.completion_tokens)
                count.end(used.prompt_tokens + used.completion_tokens)
                for one in running.workers:
                    self._judge(entry, one, *outcome)
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
            entry.finish(*outcome, used)

    async def _admitted(self, entry: Entry, principal: Principal, ask: Ask) -> "_Admitted":
        """Its row is on disk, its turn has come, and somebody answers it: 2. to 8. of `open`. Where it has waited, the
        policy may be another one."""
        model = ask.model or ""
        ask = self.access.judged(principal, ask)  # 2
        self.quotas.check(self.policy.of(principal), ask.counts)
        if not self.pool.comes(model):
            self.pool.serves(model, forms=ask.forms)
        held = await self.schemas.check(principal.name, ask.schemas())  # 3
        prompt = (await entry.read())[:MOST]  # the whole may be megabytes, and it may have to wait
        self.poison.check(entry.digest)  # 4
        await self._come(principal, ask)
        ask = self.access.judged(principal, ask)
        self.pool.serves(model, forms=ask.forms)  # 5
        began = asyncio.get_running_loop().time()
        count = self.quotas.enter(self.policy.of(principal), model, ask.counts, self.admission.expects(ask))  # 6
        place = None
        try:
            place = self.admission.enter(principal.name, ask.weight, ask)
            await entry.admit()  # 7
            await self._turn(place, ask)  # 8
            ask = self.access.judged(principal, ask)
            worker, info = self.pool.serves(model, principal.name, prompt, ask.forms)
            return _Admitted(worker, info, place, count, ask.held_to(held), began)
        except BaseException:
            count.undo()
            if place:
                place.leave()
            raise

    async def _turn(self, place: Place, ask: Ask) -> None:
        """Until something of it begins. Raises DeadlineExceeded."""
        if place.begun:
            return
        begun = asyncio.Event()
        place.tell = begun.set
        try:
            async with asyncio.timeout(ask.seconds):
                await begun.wait()
        except TimeoutError as e:
            raise DeadlineExceeded(f"{ask.model} had no time for it within {ask.seconds:.0f} s; try again") from e
        finally:
            place.tell = lambda: None

    def _run(self, entry: Entry, principal: Principal, admitted: "_Admitted") -> tuple[Running, Answer]:
        worker, info, place, ask = admitted.worker, admitted.info, admitted.place, admitted.ask
        stream = Stream(worker, ask.work.sequences, lambda ended: running.ended(ended))
        stream.began = admitted.began
        fit = partial(self.schemas.fit, principal.name)
        context = min(ask.bounds.context or info.context, info.context)
        rates = self.quotas.rates(principal.name, ask.counts) if ask.counts else NO_RATES
        answer = Answer(entry.request_id, ask.model or "", context, stream, ask.work, fit, place.counted, rates)
        running = self._running[entry] = Running(principal, ask, stream, place, deque(ask.work.parts()))
        return running, answer

    def _begin(self, running: Running, worker: Worker) -> None:
        """Its first part in this worker; the others follow as their turns come."""
        if running.stream.ended:
            return
        running.begin(worker)
        running.place.tell = partial(self._go_on, running)
        for _ in range(running.place.begun - 1):
            self._go_on(running)

    def _go_on(self, running: Running) -> None:
        """The turn of another of its parts has come."""
        if running.stream.ended:
            return
        try:
            worker, _ = self.pool.serves(running.ask.model or "", running.principal.name, b"", running.ask.forms)
        except LlmdError as e:
            return running.stream.fail(e)
        running.begin(worker)

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
        place = self.admission.hold(principal.name, ask.weight, ask)
        if place is None:
            raise ModelNotReady(f"{model} is being deployed anew; try again soon", retry_after=5)
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
            of = was.of(one.principal.name)
            lost = (self.access.lost(one.principal, one.ask, form, of) for form in one.forms)
            if error := next(filter(None, lost), None):
                entry.rule = error.rule
                one.fail(error)
                self.cut += 1
            else:
                one.bound(self.access.bounds(one.principal, one.ask.model or "", frozenset(one.forms)))


@dataclass(frozen=True, slots=True)
class _Admitted:
    """A request whose turn has come, and who answers it. `ask` says what its answer is held to."""

    worker: Worker
    info: Ready
    place: Place
    count: Count
    ask: Ask
    began: float  # when it came, on the loop's clock


@contextmanager
def _deadline(running: Running, seconds: float, what: str) -> Iterator[None]:
    """What has not come so far in time fails."""
    late = DeadlineExceeded(f"{what} after {seconds:.0f} s; try again")
    timer = asyncio.get_running_loop().call_later(seconds, running.fail, late)
    try:
        yield
    finally:
        timer.cancel()
