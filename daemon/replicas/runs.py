"""A replica's runs: one process each, from its start to its end. It asks the planner, starts and watches the worker,
and tells the pool what happens."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Protocol

from llmd.daemon.errors import DoesNotFit, GpuOutOfMemory, LlmdError, ModelNotReady, Unavailable, WorkerLost
from llmd.daemon.machine.groups import Groups
from llmd.daemon.machine.seats import Seats
from llmd.daemon.metrics import Metrics
from llmd.daemon.planning.plan import Wish
from llmd.daemon.planning.planner import Planner, check_file
from llmd.daemon.replicas import trials
from llmd.daemon.replicas.deployment import Deployment, Replica
from llmd.daemon.replicas.lifecycle import Down, Drained, Event, Up, Withdrawn
from llmd.daemon.replicas.worker import Worker
from llmd.daemon.wire.control import Settings, Spent

log = logging.getLogger("llmd.pool")

FILL_PAUSE_SECONDS = 5.0
DRAIN_STEP_SECONDS = 0.05  # how often a replica that drains is looked at


class Told(Protocol):
    """The pool."""

    def tell(self, d: Deployment, r: Replica, event: Event) -> None:
        """What happened in a replica's life."""
        ...

    def grow(self, d: Deployment) -> None:
        """It serves: there may be room for another replica."""
        ...

    def spends(self, model: str, gpus: Sequence[str], spent: Sequence[Spent]) -> None:
        """Its worker has computed."""
        ...

    def feed(self) -> None:
        """There may be more memory than before."""
        ...

    def start(self, name: str, work: Callable[[], Any]) -> None:
        """Work in the background."""
        ...


class Runs:
    """Made once, by the pool."""

    def __init__(
        self,
        pool: Told,
        planner: Planner,
        metrics: Metrics,
        audit: Callable[..., None],
        groups: Groups,
        seats: Seats | None,
    ) -> None:
        self._pool, self._planner, self._metrics, self._audit = pool, planner, metrics, audit
        self._groups, self._seats = groups, seats

    async def live(self, d: Deployment, r: Replica, run: int, wish: Wish) -> None:
        """One process from its start to its end: Up once it is ready, Down whatever happens."""
        clock, worker = asyncio.get_running_loop().time, None
        began, reason, lease = clock(), "it could not be watched", (d.model, r.number)
        try:
            settings = await self._planner.settings(lease, wish, beside=r.trial)
            r.starved = False
            await asyncio.to_thread(check_file, wish, settings.path, d.digest)
            if r.stopped == run:
                raise ModelNotReady("the model was taken out of service")
            metrics = self._metrics.model(d.model)
            spent = partial(self._pool.spends, d.model)
            r.worker = worker = Worker(settings, metrics, self._planner.lost, self._groups, self._seats, spent)
            self._planner.started(lease, lambda: worker.pid if worker else 0)
            await worker.start()
            self._planner.ready(lease)
            r.trial = r.shrinks = False
            log.info("%s is ready (worker %d, %.1f s)", d.model, worker.pid, clock() - began, extra={"model": d.model})
            self._audit("model.ready", model=d.model, replica=r.number, **_chosen(settings))
            self._pool.tell(d, r, Up(run))
            self._pool.grow(d)
            self._pool.start(f"measure {d.model}", partial(self._measure, d, r, worker))
            await worker.watch()
            reason = worker.reason
        except LlmdError as e:
            reason = e.message
            self._starve(d, r, e, started=worker is not None)
        except OSError as e:
            reason = f"its process could not be started: {e.strerror}"
        finally:
            if worker:
                self._lost(d, r, worker, reason)
                await worker.stop()
            self._planner.ended(lease)
            crashed = clock() if worker and worker.crashed else None
            self._pool.tell(d, r, Down(run, reason, clock() - began, crashed))
            if worker:
                self._pool.feed()

    async def drain(self, d: Deployment, r: Replica, run: int) -> None:
        """Until its requests have ended, or their time has."""
        worker, clock = r.worker, asyncio.get_running_loop().time
        while worker and worker.open_sequences and clock() < r.drain_until:
            await asyncio.sleep(DRAIN_STEP_SECONDS)
        self._pool.tell(d, r, Drained(run))

    async def _measure(self, d: Deployment, r: Replica, worker: Worker) -> None:
        """Correct its lease to what NVML says. Quantized keys and values are unpacked as they are read: so once more
        with a full slot, when nobody asks for anything."""
        if not worker.settings.gpus:
            return
        lease = (d.model, r.number)
        await self._planner.measure(lease)
        while worker.settings.kv_type != "f16" and r.ready and r.worker is worker:
            if not worker.open_sequences and await trials.fill(worker, lambda: r.ready):
                return await self._planner.measure(lease)
            with suppress(TimeoutError):
                await asyncio.wait_for(worker.lost.wait(), FILL_PAUSE_SECONDS)

    def _starve(self, d: Deployment, r: Replica, error: LlmdError, *, started: bool) -> None:
        """There is no room for a replica. One that was tried beside others, or added because there seemed to be a GPU
        for it, is given up."""
        r.starved = not started and isinstance(error, DoesNotFit | Unavailable)
        if not r.starved or r.stopped:
            return
        if d.auto and d.count > 1 and d.ready and not r.trial:
            d.count -= 1
            self._pool.tell(d, r, Withdrawn(0.0))
        elif r.trial:
            log.info("%s: no room beside what serves: %s", d.model, error.message, extra={"model": d.model})
            d.crowded, r.trial = True, False
            self._pool.tell(d, r, Withdrawn(0.0))

    def _lost(self, d: Deployment, r: Replica, worker: Worker, reason: str) -> None:
        """A process has ended that was to go on: the audit log has it, and after an out-of-memory the next plan is
        smaller."""
        if r.stopped == r.life.run or (worker.info is None and worker.cause is WorkerLost):
            return
        more = {}
        if worker.cause is GpuOutOfMemory:
            more["ran_with"], r.shrinks = self._planner.smaller((d.model, r.number))
            log.warning("%s: out of memory with %s%s", d.model, more["ran_with"],
                        "; the next plan is smaller" if r.shrinks else "")  # fmt: skip
        gpus = ",".join(worker.settings.gpus)
        self._audit("worker.lost", model=d.model, code=worker.cause.code, reason=reason, gpus=gpus, **more)


def _chosen(s: Settings) -> dict[str, str | int]:
    """What a replica serves with, for the audit log."""
    on = {"gpus": ",".join(s.gpus), "split": s.split, "kv": s.kv_type}
    return {**on, "form": s.form, "context": s.context, "slots": s.slots}
