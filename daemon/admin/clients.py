"""Who may connect: certificates and roles. Every change is an act in the audit log."""

import logging
import socket
import time
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from llmd.daemon.admin.doctor import config_names, rfc3339
from llmd.daemon.audit.acts import Acts
from llmd.daemon.audit.chain import Entry, parsed
from llmd.daemon.audit.log import AuditLog
from llmd.daemon.config import Config
from llmd.daemon.errors import BadRequest, Conflict, NotFound
from llmd.daemon.identity.connections import Connections
from llmd.daemon.identity.pki import Authority, IssuedClient, Revocation
from llmd.daemon.identity.principal import DEFAULT_ROLE, ROLES
from llmd.daemon.identity.register import Register
from llmd.daemon.state.records import Certificate
from llmd.daemon.state.store import StateThread, Store

log = logging.getLogger("llmd")

ISSUE, REVOKE = "admin.client_issue", "admin.client_revoke"
DAY_SECONDS = 86400.0


def revocations(store: Store) -> dict[int, Revocation]:
    """What the state database knows to be revoked, as the CA takes it."""
    return {
        int(c.serial, 16): Revocation(_utc(c.revoked_at), _utc(c.not_after))
        for c in store.revoked_certificates()
        if c.revoked_at is not None
    }


def open_authority(config: Config, store: Store, audit: AuditLog) -> Authority:
    """The CA, and the state database with it: what one of them, or the audit log, knows to be issued or revoked, the
    others know too."""
    if restored := store.restored:
        log.warning("%s", restored)
        audit.event("state.restored", found=restored.found, used=restored.version, as_of=restored.taken)
    if remembered := remember(store, audit.of_clients()):
        log.warning("the state database is older than the audit log: it knows %d certificates again", remembered)
        audit.event("state.completed", certificates=remembered)
    names = config_names(config, socket.gethostname().lower())
    authority = Authority.open(config.state / "pki", config.node_name, names, revoked=revocations(store))
    for damage in authority.healed:
        log.warning("%s/%s %s", "pki", damage.file, damage.what + (": made anew" if damage.heals else ""))
        audit.event("pki.damaged", file=damage.file, what=damage.what, made_anew=damage.heals)
    completed = reconcile(store, authority, audit.lost)
    if completed:
        log.warning("a revocation was cut off: it is complete now, of %d certificates", completed)
        audit.event("pki.reconciled", certificates=completed)
    return authority


def remember(store: Store, rows: Iterable[Entry]) -> int:
    """Put into the state database what it does not know of who may connect, as the audit log's rows of clients tell
    it: an older one was put back. How many certificates that were.

    1. Each certificate that was issued, with its client, whose role is the last that it was given; a client that is
    known keeps its role. 2. Each that was revoked since is revoked.
    """
    known, roles, revoked, lost = {c.serial for c in store.certificates()}, dict[str, str](), dict[str, float](), []
    for row in rows:
        body = parsed(row.body)
        if not isinstance(body, dict) or body.get("result") != "done":
            continue
        if row.kind != REVOKE:
            roles[str(body.get("client"))] = str(body.get("role"))
        if row.kind == ISSUE and str(body.get("serial")) not in known:
            lost.append((row, body))
        if row.kind == REVOKE:
            revoked |= dict.fromkeys(str(body.get("serials")).split(), _seconds(row.ts))
    for row, body in lost:  # 1
        name, begin = str(body["client"]), _seconds(row.ts)
        end = body.get("not_after") or begin + DAY_SECONDS * int(body["days"])
        store.add_client(name, roles[name], str(body["serial"]), begin, float(end))
    store.mark_revoked(revoked)  # 2
    return len(lost)


def _seconds(ts: str) -> float:
    return datetime.fromisoformat(ts).timestamp()


def reconcile(store: Store, authority: Authority, lost: Iterable[Entry]) -> int:
    """Complete what a daemon that died left half done; how many certificates that were.

    1. A revocation that stands in the audit log as begun (`lost`: the acts that have no result) is done; 2. what is on
    the revocation list only is put into the state database too.
    """
    before = len(store.revoked_certificates())
    for entry in lost:
        if entry.kind == REVOKE:
            _revoke_again(store, authority, parsed(entry.body))  # 1
    listed = {f"{serial:x}": one.when.timestamp() for serial, one in authority.revocations.items()}
    store.mark_revoked(listed)  # 2
    return len(store.revoked_certificates()) - before


def _revoke_again(store: Store, authority: Authority, asked: dict[str, Any]) -> None:
    with suppress(NotFound, Conflict):  # it was refused then too
        good = store.good_certificates(str(asked.get("client")), str(asked.get("of") or ""))
        if good:
            authority.revoke({int(c.serial, 16): _utc(c.not_after) for c in good})


