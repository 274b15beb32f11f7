"""What a change of policy takes from whom, and what it gives: pure."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from llmd.daemon.hours import Hours
from llmd.daemon.identity.policy import NUMBERS, PRIORITIES, Policy, Rights
from llmd.daemon.identity.policy_text import Known

# a model that is none of those that there are: what is granted of it is granted of models that will come
OTHER = "other models"


@dataclass(frozen=True, slots=True)
class Change:
    """For clients whom it does the same: what they lose and what they get, in a few words each."""

    clients: tuple[str, ...]
    takes: tuple[str, ...]
    gives: tuple[str, ...]


def changes(
    was: Policy, new: Policy, clients: Mapping[str, str], models: Mapping[str, Collection[str]], known: Known
) -> list[Change]:
    """`clients`: to their roles; `models`: those that are imported, to the types of their forms."""
    named = {**{name: frozenset(forms) for name, forms in models.items()}, OTHER: frozenset({""})}
    made: dict[tuple[object, ...], tuple[tuple[str, ...], tuple[str, ...]]] = {}
    alike: dict[tuple[tuple[str, ...], tuple[str, ...]], list[str]] = {}
    for client, role in sorted(clients.items()):
        before, after = was.of(client), new.of(client)
        kind = (role, *(tuple(n for n, _ in of) for one in (before, after) for of in (one.grants, one.limits)))
        if kind not in made:
            routes = [route for route, roles in known.routes.items() if role in roles]
            one, other = (_Given(rights, routes, named, known.asking) for rights in (before, after))
            made[kind] = (tuple(_lost(one, other, _took)), tuple(_lost(other, one, _gave)))
        if any(made[kind]):
            alike.setdefault(made[kind], []).append(client)
    return [Change(tuple(names), *what) for what, names in alike.items()]


# a limit that one has (the last) and the other has not, or is looser
Say: TypeAlias = Callable[[str, str, str], str]


def _took(limit: str, before: str, now: str) -> str:
    return f"{limit} {now}" + (f" instead of {before}" if before else "")


def _gave(limit: str, now: str, before: str) -> str:
    return f"{limit} {now} instead of {before}" if now else f"no {limit} any more, it was {before}"


class _Given:
    """What a client is given: of each model its forms by each route, and the routes that are about none."""

    def __init__(
        self, rights: Rights, routes: Sequence[str], models: Mapping[str, frozenset[str]], asking: Collection[str]
    ) -> None:
        self.rights, self.models = rights, models
        self.others = [route for route in routes if route not in asking and rights.may_call(route)]
        self.forms = {
            model: {route: rights.decided(model, forms, route).forms for route in routes if route in asking}
            for model, forms in models.items()
        }

    def sees(self, model: str) -> bool:
        return any(self.forms[model].values())


def _lost(had: _Given, has: _Given, say: Say) -> Iterator[str]:
    """What `has` lacks of what `had` gave, or gives less of."""
    yield from (route for route in had.others if route not in has.others)
    limited: dict[str, list[str]] = {}
    shared = [model for model in had.models if had.sees(model) and has.sees(model)]
    for model, forms in had.models.items():
        yield from _lost_of(had.forms[model], has.forms[model], model, forms)
        if model in shared:
            for tighter in _tighter(had.rights, has.rights, model, forms):
                limited.setdefault(say(*tighter), []).append(model)
    for limit, of in limited.items():
        yield limit if of == shared else f"{limit} for {', '.join(of)}"


def _lost_of(
    had: Mapping[str, frozenset[str]], has: Mapping[str, frozenset[str]], model: str, forms: frozenset[str]
) -> Iterator[str]:
    """Of one model: the whole of it, or forms and routes of it."""
    gone: dict[frozenset[str], list[str]] = {}
    for route, given in had.items():
        if lost := given - has[route]:
            gone.setdefault(lost, []).append(route)
    for lost, by in gone.items():
        names = model if lost == forms else ", ".join(f"{model}@{form}" for form in sorted(lost))
        yield names if len(by) == sum(map(bool, had.values())) else f"{names} by {', '.join(by)}"


def _tighter(had: Rights, has: Rights, model: str, forms: frozenset[str]) -> Iterator[tuple[str, str, str]]:
    """Limits of `has` that `had` has not, or looser: their names, and what they were and are."""
    for name in NUMBERS:
        before, after = had.least(name, model, forms), has.least(name, model, forms)
        if name == "weight":  # without a limit it is 1
            before, after = before or 1, after or 1
        if after is not None and (before is None or after < before):
            yield name, f"{before:,}" if before is not None else "", f"{after:,}"
    first, last = (min(of.priorities(model, forms), key=PRIORITIES.__getitem__, default="normal") for of in (had, has))
    if PRIORITIES[last] < PRIORITIES[first]:
        yield "priority", first, last
    hours = had.hours(model, forms)
    yield from (("hours", "; ".join(map(str, hours)), str(one)) for one in has.hours(model, forms)
                if not _open(one, hours))  # fmt: skip


def _open(hours: Hours, before: Sequence[Hours]) -> bool:
    """Whether they are open whenever all of those were."""
    return hours.always or any(hours.covers(one) for one in before)
