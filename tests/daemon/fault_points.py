"""A program: what an act leaves behind when the daemon is killed at each of its writes. A line of JSON a point.

    python fault_points.py FOLDER ACT

An act runs in a child that kills itself, with SIGKILL, at its n-th step of a write: before and after each fsync, each
rename, each commit of a database. Then another child starts the daemon on what is left, and looks. n grows until the
act comes to its end.
"""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

from sqlite_utils import Database

from llmd.daemon.admin.policies import Wanted
from llmd.daemon.composition import Daemon
from llmd.daemon.config import Config
from llmd.daemon.errors import Forbidden
from llmd.daemon.identity import certificates
from llmd.daemon.identity.pki import Authority, PeerIdentity
from llmd.daemon.identity.principal import Identity
from llmd.daemon.identity.tls import server_context

OLD_POLICY, NEW_POLICY = (f'[[grants]]\nto = ["alice"]\nmodels = ["{model}"]\n' for model in ("old", "new"))
LATER = timedelta(days=400)  # the issuer is due by then


@dataclass
class Fault:
    """Ends this process at step `at`."""

    at: int
    steps: int = 0

    def step(self, name: str) -> None:
        if self.steps == self.at:
            (Path(os.environ["POINT"])).write_text(name)
            os.kill(os.getpid(), signal.SIGKILL)
        self.steps += 1


def install(fault: Fault) -> None:
    fsync, replace, atomic = os.fsync, Path.replace, Database.atomic

    def faulty_fsync(fd: int) -> None:
        fault.step(f"before fsync of {Path(os.readlink(f'/proc/self/fd/{fd}')).name}")
        fsync(fd)
        fault.step("after fsync")

    def faulty_replace(self: Path, target: Path) -> Path:
        fault.step(f"before rename to {target.name}")
        done = replace(self, target)
        fault.step(f"after rename to {target.name}")
        return done

    @contextlib.contextmanager
    def faulty_atomic(self: Database) -> Iterator[Database]:
        outermost = not self.conn.in_transaction
        with atomic(self):
            yield self
            if outermost:
                fault.step("before commit")
        if outermost:
            fault.step("after commit")

    patches: list[tuple[Any, str, Any]] = [
        (os, "fsync", faulty_fsync), (Path, "replace", faulty_replace), (Database, "atomic", faulty_atomic),
    ]  # fmt: skip
    for owner, name, faulty in patches:
        setattr(owner, name, faulty)


def daemon(state: Path, shift: timedelta = timedelta(0)) -> Daemon:
    """Whose clock is ahead by `shift`."""
    Authority.open = partial(Authority.open, now=partial(_now, shift))  # type: ignore[method-assign]
    return Daemon(Config(state_dir=str(state), node="test"))


def _now(shift: timedelta) -> datetime:
    return datetime.now(UTC) + shift


def close(running: Daemon) -> None:
    running.state.close()
    running.store.close()
    running.audit.close()
    os.close(running._lock)


# --- the acts


async def revoke(running: Daemon) -> None:
    await running.service.clients.revoke("alice", "test")


async def issue(running: Daemon) -> None:
    await running.service.clients.issue("bob", 30, "test", role="operator")


async def role(running: Daemon) -> None:
    await running.service.clients.set_role("alice", "infer", "test")


async def renewal(running: Daemon) -> None:
    await running.service.renew()
    assert len(running.authority.ends()) == 4 and running.authority._lists


async def policy(running: Daemon) -> None:
    await running.service.policies.change(Wanted(text=NEW_POLICY), "test")


async def first_start(running: Daemon) -> None:
    await running._demo_client()


ACTS: dict[str, Callable[[Daemon], Coroutine[Any, Any, None]]] = {
    "revoke": revoke, "issue": issue, "role": role, "policy": policy, "renewal": renewal,
    "first_start": first_start,
}  # fmt: skip


async def prepare(base: Path) -> None:
    running = daemon(base)
    issued = await running.service.clients.issue("alice", 720, "test", role="admin")
    (base / "alice.json").write_text(json.dumps({"serial": issued.serial, "end": issued.not_after.timestamp()}))
    await running.service.policies.change(Wanted(text=OLD_POLICY), "test")
    (base / "alice.pem").write_bytes(issued.key_pem + issued.certificate_pem)
    close(running)


async def perform(state: Path, act: str, at: int) -> None:
    shift = LATER if act == "renewal" else timedelta(0)
    if act == "renewal":  # it starts while nothing is due, and the time comes
        running = daemon(state)
        running.authority._now = partial(_now, shift)
        install(Fault(at))
    elif act == "first_start":  # the CA's making too
        install(Fault(at))
        running = daemon(state)
    else:
        running = daemon(state)
        install(Fault(at))
    await ACTS[act](running)
    close(running)


# --- what is left


async def look(state: Path, act: str) -> dict[str, Any]:
    """Raises AssertionError for a state that is neither closed nor complete."""
    shift = LATER if act == "renewal" else timedelta(0)
    running = daemon(state, shift)
    if act == "first_start":  # the next start goes on
        await running._demo_client()
    audit = [row for row in await running.audit.tail(2000) if row["kind"].startswith("admin.")]
    assert (await running.audit.verify()).ok
    ends: dict[str, list[str]] = {}
    for row in audit:
        ends.setdefault(row["request"], []).append(row["body"]["result"])
    assert all(results in (["begun", "done"], ["begun", "lost"]) for results in ends.values()), ends
    begun = {row["kind"] for row in audit if row["request"] == audit[-1]["request"]} if audit else set()
    assert running.authority.damages() == [] and running.authority.maintain() == []
    assert server_context(running.authority.trust_pem, state / "pki")
    found = LOOKS[act](running, state, begun)
    close(running)
    return found


