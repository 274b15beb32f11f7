"""The deployed models: it carries out what `lifecycle.py` decides, and tells it what happens. The event loop owns it
all, so there are no locks. One deployment never touches another.
"""

import asyncio
import logging
import time
from contextlib import suppress
from functools import partial
from typing import Any

from llmd.daemon import limits
from llmd.daemon.engine.messages import Generate, Ready, SamplingParams, Tokens
from llmd.daemon.errors import LlmdError, ModelNotFound, ModelNotReady, ShuttingDown
from llmd.daemon.metrics import Metrics
from llmd.daemon.serving.lifecycle import (
    PAUSE_SECONDS,
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
    Start,
    Stop,
    Up,
    Withdrawn,
)
from llmd.daemon.serving.plan import Wish
from llmd.daemon.serving.planner import Planner
from llmd.daemon.serving.worker import Worker
from llmd.daemon.tasks import Tasks

log = logging.getLogger("llmd.pool")

# an idle model is asked for one token when its last is older
PROBE_AFTER = 30.0
PROBE_SECONDS = 10.0
# how often a replica that drains is looked at
DRAIN_STEP_SECONDS = 0.05


class Deployment:
    """One model that should serve. The pool alone changes it; `changed` is set, and replaced, whenever it has."""

    def __init__(self, model: str, digest: str, life: Lifecycle) -> None:
        self.model, self.digest, self.life = model, digest, life
        self.since = time.time()
        self.worker: Worker | None = None
        self.changed = asyncio.Event()
        self.drain_until = 0.0  # on the loop's clock
        self.stopped = 0  # the last replica that was to end

    @property
    def state(self) -> str:
        """loading, ready, restarting, replacing, stopping"""
        return self.life.state

    @property
    def reason(self) -> str:
        """Why it is not ready."""
        return self.life.reason

    @property
    def restarts(self) -> int:
        return self.life.restarts

    @property
    def ready(self) -> bool:
        return self.state == "ready" and self.worker is not None and not self.worker.lost.is_set()


