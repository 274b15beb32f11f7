"""A model that should serve, and its replicas, as the pool keeps them."""

import asyncio
import time
from collections.abc import Collection
from dataclasses import dataclass
from functools import lru_cache

from llmd.daemon.planning.plan import Wish
from llmd.daemon.replicas.lifecycle import QUARANTINED, Lifecycle
from llmd.daemon.replicas.residency import Residency
from llmd.daemon.replicas.rollout import Change, Seen, change
from llmd.daemon.replicas.routing import Candidate, Router
from llmd.daemon.replicas.worker import Worker
from llmd.daemon.state.records import type_of
from llmd.daemon.wire.control import Ready


@lru_cache(1024)
def _types(names: tuple[str, ...]) -> frozenset[str]:
    return frozenset(map(type_of, names))


@dataclass(frozen=True, slots=True)
class Capacity:
    """Of the processes that serve a model: their slots, and the sequences that clients have in them."""

    slots: int
    taken: int

    @property
    def ahead(self) -> int:
        """Sequences that may wait in them for the next slot, so that it is never empty until another one has come."""
        return max(1, self.slots // 8)


class Replica:
    """One of a deployment's places: a process at a time, as its `life` says. The pool alone changes it."""

    def __init__(self, number: int, life: Lifecycle) -> None:
        self.number, self.life = number, life
        self.worker: Worker | None = None
        self.drain_until = 0.0  # on the loop's clock
        self.stopped = 0  # the last run that was to end
        self.trial = False  # beside one that it replaces: given up where there is no room for both
        self.starved = False  # it waits for memory
        self.shrinks = False  # its next plan is smaller: it ran out of memory
        self.leaves = ""  # why it has to leave where it is; "": it has not

    @property
    def ready(self) -> bool:
        return self.life.state == "ready" and self.worker is not None and not self.worker.lost.is_set()

    @property
    def serving(self) -> tuple[Worker, Ready] | None:
        worker = self.worker
        return (worker, worker.info) if self.ready and worker and worker.info else None

    @property
    def reason(self) -> str:
        """Why it is not ready."""
        return "" if self.ready else self.life.reason


class Deployment:
    """What should serve (`wanted`; None: it goes), and whether it is loaded for that (`residency`). The pool alone
    changes it; `changed` is set, and replaced, whenever it has. `count`: how many replicas are wanted; `auto`: as many
    as there are GPUs that hold the model whole."""

    def __init__(self, model: str, digest: str) -> None:
        self.model, self.digest = model, digest
        self.wanted: Wish | None = None
        self.residency = Residency()
        self.count, self.auto = 1, False
        self.replicas: list[Replica] = []
        self.since = time.time()
        self.changed = asyncio.Event()
        self.crowded = False  # there was no room beside what serves
        self.grows = False  # whether there is a GPU for another replica is being found out
        self.over = False
        self.queued = 0  # sequences that wait for a slot, in no process yet
        self.numbers = 0  # of the last replica that was made
        self._router = Router()
        self._restarts = 0  # of replicas that are gone

    @property
    def state(self) -> str:
        """loading, ready, degraded (some replicas serve, another died), restarting, quarantined, replacing, stopping"""
        if self.wanted is None or not self.residency.loaded:
            return "stopping"
        stay = [one for one in self.replicas if one.life.wanted is not None]
        states = {one.life.state for one in stay}
        if "replacing" in states or any(not self._fits(one) for one in stay):
            return "replacing"
        if states & {"restarting", QUARANTINED}:
            return "degraded" if self.ready else "restarting" if "restarting" in states else QUARANTINED
        return "loading" if "loading" in states or self.grows or not stay else "ready"

    @property
    def reason(self) -> str:
        """Why it is not as it should be."""
        reasons = [why for one in self.replicas if one.life.wanted is not None and (why := one.leaves or one.reason)]
        return reasons[0] if reasons else ""

    @property
    def restarts(self) -> int:
        return self._restarts + sum(one.life.restarts for one in self.replicas)

    @property
    def ready(self) -> bool:
        """Requests are answered."""
        return any(one.ready for one in self.replicas)

    @property
    def worker(self) -> Worker | None:
        """The first that serves, else the first."""
        found = sorted(self.replicas, key=lambda one: (not one.ready, one.number))
        return found[0].worker if found else None

    @property
    def failed(self) -> str:
        """Why what is wanted could not be loaded; "" where it was, or still may be."""
        down = (one for one in self.replicas if one.life.state in ("restarting", QUARANTINED) and self._fits(one))
        return next((one.reason for one in down if not one.shrinks), "")

    @property
    def capacity(self) -> Capacity | None:
        """Of what serves; None: nothing does, or will soon."""
        slots = taken = 0
        for one in self.replicas:
            if found := one.serving:
                slots += found[1].slots
                taken += found[0].open_sequences - found[0].trials
        gone = self.residency.away or self.wanted is None
        return None if not slots and (gone or self.state == QUARANTINED) else Capacity(slots, taken)

    @property
    def idle(self) -> bool:
        """It serves, and nobody asks it anything."""
        return self.ready and not any(one.worker.open_sequences for one in self.replicas if one.worker)

    @property
    def forms(self) -> frozenset[str]:
        """The types of what serves; where nothing does, of what is to serve. One that has no name is ""."""
        serving = tuple(found[0].settings.form for one in self.replicas if (found := one.serving))
        return _types(serving or (self.wanted.form if self.wanted else "",))

    def choose(self, owner: str, prompt: bytes, forms: Collection[str] | None = None) -> tuple[Worker, Ready] | None:
        """The replica that answers a request of which this is the prompt, be it one of these forms of the model; None:
        none serves."""
        serving = {
            one.number: found
            for one in self.replicas
            if (found := one.serving) and (forms is None or type_of(found[0].settings.form) in forms)
        }
        if not serving:
            return None
        candidates = [Candidate(n, worker.open_sequences, info.slots) for n, (worker, info) in serving.items()]
        return serving[self._router.choose(candidates, owner, prompt)]

    def change(self) -> Change | None:
        """What is to be done next."""
        seen = [
            Seen(one.number, self._fits(one), one.ready, one.life.wanted is None,
                 one.worker.open_sequences if one.worker else 0)
            for one in self.replicas
        ]  # fmt: skip
        return change(self.wanted is not None and self.residency.loaded, self.count, seen, self.crowded)

    def told(self) -> None:
        """Whoever waits for a change sees one."""
        self.changed.set()
        self.changed = asyncio.Event()

    def add(self, life: Lifecycle) -> Replica:
        self.numbers += 1
        self.replicas.append(Replica(self.numbers, life))
        return self.replicas[-1]

    def remove(self, replica: Replica) -> None:
        self.replicas.remove(replica)
        self._restarts += replica.life.restarts

    def _fits(self, one: Replica) -> bool:
        return one.life.wanted == self.wanted and not one.leaves