def _alice(state: Path) -> PeerIdentity:
    kept = json.loads((state / "alice.json").read_text())
    return PeerIdentity("llmd://test/client/alice", kept["serial"], datetime.fromtimestamp(kept["end"], UTC))


def _role(running: Daemon, peer: PeerIdentity) -> str:
    """The role that this certificate has now; empty: it is refused."""
    clients = running.service.clients
    identity = Identity("test", lambda: running.authority.revoked, clients.roles.get, clients.register)
    try:
        return identity.principal(peer, "").role
    except Forbidden:
        return ""


def _revoked(running: Daemon, state: Path, begun: set[str]) -> dict[str, Any]:
    alice = _alice(state)
    known = f"{alice.serial:x}" in {c.serial for c in running.store.revoked_certificates()}
    on_lists = [any(e.serial_number == alice.serial for e in one) for one in running.authority._lists]
    refused = _role(running, alice) == ""
    assert {known, *on_lists, alice.serial in running.connections.revoked()} == {refused}, (
        "closed everywhere or nowhere"
    )
    assert refused or "admin.client_revoke" not in begun, "what was begun is closed"
    return {"closed": refused}


def _issued(running: Daemon, state: Path, begun: set[str]) -> dict[str, Any]:
    names = {p.name: p.role for p in running.store.principals()}
    has = bool([c for c in running.store.certificates() if c.principal == "bob"])
    assert has == ("bob" in names) and (not has or "admin.client_issue" in begun)
    assert names.get("bob", "operator") == "operator"
    return {"there": has}


def _roles(running: Daemon, state: Path, begun: set[str]) -> dict[str, Any]:
    now = _role(running, _alice(state))
    assert now == running.store.principal("alice").role and now in ("admin", "infer")
    assert now == "admin" or "admin.client_role" in begun
    return {"role": now}


def _judged(running: Daemon, state: Path, begun: set[str]) -> dict[str, Any]:
    """The old one or the new one, whole."""
    held, stored = running.serving.policy.now, running.store.policy()
    assert stored and (held.version, held.text) == (stored.version, stored.text)
    given = {model for model in ("old", "new") if held.of("alice").forms(model, frozenset({""}))}
    assert (given, held.text) in (({"old"}, OLD_POLICY), ({"new"}, NEW_POLICY)) and not held.of("bob").grants
    return {"holds": sorted(given)}


def _renewed(running: Daemon, state: Path, begun: set[str]) -> dict[str, Any]:
    now = _now(LATER)
    assert all(end.not_after > now + timedelta(days=30) for end in running.authority.ends())
    assert (state / "alice.pem").read_bytes().split(b"-----END CERTIFICATE")[1].strip()[
        -60:
    ] in running.authority.trust_pem
    assert _role(running, _alice(state)) == "admin" and running.authority.issue_client("carol")
    return {"issuers": len(running.authority._issuers)}


def _started(running: Daemon, state: Path, begun: set[str]) -> dict[str, Any]:
    """The demo client is known, and the files that are there are its own."""
    made = [c.serial for c in running.store.certificates()]
    (kept,) = certificates.read((state / "pki" / "clients" / "demo.crt").read_bytes())[:1]
    assert isinstance(kept, certificates.Certificate) and made == [f"{kept.serial_number:x}"]
    assert (state / "pki" / "clients" / "demo.key").stat().st_size
    return {"certificates": len(made)}


LOOKS: dict[str, Callable[[Daemon, Path, set[str]], dict[str, Any]]] = {
    "revoke": _revoked, "issue": _issued, "role": _roles, "policy": _judged, "renewal": _renewed,
    "first_start": _started,
}  # fmt: skip


# --- children


def child(work: Callable[[], Coroutine[Any, Any, Any]]) -> tuple[int, str]:
    """Its wait status, and the JSON of what `work` gave or the traceback of what it raised."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            said = json.dumps(asyncio.run(work()))
            code = 0
        except BaseException:
            said, code = traceback.format_exc(), 1
        os.write(writing, said.encode()[:60000])
        os._exit(code)
    os.close(writing)
    with os.fdopen(reading) as out:
        said = out.read()
    return os.waitpid(pid, 0)[1], said


def main(folder: Path, act: str) -> None:
    base, state, point = folder / "base", folder / "state", folder / "point"
    os.environ["POINT"] = str(point)
    base.mkdir()
    if act != "first_start":
        status, said = child(lambda: prepare(base))
        assert status == 0, said
    at = 0
    while True:
        shutil.rmtree(state, ignore_errors=True)
        shutil.copytree(base, state)
        point.write_text("the end")
        status, said = child(partial(perform, state, act, at))
        killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        assert killed or status == 0, said
        ok, found = child(lambda: look(state, act))
        print(json.dumps({"at": at, "point": point.read_text(), "ok": ok == 0, "found": found}), flush=True)
        if not killed:
            return
        at += 1


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
