"""The deployments, as an admin's commands make and end them. Every change is an act in the audit log."""

import asyncio
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from llmd.daemon.admin.fitting import PLAIN, Deploying, Fitting
from llmd.daemon.admin.forms import Bringing, Forms
from llmd.daemon.admin.shown import deployed, made_room
from llmd.daemon.audit.acts import Acts
from llmd.daemon.config import InUse
from llmd.daemon.errors import Conflict, DoesNotFit, LlmdError, ModelNotReady, NotFound, Unavailable
from llmd.daemon.jobs.queue import Tell
from llmd.daemon.models.files import ModelStore
from llmd.daemon.models.making import Making
from llmd.daemon.planning.plan import Placement, Wish
from llmd.daemon.planning.planner import Planner
from llmd.daemon.replicas.deployment import Deployment
from llmd.daemon.replicas.pool import Pool
from llmd.daemon.state.records import Job, Model, of_form
from llmd.daemon.state.store import StateThread, Store

log = logging.getLogger("llmd.admin")

# a job that deploys has this share more to do than what it makes, and waits so long: the next job waits for it
BEHIND, LOAD_SECONDS = 1.1, 7200.0


@dataclass(frozen=True, slots=True)
class Serves:
    """What came of a job that deploys: the form that was made, MODEL@TYPE, and what it serves with (`chosen`)."""

    model: str
    form: str | None
    serves: dict[str, Any]


