"""What an admin can do to a running daemon, its models first. Every change is an act in the audit log."""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from llmd.daemon.admin.cards import Cards
from llmd.daemon.admin.clients import Clients
from llmd.daemon.admin.deployments import Deployments
from llmd.daemon.admin.doctor import Doctor, rfc3339
from llmd.daemon.admin.fitting import Fitting
from llmd.daemon.admin.forms import Forms
from llmd.daemon.admin.policies import Policies
from llmd.daemon.admin.shown import deployed, made
from llmd.daemon.admin.usage import Usage
from llmd.daemon.audit.acts import Acts
from llmd.daemon.config import ConfigError, InUse, changes
from llmd.daemon.engine.answers.detecting import named
from llmd.daemon.errors import BadRequest, Conflict
from llmd.daemon.identity.pki import Authority
from llmd.daemon.identity.tls import ServerTls
from llmd.daemon.machine.confined import lacks, landlock
from llmd.daemon.models.checking import prompt
from llmd.daemon.models.files import ModelStore
from llmd.daemon.planning.planner import Planner
from llmd.daemon.serving.answer import Serving
from llmd.daemon.state.records import Form, Info, Model, of_form
from llmd.daemon.state.store import StateThread, Store
from llmd.daemon.wire.frames import encode_chat
from llmd.daemon.wire.work import Chat, ChatMessage
from llmd.quantize.check import INFO_FIELDS

log = logging.getLogger("llmd.admin")


@dataclass(slots=True)
class Service:
    """The daemon's parts as an admin's commands use them. Made once, by the composition."""

    current: InUse
    serving: Serving
    acts: Acts
    store: Store
    state: StateThread
    models: ModelStore
    authority: Authority
    tls: ServerTls
    clients: Clients
    policies: Policies
    usage: Usage
    doctor: Doctor
    cards: Cards
    planner: Planner
    forms: Forms
    fitting: Fitting
    deployments: Deployments
    started: float
    version: str

    # --- models

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
            await self.state.run(lambda: self.store.set_info(name, model.info.but(syntax_said=syntax)))
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
        return self.serving.pool.known(name) is not None

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
        own = replace(model, name=form.name, digest=form.digest, size=form.size)
        told = self._shown(own, [form]) | {"deployed": form.name in self.forms.used(model.name)}
        told["info"] |= {**_told(form.info), "form_of": model.name}
        return told

    async def imported(self) -> list[dict[str, Any]]:
        found = await self.state.run(lambda: [(m, self.models.forms(m.name)) for m in self.models.list()])
        return [self._shown(model, forms) for model, forms in found]

    def _shown(self, model: Model, forms: Sequence[Form]) -> dict[str, Any]:
        told = {
            **asdict(model),
            "info": _told(model.info),
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
            "policy": {"version": self.policies.now.version, "exists": self.policies.now.exists},
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


def _told(info: Info) -> dict[str, Any]:
    """As an admin sees it: all that a check tells but the shape, and what else is known."""
    told = {name: getattr(info, name) for name in INFO_FIELDS} | info.to_dict()
    return {name: value for name, value in told.items() if name != "shape"}
