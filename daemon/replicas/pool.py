"""The deployed models: it carries out what `residency.py`, `rollout.py` and `lifecycle.py` decide, and tells them what
happens. The event loop owns it all, so there are no locks. One deployment never touches another.
"""

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from llmd.daemon.errors import Conflict, DoesNotFit, GpuLost, ModelNotFound, ModelNotReady, ShuttingDown, Unavailable
from llmd.daemon.gpus.faults import Action
from llmd.daemon.machine.groups import Groups
from llmd.daemon.machine.seats import Seats
from llmd.daemon.metrics import Metrics
from llmd.daemon.planning.plan import Wish
from llmd.daemon.planning.planner import Planner
from llmd.daemon.replicas import residency
from llmd.daemon.replicas.deployment import Capacity, Deployment, Replica
from llmd.daemon.replicas.lifecycle import (
    PAUSE_SECONDS,
    QUARANTINED,
    Asked,
    Drain,
    Due,
    Effect,
    Event,
    Lifecycle,
    Over,
    Pause,
    Quarantine,
    Start,
    Stop,
    Withdrawn,
)
from llmd.daemon.replicas.residency import Called, Deployed, Evicted, Load, Unload, Unloaded
from llmd.daemon.replicas.rollout import Add, Release, Replace
from llmd.daemon.replicas.runs import Runs
from llmd.daemon.replicas.worker import NO_GROUPS, Worker
from llmd.daemon.tasks import Tasks
from llmd.daemon.wire.control import Ready, Spent
from llmd.daemon.wire.work import GENERATE_SECONDS

log = logging.getLogger("llmd.pool")


