"""Who may use what, as an admin changes it: a policy is taken whole or not at all, holds from the next request on, and
ends what it takes away. Every change is an act in the audit log, with the text before and after."""

import asyncio
import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from llmd.daemon.admin.doctor import rfc3339
from llmd.daemon.audit.acts import Acts
from llmd.daemon.audit.chain import Value, parsed
from llmd.daemon.audit.log import AuditLog
from llmd.daemon.errors import BadRequest, Conflict, NotFound, PolicyInvalid
from llmd.daemon.identity.policy import Policy, Rights
from llmd.daemon.identity.policy_changes import Change, changes
from llmd.daemon.identity.policy_text import BEGIN, Known, read, remarks, with_group
from llmd.daemon.serving.answer import Serving
from llmd.daemon.state.records import PolicyText, of_form
from llmd.daemon.state.store import StateThread, Store

log = logging.getLogger("llmd.admin")


def open_policy(store: Store, audit: AuditLog) -> Policy:
    """The policy that holds at a start. Where the audit log has a later one than the state database, an older copy of
    that was put back: the later one holds. One that cannot be read gives nobody anything: an admin can set another."""
    last, done = store.policy(), audit.of_policy()
    body = parsed(done.body) if done else {}
    if isinstance(body, dict) and body.get("version", 0) > (last.version if last else 0):
        last = store.add_policy(int(body["version"]), str(body["after"]), "audit log")
        log.warning("the state database is older than the audit log: policy %d holds again", last.version)
        audit.event("state.completed", policy=last.version)
    if last is None or not last.text:
        return Policy.none(last.version if last else 0)
    try:
        return read(last.text, last.version)
    except PolicyInvalid as e:
        denies = Policy(last.version, last.text)
        log.critical("%s: %s; llmctl policy edit, or policy revert, sets one", denies.problem, e.message)
        return denies


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to hold: a `text`, what held as version `revert` (0: no policy), or what holds with another `group`: of
    which clients are added, removed, or which is gone."""

    text: str | None = None
    revert: int | None = None
    group: str | None = None
    add: tuple[str, ...] = ()
    remove: tuple[str, ...] = ()
    gone: bool = False


class Policies:
    """Made once, by the composition. `routes`: of the clients' listener, to the roles that may call each; `asking`:
    those that are about models; `roles`: the clients' that there are."""

    def __init__(
        self,
        serving: Serving,
        store: Store,
        state: StateThread,
        acts: Acts,
        roles: Mapping[str, str],
        routes: Mapping[str, frozenset[str]],
        asking: frozenset[str],
    ) -> None:
        self._serving, self._store, self._state, self.acts = serving, store, state, acts
        self._roles, self._routes, self._asking = roles, routes, asking
        self._changing = asyncio.Lock()
        for client in roles:
            self.now.of(client)  # made now, and not with a request

    @property
    def now(self) -> Policy:
        return self._serving.policy.now

    @property
    def begin(self) -> str:
        """What a first policy begins as."""
        return BEGIN

    @property
    def groups(self) -> Mapping[str, Sequence[str]]:
        return self.now.groups

    async def show(self, version: int | None = None) -> dict[str, Any]:
        """One that held, or the one that holds. Raises NotFound."""
        found = await self._state.run(lambda: self._store.policy(version))
        if found is None and version:
            known = await self._state.run(self._store.policies)
            raise NotFound.among("version of the policy", (str(one.version) for one in known), param="version")
        return self._told(found or PolicyText(0, 0.0, "", ""))

    async def history(self) -> list[dict[str, Any]]:
        """Every one that held, without its text."""
        told = [self._told(one) for one in await self._state.run(self._store.policies)]
        for one in told:
            one["exists"] = bool(one.pop("text"))
        return told

    async def change(self, wanted: Wanted, actor: str, *, base: int | None = None, dry: bool = False) -> dict[str, Any]:
        """What it takes from whom and gives, and unless `dry` it is done. `base`: the version that who asks has seen.
        Raises PolicyInvalid, NotFound, BadRequest, and Conflict where another one holds by now."""
        async with self._changing:
            was = self.now
            if base is not None and base != was.version:
                raise Conflict(
                    f"the policy has changed meanwhile: it is version {was.version} now; look, and try again"
                )
            text = await self._text(wanted, was)
            known, models = self._known(), await self._state.run(self._models)
            new, found, told = await asyncio.to_thread(self._judged, was, text, known, models)
            ended = 0
            if not dry and new.text != was.text:
                takes, gives = (any(getattr(one, of) for one in found) for of in ("takes", "gives"))
                ended = await self._set(was, new, actor, takes_away=takes and not gives)
            return {
                "version": new.version if new.text != was.text else was.version, "before": was.version,
                "text": text, "changes": [asdict(one) for one in found], "remarks": told, "ended": ended,
            }  # fmt: skip

    def _judged(
        self, was: Policy, text: str, known: Known, models: Mapping[str, Collection[str]]
    ) -> tuple[Policy, list[Change], list[str]]:
        new = read(text, was.version + 1, known) if text else Policy.none(was.version + 1)
        roles = dict(self._roles)  # a client may come meanwhile
        return new, changes(was, new, roles, models, known), list(remarks(new, known, roles, models)) if text else []

    async def _set(self, was: Policy, new: Policy, actor: str, *, takes_away: bool) -> int:
        """It holds once its row is on disk. How many running answers that ended."""
        before, stored = self._serving.cut, False

        def work() -> None:
            nonlocal stored
            self._store.add_policy(new.version, new.text, actor)
            stored = True

        texts: dict[str, Value] = {"before": was.text, "after": new.text}
        async with self.acts("admin.policy", actor, takes_away=takes_away, version=new.version, **texts) as result:
            try:
                await self._state.run(work)
            finally:  # who asked may have gone: what is on disk holds
                if stored:
                    self._serving.policy.use(new)
                    result["ended"] = self._serving.cut - before
        return self._serving.cut - before

    # --- groups

    async def _text(self, wanted: Wanted, was: Policy) -> str:
        """Raises NotFound, BadRequest, PolicyInvalid."""
        if wanted.group is not None:
            return with_group(was.text or BEGIN, wanted.group, self._members(wanted.group, wanted))
        if wanted.revert is not None:
            found = await self.show(wanted.revert)
            return str(found["text"])
        if not (wanted.text or "").strip():
            raise BadRequest("the policy is empty; llmctl policy revert 0 takes it away", param="text")
        return wanted.text or ""

    def _members(self, name: str, wanted: Wanted) -> list[str] | None:
        """Who is in a group afterwards; None: it is gone."""
        own = self.groups.get(name)
        if own is None and (wanted.remove or wanted.gone):
            raise NotFound.among("group", self.groups, param="group")
        for one in wanted.remove:
            if one not in (own or ()):
                raise NotFound.among(f"client in {name}", own or (), param="remove")
        left = [one for one in (own or ()) if one not in wanted.remove]
        members = [*left, *dict.fromkeys(one for one in wanted.add if one not in left)]
        if not members and not wanted.gone:
            raise BadRequest(f"nobody would be left in {name}: remove the group (llmctl group remove {name})")
        return None if wanted.gone else members

    # --- what would happen

    async def test(self, client: str, asked: str, route: str, at: datetime | None) -> dict[str, Any]:
        """Whether a client may call a route, for a model where it asks one; or the rule that forbids. Raises
        NotFound for a client or a route that there is not."""
        if client not in self._roles:
            raise NotFound.among("client", self._roles, param="client")
        if route not in self._routes:
            raise NotFound.among("route of clients", self._routes, param="route")
        role, rights = self._roles[client], self.now.of(client)
        answer: dict[str, Any] = {
            "allowed": False, "rule": "", "forms": [], "context": None, "output": None, "note": "", "weight": 1.0,
            "deadline": None, "left": [],
        }  # fmt: skip
        if role not in self._routes[route]:
            return {**answer, "rule": f"the role {role} may not call {route}"}
        if not rights.may_call(route):
            return {**answer, "rule": rights.no_grant(route)}
        if route not in self._asking:
            return {**answer, "allowed": True, "note": "this route asks no model"}
        return {**answer, **await self._of_model(rights, asked, route, at or datetime.now(UTC))}

    async def _of_model(self, rights: Rights, asked: str, route: str, at: datetime) -> dict[str, Any]:
        model, form = of_form(asked)
        deployed = self._serving.pool.known(model)
        there = (await self._state.run(self._models)).get(model)
        forms = deployed.forms if deployed else frozenset(there or {form or ""})
        if form is not None:
            forms &= {form}
        note = "" if deployed else "it is not deployed" if there is not None else "there is no such model now"
        if form and not forms:
            return {"rule": f"there is no form {form} of {model} that would answer", "note": note}
        decision, rule = rights.decide(model, forms, route), rights.why(model, forms, route, at)
        return {
            "allowed": not rule, "rule": rule, "note": note, "forms": sorted(decision.forms - {""}),
            "context": decision.bounds.context, "output": decision.bounds.output, "weight": decision.weight,
            "deadline": decision.deadline,
            "left": [{"limit": number, "name": name, "most": most, "left": left} for number, name, most, left
                     in self._serving.quotas.left(rights.client, decision.counts)],
        }  # fmt: skip

    # --- what is known

    def _known(self) -> Known:
        return Known(tuple(self._roles), self._routes, self._asking)

    def _models(self) -> dict[str, list[str]]:
        return {one.name: [form.type for form in self._store.forms(one.name)] for one in self._store.models()}

    def _told(self, one: PolicyText) -> dict[str, Any]:
        return {**asdict(one), "created": rfc3339(one.created) if one.version else "",
                "holds": one.version == self.now.version}  # fmt: skip
