"""What is wrong on this machine and what to do, and what ends when."""

import shutil
import socket
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from llmd.daemon import atomic
from llmd.daemon.config import Config, ConfigError, InUse, changes
from llmd.daemon.errors import AuditUnavailable
from llmd.daemon.gpus.inventory import Gpu
from llmd.daemon.gpus.watch import Health, Watcher
from llmd.daemon.identity.pki import Authority
from llmd.daemon.identity.register import Register
from llmd.daemon.machine import confined, systemd
from llmd.daemon.machine.cpu import Choice
from llmd.daemon.models.files import ModelStore
from llmd.daemon.planning.gpu_code import cuda_engine
from llmd.daemon.planning.planner import IGNORED, Planner
from llmd.daemon.replicas.deployment import Deployment
from llmd.daemon.replicas.lifecycle import QUARANTINED
from llmd.daemon.serving.answer import Serving
from llmd.daemon.state.records import Certificate
from llmd.daemon.state.store import StateThread, Store

# what `status` and `doctor` call soon: the CA's own things are renewed long before
WARN = timedelta(days=30)
# every client needs a new root's certificate: that takes planning
WARN_ROOT = timedelta(days=365)
# the log's time and the clock's may differ by this much
SKEW = timedelta(hours=1)
RECOVER = "reset the GPU when nothing uses it, or restart the server; then restart llmd (docs/gpus.md)"

Check = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Ending:
    """Something that ends. `kind` is root, issuer, server, list or client; only a client's has `client` and
    `serial`."""

    kind: str
    not_after: float
    client: str = ""
    serial: str = ""

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "not_after": rfc3339(self.not_after)}


