"""Who may use what, as a pure object. `policy_text.py` makes it of what somebody wrote.

A request of a client for a model by a route is judged in this order:

1. No grant names the client, this model (in one of the forms that would answer) and this route: denied, as what is not
   there at all.
2. Each limit that names the client and the model holds: at this moment its hours must be open, and what it counts
   (`serving/quotas.py`) not used up.
3. Of the limits on context and output, of deadlines, weights and priorities the tightest holds.

A policy always has grants: without one there is none, and roles alone decide (`Policy.none`). It judges the model that
answers, never how it was asked for; the local admin is never judged.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from llmd.daemon.current import Current
from llmd.daemon.hours import Hours
from llmd.daemon.identity.principal import Principal

ALL = "*"
NONE: frozenset[str] = frozenset()
# decisions of one client that are kept
MAX_KEPT = 128
# limits that count what a client asks
COUNTED = ("requests_per_minute", "requests_per_day", "tokens_per_minute", "tokens_per_day", "streams")
# limits that are numbers, in the order in which they are told
NUMBERS = ("longest_context", "longest_output", *COUNTED, "deadline_seconds", "weight")
# what each is worth among those who wait for the same, for a weight of 1
PRIORITIES = {"batch": 0.125, "normal": 1.0, "interactive": 8.0}


@dataclass(frozen=True, slots=True)
class Pattern:
    """A name, in which `*` stands for any characters."""

    text: str

    def fits(self, name: str) -> bool:
        if self.text == ALL or self.text == name:
            return True
        if ALL not in self.text:
            return False
        first, *middle, last = self.text.split(ALL)
        if len(name) < len(first) + len(last) or not (name.startswith(first) and name.endswith(last)):
            return False
        at, end = len(first), len(name) - len(last)
        for part in middle:  # the first place that each fits leaves the most room for the next
            at = name.find(part, at, end)
            if at < 0:
                return False
            at += len(part)
        return True


def _any_fits(patterns: Iterable[Pattern], name: str) -> bool:
    for pattern in patterns:  # no generator: it is asked for each grant
        if pattern.fits(name):
            return True
    return False


@dataclass(frozen=True, slots=True)
class Models:
    """MODEL or MODEL@TYPE, each with `*`: without a type all forms of it."""

    model: Pattern
    form: Pattern = Pattern(ALL)

    @classmethod
    def of(cls, text: str) -> "Models":
        model, _, form = text.partition("@")
        return cls(Pattern(model), Pattern(form.upper() or ALL))

    def of_form(self, forms: frozenset[str]) -> frozenset[str]:
        """Which of the forms of a model that it names it gives; that of one that is not known yet is ""."""
        return forms if self.form.text == ALL else frozenset(filter(self.form.fits, forms))


@dataclass(frozen=True, slots=True)
class Grant:
    """`to`: groups and clients; no `routes`: all that the role may call."""

    to: tuple[str, ...]
    models: tuple[Models, ...] = ()
    routes: tuple[Pattern, ...] = ()

    def by(self, route: str) -> bool:
        return _any_fits(self.routes, route) if self.routes else True

    def forms(self, model: str, forms: frozenset[str]) -> frozenset[str]:
        found = NONE
        for one in self.models:
            if one.model.fits(model):
                found |= one.of_form(forms)
        return found


@dataclass(frozen=True, slots=True)
class Limit:
    """`of`: groups and clients; no `models`: all. What is None is not limited."""

    of: tuple[str, ...]
    models: tuple[Models, ...] = ()
    numbers: Mapping[str, int] = field(default_factory=dict)
    priority: str | None = None
    hours: Hours | None = None

    def covers(self, model: str) -> bool:
        """A model, in any of its forms."""
        return not self.models or any(one.model.fits(model) for one in self.models)

    def on(self, model: str, forms: frozenset[str]) -> bool:
        return not self.models or any(one.model.fits(model) and one.of_form(forms) for one in self.models)


@dataclass(frozen=True, slots=True)
class Bounds:
    """Of one answer, in tokens: of a prompt with its answer, and of an answer; None: as many as the model takes."""

    context: int | None = None
    output: int | None = None


UNBOUND = Bounds()


@dataclass(frozen=True, slots=True)
class Decision:
    """`forms`: of a model's those that may answer; none: the model is not there. `hours` and `counts`, the limits that
    count, each with its number; `deadline` is in seconds, of a whole answer; `weight` is the client's among those who
    wait for the same."""

    forms: frozenset[str]
    bounds: Bounds = UNBOUND
    hours: tuple[tuple[int, Hours], ...] = ()
    counts: tuple[tuple[int, Limit], ...] = ()
    deadline: int | None = None
    weight: float = 1.0

    def closed(self, now: datetime) -> tuple[int, Hours] | None:
        """The first limit whose hours are not open."""
        return next(((number, hours) for number, hours in self.hours if not hours.at(now)), None)


class Rights:
    """What a policy gives one client. `limits` and `grants` with their numbers in it, from 1."""

    def __init__(
        self, client: str, grants: Sequence[tuple[int, Grant]], limits: Sequence[tuple[int, Limit]], policy: "Policy"
    ) -> None:
        self.client, self.grants, self.limits, self._policy = client, tuple(grants), tuple(limits), policy
        self._kept: dict[tuple[str, frozenset[str], str | None], Decision] = {}

    def decide(self, model: str, forms: frozenset[str], route: str | None = None) -> Decision:
        """What of a model, of which these forms would answer, may be asked by a route, or by any."""
        key = (model, forms, route)
        found = self._kept.get(key)
        if found is None:
            if len(self._kept) >= MAX_KEPT:
                self._kept.clear()
            found = self._kept[key] = self.decided(*key)
        return found

    def decided(self, model: str, forms: frozenset[str], route: str | None = None) -> Decision:
        """The same, and nothing is kept: from any thread."""
        given = NONE
        for _, grant in self.grants:  # 1
            if route is None or grant.by(route):
                given |= grant.forms(model, forms)
        limits = [(number, limit) for number, limit in self.limits if limit.on(model, given)] if given else []
        if not limits:
            return Decision(given)
        hours = tuple((number, limit.hours) for number, limit in limits if limit.hours)  # 2
        counts = tuple((number, limit) for number, limit in limits if not limit.numbers.keys().isdisjoint(COUNTED))
        context, output, deadline, weight = (
            min((limit.numbers[name] for _, limit in limits if name in limit.numbers), default=None)
            for name in ("longest_context", "longest_output", "deadline_seconds", "weight")
        )  # 3
        worth = min((PRIORITIES[limit.priority] for _, limit in limits if limit.priority), default=1.0)
        return Decision(given, Bounds(context, output), hours, counts, deadline, worth * (weight or 1))

    def forms(self, model: str, forms: frozenset[str], route: str | None = None) -> frozenset[str]:
        """Which of these forms of a model may answer by a route, or by any; none: the model is not there."""
        return self.decide(model, forms, route).forms

    def may_call(self, route: str) -> bool:
        return any(grant.by(route) for _, grant in self.grants)

    def least(self, number: str, model: str, forms: frozenset[str]) -> int | None:
        """The tightest of what limits a number."""
        of = [limit.numbers[number] for _, limit in self.limits if number in limit.numbers and limit.on(model, forms)]
        return min(of, default=None)

    def hours(self, model: str, forms: frozenset[str]) -> list[Hours]:
        return [limit.hours for _, limit in self.limits if limit.hours and limit.on(model, forms)]

    def priorities(self, model: str, forms: frozenset[str]) -> list[str]:
        return [limit.priority for _, limit in self.limits if limit.priority and limit.on(model, forms)]

    def why(self, model: str, forms: frozenset[str], route: str, now: datetime) -> str:
        """The rule that forbids a request; "": none does."""
        decision = self.decide(model, forms, route)
        if not decision.forms:
            return self.no_grant(f"{model} by {route}")
        closed = decision.closed(now)
        return self.not_open(*closed) if closed else ""

    def no_grant(self, what: str) -> str:
        return f"policy {self._policy.version}: no grant gives {self.client} {what}"

    def used_up(self, number: int, name: str) -> str:
        return f"policy {self._policy.version}: limit {number}, {name}"

    def not_open(self, number: int, hours: Hours) -> str:
        return f"policy {self._policy.version}: limit {number}, the hours {hours}"


class Policy:
    """`text` is what somebody wrote, `version` its number in `state.db`, 0 before the first one."""

    def __init__(
        self,
        version: int,
        text: str,
        groups: Mapping[str, Sequence[str]] | None = None,
        grants: Sequence[Grant] = (),
        limits: Sequence[Limit] = (),
    ) -> None:
        self.version, self.text = version, text
        self.groups = {name: tuple(members) for name, members in (groups or {}).items()}
        self.grants, self.limits = tuple(grants), tuple(limits)
        self._grants, self._limits = _by_name(one.to for one in self.grants), _by_name(one.of for one in self.limits)
        self._groups_of: dict[str, list[str]] = {}
        for name, members in self.groups.items():
            for member in members:
                self._groups_of.setdefault(member, []).append(name)
        self._rights: dict[str, Rights] = {}

    def groups_of(self, client: str) -> list[str]:
        return sorted(self._groups_of.get(client, ()))

    def of(self, client: str) -> Rights:
        """Kept for each client: there are as many as have certificates. Whoever sets a policy makes them beforehand."""
        found = self._rights.get(client)
        if found is None:
            found = self._rights[client] = self._made(client)
        return found

    def _made(self, client: str) -> Rights:
        # a group that has a client's name is not that client
        names = [ALL, *self._groups_of.get(client, ()), *(() if client in self.groups else (client,))]
        grants = sorted({number for name in names for number in self._grants.get(name, ())})
        limits = sorted({number for name in names for number in self._limits.get(name, ())})
        return Rights(
            client,
            [(number, self.grants[number - 1]) for number in grants],
            [(number, self.limits[number - 1]) for number in limits],
            self,
        )

    @classmethod
    def none(cls, version: int = 0) -> "Policy":
        """There is none: whatever the role may call is granted."""
        return cls(version, "", grants=[Grant((ALL,), (Models.of(ALL),))])

    @property
    def exists(self) -> bool:
        return bool(self.text)

    @property
    def problem(self) -> str:
        """One that could not be read at a start gives nobody anything."""
        return "" if self.grants else f"policy {self.version} cannot be read, so every client is denied"


def _by_name(named: Iterable[Sequence[str]]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for number, names in enumerate(named, 1):
        for name in names:
            found.setdefault(name, []).append(number)
    return found


class InForce(Current[Policy]):
    """The policy that holds now: whoever judges asks here. Made once, by the composition."""

    def __init__(self, policy: Policy | None = None) -> None:
        super().__init__(policy or Policy.none())
        self._none = Policy.none()

    def of(self, principal: Principal) -> Rights:
        """The local admin's are all: nobody can lock them out."""
        return (self._none if principal.local else self.now).of(principal.name)
