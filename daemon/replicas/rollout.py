"""Which replicas a deployment has: pure, from what is wanted and what there is to the next thing to do.

`change` is asked again until it has nothing to say; each answer is carried out before. It looks, in this order:

1. nothing is wanted: whatever does not go yet goes;
2. more replicas serve or load as wanted than are wanted: one goes, one that does not serve first, the least busy next;
3. a replica with other settings does not serve: it takes on what is wanted where that is still missing, else it goes;
4. a replica with other settings serves, and so do as many as are wanted without it: it goes, the least busy first;
5. replicas are missing, and none has other settings: one is added;
6. the same, beside one that serves with other settings: one is added where there is room for both (one at a time, and
   not before the last one serves); where there is none, one of the others takes on what is wanted once its requests
   have ended.

A replica of which the GPU fails counts as one with other settings: it is moved in the same way.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class Seen:
    """A replica. `fits`: it was asked for what is wanted; `goes`: it was told to go; `ready`: it serves; `load`: its
    requests."""

    number: int
    fits: bool
    ready: bool
    goes: bool = False
    load: int = 0


@dataclass(frozen=True, slots=True)
class Add:
    """`beside` others that it is to replace: given up where there is no room for both."""

    beside: bool


@dataclass(frozen=True, slots=True)
class Replace:
    """Let this replica drain, and start with what is wanted in its place."""

    number: int


@dataclass(frozen=True, slots=True)
class Release:
    """Let this replica drain, and go."""

    number: int


Change: TypeAlias = Add | Replace | Release


def change(wanted: bool, count: int, replicas: Sequence[Seen], crowded: bool) -> Change | None:
    """The next thing to do; None: nothing, before something happens. `crowded`: there was no room beside."""
    stay = [one for one in replicas if not one.goes]
    fit, other = [one for one in stay if one.fits], [one for one in stay if not one.fits]
    idle, serve = [one for one in other if not one.ready], [one for one in other if one.ready]
    missing, ready = count - len(fit), sum(one.ready for one in fit)
    if not wanted:  # 1
        return Release(stay[0].number) if stay else None
    if missing < 0:  # 2
        return Release(_least(fit))
    if idle:  # 3
        return Replace(idle[0].number) if missing else Release(idle[0].number)
    if serve and ready + len(serve) > count:  # 4
        return Release(_least(serve))
    if not missing:
        return None
    if not serve:  # 5
        return Add(beside=False)
    if ready < len(fit):
        return None
    return Replace(_least(serve)) if crowded else Add(beside=True)  # 6


def _least(replicas: Sequence[Seen]) -> int:
    """One that does not serve, else the least busy, else the newest."""
    return min(replicas, key=lambda one: (one.ready, one.load, -one.number)).number
