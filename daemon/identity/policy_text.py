"""A policy as people write it: TOML, taken whole or refused with the line that is wrong."""

import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from llmd.daemon import toml
from llmd.daemon.errors import PolicyInvalid, listed, quoted
from llmd.daemon.hours import Hours
from llmd.daemon.identity.policy import ALL, NUMBERS, PRIORITIES, Grant, Limit, Models, Pattern, Policy

# characters
MAX_TEXT = 256 * 1024
MOST = 1 << 53
MOST_WEIGHT = 1000
_GROUP = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
NAME_RULE = "1 to 64 lower-case letters, digits, dots, hyphens and underscores, a letter or digit first"
_MODELS = re.compile(r"[a-z0-9._*-]{1,64}(@[A-Za-z0-9_.*-]{1,64})?")
# what a policy begins as that takes nothing from anybody
BEGIN = """\
# Who may use what. What no grant gives is denied: for that client it does not exist.
#
# [groups]    NAME = clients, as `llmctl client list` shows them
# [[grants]]  to = groups and clients; "*" is everybody
#             models = MODEL or MODEL@TYPE, in which * stands for any characters
#             routes = as "/v1/chat/completions" or "/v1/*"; without: all that the client's role may call
# [[limits]]  of = groups and clients; where several name a client, all of them hold
#             models = as above; without: all
#             hours = ["Mon-Fri 08:00-18:00"], with zone = "Europe/Berlin"
#             longest_context, longest_output = tokens of a prompt with its answer, of an answer
#             requests_per_minute, requests_per_day, tokens_per_minute, tokens_per_day, streams = at a time; each
#               client's own, over the limit's models together
#             priority = "batch", "normal" or "interactive", weight = 1, …: its share among those who wait
#             deadline_seconds = of a whole answer; one that would begin later is refused

[groups]

[[grants]]
to = ["*"]
models = ["*"]
"""


@dataclass(frozen=True, slots=True)
class Known:
    """What a policy may name. `routes`: to the roles that may call each; `asking`: those that are about models."""

    clients: Collection[str]
    routes: Mapping[str, frozenset[str]]
    asking: frozenset[str]


def read(text: str, version: int, known: Known | None = None) -> Policy:
    """Raises PolicyInvalid, with the line and the reason. Without `known`: what was read before, whoever is known
    now."""
    if len(text) > MAX_TEXT:
        raise PolicyInvalid(f"a policy has at most {MAX_TEXT:,} characters; give groups, and * in names")
    return _Reader(text, known).policy(version)


def with_group(text: str, name: str, members: Sequence[str] | None) -> str:
    """The text with a group of these clients, or without it; everything else stays as it was written. Raises
    PolicyInvalid where that cannot be."""
    before = _parsed(text)
    groups = before.get("groups", {})
    lines, row = text.split("\n"), [] if members is None else [f"{_key(name)} = {json.dumps(list(members))}"]
    if isinstance(groups, dict) and name in groups:
        first, last = toml.statement(text, ("groups", name))
        lines[first - 1 : last] = row
    elif "groups" in before:
        lines[(end := toml.statement(text, ("groups",))[1]) : end] = row
    else:
        lines += ["[groups]", *row, ""]
    made = "\n".join(lines)
    wanted = {**groups, name: members} if members is not None else {n: of for n, of in groups.items() if n != name}
    try:
        if toml.parsed(made) == {**before, "groups": wanted}:
            return made
    except toml.Wrong:
        pass
    raise PolicyInvalid("the groups are not written in a line each: change them with llmctl policy edit")


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else json.dumps(name)


def _parsed(text: str) -> dict[str, Any]:
    try:
        return toml.parsed(text)
    except toml.Wrong as e:
        raise PolicyInvalid(f"{f'line {e.line}: ' if e.line else ''}{e.why}") from e


