"""The deployed models: it carries out what `rollout.py` and `lifecycle.py` decide, and tells them what happens. The
event loop owns it all, so there are no locks. One deployment never touches another.
"""

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

from llmd.daemon.errors import (
    Conflict,
    DoesNotFit,
    GpuLost,
    GpuOutOfMemory,
    LlmdError,
    ModelNotFound,
    ModelNotReady,
    ShuttingDown,
    Unavailable,
    WorkerLost,
)
from llmd.daemon.gpus.faults import Action
from llmd.daemon.groups import Groups
from llmd.daemon.metrics import Metrics
from llmd.daemon.planning.plan import Wish
from llmd.daemon.planning.planner import Planner, check_file
from llmd.daemon.replicas import trials
from llmd.daemon.replicas.deployment import Deployment, Replica
from llmd.daemon.replicas.lifecycle import (
    PAUSE_SECONDS,
    QUARANTINED,
    Asked,
    Down,
    Drain,
    Drained,
    Due,
    Effect,
    Event,
    Lifecycle,
    Over,
    Pause,
    Quarantine,
    Start,
    Stop,
    Up,
    Withdrawn,
)
from llmd.daemon.replicas.rollout import Add, Release, Replace
from llmd.daemon.replicas.worker import NO_GROUPS, Worker
from llmd.daemon.seats import Seats
from llmd.daemon.tasks import Tasks
from llmd.daemon.wire.work import GENERATE_SECONDS
from llmd.daemon.wire.worker import Ready, Settings

log = logging.getLogger("llmd.pool")

FILL_PAUSE_SECONDS = 5.0
DRAIN_STEP_SECONDS = 0.05  # how often a replica that drains is looked at