class Pool:
    """Made once. `pause`: seconds before a replica that died starts again, the first time and at most.
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
        self.groups = groups
        self._metrics, self._tasks, self._pause, self._audit = metrics, tasks, pause, audit
        self._planner = planner or Planner()
        self._runs = Runs(self, self._planner, metrics, audit, groups, seats)
        self._deployed: dict[str, Deployment] = {}
        self._running: set[asyncio.Task[None]] = set()
        self._gpus: frozenset[str] = frozenset()
        self.told: Callable[[str], None] = lambda model: None  # of a model that has changed
        # of a model, on these GPUs, for whom
        self.spent: Callable[[str, Sequence[str], Sequence[Spent]], None] = lambda model, gpus, spent: None
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
        found.digest, found.wanted = digest, wish
        for replica in [one for one in found.replicas if one.life.state == QUARANTINED]:
            self._ask(found, replica)
        found.auto = replicas == 0
        found.count = replicas or (max(1, found.count) if found.residency.loaded else 1)
        self._stay(found, Deployed())
        self._settle(found)
        self.grow(found)
        return found

    def keep(self, model: str, digest: str, wish: Wish, replicas: int, why: str) -> None:
        """A model that is deployed and away: it made room for another one, as its clients are told."""
        found = self._deployed[model] = Deployment(model, digest)
        found.wanted, found.auto, found.count = wish, replicas == 0, max(1, replicas)
        self._stay(found, Evicted(why))

    async def undeploy(self, model: str, grace: float = 0.0) -> None:
        """Take a model out of service: no new requests, running ones have `grace` seconds. Returns when its processes
        are gone, or when it is deployed again. Raises ModelNotFound."""
        deployment = self._known(model)
        deployment.wanted = None
        self._unload(deployment, grace)
        while not deployment.over and deployment.wanted is None:
            await deployment.changed.wait()

    async def evict(self, model: str, why: str) -> None:
        """Take an idle model out of service for another one: it stays deployed. Returns when it is away, or when it is
        deployed again. Raises ModelNotFound, and Conflict for one that is not idle."""
        deployment = self.find(model)
        if not deployment.idle:
            raise Conflict(f"{model} is not idle any more; try again")
        self._stay(deployment, Evicted(why))
        while not deployment.over and not deployment.residency.away and not deployment.residency.loaded:
            await deployment.changed.wait()

    async def room(self, model: str, wish: Wish, replaced: Mapping[str, Wish], replicas: int) -> list[str]:
        """The idle models without which so many replicas of one fit; none: nothing would help. `replaced`: what goes as
        it comes."""
        idle = {d.model: d.wanted for d in self.all() if d.idle and d.wanted and d.model != model}
        search = residency.room({name: one.size for name, one in idle.items()})
        try:
            tried = next(search)
            while True:
                gone = {**replaced, **{name: idle[name] for name in tried}}
                tried = search.send(await self._fits(model, wish, gone, replicas))
        except StopIteration as e:
            found: list[str] = e.value
            return found

    async def _fits(self, model: str, wish: Wish, gone: Mapping[str, Wish], replicas: int) -> bool:
        with suppress(DoesNotFit, Unavailable):
            await self._planner.check(model, wish, gone, replicas)
            return True
        return False

    def find(self, model: str) -> Deployment:
        """Raises ModelNotFound, and ModelNotReady for one that made room for another one, which it does not name."""
        found = self._known(model)
        if found.residency.away:
            raise ModelNotReady(f"{model} made room for another model; an administrator can deploy it again")
        return found

    def _known(self, model: str) -> Deployment:
        found = self.known(model)
        if found is None:
            raise ModelNotFound.among("deployed model", [d.model for d in self.all()], param="model")
        return found

    def known(self, model: str) -> Deployment | None:
        """It, be it away; None for any other name."""
        return self._deployed.get(model)

    def all(self) -> list[Deployment]:
        """Those that are not away."""
        return [d for _, d in sorted(self._deployed.items()) if not d.residency.away]

    def away(self) -> list[Deployment]:
        """Those that made room for others."""
        return [d for _, d in sorted(self._deployed.items()) if d.residency.away]

    async def close(self, grace: float) -> None:
        """Refuse new requests, let running ones finish for `grace` seconds, end every worker."""
        self.draining = True
        with suppress(ModelNotFound):  # it was taken out of service meanwhile
            await asyncio.gather(*(self.undeploy(model, grace) for model in list(self._deployed)))
        await asyncio.gather(*self._running, return_exceptions=True)

    # --- requests

    def serves(
        self, model: str, owner: str = "", prompt: bytes = b"", forms: Collection[str] | None = None
    ) -> tuple[Worker, Ready]:
        """The worker that answers a client's request to a model, be it to some of its forms, and what it has loaded.
        Raises, in this order: ShuttingDown; ModelNotFound; none of these forms serves: ModelNotReady."""
        if self.draining:
            raise ShuttingDown("this server is stopping; try again soon", retry_after=5)
        deployment = self.find(model)
        found = deployment.choose(owner, prompt, forms)
        if found is None:
            why = f": {deployment.reason}" if deployment.reason else ""
            if deployment.state == QUARANTINED:
                raise ModelNotReady(
                    f"{model} is quarantined{why}; an administrator can deploy it again", retry_after=60
                )
            raise ModelNotReady(f"{model} is {deployment.state}{why}; try again soon", retry_after=2)
        return found

    def capacity(self, model: str) -> Capacity | None:
        """What serves it has; None: nothing does, or will soon, and `serves` says why."""
        found = self._deployed.get(model)
        return None if found is None or self.draining else found.capacity

    def spends(self, model: str, gpus: Sequence[str], spent: Sequence[Spent]) -> None:
        self.spent(model, gpus, spent)

    def waits(self, model: str, sequences: int) -> None:
        """So many wait for a slot, in no process yet."""
        if found := self._deployed.get(model):
            found.queued = sequences
            self._metrics.model(model).queued = sequences

    def comes(self, model: str) -> bool:
        """Whether a model serves nobody now, and is about to, with other settings or because it is asked for: a request
        may wait for that."""
        found = self._deployed.get(model)
        if found is None or found.wanted is None or found.ready or self.draining:
            return False
        coming = not found.residency.loaded or found.state == "loading"
        return found.state == "replacing" or (found.residency.comes and coming)

    async def called(self, model: str) -> None:
        """Until what `comes` has come, well or not."""
        while self.comes(model):
            deployment = self._deployed[model]
            changed = deployment.changed
            self._stay(deployment, Called())
            await changed.wait()

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

    # --- carrying out

    def _stay(self, d: Deployment, event: residency.Event) -> None:
        """An event to whether it is loaded, and what follows from it."""
        for effect in d.residency.on(event):
            match effect:
                case Load():
                    self._settle(d)
                case Unload():
                    self._unload(d, 0.0)

    def _unload(self, d: Deployment, grace: float) -> None:
        if not d.replicas:
            self._empty(d)
        for replica in list(d.replicas):
            self.tell(d, replica, Withdrawn(grace))

    def _empty(self, d: Deployment) -> None:
        """Its last process has gone."""
        d.over = d.wanted is None
        if d.over and self._deployed.get(d.model) is d:
            del self._deployed[d.model]
            self._planner.forget(d.model)
        self._stay(d, Unloaded())
        d.told()
        self.told(d.model)

    def tell(self, d: Deployment, r: Replica, event: Event) -> None:
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
                    self.tell(d, released, Withdrawn(GENERATE_SECONDS))
        if self._deployed.get(d.model, d) is d:  # a late pause of one that is over says nothing of its successor
            metrics = self._metrics.model(d.model)
            metrics.up(d.ready)
            metrics.quarantined(sum(one.life.state == QUARANTINED for one in d.replicas))
        d.told()
        self.told(d.model)

    def _ask(self, d: Deployment, r: Replica) -> None:
        assert d.wanted is not None
        anew, r.leaves = bool(r.leaves), ""
        self.tell(d, r, Asked(d.wanted, anew))

    def _do(self, d: Deployment, r: Replica, effect: Effect) -> None:
        loop = asyncio.get_running_loop()
        match effect:
            case Start(run, wish):
                r.worker = None
                self.start(f"replica of {d.model}", partial(self._runs.live, d, r, run, wish), vital=True)
            case Drain(run, grace):
                r.drain_until = loop.time() + grace
                self.start(f"drain {d.model}", partial(self._runs.drain, d, r, run), vital=True)
            case Stop(run):
                r.stopped = run  # it may have no process yet
                if r.worker:
                    self.cut += r.worker.open_sequences
                    r.worker.kill("the model was taken out of service")
            case Pause(run, seconds):
                self._metrics.model(d.model).restarts()
                about = {"model": d.model}
                log.error("%s: %s; starting it again in %.0f s", d.model, r.life.reason, seconds, extra=about)
                loop.call_later(seconds, self.tell, d, r, Due(run))
            case Quarantine(_, reason):
                log.critical("%s: %s; `llmctl deploy %s` tries it again", d.model, reason, d.model,
                             extra={"model": d.model})  # fmt: skip
                self._audit("model.quarantined", model=d.model, replica=r.number, reason=reason)
            case Over():
                d.remove(r)
                if not d.replicas:
                    self._empty(d)

    def start(self, name: str, work: Callable[[], Any], *, vital: bool = False) -> None:
        """Work in the background; `close` waits for it."""
        task = self._tasks.start(name, work, vital=vital)
        self._running.add(task)
        task.add_done_callback(self._running.discard)

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
                    self.tell(d, r, Due(r.life.run))
            self.grow(d)

    def grow(self, d: Deployment) -> None:
        """Where as many replicas are wanted as GPUs hold the model whole: another one, if there is a GPU for it."""
        if d.auto and d.wanted and d.state == "ready" and len(d.replicas) == d.count:
            d.grows = True
            self.start(f"another replica of {d.model}", partial(self._another, d, d.wanted))

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
