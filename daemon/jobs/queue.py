"""What takes a while, one after the other: a queue in `state.db`, which goes on after a restart.

A job dies with the daemon: then it is begun again. Whoever started it may go away meanwhile. Times are Unix seconds.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import msgspec

from llmd.daemon.errors import Conflict, LlmdError
from llmd.daemon.state.records import Job
from llmd.daemon.state.store import StateThread, Store
from llmd.daemon.tasks import Tasks

log = logging.getLogger("llmd.jobs")

QUEUED, RUNNING, DONE, FAILED, CANCELLED = "queued", "running", "done", "failed", "cancelled"
ENDED = {DONE, FAILED, CANCELLED}
MAX_LOG_LINES = 500
MAX_ENDED = 200

Tell = Callable[[int, int, str], None]
A = TypeVar("A")


@dataclass(frozen=True, slots=True)
class Kind(Generic[A]):
    """`asked`: the dataclass of what such a job is to do. `run` does it: it is given the job's row, that, and whom to
    tell how far it is; what it gives is a dataclass too. It raises LlmdError."""

    name: str
    asked: type[A]
    run: Callable[[Job, A, Tell], Awaitable[object]]


@dataclass(slots=True)
class Progress:
    """Of the job that runs. `done` and `total` are bytes of what is read; `left` is seconds, None where it is not
    known."""

    done: int = 0
    total: int = 0
    begun: float = field(default_factory=time.monotonic)
    lines: deque[str] = field(default_factory=lambda: deque(maxlen=MAX_LOG_LINES))

    def tell(self, done: int, total: int, line: str) -> None:
        if total:
            self.done, self.total = done, total
        if line:
            self.lines.append(line)

    @property
    def left(self) -> float | None:
        lived = time.monotonic() - self.begun
        return lived * (self.total - self.done) / self.done if self.done else None


class Jobs:
    """`ended` is called with each job that has ended, however."""

    def __init__(self, store: Store, state: StateThread, ended: Callable[[Job], None]) -> None:
        self._store, self._state, self._ended = store, state, ended
        self._kinds: dict[str, Kind[Any]] = {}
        self._more = asyncio.Event()
        self._running: tuple[int, asyncio.Task[object]] | None = None
        self._changed: dict[int, asyncio.Event] = {}
        self.progress = Progress()
        for job in store.jobs():
            if job.state == RUNNING:
                store.set_job(job.id, state=QUEUED, started=None)

    def register(self, *kinds: Kind[Any]) -> None:
        """Before any is added or begun."""
        self._kinds |= {kind.name: kind for kind in kinds}

    def start(self, tasks: Tasks) -> asyncio.Task[None]:
        return tasks.start("jobs", self._work)

    async def add(self, kind: str, model: str, asked: object, actor: str) -> Job:
        """`asked` as the kind has it. Raises Conflict where the same is queued or runs."""
        told = _told(asked)

        def work() -> Job:
            for job in self._store.jobs():
                if job.state not in ENDED and (job.kind, job.model, job.asked) == (kind, model, told):
                    raise Conflict(f"job {job.id} does that already: llmctl jobs show {job.id}")
            return self._store.add_job(kind, model, told, actor)

        job = await self._state.run(work)
        self._more.set()
        return job

    async def all(self) -> list[Job]:
        return await self._state.run(self._store.jobs)

    async def show(self, number: int) -> Job:
        """Raises NotFound."""
        return await self._state.run(lambda: self._store.job(number))

    def runs(self, number: int) -> bool:
        return self._running is not None and self._running[0] == number

    async def cancel(self, number: int) -> Job:
        """Returns once nothing of it is left. Raises NotFound, Conflict where it has ended."""

        def work() -> Job:
            """One that waits is cancelled here: nobody begins it any more."""
            job = self._store.job(number)
            if job.state in ENDED:
                raise Conflict(f"job {number} is {job.state} already")
            return self._store.set_job(number, state=CANCELLED) if job.state == QUEUED else job

        job = await self._state.run(work)
        if job.state == CANCELLED:
            return await self._end(number, CANCELLED)
        if self._running and self._running[0] == number:
            self._running[1].cancel()
        await self.wait(number)
        return await self.show(number)

    async def wait(self, number: int, seconds: float | None = None) -> None:
        """Until it has ended, or so long. Raises NotFound."""
        changed = self._changed.setdefault(number, asyncio.Event())
        if (await self.show(number)).state in ENDED:
            self._changed.pop(number, None)
            return
        try:
            async with asyncio.timeout(seconds):
                await changed.wait()
        except TimeoutError:
            pass

    # --- the one that works

    async def _work(self) -> None:
        while True:
            self._more.clear()
            waiting = [job for job in await self.all() if job.state == QUEUED]
            if waiting:
                await self._do(waiting[0])
            else:
                await self._more.wait()

    async def _do(self, job: Job) -> None:
        def begin() -> Job:
            waits = self._store.job(job.id).state == QUEUED
            return self._store.set_job(job.id, state=RUNNING, started=time.time()) if waits else job

        self.progress = Progress()
        job = await self._state.run(begin)
        if job.state != RUNNING:
            return  # it was cancelled in the meantime
        task = asyncio.ensure_future(self._run(job))
        self._running = job.id, task
        log.info("job %d: %s %s", job.id, job.kind, job.model, extra={"model": job.model})
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError:  # the daemon stops: the next one begins it again
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            raise
        finally:
            self._running = None
        said = "\n".join(self.progress.lines)
        if task.cancelled():
            await self._end(job.id, CANCELLED, log=said)
        elif (error := task.exception()) is None:
            await self._end(job.id, DONE, result=_told(task.result()), log=said)
        else:
            why = error.message if isinstance(error, LlmdError) else "it failed; the daemon's log holds the cause"
            if not isinstance(error, LlmdError):
                log.error("job %d failed", job.id, exc_info=error)
            await self._end(job.id, FAILED, error=why, log=said)

    async def _run(self, job: Job) -> object:
        kind = self._kinds[job.kind]
        return await kind.run(job, msgspec.convert(job.asked, kind.asked), self.progress.tell)

    async def _end(self, number: int, state: str, **values: Any) -> Job:
        def work() -> Job:
            self._store.forget_jobs(MAX_ENDED)
            return self._store.set_job(number, state=state, ended=time.time(), **values)

        job = await self._state.run(work)
        if (changed := self._changed.pop(number, None)) is not None:
            changed.set()
        log.info("job %d is %s%s", number, state, f": {job.error}" if job.error else "", extra={"model": job.model})
        self._ended(job)
        return job


def _told(value: object) -> dict[str, Any]:
    """A dataclass as JSON has it, without what there is none of."""
    told: dict[str, Any] = msgspec.to_builtins(value)
    return {name: part for name, part in told.items() if part is not None}