class Pool:
    """Made once, by `main`. `pause`: seconds before a replica that died starts again, the first time and at most."""

    def __init__(
        self,
        metrics: Metrics,
        tasks: Tasks,
        planner: Planner | None = None,
        pause: tuple[float, float] = PAUSE_SECONDS,
    ) -> None:
        self._metrics, self._tasks, self._pause = metrics, tasks, pause
        self._planner = planner or Planner()
        self._deployed: dict[str, Deployment] = {}
        self._running: set[asyncio.Task[None]] = set()
        self.draining = False
        self.cut = 0  # running answers that were ended with their model

    # --- deployments

    def deploy(self, model: str, digest: str, wish: Wish) -> Deployment:
        """Start serving a model, in the background. One that serves with other settings goes on until its requests have
        ended; new ones wait for its successor meanwhile. One that is asked for in the same way is left alone."""
        found = self._deployed.get(model)
        if found is None:
            # no answer takes longer: nothing is cut
            life = Lifecycle(redeploy_grace=limits.GENERATE_SECONDS, pause=self._pause)
            found = self._deployed[model] = Deployment(model, digest, life)
        found.digest = digest
        self._tell(found, Asked(wish))
        return found

    async def undeploy(self, model: str, grace: float = 0.0) -> None:
        """Take a model out of service: no new requests, running ones have `grace` seconds. Returns when its process is
        gone, or when it is deployed again. Raises ModelNotFound."""
        deployment = self.find(model)
        self._tell(deployment, Withdrawn(grace))
        while not deployment.life.over and deployment.life.wanted is None:
            await deployment.changed.wait()

    def find(self, model: str) -> Deployment:
        found = self._deployed.get(model)
        if found is None:
            raise ModelNotFound.among("deployed model", self._deployed, param="model")
        return found

    def all(self) -> list[Deployment]:
        return sorted(self._deployed.values(), key=lambda d: d.model)

    async def close(self, grace: float) -> None:
        """Refuse new requests, let running ones finish for `grace` seconds, end every worker."""
        self.draining = True
        with suppress(ModelNotFound):  # it was taken out of service meanwhile
            await asyncio.gather(*(self.undeploy(model, grace) for model in list(self._deployed)))
        await asyncio.gather(*self._running, return_exceptions=True)

    # --- requests

    def serves(self, model: str) -> tuple[Worker, Ready]:
        """The worker that answers for a model, and what it has loaded. Raises, in this order:

        1. the daemon stops: ShuttingDown; 2. not deployed: ModelNotFound; 3. not ready: ModelNotReady.
        """
        if self.draining:
            raise ShuttingDown("this server is stopping; try again soon", retry_after=5)
        deployment = self.find(model)
        worker = deployment.worker
        if not deployment.ready or worker is None or worker.info is None:
            why = f": {deployment.reason}" if deployment.reason else ""
            raise ModelNotReady(f"{model} is {deployment.state}{why}; try again soon", retry_after=2)
        return worker, worker.info

    def replacing(self, model: str) -> bool:
        """Whether a model is about to serve with other settings: a request may wait for that."""
        found = self._deployed.get(model)
        return found is not None and found.state == "replacing" and not self.draining

    async def replaced(self, model: str) -> None:
        """Until `replacing` is over, well or not."""
        while self.replacing(model):
            await self._deployed[model].changed.wait()

    def digest(self, model: str) -> str:
        """The SHA-256 of a deployed model's file, "" for any other name."""
        found = self._deployed.get(model)
        return found.digest if found else ""

    # --- health

    async def health(self, model: str) -> dict[str, Any]:
        """Whether a model answers, through its worker: `ready`, and why not. An idle one is asked for a token."""
        deployment = self.find(model)
        worker = deployment.worker
        if not deployment.ready or worker is None:
            return {"model": model, "ready": False, "state": deployment.state, "reason": deployment.reason}
        state = {"model": model, "state": "ready", "beat_age": round(worker.beat_age, 3)}
        age = worker.token_age + worker.beat_age
        if age > PROBE_AFTER:
            try:
                async with asyncio.timeout(PROBE_SECONDS):
                    await self._probe(worker)
            except (TimeoutError, LlmdError):
                return {**state, "ready": False, "reason": "it does not answer a request for one token"}
            age = 0.0
        return {**state, "ready": True, "token_age": round(age, 3)}

    async def _probe(self, worker: Worker) -> None:
        params = SamplingParams(max_tokens=1, temperature=0.0, ignore_eos=True)
        stream = worker.open("", Generate((Tokens((1, 1)),), params))
        try:
            while not stream.read_out:
                await stream.next()
        finally:
            stream.cancel()
        if stream.first is None:
            raise ModelNotReady("no token came")

    # --- carrying out

    def _tell(self, d: Deployment, event: Event) -> None:
        """An event to the lifecycle, and what follows from it."""
        for effect in d.life.on(event):
            self._do(d, effect)
        if self._deployed.get(d.model, d) is d:  # a late pause of one that is over says nothing of its successor
            self._metrics.model(d.model).up(d.ready)
        d.changed.set()
        d.changed = asyncio.Event()

    def _do(self, d: Deployment, effect: Effect) -> None:
        loop = asyncio.get_running_loop()
        match effect:
            case Start(replica, wish):
                d.worker = None
                self._run(f"replica of {d.model}", partial(self._live, d, replica, wish))
            case Drain(replica, grace):
                d.drain_until = loop.time() + grace
                self._run(f"drain {d.model}", partial(self._drain, d, replica))
            case Stop(replica):
                d.stopped = replica  # it may have no process yet
                if d.worker:
                    self.cut += d.worker.open_sequences
                    d.worker.kill("the model was taken out of service")
            case Pause(replica, seconds):
                self._metrics.model(d.model).restarts()
                log.error("%s: %s; starting it again in %.0f s", d.model, d.life.reason, seconds)
                loop.call_later(seconds, self._tell, d, Due(replica))
            case Over():
                self._deployed.pop(d.model, None)

    def _run(self, name: str, work: partial[Any]) -> None:
        task = self._tasks.start(name, work)
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _live(self, d: Deployment, replica: int, wish: Wish) -> None:
        """One process from its start to its end: Up once it is ready, Down whatever happens."""
        clock, worker = asyncio.get_running_loop().time, None
        began, reason = clock(), "it could not be watched"
        try:
            settings = await self._planner.settings(d.model, wish)
            if d.stopped == replica:
                raise ModelNotReady("the model was taken out of service")
            d.worker = worker = Worker(settings, self._metrics.model(d.model))
            await worker.start()
            self._planner.ready(d.model)
            log.info("%s is ready (worker %d, %.1f s)", d.model, worker.pid, clock() - began)
            self._tell(d, Up(replica))
            await worker.watch()
            reason = worker.reason
        except LlmdError as e:
            reason = e.message
        except OSError as e:
            reason = f"its process could not be started: {e.strerror}"
        finally:
            if worker:
                await worker.stop()
            self._planner.ended(d.model)
            self._tell(d, Down(replica, reason, clock() - began))

    async def _drain(self, d: Deployment, replica: int) -> None:
        worker, clock = d.worker, asyncio.get_running_loop().time
        while worker and worker.open_sequences and clock() < d.drain_until:
            await asyncio.sleep(DRAIN_STEP_SECONDS)
        self._tell(d, Drained(replica))