class _Reader:
    """Of one text."""

    def __init__(self, text: str, known: Known | None) -> None:
        self._text, self._known = text, known

    def policy(self, version: int) -> Policy:
        found = _parsed(self._text)
        for key in found.keys() - {"groups", "grants", "limits"}:
            self._wrong((key,), f"there is no {quoted(key, 40)}; a policy has groups, grants and limits")
        groups = dict(self._groups(found.get("groups", {})))
        self._named = {*groups, ALL, *(self._known.clients if self._known else ())}
        grants = [self._grant(("grants", i), one) for i, one in self._tables(found, "grants")]
        limits = [self._limit(("limits", i), one) for i, one in self._tables(found, "limits")]
        if not grants:
            self._wrong(("grants",), "it grants nobody anything, which locks all out; write at least one [[grants]]")
        made = Policy(version, self._text, groups, grants, limits)
        self._check_open(made)
        return made

    def _wrong(self, path: toml.Path, why: str, value: str | None = None) -> NoReturn:
        raise PolicyInvalid(f"line {toml.line(self._text, path, value)}: {why}")

    # --- groups

    def _groups(self, groups: Any) -> Iterator[tuple[str, tuple[str, ...]]]:
        if not isinstance(groups, dict):
            self._wrong(("groups",), 'groups are written as [groups], with NAME = ["client", …] below it')
        for name in groups:
            path = ("groups", name)
            if not _GROUP.fullmatch(name):
                self._wrong(path, f"a group's name has {NAME_RULE}")
            if self._known and name in self._known.clients:
                self._wrong(path, f"{name} is a client: give the group another name")
            members = self._texts(path, groups[name])
            for member in members:
                if member in groups:
                    self._wrong(path, f"{member} is a group: a group has clients", member)
                self._check_named(path, member, self._known.clients if self._known else None, "client")
            yield name, members

    def _check_named(self, path: toml.Path, name: str, among: Collection[str] | None, what: str) -> None:
        if among is not None and name not in among:
            self._wrong(path, f"there is no {what} {quoted(name, 64)}; there is {listed(among)}", name)

    # --- grants

    def _grant(self, path: toml.Path, given: dict[str, Any]) -> Grant:
        self._check_keys(path, given, ("to", "models", "routes"), "a grant")
        routes = tuple(self._route((*path, "routes"), one) for one in self._optional(path, given, "routes"))
        models = self._models(path, given)
        self._check_asking(path, bool(models), routes)
        return Grant(self._people(path, given, "to"), models, routes)

    def _people(self, path: toml.Path, given: dict[str, Any], key: str) -> tuple[str, ...]:
        if key not in given:
            self._wrong(path, f'it names nobody: write {key} = ["group or client", …]')
        names = self._texts((*path, key), given[key])
        for name in names:
            self._check_named((*path, key), name, self._named if self._known else None, "client or group")
        return names

    def _models(self, path: toml.Path, given: dict[str, Any]) -> tuple[Models, ...]:
        names = self._optional(path, given, "models")
        for name in names:
            if not _MODELS.fullmatch(name):
                why = f"{quoted(name, 64)} is no model: they are written as MODEL or MODEL@TYPE, with * in them"
                self._wrong((*path, "models"), why, name)
        return tuple(map(Models.of, names))

    def _route(self, path: toml.Path, text: str) -> Pattern:
        pattern = Pattern(text)
        if self._known and not any(map(pattern.fits, self._known.routes)):
            self._wrong(path, f"there is no route {quoted(text, 64)}; there is {listed(self._known.routes)}", text)
        return pattern

    def _check_asking(self, path: toml.Path, models: bool, routes: Sequence[Pattern]) -> None:
        if self._known is None:
            return
        asking = not routes or any(pattern.fits(route) for pattern in routes for route in self._known.asking)
        if asking and not models:
            others = listed(self._known.routes.keys() - self._known.asking)
            self._wrong(path, f"it gives no model: write models = [...], or only routes that ask none ({others})")
        if models and not asking:
            self._wrong(path, f"it gives models and no route that asks them ({listed(self._known.asking)})")

    # --- limits

    def _limit(self, path: toml.Path, given: dict[str, Any]) -> Limit:
        self._check_keys(path, given, ("of", "models", *NUMBERS, "priority", "hours", "zone"), "a limit")
        numbers = {name: self._number((*path, name), given[name]) for name in NUMBERS if name in given}
        priority = given.get("priority")
        if "priority" in given and priority not in PRIORITIES:
            self._wrong((*path, "priority"), f"priority takes {', '.join(map(json.dumps, PRIORITIES))}")
        hours = self._hours(path, given)
        if not (numbers or priority or hours):
            self._wrong(path, f"it limits nothing; a limit has {', '.join((*NUMBERS, 'priority', 'hours'))}")
        for less, more in (
            ("longest_output", "longest_context"), ("tokens_per_minute", "tokens_per_day"),
            ("requests_per_minute", "requests_per_day"),
        ):  # fmt: skip
            if less in numbers and more in numbers and numbers[less] > numbers[more]:
                self._wrong((*path, less), f"{less} is more than {more}")
        return Limit(self._people(path, given, "of"), self._models(path, given), numbers, priority, hours)

    def _number(self, path: toml.Path, value: Any) -> int:
        least, most = 2 if path[-1] == "longest_context" else 1, MOST_WEIGHT if path[-1] == "weight" else MOST
        if type(value) is not int or not least <= value <= most:
            told = f"{least} or more" if most == MOST else f"{least} to {most}"
            self._wrong(path, f"{path[-1]} takes a whole number, {told}; without it there is no such limit")
        return value

    def _hours(self, path: toml.Path, given: dict[str, Any]) -> Hours | None:
        if ("hours" in given) != ("zone" in given):
            self._wrong(path, 'hours = ["Mon-Fri 08:00-18:00"] and zone = "Europe/Berlin" stand together')
        if "hours" not in given:
            return None
        spans, zone = self._texts((*path, "hours"), given["hours"]), given["zone"]
        if not isinstance(zone, str):
            self._wrong((*path, "zone"), 'zone takes a text, as "Europe/Berlin"')
        for key, tried in (("zone", ((), zone)), *(("hours", ((span,), "UTC")) for span in spans)):
            try:
                Hours.of(*tried)
            except ValueError as e:
                self._wrong((*path, key), str(e), tried[0][0] if tried[0] else None)
        return Hours.of(spans, zone)

    def _check_open(self, made: Policy) -> None:
        """Hours of several limits that leave a client none contradict each other."""
        for client in self._known.clients if self._known else ():
            left: dict[str, int] = {}  # of limits on all models: of different zones nobody knows
            for number, limit in made.of(client).limits:
                if limit.hours and not limit.models:
                    zone = limit.hours.zone
                    left[zone] = left.get(zone, limit.hours.minutes) & limit.hours.minutes
                    if not left[zone]:
                        self._wrong(("limits", number - 1), f"with the limits before it this leaves {client} no hour")

    # --- values

    def _tables(self, found: dict[str, Any], key: str) -> Iterable[tuple[int, dict[str, Any]]]:
        tables = found.get(key, [])
        if not isinstance(tables, list) or not all(isinstance(one, dict) for one in tables):
            self._wrong((key,), f"{key} are written as [[{key}]], each with its own lines below it")
        return enumerate(tables)

    def _check_keys(self, path: toml.Path, given: dict[str, Any], keys: Sequence[str], what: str) -> None:
        for key in given.keys() - set(keys):
            self._wrong((*path, key), f"{what} has no {quoted(key, 40)}; it has {', '.join(keys)}")

    def _optional(self, path: toml.Path, given: dict[str, Any], key: str) -> tuple[str, ...]:
        return self._texts((*path, key), given[key]) if key in given else ()

    def _texts(self, path: toml.Path, value: Any) -> tuple[str, ...]:
        if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
            self._wrong(path, f'{path[-1]} takes a list of texts, as ["a", "b"]')
        if not value:
            self._wrong(path, f"{path[-1]} is empty: it names nobody and nothing; fill it, or remove the line")
        for number, one in enumerate(value):
            if one in value[:number]:
                self._wrong(path, f"{quoted(one, 64)} stands in it twice", one)
        return tuple(value)


def remarks(policy: Policy, known: Known, clients: Mapping[str, str], models: Collection[str]) -> Iterator[str]:
    """What is right and may not be meant. `clients`: to their roles; `models`: those that are imported."""
    for name in sorted({*policy.groups} - {name for grant in policy.grants for name in grant.to}):
        yield f"no grant is to the group {name}"
    for number, grant in enumerate(policy.grants, 1):
        for one in grant.models:
            if not any(one.model.fits(model) for model in models):
                yield f"grant {number}: there is no model {one.model.text} now"
        members = {m for name in grant.to for m in policy.groups.get(name, clients if name == ALL else (name,))}
        roles = {clients[member] for member in members if member in clients}
        for pattern in grant.routes:
            if not any(roles & of for route, of in known.routes.items() if pattern.fits(route)):
                yield f"grant {number}: none of its clients has a role that may call {pattern.text}"