class Pool:
    """Made once, by `main`. `pause`: seconds before a replica that died starts again, the first time and at most.
    `audit(kind, **fields)` writes a row to the audit log."""

    def __init__(
        self,
        metrics: Metrics,
        tasks: Tasks,
        planner: Planner | None = None,
        pause: tuple[float, float] = PAUSE_SECONDS,
        audit: Callable[..., None] = lambda kind, **fields: None,
        groups: Groups = NO_GROUPS,
        seats: Seats | None = None,
    ) -> None:
        self.groups, self._seats = groups, seats
        self._metrics, self._tasks, self._pause, self._audit = metrics, tasks, pause, audit
        self._planner = planner or Planner()
        self._deployed: dict[str, Deployment] = {}
        self._running: set[asyncio.Task[None]] = set()
        self.evicted: dict[str, str] = {}  # models that made room for others, and what is to be said of it
        self._gpus: frozenset[str] = frozenset()
        self.draining = False
        self.cut = 0  # running answers that were ended with their model

    # --- deployments

    def deploy(self, model: str, digest: str, wish: Wish, replicas: int = 1) -> Deployment:
        """Start serving a model, in the background, with so many replicas; 0: one on each GPU that holds it whole. One
        that serves with other settings goes on until the new one serves, or, where there is no room for both, until
        its requests have ended; new ones wait for its successor then. One that is asked for in the same way is left
        alone."""
        found = self._deployed.get(model)
        if found is None:
            found = self._deployed[model] = Deployment(model, digest)
        if found.wanted != wish:
            found.crowded = False
        self.evicted.pop(model, None)
        found.digest, found.wanted = digest, wish
        for replica in [one for one in found.replicas if one.life.state == QUARANTINED]:
            self._ask(found, replica)
        found.auto = replicas == 0
        found.count = replicas or max(1, found.count)
        self._settle(found)
        self._more(found)
        return found

    async def undeploy(self, model: str, grace: float = 0.0) -> None:
        """Take a model out of service: no new requests, running ones have `grace` seconds. Returns when its processes
        are gone, or when it is deployed again. Raises ModelNotFound."""
        deployment = self.find(model)
        deployment.wanted = None
        for replica in list(deployment.replicas):
            self._tell(deployment, replica, Withdrawn(grace))
        while not deployment.over and deployment.wanted is None:
            await deployment.changed.wait()

    async def evict(self, model: str, why: str) -> None:
        """Take an idle model out of service for another one. Raises ModelNotFound, and Conflict for one that is not."""
        if not self.find(model).idle:
            raise Conflict(f"{model} is not idle any more; try again")
        self.evicted[model] = why
        await self.undeploy(model)

    def find(self, model: str) -> Deployment:
        """Raises ModelNotFound, and ModelNotReady for one that made room for another one."""
        found = self._deployed.get(model)
        if found is None and model in self.evicted:
            raise ModelNotReady(f"{model} {self.evicted[model]}; an administrator can deploy it again")
        if found is None:
            raise ModelNotFound.among("deployed model", self._deployed, param="model")
        return found

    def knows(self, model: str) -> bool:
        return model in self._deployed or model in self.evicted

    def all(self) -> list[Deployment]:
        return sorted(self._deployed.values(), key=lambda d: d.model)

    async def close(self, grace: float) -> None:
        """Refuse new requests, let running ones finish for `grace` seconds, end every worker."""
        self.draining = True
        with suppress(ModelNotFound):  # it was taken out of service meanwhile
            await asyncio.gather(*(self.undeploy(model, grace) for model in list(self._deployed)))
        await asyncio.gather(*self._running, return_exceptions=True)

    # --- requests

    def serves(self, model: str, owner: str = "", prompt: bytes = b"", form: str | None = None) -> tuple[Worker, Ready]:
        """The worker that answers a client's request to a model or one form of it, and what it has loaded. Raises, in
        this order: ShuttingDown; not deployed or in another form: ModelNotFound; not ready: ModelNotReady."""
        if self.draining:
            raise ShuttingDown("this server is stopping; try again soon", retry_after=5)
        deployment = self.find(model)
        found = deployment.choose(owner, prompt, form)
        if found is None and deployment.ready:
            served = " and ".join(f"{model}@{kind}" for kind in deployment.forms)
            raise ModelNotFound(f"this form of {model} is not deployed; {served} is", param="model")
        if found is None:
            why = f": {deployment.reason}" if deployment.reason else ""
            if deployment.state == QUARANTINED:
                raise ModelNotReady(
                    f"{model} is quarantined{why}; an administrator can deploy it again", retry_after=60
                )
            raise ModelNotReady(f"{model} is {deployment.state}{why}; try again soon", retry_after=2)
        return found

    def replacing(self, model: str) -> bool:
        """Whether a model serves nobody now, and is about to with other settings: a request may wait for that."""
        found = self._deployed.get(model)
        return found is not None and found.state == "replacing" and not found.ready and not self.draining

    async def replaced(self, model: str) -> None:
        """Until `replacing` is over, well or not."""
        while self.replacing(model):
            await self._deployed[model].changed.wait()

    def digest(self, model: str) -> str:
        """The SHA-256 of a deployed model's file, "" for any other name."""
        found = self._deployed.get(model)
        return found.digest if found else ""

    def replan(self, d: Deployment, why: str) -> None:
        """Its replicas are replaced as with other settings."""
        d.crowded = False
        for r in d.replicas:
            r.leaves = why
        self._settle(d)

    # --- faults

    def fault(self, gpu: str, action: Action, reason: str) -> None:
        """What a GPU's fault asks for, of the replicas on it: end them, they are started again elsewhere or there; or
        move them, with what they still answer."""
        for d in list(self._deployed.values()):
            for r in list(d.replicas):
                worker = r.worker
                if worker is None or gpu not in worker.settings.gpus or worker.lost.is_set():
                    continue
                if action == Action.REMOVE:
                    worker.kill(f"GPU {gpu}: {reason}", GpuLost)
                elif action == Action.RESTART:
                    worker.kill(f"GPU {gpu}: {reason}")
                elif action == Action.DRAIN and r.life.wanted is not None:
                    r.leaves, d.crowded = f"GPU {gpu}: {reason}", False
                    self._settle(d)

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

    # --- carrying out

    def _tell(self, d: Deployment, r: Replica, event: Event) -> None:
        """An event to a replica's life, and what follows from it."""
        for effect in r.life.on(event):
            self._do(d, r, effect)
        self._settle(d)

    def _settle(self, d: Deployment) -> None:
        """Whatever the rollout asks for now."""
        while change := d.change():
            match change:
                case Add(beside):
                    # no answer takes longer: nothing is cut
                    added = d.add(Lifecycle(redeploy_grace=GENERATE_SECONDS, pause=self._pause))
                    added.trial = beside
                    self._ask(d, added)
                case Replace(number):
                    self._ask(d, next(one for one in d.replicas if one.number == number))
                case Release(number):
                    released = next(one for one in d.replicas if one.number == number)
                    self._tell(d, released, Withdrawn(GENERATE_SECONDS))
        if self._deployed.get(d.model, d) is d:  # a late pause of one that is over says nothing of its successor
            metrics = self._metrics.model(d.model)
            metrics.up(d.ready)
            metrics.quarantined(sum(one.life.state == QUARANTINED for one in d.replicas))
        d.changed.set()
        d.changed = asyncio.Event()

    def _ask(self, d: Deployment, r: Replica) -> None:
        assert d.wanted is not None
        anew, r.leaves = bool(r.leaves), ""
        self._tell(d, r, Asked(d.wanted, anew))

    def _do(self, d: Deployment, r: Replica, effect: Effect) -> None:
        loop = asyncio.get_running_loop()
        match effect:
            case Start(run, wish):
                r.worker = None
                self._run(f"replica of {d.model}", partial(self._live, d, r, run, wish), vital=True)
            case Drain(run, grace):
                r.drain_until = loop.time() + grace
                self._run(f"drain {d.model}", partial(self._drain, d, r, run), vital=True)
            case Stop(run):
                r.stopped = run  # it may have no process yet
                if r.worker:
                    self.cut += r.worker.open_sequences
                    r.worker.kill("the model was taken out of service")
            case Pause(run, seconds):
                self._metrics.model(d.model).restarts()
                about = {"model": d.model}
                log.error("%s: %s; starting it again in %.0f s", d.model, r.life.reason, seconds, extra=about)
                loop.call_later(seconds, self._tell, d, r, Due(run))
            case Quarantine(_, reason):
                log.critical("%s: %s; `llmctl deploy %s` tries it again", d.model, reason, d.model,
                             extra={"model": d.model})  # fmt: skip
                self._audit("model.quarantined", model=d.model, replica=r.number, reason=reason)
            case Over():
                d.remove(r)
                d.over = d.wanted is None and not d.replicas
                if d.over:
                    self._deployed.pop(d.model, None)
                    self._planner.forget(d.model)

    def _run(self, name: str, work: Callable[[], Any], *, vital: bool = False) -> None:
        task = self._tasks.start(name, work, vital=vital)
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _live(self, d: Deployment, r: Replica, run: int, wish: Wish) -> None:
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
            r.worker = worker = Worker(settings, metrics, self._planner.lost, self.groups, self._seats)
            self._planner.started(lease, lambda: worker.pid if worker else 0)
            await worker.start()
            self._planner.ready(lease)
            r.trial = r.shrinks = False
            log.info("%s is ready (worker %d, %.1f s)", d.model, worker.pid, clock() - began, extra={"model": d.model})
            self._audit("model.ready", model=d.model, replica=r.number, **_chosen(settings))
            self._tell(d, r, Up(run))
            self._more(d)
            self._run(f"measure {d.model}", partial(self._measure, d, r, worker))
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
            self._tell(d, r, Down(run, reason, clock() - began, crashed))
            if worker:
                self.feed()

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
            self._tell(d, r, Withdrawn(0.0))
        elif r.trial:
            log.info("%s: no room beside what serves: %s", d.model, error.message, extra={"model": d.model})
            d.crowded, r.trial = True, False
            self._tell(d, r, Withdrawn(0.0))

    def see(self, gpus: frozenset[str]) -> None:
        """The GPUs that can be used now; models may wait for one that could not before."""
        if gpus - self._gpus:
            self.feed()
        self._gpus = gpus

    def feed(self) -> None:
        """There may be more memory than before: who waits for some is planned again at once."""
        for d in list(self._deployed.values()):
            for r in d.replicas:
                if r.starved and r.life.state == "restarting":
                    self._tell(d, r, Due(r.life.run))
            self._more(d)

    def _more(self, d: Deployment) -> None:
        """Where as many replicas are wanted as GPUs hold the model whole: another one, if there is a GPU for it."""
        if d.auto and d.wanted and d.state == "ready" and len(d.replicas) == d.count:
            d.grows = True
            self._run(f"another replica of {d.model}", partial(self._another, d, d.wanted))

    async def _another(self, d: Deployment, wish: Wish) -> None:
        try:
            room = await self._planner.another(d.model, wish)
        finally:
            d.grows = False
        if d.auto and not self._planner.on_gpus(d.model):
            d.count = 1
        if room and d.auto and d.wanted == wish and d.state == "ready" and len(d.replicas) == d.count:
            d.count += 1
        self._settle(d)

    async def _drain(self, d: Deployment, r: Replica, run: int) -> None:
        worker, clock = r.worker, asyncio.get_running_loop().time
        while worker and worker.open_sequences and clock() < r.drain_until:
            await asyncio.sleep(DRAIN_STEP_SECONDS)
        self._tell(d, r, Drained(run))


def _chosen(s: Settings) -> dict[str, str | int]:
    """What a replica serves with, for the audit log."""
    on = {"gpus": ",".join(s.gpus), "split": s.split, "kv": s.kv_type}
    return {**on, "form": s.form, "context": s.context, "slots": s.slots}