@dataclass(slots=True)
class Deployments:
    """Made once, by the composition."""

    current: InUse
    pool: Pool
    planner: Planner
    acts: Acts
    store: Store
    state: StateThread
    models: ModelStore
    fitting: Fitting
    forms: Forms

    async def plan(self, name: str, asked: Deploying) -> dict[str, Any]:
        """Where a model would go as things are now. Raises ModelNotFound, BadRequest, DoesNotFit, Unavailable."""
        name, asked = self._named(name, asked)
        wish = await self.state.run(lambda: self.fitting.whole(self.models.show(name), asked))
        return {"model": name, **await self.planner.explain(name, wish)}

    def restore(self) -> None:
        """Start every model that should serve."""
        for wanted in self.store.deployments():
            model = self.store.model(wanted.model)
            placement = Placement.of(wanted.placement)
            try:
                wish = self.fitting.wish(model, Deploying(wanted.ctx, wanted.slots, placement))
            except LlmdError as e:
                log.error("%s is not started: %s; deploy it again", model.name, e.message, extra={"model": model.name})
                continue
            if gone := wanted.evicted:
                why = made_room(gone["for"], gone["at"])
                self.pool.keep(model.name, model.digest, wish, wanted.replicas, why)
            else:
                self.pool.deploy(model.name, model.digest, wish, wanted.replicas)

    async def deploy(self, name: str, actor: str, asked: Deploying = PLAIN) -> tuple[Deployment, bool]:
        """Serve a model; the workers start in the background. Tells too whether it was deployed before. Raises
        ModelNotFound, BadRequest, DoesNotFit, and Unavailable where memory does not hold it."""
        name, asked = self._named(name, asked)
        ctx, slots, placement, replicas = asked.ctx, asked.slots, asked.placement, asked.replicas
        asked.check()

        def work() -> tuple[Model, Wish, bool]:
            model = self.models.show(name)
            wish = self.fitting.whole(model, asked)
            before = any(d.model == name for d in self.store.deployments())
            return model, wish, before

        put = {**placement.to_dict(), "gpus": ",".join(placement.gpus) or None, "replicas": replicas or "auto"}
        async with self.acts("admin.deploy", actor, model=name, ctx=ctx, slots=slots, **put) as result:
            model, wish, before = await self.state.run(work)
            result["digest"] = model.digest
            if gone := await self._make_room(name, wish, asked, actor):
                result["evicted"] = ",".join(gone)
            await self.state.run(lambda: self.store.set_deployment(name, ctx, slots, placement.to_dict(), replicas))
            deployment = self.pool.deploy(name, model.digest, wish, replicas)
            if deployment.state == "ready" and await self.planner.better(name, wish):
                self.pool.replan(deployment, "there is room for more now: it is planned anew")
            return deployment, before

    async def _make_room(self, name: str, wish: Wish, asked: Deploying, actor: str) -> list[str]:
        """The idle models that were taken out of service for it. Raises DoesNotFit, Unavailable."""
        replaced = {d.model: d.wanted for d in self.pool.all() if d.model == name and d.ready and d.wanted}
        try:
            await self.planner.check(name, wish, replaced, asked.replicas)
        except (DoesNotFit, Unavailable) as e:
            gone = await self.pool.room(name, wish, replaced, asked.replicas)
            if gone and not (self.current.now.evict if asked.evict is None else asked.evict):
                raise type(e)(f"{e.message}. It fits without what is idle now (--evict): {', '.join(gone)}") from e
            if not gone:
                raise
            for other in gone:
                await self._evict(other, name, actor)
            return gone
        return []

    async def _evict(self, name: str, other: str, actor: str) -> None:
        """An idle model makes room for another one. Raises Conflict where somebody asks it something meanwhile."""
        async with self.acts("admin.evict", actor, model=name, made_room_for=other):
            at = await self.state.run(lambda: self.store.set_evicted(name, other))
            try:
                await self.pool.evict(name, made_room(other, at))
            except BaseException:
                await self.state.run(lambda: self.store.clear_evicted(name))
                raise

    async def until_ready(self, deployment: Deployment, actor: str, *, keep: bool) -> AsyncIterator[dict[str, Any]]:
        """Its `state` whenever that changes, until it is ready. One that cannot be loaded is taken back, unless
        something of it serves or it was there before (`keep`). Raises ModelNotReady, and Conflict where somebody else
        deploys it anew."""
        wish = deployment.wanted
        said: dict[str, Any] = {}
        while True:
            changed, now = deployment.changed, {"state": deployment.state, "reason": deployment.reason}
            if deployment.state == "ready":
                now |= self._chosen(deployment)
            if now != said:
                said = now
                yield {"model": deployment.model, **now}
            if changed.is_set():
                continue  # it went on while whoever listens was busy
            if deployment.wanted is None:
                raise ModelNotReady(f"{deployment.model} was taken out of service")
            if deployment.wanted != wish:
                raise Conflict(f"{deployment.model} was deployed again with other settings; see `llmctl status`")
            if deployment.state == "ready":
                await self._served(deployment.model)
                return
            if reason := deployment.failed:
                serves = deployment.ready
                if not keep and not serves:
                    await self._withdraw(deployment, actor)
                raise ModelNotReady(
                    f"{deployment.model} could not be loaded{', what serves goes on' if serves else ''}: {reason}. "
                    f"`llmctl model verify {deployment.model}` says whether its file is as it was imported"
                )
            await changed.wait()

    async def bring(self, job: Job, asked: Bringing, tell: Tell) -> Serves:
        """What a job of kind `deploy` does: what is missing of the model is made, and it serves. One that was cut off
        goes on with what is there."""
        name, type_, importer, maker = job.model, asked.type, self.forms.importer, self.forms.maker
        whole = int(asked.bytes * BEHIND)

        def behind(done: int, total: int, line: str) -> None:
            nonlocal whole
            whole = int(total * BEHIND) or whole
            tell(done, int(total * BEHIND), line)

        if asked.folder and not await importer.held(asked.folder.path, name):
            await importer.make(name, asked.folder, behind)
        elif type_ and type_ not in {form.type for form in await self.state.run(lambda: self.models.forms(name))}:
            model = await self.state.run(lambda: self.models.show(name))
            await maker.make(name, Making(type_, asked.bytes, model.digest, asked.again), behind)
        tell(0, 0, "deploying it")
        deployment, before = await self.deploy(name, job.actor, asked.deploying)
        last: dict[str, Any] = {}
        try:
            async with asyncio.timeout(LOAD_SECONDS):
                async for last in self.until_ready(deployment, job.actor, keep=before):
                    tell(0, 0, f"{name}: {last['state']}")
        except TimeoutError as e:
            raise ModelNotReady(f"{name} is deployed, and not ready yet: {deployment.reason}; llmctl status") from e
        tell(whole, whole, "")
        return Serves(name, f"{name}@{type_}" if type_ else None, last)

    def _chosen(self, deployment: Deployment) -> dict[str, Any]:
        """What a model serves with that is ready."""
        told = deployed(deployment, self.planner.note)
        names = ("context", "slots", "gpus", "split", "kv", "replicas")
        return {name: told[name] for name in names if name in told}

    async def _served(self, name: str) -> None:
        """A model that was too large to be tried at its import has been tried now."""

        def work() -> None:
            model = self.store.model(name)
            if model.info.tried is False:
                self.store.set_info(name, model.info.but(tried=True))

        await self.state.run(work)

    async def undeploy(self, name: str, actor: str) -> None:
        """Running requests may finish first. Raises ModelNotFound, and NotFound for a form that does not serve."""
        pool, (name, kind) = self.pool, of_form(name)
        if name not in (d.model for d in pool.away()):
            pool.find(name)
            if kind and f"{name}@{kind}" not in (used := self.forms.used(name)):
                raise NotFound.among(f"deployed form of {name}", used, param="model")
        async with self.acts("admin.undeploy", actor, takes_away=True, model=name):
            await self.state.run(lambda: self.store.remove_deployment(name))
            await pool.undeploy(name, float(self.current.now.drain_seconds))

    async def _withdraw(self, deployment: Deployment, actor: str) -> None:
        """Take a new deployment back that could not be loaded."""
        name, reason = deployment.model, f"it could not be loaded: {deployment.reason}"
        async with self.acts("admin.undeploy", actor, takes_away=True, model=name, reason=reason):
            await self.state.run(lambda: self.store.remove_deployment(name))
            await self.pool.undeploy(name)

    def _named(self, name: str, asked: Deploying) -> tuple[str, Deploying]:
        """The model's name, and the form that it says. Raises BadRequest."""
        name, kind = of_form(name)
        return name, asked.of_form(kind)