@dataclass(slots=True)
class Doctor:
    current: InUse
    serving: Serving
    store: Store
    state: StateThread
    authority: Authority
    watcher: Watcher
    register: Register
    models: ModelStore
    planner: Planner
    cpu: Choice | None = None

    async def checks(self) -> list[Check]:
        """`ok` is true, false, or None for what is only information."""
        audit, latest = await self._audit()
        checks = [*self.tasks(), *self._models(), audit, self._disk()]
        checks += await self.state.run(
            lambda: [
                *self._stored(),
                *self._configuration(),
                *self._clock(latest),
                *self._files(),
                *self._ends(),
                *self._names(),
            ]
        )
        return [*checks, *self._cpu(), *self._groups(), self._confinement(), self._policy(), *self._gpus()]

    async def endings(self) -> list[Ending]:
        """Of the CA's own, and of every client's certificate that is not revoked and has not ended."""
        return await self.state.run(self._endings)

    def soon(self) -> list[Ending]:
        """What ends within 30 days, the root within a year; of a client without a good certificate, the one that ended
        last. In the state's thread."""
        now = time.time()
        ends = [
            e for e in self._endings() if e.not_after < now + (WARN_ROOT if e.kind == "root" else WARN).total_seconds()
        ]
        return ends + [_of(c) for c in self._ended(now)]

    def _endings(self) -> list[Ending]:
        own = [Ending(end.kind, end.not_after.timestamp()) for end in self.authority.ends()]
        good = [c for c in self.store.certificates() if c.revoked_at is None and c.not_after > time.time()]
        return own + [_of(c) for c in good]

    def _ended(self, now: float) -> list[Certificate]:
        last: dict[str, Certificate] = {}
        for c in self.store.certificates():
            if c.revoked_at is None and (c.principal not in last or c.not_after > last[c.principal].not_after):
                last[c.principal] = c
        return [c for c in last.values() if c.not_after <= now]

    # --- the daemon

    def tasks(self) -> list[Check]:
        fix = "see the daemon's log, and restart llmd"
        return [check(name, False, "it failed", fix) for name in sorted(self.serving.tasks.failed)]

    def _models(self) -> list[Check]:
        deployed = self.serving.pool.all()
        if not deployed:
            return [check("models", False, "no model is deployed", "llmctl model import FILE, then llmctl deploy NAME")]
        return [
            check(f"model {d.model}", d.ready, d.state + (f": {d.reason}" if d.reason else ""),
                  "" if d.ready else _until_ready(d))
            for d in deployed
        ]  # fmt: skip

    def _stored(self) -> Iterator[Check]:
        for form, why, fix in self.models.damages():
            yield check(f"file of {form.name}", False, why, fix)

    async def _audit(self) -> tuple[Check, str]:
        """And the time of its latest row."""
        if not self.serving.audit.writable:
            return check("audit", False, "the audit log cannot be written", "free disk space where the state is"), ""
        try:
            report = await self.serving.audit.verify()
        except AuditUnavailable as e:
            return check("audit", False, f"it could not be checked: {e.message}", "see the daemon's log"), ""
        if report.verdict == "unchecked":
            return check("audit", False, f"it could not be checked: {report.error}", "see the daemon's log"), ""
        if not report.ok:
            fix = "run `llmctl audit verify` and keep a copy"
            return check("audit", False, "the audit log's chain is broken", fix), ""
        return check("audit", True, f"{report.rows} rows, the chain holds"), report.latest

    def _disk(self) -> Check:
        free = shutil.disk_usage(self.current.now.state).free
        enough = free > 1 << 30
        return check("disk", enough, f"{free / (1 << 30):.1f} GiB free", "" if enough else "free at least 1 GiB")

    def _configuration(self) -> Iterator[Check]:
        """The file as it is now."""
        try:
            _, changed, waiting = changes(self.current.now, self.current.read())
        except ConfigError as e:
            yield check("configuration", False, f"{e}; the next start would fail", "correct it, then llmctl reload")
            return
        if changed:
            yield check("configuration", None, f"changed and not read yet: {', '.join(changed)}", "llmctl reload")
        if waiting:
            fix = "systemctl daemon-reload, then systemctl restart llmd.socket; or restart llmd"
            yield check("configuration", None, f"changed, for the next start: {', '.join(waiting)}", fix)

    def _cpu(self) -> list[Check]:
        """Where the engine has libraries to choose from."""
        if not self.cpu or not self.cpu.variant:
            return []
        fix = "nothing, if this is a virtual machine that shows what it has not" if self.cpu.failed else ""
        return [check("cpu engine", None if self.cpu.failed else True, self.cpu.text, fix)]

    def _groups(self) -> list[Check]:
        """Where systemd would have workers' memory limited and the kernel does not."""
        why = self.serving.pool.groups.reason
        fix = "boot with version 2 of control groups (systemd.unified_cgroup_hierarchy=1)"
        return [check("memory limits", None, f"workers have none: {why}", fix)] if why else []

    def _policy(self) -> Check:
        held = self.serving.policy.now
        told = f"policy {held.version} holds" if held.exists else "there is none: roles alone decide"
        good = None if not held.exists else not held.problem
        return check("policy", good, held.problem or told, held.problem and "llmctl policy edit, or policy revert")

    def _confinement(self) -> Check:
        """Of what reads strangers' bytes."""
        missing = confined.lacks()
        if not missing:
            said = "what reads models, schemas and templates reaches nothing else of this machine"
            return check("confinement", True, f"{said} (Landlock {confined.landlock()}, seccomp)")
        said = (
            f"this kernel has no {' and no '.join(missing)}: what reads models may read llmd's keys and databases too"
        )
        return check("confinement", None, said, f"{confined.REPAIR}; import no models from strangers until then")

    def _gpus(self) -> list[Check]:
        view = self.watcher.view
        checks = [_gpu(gpu, view.health[gpu.uuid], self.planner.no_code(gpu)) for gpu in view.inventory.gpus]
        for uuid, gone in view.gone.items():
            name, health = f"{gone.name} ({uuid})" if gone else uuid, view.health[uuid]
            said = f"{'ignored, ' * health.ignored}removed: {'; '.join(health.reasons)}"
            checks.append(check(f"gpu {name}", health.ignored, said, RECOVER))
        if checks and not view.inventory.answered:
            fix = "wait a minute; if it stays so, restart the server"
            checks.append(check("gpu driver", False, view.inventory.reason, fix))
        if view.inventory.gpus and not view.none and not cuda_engine():
            said = "models run on the CPU: this engine was built without CUDA"
            checks.append(check("gpu engine", False, said, "install the package llmd-cuda"))
        if not checks and cuda_engine() and not view.inventory.absent:
            checks.append(
                check("gpu", False, f"none can be used: {view.inventory.reason}", "docs/gpus.md has each reason")
            )
        return checks or [check("gpu", None, f"CPU only: {view.inventory.reason}")]

    # --- certificates

    def _clock(self, latest: str) -> Iterator[Check]:
        problem = self.authority.clock_problem()
        if problem:
            yield check("clock", False, problem, "set the clock; what depends on it is repaired within seconds")
        elif latest and datetime.fromisoformat(latest) > datetime.now(UTC) + SKEW:
            said = f"the audit log has a row of {latest[:19]}Z: this machine's clock was ahead, or is behind"
            yield check("clock", None, said, "compare it with another clock")

    def _files(self) -> Iterator[Check]:
        for damage in self.authority.damages():
            yield check(damage.file, False, damage.what, damage.fix)
        key = self.current.now.state / "audit.key"
        if not key.exists():
            yield check("audit.key", False, "is missing", "put back a copy before llmd is restarted")
        elif atomic.exposed(key):
            yield check("audit.key", False, "may be read or written by others", f"chmod 600 {key}")
        here = self.current.now.state / "pki" / "root.key"
        if here.exists() and systemd.credential(here.name):
            yield check(here.name, False, "systemd hands it in, and it lies in the state folder too", f"rm {here}")
        if not self.authority.root_key_here:
            until = rfc3339(self.authority.end("issuer").timestamp())
            yield check(
                "root.key",
                None,
                f"it is not here; the issuer ends at {until}",
                "put it back 90 days before, and run `llmctl reload`",
            )

    def _ends(self) -> Iterator[Check]:
        now = datetime.now(UTC)
        names = {"root": "root certificate", "server": "server certificate", "list": "revocation list"}
        for end in self.authority.ends():
            left = end.not_after - now
            fix = "see the daemon's log for why it was not renewed"
            if end.kind == "root":
                fix = "plan a new CA: move the pki folder away, restart llmd, and issue every client anew"
            good = left > (WARN_ROOT if end.kind == "root" else WARN)
            yield check(
                names.get(end.kind, end.kind),
                good,
                f"valid for {left.days} days" if left.days >= 0 else "it has ended",
                fix,
            )
        if strangers := self.register.strangers:
            told = ", ".join(f"{one.name} {one.serial[:12]}…" for one in strangers[:20])
            fix = "llmctl client issue NAME --again, and have the client use that one; the old one stays refused"
            said = f"{len(strangers)} were shown that neither the state database nor the audit log knows: {told}"
            yield check("unknown certificates", None, said, fix)
        soon = [e for e in self.soon() if e.kind == "client"]
        if soon:
            told = ", ".join(f"{e.client} {rfc3339(e.not_after)}" for e in soon[:20])
            fix = "llmctl client issue NAME --again"
            yield check("client certificates", None, f"{len(soon)} end soon or have ended: {told}", fix)

    def _names(self) -> Iterator[Check]:
        node, host = self.authority.node, socket.gethostname().lower()
        if self.current.now.node not in ("", node):
            fix = f'set node = "{node}" or leave it out; another name needs a new CA'
            said = f"clients know this node as {node}, the configuration says {self.current.now.node}"
            yield check("node", None, said, fix)
        else:
            yield check("node", True, node)
        held = self.authority.names
        if config_names(self.current.now, host)[0] not in held:
            yield check("host name", False, f"this host is {host}, the server's certificate says {', '.join(held)}",
                        "restart llmd: it makes a new certificate, and clients keep theirs")  # fmt: skip
        elif self.current.now.address[0] in ("0.0.0.0", "::") and not self.current.now.server_names:
            yield check("host name", None, f"the server's certificate says {', '.join(held)}",
                        "name what else clients connect to in server_names, and restart llmd")  # fmt: skip