@dataclass(slots=True)
class Clients:
    """`roles`: client name to role, a copy of the state database's that is asked at every request. `groups`: the
    policy's, whose names no client may have."""

    store: Store
    state: StateThread
    authority: Authority
    connections: Connections
    acts: Acts
    groups: Callable[[], Collection[str]] = tuple
    roles: dict[str, str] = field(default_factory=dict)
    register: Register = field(default_factory=Register)

    def __post_init__(self) -> None:
        self.roles |= {p.name: p.role for p in self.store.principals()}
        self.register = Register(c.serial for c in self.store.certificates())

    async def issue(
        self,
        name: str,
        days: int,
        actor: str,
        *,
        role: str | None = None,
        again: bool = False,
        keep: Callable[[IssuedClient], None] = lambda _: None,
    ) -> IssuedClient:
        """A certificate for a new client, or with `again` one more for a client that there is. `keep` is called before
        the certificate is known here, and so good for anything. Raises BadRequest, Conflict."""
        _check_role(role)
        given = role or self.roles.get(name, DEFAULT_ROLE)

        def work() -> IssuedClient:
            self._check_issue(name, given, again)
            issued = self.authority.issue_client(name, days)
            keep(issued)
            begin, end = issued.not_before.timestamp(), issued.not_after.timestamp()
            self.store.add_client(name, given, f"{issued.serial:x}", begin, end)
            return issued

        async with self.acts(ISSUE, actor, client=name, role=given, days=days) as result:
            issued = await self.state.run(work)
            self.roles.setdefault(name, given)
            self.register.add(issued.serial)
            result |= {"serial": f"{issued.serial:x}", "not_after": int(issued.not_after.timestamp())}
        return issued

    def _check_issue(self, name: str, role: str, again: bool) -> None:
        """Raises Conflict for a client that there is, without `again`, for another role than it has, and for a name
        that a group has."""
        if name not in self.roles and name in self.groups():
            raise Conflict(f"the policy has a group {name}; give the client another name")
        if name not in self.roles:
            return
        if again and role != self.roles[name]:
            raise Conflict(f"{name} has the role {self.roles[name]}; `llmctl client role {name} {role}` changes it")
        if again:
            return
        good = [c for c in self.store.certificates(name) if c.revoked_at is None and c.not_after > time.time()]
        until = f" with a certificate until {rfc3339(max(c.not_after for c in good))}" if good else ""
        raise Conflict(
            f"there is a client {name} already{until}; --again makes one more certificate, "
            f"`llmctl client revoke {name}` ends those that it has"
        )

    async def revoke(self, name: str, actor: str, serial: str = "") -> dict[str, Any]:
        """Revoke all of a client's certificates, or the one whose serial number begins with `serial`: new connections,
        kept ones and open streams end. Raises NotFound, Conflict.

        In this order: 1. they are refused, in memory, and the list is on disk; 2. the state database; 3. connections
        end. Whatever fails or dies in between, they stay refused, and a start completes what is lacking.
        """
        good: list[Certificate] = []
        cut = 0

        def work() -> None:
            good.extend(self.store.good_certificates(name, serial))
            if good:
                self.authority.revoke({int(c.serial, 16): _utc(c.not_after) for c in good})  # 1
                self.store.mark_revoked({c.serial: time.time() for c in good})  # 2

        async with self.acts(REVOKE, actor, takes_away=True, client=name, of=serial or None) as result:
            try:
                await self.state.run(work)
            finally:
                refused = [c.serial for c in good if int(c.serial, 16) in self.authority.revoked]
                cut = sum(self.connections.abort(int(one, 16)) for one in refused)  # 3
                result |= {"certificates": len(refused), "serials": " ".join(refused), "connections": cut}
        return {"client": name, "revoked": [c.serial for c in good], "connections": cut}

    async def set_role(self, name: str, role: str, actor: str) -> dict[str, Any]:
        """From the next request on. Raises NotFound, and BadRequest for what is no role."""
        _check_role(role)
        before = (await self.state.run(lambda: self.store.principal(name))).role
        async with self.acts("admin.client_role", actor, client=name, role=role, before=before):
            await self.state.run(lambda: self.store.set_role(name, role))
            self.roles[name] = role
        return {"client": name, "role": role, "before": before}

    async def list(self) -> list[dict[str, Any]]:
        """Every client and its certificates, with those that were shown in its name and that nothing here knows; a
        client that only such a one names has no role."""
        strangers = [
            (one.name, {"serial": one.serial, "not_after": rfc3339(one.not_after), "revoked_at": None, "known": False})
            for one in self.register.strangers
        ]

        def work() -> list[dict[str, Any]]:
            clients = self.store.principals()
            others = sorted({name for name, _ in strangers} - {p.name for p in clients})
            return [
                {"name": p.name, "role": p.role, "certificates": [
                    *({"serial": c.serial, "not_after": rfc3339(c.not_after), "known": True,
                       "revoked_at": None if c.revoked_at is None else rfc3339(c.revoked_at)}
                      for c in self.store.certificates(p.name)),
                    *(one for name, one in strangers if name == p.name)]}
                for p in clients
            ] + [
                {"name": other, "role": "", "certificates": [one for name, one in strangers if name == other]}
                for other in others
            ]  # fmt: skip

        return await self.state.run(work)


def _check_role(role: str | None) -> None:
    if role is not None and role not in ROLES:
        raise BadRequest(f"role takes {', '.join(ROLES[:-1])} or {ROLES[-1]}", param="role")


def _utc(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
