"""What an admin can do to a running daemon, its models first. Every change is an act in the audit log."""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from llmd.daemon.admin.cards import Cards
from llmd.daemon.admin.clients import Clients
from llmd.daemon.admin.doctor import Doctor, rfc3339
from llmd.daemon.admin.fitting import Deploying, Fitting
from llmd.daemon.admin.forms import Forms
from llmd.daemon.admin.shown import deployed, made, made_room
from llmd.daemon.audit.acts import Acts
from llmd.daemon.config import ConfigError, Current, changes
from llmd.daemon.engine.answers.detecting import named
from llmd.daemon.errors import BadRequest, Conflict, DoesNotFit, LlmdError, NotFound, Unavailable
from llmd.daemon.identity.pki import Authority
from llmd.daemon.identity.tls import ServerTls
from llmd.daemon.machine.confined import lacks, landlock
from llmd.daemon.models.checking import prompt
from llmd.daemon.models.files import ModelStore
from llmd.daemon.planning.plan import ON_CPU, Placement, Wish
from llmd.daemon.planning.planner import Planner
from llmd.daemon.replicas.deployment import Deployment
from llmd.daemon.serving.answer import Serving
from llmd.daemon.state.records import Form, Model, of_form
from llmd.daemon.state.store import StateThread, Store
from llmd.daemon.wire.frames import encode_chat
from llmd.daemon.wire.work import Chat, ChatMessage

log = logging.getLogger("llmd.admin")