def _until_ready(d: Deployment) -> str:
    look = f"`llmctl model verify {d.model}` says whether its file is whole, the daemon's log what happened"
    if d.state == QUARANTINED:
        return f"{look}; `llmctl deploy {d.model}` tries it again"
    return look if d.state in ("restarting", "degraded") else "wait for it to load, or see the daemon's log"


def config_names(config: Config, host: str) -> list[str]:
    """The names and addresses of the server's certificate besides localhost's: this host's, the one it listens on, and
    the configured ones."""
    listen = config.address[0]
    return [host, *([] if listen in ("", "0.0.0.0", "::") else [listen]), *config.server_names]


def rfc3339(seconds: float) -> str:
    """A moment in Unix seconds, as admins' JSON shows it: 2026-11-25T18:00:00Z."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def check(name: str, ok: bool | None, message: str, fix: str = "") -> Check:
    return {"name": name, "ok": ok, "message": message, "fix": "" if ok else fix}


def _gpu(gpu: Gpu, health: Health, no_code: str) -> Check:
    name = f"gpu {gpu.index}" + (f" ({gpu.uuid})" if gpu.parent else "")
    reasons = "; ".join(health.reasons)
    if health.ignored:
        but = "" if health.well else f"; {health.state}: {reasons}"
        return check(name, True, f"{gpu.name} is ignored: {IGNORED}{but}")
    if not health.usable:
        return check(name, False, f"{health.state}: {reasons}", RECOVER)
    if no_code:
        fix = "nothing, where others take the models; or llmd-cuda built for it (docs/gpus.md)"
        return check(name, None, f"{gpu.name} takes no model: {no_code}", fix)
    if health.state == "throttled":
        return check(name, None, f"{gpu.name}, {reasons}", "see to its cooling and its power supply")
    notes = [reasons] if reasons else []
    if gpu.unified:
        notes.append("its memory is the server's own")
    if gpu.ecc_uncorrected:
        notes.append(f"{gpu.ecc_uncorrected} memory errors that could not be corrected since the driver was loaded")
    return check(name, True, ", ".join([gpu.name, *notes]))


def _of(c: Certificate) -> Ending:
    return Ending("client", c.not_after, c.principal, c.serial)
