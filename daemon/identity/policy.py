"""Who may use what, as a pure object. `policy_text.py` makes it of what somebody wrote.

A request of a client for a model by a route is judged in this order:

1. No grant names the client, this model (in one of the forms that would answer) and this route: denied, as what is not
   there at all.
2. Each limit that names the client and the model holds: at this moment its hours must be open.
3. Of the limits on context and output the tightest holds.

A policy always has grants: without one there is none, and roles alone decide (`EVERYTHING`). It judges the model that
answers, never how it was asked for; the local admin is never judged.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from llmd.daemon.hours import Hours
from llmd.daemon.identity.principal import Principal

ALL = "*"
# decisions of one client that are kept
MAX_DECIDED = 1024
# limits that are numbers, in the order in which they are told; those in ENFORCED hold, the others are kept
NUMBERS = (
    "longest_context", "longest_output", "requests_per_minute", "tokens_per_minute", "tokens_per_day", "streams",
)  # fmt: skip
PRIORITIES = ("batch", "normal", "interactive")
ENFORCED = frozenset({"longest_context", "longest_output", "hours"})


@dataclass(frozen=True, slots=True)
class Pattern:
    """A name, in which `*` stands for any characters."""

    text: str

    def fits(self, name: str) -> bool:
        first, *rest = self.text.split(ALL)
        if not rest:
            return name == first
        *middle, last = rest
        if len(name) < len(first) + len(last) or not (name.startswith(first) and name.endswith(last)):
            return False
        at, end = len(first), len(name) - len(last)
        for part in middle:  # the first place that each fits leaves the most room for the next
            at = name.find(part, at, end)
            if at < 0:
                return False
            at += len(part)
        return True


@dataclass(frozen=True, slots=True)
class Models:
    """MODEL or MODEL@TYPE, each with `*`: without a type all forms of it."""

    model: Pattern
    form: Pattern = Pattern(ALL)

    @classmethod
    def of(cls, text: str) -> "Models":
        model, _, form = text.partition("@")
        return cls(Pattern(model), Pattern(form.upper() or ALL))

    def forms(self, model: str, forms: Collection[str]) -> frozenset[str]:
        """Which of a model's forms it names; that of one that is not known yet is ""."""
        if not self.model.fits(model):
            return frozenset()
        return frozenset(form for form in forms if self.form.fits(form))


@dataclass(frozen=True, slots=True)
class Grant:
    """`to`: groups and clients; no `routes`: all that the role may call."""

    to: tuple[str, ...]
    models: tuple[Models, ...] = ()
    routes: tuple[Pattern, ...] = ()

    def by(self, route: str) -> bool:
        return not self.routes or any(pattern.fits(route) for pattern in self.routes)

    def forms(self, model: str, forms: Collection[str]) -> frozenset[str]:
        return frozenset().union(*(one.forms(model, forms) for one in self.models))


@dataclass(frozen=True, slots=True)
class Limit:
    """`of`: groups and clients; no `models`: all. What is None is not limited."""

    of: tuple[str, ...]
    models: tuple[Models, ...] = ()
    numbers: Mapping[str, int] = field(default_factory=dict)
    priority: str | None = None
    hours: Hours | None = None

    def on(self, model: str, forms: Collection[str]) -> bool:
        return not self.models or any(one.forms(model, forms) for one in self.models)


@dataclass(frozen=True, slots=True)
class Bounds:
    """Of one answer, in tokens: of a prompt with its answer, and of an answer; None: as many as the model takes."""

    context: int | None = None
    output: int | None = None


UNBOUND = Bounds()


class Rights:
    """What a policy gives one client. `limits` and `grants` with their numbers in it, from 1."""

    def __init__(
        self, client: str, grants: Sequence[tuple[int, Grant]], limits: Sequence[tuple[int, Limit]], policy: str
    ) -> None:
        self.client, self.grants, self.limits, self._policy = client, tuple(grants), tuple(limits), policy
        self._decided: dict[tuple[str, frozenset[str], str | None], frozenset[str]] = {}

    def forms(self, model: str, forms: frozenset[str], route: str | None = None) -> frozenset[str]:
        """Which of these forms of a model may answer by a route, or by any; none: the model is not there."""
        key = (model, forms, route)
        found = self._decided.get(key)
        if found is None:
            if len(self._decided) >= MAX_DECIDED:
                self._decided.clear()
            given = (grant.forms(model, forms) for _, grant in self.grants if route is None or grant.by(route))
            found = self._decided[key] = frozenset().union(*given)
        return found

    def may_call(self, route: str) -> bool:
        return any(grant.by(route) for _, grant in self.grants)

    def bounds(self, model: str, forms: frozenset[str]) -> Bounds:
        return Bounds(*(self.least(name, model, forms) for name in ("longest_context", "longest_output")))

    def least(self, number: str, model: str, forms: frozenset[str]) -> int | None:
        """The tightest of what limits a number."""
        of = [limit.numbers[number] for _, limit in self.limits if number in limit.numbers and limit.on(model, forms)]
        return min(of, default=None)

    def hours(self, model: str, forms: frozenset[str]) -> list[Hours]:
        return [limit.hours for _, limit in self.limits if limit.hours and limit.on(model, forms)]

    def priorities(self, model: str, forms: frozenset[str]) -> list[str]:
        return [limit.priority for _, limit in self.limits if limit.priority and limit.on(model, forms)]

    def closed(self, model: str, forms: frozenset[str], now: datetime) -> tuple[int, Hours] | None:
        """The first limit whose hours are not open, by its number."""
        for number, limit in self.limits:
            if limit.hours and limit.on(model, forms) and not limit.hours.at(now):
                return number, limit.hours
        return None

    def why(self, model: str, forms: frozenset[str], route: str, now: datetime) -> str:
        """The rule that forbids a request; "": none does."""
        given = self.forms(model, forms, route)
        if not given:  # 1
            return self.no_grant(f"{model} by {route}")
        closed = self.closed(model, given, now)  # 2
        return self.not_open(*closed) if closed else ""

    def no_grant(self, what: str) -> str:
        return f"{self._policy}: no grant gives {self.client} {what}"

    def not_open(self, number: int, hours: Hours) -> str:
        return f"{self._policy}: limit {number}, the hours {hours}"


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

    def of(self, client: str) -> Rights:
        """Kept for each client: there are as many as have certificates."""
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
            f"policy {self.version}",
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


class InForce:
    """The policy that holds now: whoever judges asks here. Made once, by the composition; the event loop owns it."""

    def __init__(self, policy: Policy | None = None) -> None:
        self.now = policy or EVERYTHING
        self._told: list[Callable[[Policy, Policy], None]] = []

    def follow(self, tell: Callable[[Policy, Policy], None]) -> None:
        """For what must be done at a change: it gets what held, and what does."""
        self._told.append(tell)

    def use(self, new: Policy) -> None:
        was, self.now = self.now, new
        for tell in self._told:
            tell(was, new)

    def of(self, principal: Principal) -> Rights:
        """The local admin's are all: nobody can lock them out."""
        return (EVERYTHING if principal.local else self.now).of(principal.name)


EVERYTHING = Policy.none()
