"""The deployed models and their workers. The event loop owns it all, so there are no locks.

A deployment is `loading`, then `ready`; when its worker dies it is `restarting` for 1, 2, 4 … 60 seconds and loads
again. It never touches another deployment.
"""

import asyncio
import logging
import time
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from llmd.daemon.engine.messages import Generate, Ready, SamplingParams, Settings, Tokens
from llmd.daemon.errors import LlmdError, ModelNotFound, ModelNotReady, ShuttingDown
from llmd.daemon.metrics import Metrics
from llmd.daemon.serving.worker import Worker
from llmd.daemon.tasks import Tasks

log = logging.getLogger("llmd.pool")

BACKOFF_SECONDS = (1.0, 60.0)
# a worker that lived this long starts again without a penalty for earlier deaths
HEALTHY_SECONDS = 60.0
# an idle model is asked for one token when its last is older
PROBE_AFTER = 30.0
PROBE_SECONDS = 10.0


@dataclass(slots=True, eq=False)
class Deployment:
    """One model that should serve. The pool alone changes it."""

    model: str
    digest: str
    settings: Settings
    state: str = "loading"  # loading, ready, restarting, stopping
    reason: str = ""  # why it is not ready
    restarts: int = 0
    worker: Worker | None = None
    task: asyncio.Task[None] | None = None
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    since: float = field(default_factory=time.time)  # Unix time of the deployment

    @property
    def ready(self) -> bool:
        return self.state == "ready" and self.worker is not None and not self.worker.lost.is_set()

    def become(self, state: str, reason: str = "") -> None:
        self.state, self.reason = state, reason
        self.changed.set()
        self.changed = asyncio.Event()


class Pool:
    """Made once, by `main`."""

    def __init__(self, metrics: Metrics, tasks: Tasks) -> None:
        self._metrics, self._tasks = metrics, tasks
        self._deployed: dict[str, Deployment] = {}
        self.draining = False

    # --- deployments

    def deploy(self, model: str, digest: str, settings: Settings) -> Deployment:
        """Start serving a model, in the background. A model that is deployed with the same settings is left alone."""
        old = self._deployed.get(model)
        if old and old.settings == settings:
            return old
        if old and old.task:
            old.task.cancel()
        made = self._deployed[model] = Deployment(model, digest, settings)
        made.task = self._tasks.start(f"supervise {model}", partial(self._supervise, made))
        return made

    async def undeploy(self, model: str, grace: float = 0.0) -> None:
        """Take a model out of service: no new requests, running ones have `grace` seconds. Raises ModelNotFound."""
        deployment = self.find(model)
        deployment.become("stopping")
        await self._until_idle([deployment], grace)
        if self._deployed.get(model) is deployment:
            del self._deployed[model]
        await _end(deployment)

    def find(self, model: str) -> Deployment:
        found = self._deployed.get(model)
        if found is None:
            names = ", ".join(sorted(self._deployed)) or "none"
            raise ModelNotFound(f"this model is not deployed here; deployed: {names}", param="model")
        return found

    def all(self) -> list[Deployment]:
        return sorted(self._deployed.values(), key=lambda d: d.model)

    async def close(self, grace: float) -> None:
        """Refuse new requests, let running ones finish for `grace` seconds, end every worker."""
        self.draining = True
        await self._until_idle(list(self._deployed.values()), grace)
        await asyncio.gather(*(_end(d) for d in self._deployed.values()))
        self._deployed.clear()

    async def _until_idle(self, deployments: list[Deployment], grace: float) -> None:
        deadline = asyncio.get_running_loop().time() + grace
        while any(d.worker and d.worker.open_sequences for d in deployments):
            if asyncio.get_running_loop().time() >= deadline:
                return
            await asyncio.sleep(0.05)

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
        stream = worker.open("", Generate(Tokens((1, 1)), params))
        try:
            while not stream.read_out:
                await stream.next()
        finally:
            stream.cancel()
        if stream.first is None:
            raise ModelNotReady("no token came")

    # --- supervision

    async def _supervise(self, d: Deployment) -> None:
        metrics = self._metrics.model(d.model)
        clock = asyncio.get_running_loop().time
        delay = BACKOFF_SECONDS[0]
        try:
            while True:
                d.worker = Worker(d.settings, metrics)
                began = clock()
                try:
                    await d.worker.start()
                    d.become("ready")
                    metrics.up(1)
                    log.info("%s is ready (worker %d, %.1f s)", d.model, d.worker.pid, clock() - began)
                    await d.worker.watch()
                    reason = d.worker.reason
                except LlmdError as e:
                    reason = e.message
                except OSError as e:
                    reason = f"its process could not be started: {e.strerror}"
                metrics.up(0)
                if d.state == "stopping":
                    return
                if clock() - began > HEALTHY_SECONDS:
                    delay = BACKOFF_SECONDS[0]
                d.restarts += 1
                metrics.restarts()
                d.become("restarting", reason)
                log.error("%s: %s; starting it again in %.0f s", d.model, reason, delay)
                await asyncio.sleep(delay)
                delay = min(2 * delay, BACKOFF_SECONDS[1])
        finally:
            metrics.up(0)
            if d.worker:
                await d.worker.stop()


async def _end(deployment: Deployment) -> None:
    deployment.become("stopping")
    if deployment.task:
        deployment.task.cancel()
        await asyncio.gather(deployment.task, return_exceptions=True)
