"""What an admin can do to a running daemon. Every change writes an audit row with who did it."""

import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from llmd.daemon.config import Config
from llmd.daemon.engine.messages import Chat, ChatMessage, encode_chat
from llmd.daemon.errors import BadRequest, Conflict
from llmd.daemon.identity.connections import Connections
from llmd.daemon.identity.pki import Authority, IssuedClient
from llmd.daemon.models.checking import prompt
from llmd.daemon.models.files import ModelStore
from llmd.daemon.serving.answer import Serving
from llmd.daemon.serving.plan import Wish
from llmd.daemon.serving.pool import Deployment
from llmd.daemon.store import Model, StateThread, Store

# what `status` and `doctor` call soon
WARN_DAYS = 14
MIN_CONTEXT = 256


@dataclass(slots=True)
class Service:
    """The daemon's parts as an admin's commands use them. Made once, by `main`."""

    config: Config
    serving: Serving
    store: Store
    state: StateThread
    models: ModelStore
    authority: Authority
    connections: Connections
    reload_tls: Callable[[], None]
    started: float
    version: str
    roles: dict[str, str] = field(
        default_factory=dict
    )  # client name to role: a copy of the store's, asked at every request

    def __post_init__(self) -> None:
        self.roles |= {p.name: p.role for p in self.store.principals()}

    # --- models

    def wish(self, model: Model, ctx: int | None, slots: int | None) -> Wish:
        """What is asked of a deployment, with the configuration's defaults. Raises BadRequest for more context than the
        model was trained for."""
        c = self.config
        trained = int(model.info.get("context_length") or 0)
        if ctx is not None and trained and not MIN_CONTEXT <= ctx <= trained:
            raise BadRequest(f"ctx takes {MIN_CONTEXT} to {trained} for this model", param="ctx")
        context = ctx or min(c.context or trained, trained or c.context)
        return Wish(str(self.models.path(model.name)), slots or c.slots, context, c.batch, c.chunk, c.threads)

    def restore(self) -> None:
        """Start every model that should serve."""
        for wanted in self.store.deployments():
            model = self.store.model(wanted.model)
            self.serving.pool.deploy(model.name, model.digest, self.wish(model, wanted.ctx, wanted.slots))

    async def deploy(self, name: str, ctx: int | None, slots: int | None, actor: str) -> tuple[Deployment, bool]:
        """Serve a model; the worker starts in the background. Tells too whether it was deployed before. Raises
        ModelNotFound, BadRequest."""

        def work() -> tuple[Model, Wish, bool]:
            model = self.models.show(name)
            wish = self.wish(model, ctx, slots)
            before = any(d.model == name for d in self.store.deployments())
            self.store.set_deployment(name, ctx, slots)
            return model, wish, before

        model, wish, before = await self.state.run(work)
        self.serving.audit.event("admin.deploy", actor=actor, model=name, digest=model.digest, ctx=ctx, slots=slots)
        return self.serving.pool.deploy(name, model.digest, wish), before

    async def served(self, name: str) -> None:
        """A model that was too large to be tried at its import has been tried now."""

        def work() -> None:
            model = self.store.model(name)
            if model.info.get("tried") is False:
                self.store.set_info(name, model.info | {"tried": True})

        await self.state.run(work)

    async def undeploy(self, name: str, actor: str) -> None:
        """Running requests may finish first. Raises ModelNotFound."""
        self.serving.pool.find(name)
        await self.state.run(lambda: self.store.remove_deployment(name))
        self.serving.audit.event("admin.undeploy", actor=actor, model=name)
        await self.serving.pool.undeploy(name, float(self.config.drain_seconds))

    async def withdraw(self, deployment: Deployment, actor: str) -> None:
        """Take a new deployment back that could not be loaded."""
        name, reason = deployment.model, f"it could not be loaded: {deployment.reason}"
        await self.state.run(lambda: self.store.remove_deployment(name))
        self.serving.audit.event("admin.undeploy", actor=actor, model=name, reason=reason)
        await self.serving.pool.undeploy(name)

    async def import_model(
        self, path: str, name: str | None, actor: str, progress: Callable[[int, int], None]
    ) -> Model:
        model = await self.models.import_file(path, name, progress)
        self.serving.audit.event(
            "admin.model_import", actor=actor, model=model.name, digest=model.digest, size=model.size
        )
        return model

    async def rename_model(self, name: str, new: str, actor: str) -> dict[str, Any]:
        """Raises ModelNotFound, BadRequest, and Conflict while it is deployed or where the new name is taken."""
        if any(d.model == name for d in self.serving.pool.all()):
            raise Conflict(f"{name} is deployed; run `llmctl undeploy {name}` first")
        model = await self.models.rename(name, new)
        self.serving.audit.event("admin.model_rename", actor=actor, model=name, name=new, digest=model.digest)
        return self._shown(model)

    async def remove_model(self, name: str, actor: str) -> None:
        """Raises ModelNotFound, Conflict while it is deployed."""
        if any(d.model == name for d in self.serving.pool.all()):
            raise Conflict(f"{name} is deployed; run `llmctl undeploy {name}` first")
        model = await self.models.remove(name)
        self.serving.audit.event("admin.model_remove", actor=actor, model=name, digest=model.digest)

    async def template(self, name: str, turns: tuple[ChatMessage, ...]) -> str:
        """A conversation as the model's chat template lays it out. Raises ModelNotFound, BadRequest, ModelInvalid."""
        path = await self.state.run(lambda: self.models.path(name))
        return await prompt(path, encode_chat(Chat(turns)))

    async def show(self, name: str) -> dict[str, Any]:
        return self._shown(await self.state.run(lambda: self.models.show(name)))

    async def imported(self) -> list[dict[str, Any]]:
        return [self._shown(model) for model in await self.state.run(self.models.list)]

    def _shown(self, model: Model) -> dict[str, Any]:
        deployed = any(d.model == model.name for d in self.serving.pool.all())
        return {**asdict(model), "imported": rfc3339(model.imported), "deployed": deployed}

    # --- clients

    async def issue(self, name: str, days: int, actor: str, *, again: bool = False) -> IssuedClient:
        """A certificate for a new client, or with `again` one more for a client that there is. Raises BadRequest,
        Conflict."""

        def work() -> IssuedClient:
            if not again:
                self._check_new(name)
            issued = self.authority.issue_client(name, days)
            if not any(p.name == name for p in self.store.principals()):
                self.store.add_principal(name, "infer")
            begin, end = issued.not_before.timestamp(), issued.not_after.timestamp()
            self.store.add_certificate(f"{issued.serial:x}", name, begin, end)
            return issued

        issued = await self.state.run(work)
        self.roles.setdefault(name, "infer")
        serial = f"{issued.serial:x}"
        self.serving.audit.event("admin.client_issue", actor=actor, client=name, serial=serial, days=days)
        return issued

    def _check_new(self, name: str) -> None:
        """Raises Conflict for a client that there is."""
        if name not in self.roles:
            return
        good = [c for c in self.store.certificates(name) if c.revoked_at is None and c.not_after > time.time()]
        until = f" with a certificate until {rfc3339(max(c.not_after for c in good))}" if good else ""
        raise Conflict(
            f"there is a client {name} already{until}; --again makes one more certificate, "
            f"`llmctl client revoke {name}` ends those that it has"
        )

    async def revoke(self, name: str, actor: str, serial: str = "") -> dict[str, Any]:
        """Revoke all of a client's certificates, or the one whose serial number begins with `serial`: new connections,
        kept ones and open streams end. Raises NotFound, Conflict."""

        def work() -> list[str]:
            serials = self.store.revoke_certificates(name, serial)
            self.authority.revoke(int(serial, 16) for serial in serials)
            return serials

        serials = await self.state.run(work)
        self.reload_tls()
        cut = sum(self.connections.abort(int(serial, 16)) for serial in serials)
        self.serving.audit.event(
            "admin.client_revoke", actor=actor, client=name, certificates=len(serials), connections=cut
        )
        return {"client": name, "revoked": serials, "connections": cut}

    async def clients(self) -> list[dict[str, Any]]:
        def work() -> list[dict[str, Any]]:
            return [
                {"name": p.name, "role": p.role, "certificates": [
                    {"serial": c.serial, "not_after": rfc3339(c.not_after),
                     "revoked_at": None if c.revoked_at is None else rfc3339(c.revoked_at)}
                    for c in self.store.certificates(p.name)]}
                for p in self.store.principals()
            ]  # fmt: skip

        return await self.state.run(work)

    # --- what it looks like

    async def status(self) -> dict[str, Any]:
        last = await self.serving.audit.tail(1)
        certificates = await self.state.run(self._certificates)
        return {
            "version": self.version, "node": self.config.node_name, "listen": self.config.listen,
            "uptime": round(time.time() - self.started, 1), "models": [_deployed(d) for d in self.serving.pool.all()],
            "audit": {"writable": self.serving.audit.writable, "seq": last[-1]["seq"] if last else 0},
            "connections": self.connections.count,
            **certificates,
        }  # fmt: skip

    def _certificates(self) -> dict[str, Any]:
        soon = time.time() + WARN_DAYS * 86400
        return {
            "server_certificate_until": rfc3339(self.authority.server_not_after.timestamp()),
            "revocation_list_until": rfc3339(self.authority.crl_not_after.timestamp()),
            "certificates_ending_soon": [
                {"client": c.principal, "serial": c.serial, "not_after": rfc3339(c.not_after)}
                for c in self.store.certificates() if c.revoked_at is None and time.time() < c.not_after < soon],
        }  # fmt: skip

    async def reload(self, actor: str) -> dict[str, Any]:
        """New handshakes use the certificates that are on disk now. Tells what they are. Raises Conflict, and keeps the
        old ones, when they do not work."""
        self.reload_tls()
        self.serving.audit.event("reload", actor=actor)
        until = await self.state.run(lambda: self.authority.server_not_after.timestamp())
        return {"server_certificate_until": rfc3339(until), "revoked_certificates": len(self.authority.revoked)}

    async def doctor(self) -> list[dict[str, Any]]:
        """What is wrong on this machine and what to do: `ok` is true, false, or None for what is only information."""
        checks = [*self._check_tasks(), *self._check_models(), await self._check_audit(), self._check_disk()]
        checks += await self.state.run(self._check_pki)
        driver = shutil.which("nvidia-smi") is not None
        gpu = "an NVIDIA driver is installed" if driver else "no NVIDIA driver: models run on the CPU"
        return [*checks, _check("gpu", None, gpu)]

    def _check_tasks(self) -> list[dict[str, Any]]:
        fix = "see the daemon's log, and restart llmd"
        return [_check(name, False, "it failed", fix) for name in sorted(self.serving.tasks.failed)]

    def _check_models(self) -> list[dict[str, Any]]:
        deployed = self.serving.pool.all()
        if not deployed:
            return [
                _check("models", False, "no model is deployed", "llmctl model import FILE, then llmctl deploy NAME")
            ]
        return [
            _check(f"model {d.model}", d.ready, d.state + (f": {d.reason}" if d.reason else ""),
                   "" if d.ready else "wait for it to load, or see the daemon's log")
            for d in deployed
        ]  # fmt: skip

    async def _check_audit(self) -> dict[str, Any]:
        if not self.serving.audit.writable:
            return _check("audit", False, "the audit log cannot be written", "free disk space where the state is")
        report = await self.serving.audit.verify()
        if not report.ok:
            return _check(
                "audit", False, "the audit log's chain is broken", "run `llmctl audit verify` and keep a copy"
            )
        return _check("audit", True, f"{report.rows} rows, the chain holds")

    def _check_disk(self) -> dict[str, Any]:
        free = shutil.disk_usage(self.config.state).free
        enough = free > 1 << 30
        return _check("disk", enough, f"{free / (1 << 30):.1f} GiB free", "" if enough else "free at least 1 GiB")

    def _check_pki(self) -> list[dict[str, Any]]:
        now = datetime.now(UTC)
        server, crl = self.authority.server_not_after - now, self.authority.crl_not_after - now
        fix = "set the clock, then restart llmd"
        return [
            _check("server certificate", server > timedelta(days=2), f"valid for {server.days} days", fix),
            _check("revocation list", crl > timedelta(days=2), f"valid for {crl.days} days", fix),
        ]


def rfc3339(seconds: float) -> str:
    """A moment in Unix seconds, as admins' JSON shows it: 2026-11-25T18:00:00Z."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def _check(name: str, ok: bool | None, message: str, fix: str = "") -> dict[str, Any]:
    return {"name": name, "ok": ok, "message": message, "fix": "" if ok else fix}


def _deployed(d: Deployment) -> dict[str, Any]:
    worker, info = d.worker, d.worker.info if d.worker else None
    found: dict[str, Any] = {
        "model": d.model,
        "state": d.state,
        "reason": d.reason,
        "restarts": d.restarts,
        "digest": d.digest,
    }
    if worker is None or info is None or not d.ready:
        return found
    busy = worker.busy
    return {
        **found, "pid": worker.pid, "context": info.context, "slots": info.slots, "running": busy.running,
        "waiting": busy.waiting,
        "kv_used": round(busy.kv_used / info.positions, 4), "token_age": round(worker.token_age + worker.beat_age, 1),
    }  # fmt: skip