@dataclass(slots=True)
class Service:
    """The daemon's parts as an admin's commands use them. Made once, by `main`."""

    current: Current
    serving: Serving
    acts: Acts
    store: Store
    state: StateThread
    models: ModelStore
    authority: Authority
    tls: ServerTls
    clients: Clients
    doctor: Doctor
    cards: Cards
    planner: Planner
    forms: Forms
    fitting: Fitting
    started: float
    version: str

    # --- models

    async def plan(self, name: str, ctx: int | None, slots: int | None, placement: Placement) -> dict[str, Any]:
        """Where a model would go as things are now. Raises ModelNotFound, BadRequest, DoesNotFit, Unavailable."""
        name, kind = of_form(name)
        placement = placement.of_form(kind)

        def work() -> Wish:
            return self.fitting.whole(self.models.show(name), Deploying(ctx, slots, placement))

        return {"model": name, **await self.planner.explain(name, await self.state.run(work))}

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
                self.serving.pool.keep(model.name, model.digest, wish, wanted.replicas, why)
            else:
                self.serving.pool.deploy(model.name, model.digest, wish, wanted.replicas)

    async def deploy(
        self,
        name: str,
        ctx: int | None,
        slots: int | None,
        actor: str,
        placement: Placement = ON_CPU,
        *,
        replicas: int = 1,
        evict: bool | None = None,
    ) -> tuple[Deployment, bool]:
        """Serve a model; the workers start in the background: so many replicas, with 0 one on each GPU that holds it
        whole. `evict`: take idle models out of service where it finds no room; None: as the configuration says. Tells
        too whether it was deployed before. Raises ModelNotFound, BadRequest, DoesNotFit, and Unavailable where memory
        does not hold it."""
        name, kind = of_form(name)
        placement = placement.of_form(kind)
        placement.check()
        if placement.gpus and replicas != 1:
            raise BadRequest("gpus names where one replica lies: leave it out, or the replicas", param="gpus")
        replaced = {d.model: d.wanted for d in self.serving.pool.all() if d.model == name and d.ready and d.wanted}

        def work() -> tuple[Model, Wish, bool]:
            model = self.models.show(name)
            wish = self.fitting.whole(model, Deploying(ctx, slots, placement))
            before = any(d.model == name for d in self.store.deployments())
            return model, wish, before

        put = {**placement.to_dict(), "gpus": ",".join(placement.gpus) or None, "replicas": replicas or "auto"}
        async with self.acts("admin.deploy", actor, model=name, ctx=ctx, slots=slots, **put) as result:
            model, wish, before = await self.state.run(work)
            result["digest"] = model.digest
            try:
                await self.planner.check(name, wish, replaced, replicas)
            except (DoesNotFit, Unavailable) as e:
                gone = await self.serving.pool.room(name, wish, replaced, replicas)
                if gone and not (self.current.now.evict if evict is None else evict):
                    raise type(e)(f"{e.message}. It fits without what is idle now (--evict): {', '.join(gone)}") from e
                if not gone:
                    raise
                for other in gone:
                    await self._evict(other, name, actor)
                result["evicted"] = ",".join(gone)
            await self.state.run(lambda: self.store.set_deployment(name, ctx, slots, placement.to_dict(), replicas))
            deployment = self.serving.pool.deploy(name, model.digest, wish, replicas)
            if deployment.state == "ready" and await self.planner.better(name, wish):
                self.serving.pool.replan(deployment, "there is room for more now: it is planned anew")
            return deployment, before

    async def _evict(self, name: str, other: str, actor: str) -> None:
        """An idle model makes room for another one. Raises Conflict where somebody asks it something meanwhile."""
        async with self.acts("admin.evict", actor, model=name, made_room_for=other):
            at = await self.state.run(lambda: self.store.set_evicted(name, other))
            try:
                await self.serving.pool.evict(name, made_room(other, at))
            except BaseException:
                await self.state.run(lambda: self.store.clear_evicted(name))
                raise

    def chosen(self, deployment: Deployment) -> dict[str, Any]:
        """What a model serves with that is ready."""
        told = deployed(deployment, self.planner.note)
        names = ("context", "slots", "gpus", "split", "kv", "replicas")
        return {name: told[name] for name in names if name in told}

    async def served(self, name: str) -> None:
        """A model that was too large to be tried at its import has been tried now."""

        def work() -> None:
            model = self.store.model(name)
            if model.info.get("tried") is False:
                self.store.set_info(name, model.info | {"tried": True})

        await self.state.run(work)

    async def undeploy(self, name: str, actor: str) -> None:
        """Running requests may finish first. Raises ModelNotFound, and NotFound for a form that does not serve."""
        pool, (name, kind) = self.serving.pool, of_form(name)
        if name not in (d.model for d in pool.away()):
            pool.find(name)
            if kind and f"{name}@{kind}" not in (used := self.forms.used(name)):
                raise NotFound.among(f"deployed form of {name}", used, param="model")
        async with self.acts("admin.undeploy", actor, takes_away=True, model=name):
            await self.state.run(lambda: self.store.remove_deployment(name))
            await pool.undeploy(name, float(self.current.now.drain_seconds))

    async def withdraw(self, deployment: Deployment, actor: str) -> None:
        """Take a new deployment back that could not be loaded."""
        name, reason = deployment.model, f"it could not be loaded: {deployment.reason}"
        async with self.acts("admin.undeploy", actor, takes_away=True, model=name, reason=reason):
            await self.state.run(lambda: self.store.remove_deployment(name))
            await self.serving.pool.undeploy(name)

    async def import_model(
        self, path: str, name: str | None, actor: str, progress: Callable[[int, int], None]
    ) -> Model:
        before = {d: self.models.inode(d.digest) for d in self.serving.pool.all()}
        async with self.acts("admin.model_import", actor, file=Path(path).name, model=name) as result:
            model = await self.models.import_file(path, name, progress)
            result |= {"model": model.name, "digest": model.digest, "size": model.size}
        for d, inode in before.items():
            if d.digest == model.digest and inode not in (None, self.models.inode(d.digest)):
                self.serving.pool.replan(d, "its file was damaged: it is loaded anew")
        return model

    async def rename_model(self, name: str, new: str, actor: str) -> dict[str, Any]:
        """Raises ModelNotFound, BadRequest, and Conflict while it is deployed or where the new name is taken."""
        await self._no_form(name, f"forms are named after their model: llmctl model rename {of_form(name)[0]} NEW")
        if self._wanted(name):
            raise Conflict(f"{name} is deployed; run `llmctl undeploy {name}` first")
        async with self.acts("admin.model_rename", actor, model=name, name=new) as result:
            model = await self.models.rename(name, new)
            result["digest"] = model.digest
        return await self.show(model.name)

    async def set_syntax(self, name: str, syntax: str, actor: str) -> dict[str, Any]:
        """Say how a model writes calls of tools and thoughts, instead of what its chat template shows; "": as that
        shows. The next deploy uses it. Raises ModelNotFound, and BadRequest for a format that is not known."""
        if syntax:
            named(syntax)
        name = (await self.form(name))[0].name
        model = await self.state.run(lambda: self.models.show(name))
        async with self.acts("admin.model_syntax", actor, model=name, syntax=syntax):
            await self.state.run(lambda: self.store.set_info(name, model.info | {"syntax_said": syntax}))
        return await self.show(name)

    async def remove_model(self, name: str, actor: str) -> None:
        """Raises ModelNotFound, Conflict while it is deployed."""
        model, kind = of_form(name)
        if kind:
            await self.forms.remove(model, kind, actor)
            return
        if self._wanted(name):
            raise Conflict(f"{name} is deployed; run `llmctl undeploy {name}` first")
        async with self.acts("admin.model_remove", actor, takes_away=True, model=name) as result:
            result["digest"] = (await self.models.remove(name)).digest

    def _wanted(self, name: str) -> bool:
        """It serves, or would if it had not made room for another one."""
        return self.serving.pool.knows(name)

    async def template(self, name: str, turns: tuple[ChatMessage, ...]) -> str:
        """A conversation as the model's chat template lays it out. Raises ModelNotFound, BadRequest, ModelInvalid."""
        model, form = await self.form(name)
        return await prompt(self.models.file(form.digest if form else model.digest), encode_chat(Chat(turns)))

    async def form(self, name: str) -> tuple[Model, Form | None]:
        """A model, and the form of it where MODEL@TYPE names one. Raises ModelNotFound, and NotFound for a form that it
        has not."""
        base, kind = of_form(name)

        def work() -> tuple[Model, Form | None]:
            return self.models.show(base), self.models.form(base, kind) if kind else None

        return await self.state.run(work)

    async def _no_form(self, name: str, instead: str) -> None:
        """Raises BadRequest for a form's name, where only a model will do, and NotFound for one that there is not."""
        if (await self.form(name))[1]:
            raise BadRequest(f"{name} is a form of a model: {instead}", param="name")

    async def verify(self, name: str) -> dict[str, Any]:
        """Whether its file is what was put there, read as a whole, and what to do where it is not. Raises
        ModelNotFound, NotFound."""
        model, form = await self.form(name)
        own = await self.state.run(lambda: form or self.models.own_form(name))
        good = await self.models.verify(own)
        return {"model": name, "ok": good, "do": "" if good else await self.state.run(lambda: self.models.repair(own))}

    async def show(self, name: str) -> dict[str, Any]:
        """Of a form what is its own, beside what is its model's. Raises ModelNotFound, NotFound."""
        model, form = await self.form(name)
        if form is None:
            return self._shown(model, await self.state.run(lambda: self.models.forms(name)))
        own = replace(
            model, name=form.name, digest=form.digest, size=form.size,
            info={**model.info, **form.info, "form_of": model.name},
        )  # fmt: skip
        return self._shown(own, [form]) | {"deployed": form.name in self.forms.used(model.name)}

    async def imported(self) -> list[dict[str, Any]]:
        found = await self.state.run(lambda: [(m, self.models.forms(m.name)) for m in self.models.list()])
        return [self._shown(model, forms) for model, forms in found]

    def _shown(self, model: Model, forms: Sequence[Form]) -> dict[str, Any]:
        info = {name: value for name, value in model.info.items() if name != "shape"}
        told = {
            **asdict(model),
            "info": info,
            "imported": rfc3339(model.imported),
            "deployed": self._wanted(model.name),
        }
        return told | {"forms": [{"name": f.name, "size": f.size, "digest": f.digest, **made(f)} for f in forms]}

    # --- what it looks like

    async def status(self) -> dict[str, Any]:
        last = await self.serving.audit.tail(1)
        certificates, damages = await self.state.run(lambda: (self._certificates(), self.models.damages()))
        return {
            "version": self.version, "node": self.authority.node, "listen": self.current.now.listen,
            "uptime": round(time.time() - self.started, 1), 

            "models": [deployed(d, self.planner.note) for d in self.serving.pool.all()],
            "damaged": [{"form": form.name, "reason": why, "do": fix} for form, why, fix in damages],
            "evicted": [{"model": d.model, "reason": d.residency.why} for d in self.serving.pool.away()],
            "audit": {"writable": self.serving.audit.writable, "seq": last[-1]["seq"] if last else 0},
            "connections": self.clients.connections.count,
            "confinement": {"landlock": landlock(), "lacks": lacks(), "required": self.current.now.require_confinement},
            **certificates,
        }  # fmt: skip

    def _certificates(self) -> dict[str, Any]:
        return {
            "server_certificate_until": rfc3339(self.authority.end("server").timestamp()),
            "revocation_list_until": rfc3339(self.authority.end("list").timestamp()),
            "certificates_ending_soon": [ending.to_dict() for ending in self.doctor.soon()],
        }

    # --- the configuration, certificates

    async def reload(self, actor: str) -> dict[str, Any]:
        """What the configuration says is used from now on, and new handshakes use the certificates that are on disk
        now; what is due is renewed. Tells what they are, and which keys changed. Raises Conflict, and keeps everything
        as it was, when one of the files does not work."""
        async with self.acts("reload", actor) as result:
            try:
                found = await self.state.run(self.current.read)
            except ConfigError as e:
                raise Conflict(f"{e}; what was read before stays in use, but the next start would fail") from e
            usable, changed, waiting = changes(self.current.now, found)
            await self.state.run(self.tls.reload)
            await self.renew()
            self.current.use(usable)
            result["changed"] = ",".join(changed) or None
        until = await self.state.run(lambda: self.authority.end("server").timestamp())
        return {
            "server_certificate_until": rfc3339(until), "revoked_certificates": len(self.authority.revoked),
            "changed": changed, "next_start": waiting,
        }  # fmt: skip

    async def renew(self) -> None:
        """Renew what is due. Raises NoSpace, Unavailable, Conflict."""
        done = await self.state.run(self.authority.maintain)
        if done:
            await self.state.run(self.tls.renewed)
            self.serving.audit.event("pki.renewed", what=", ".join(done))
            log.info("renewed: %s", ", ".join(done))
