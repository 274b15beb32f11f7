"""Whether a deployment is loaded, as a pure object, and which go where another one needs their room.

A deployment asks for something to be served (`Deployment.wanted`); whether it is loaded for that is another matter.
`on` answers an event with effects:

1. Deployed: it is to be loaded, whatever it was.
2. Evicted: it goes, and is away once its last process has gone. What is to be said of it then is kept.
3. Called, by a request, while it is away: it is loaded where it `comes` when it is called, else it stays away.
4. Unloaded: its last process has gone. It is away, unless it was deployed meanwhile: then it is loaded.
"""

from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import TypeAlias

# --- events


@dataclass(frozen=True, slots=True)
class Deployed:
    """Somebody asks for it to be served, now."""


@dataclass(frozen=True, slots=True)
class Evicted:
    why: str  # as admins are told


@dataclass(frozen=True, slots=True)
class Called:
    """A request for it has come."""


@dataclass(frozen=True, slots=True)
class Unloaded:
    """It has no process any more."""


Event: TypeAlias = Deployed | Evicted | Called | Unloaded

# --- effects


@dataclass(frozen=True, slots=True)
class Load:
    """Have its replicas started."""


@dataclass(frozen=True, slots=True)
class Unload:
    """Have its replicas go; answered by Unloaded."""


Effect: TypeAlias = Load | Unload

# --- the machine

RESIDENT, LEAVING, AWAY = "resident", "leaving", "away"


class Residency:
    """Of one deployment. `comes`: a request for it while it is away has it loaded, and waits for that."""

    def __init__(self) -> None:
        self.state, self.why, self.comes = RESIDENT, "", False
        self._wanted = True  # of one that leaves: it is loaded again

    @property
    def loaded(self) -> bool:
        """It has replicas, or is to have some."""
        return self.state == RESIDENT

    @property
    def away(self) -> bool:
        return self.state == AWAY

    def on(self, event: Event) -> list[Effect]:
        match event:
            case Deployed():  # 1
                return self._deployed()
            case Evicted(why):  # 2
                return self._evicted(why)
            case Called():  # 3
                return self._deployed() if self.away and self.comes else []
            case Unloaded():  # 4
                return self._unloaded()

    def _deployed(self) -> list[Effect]:
        self._wanted, self.why = True, ""
        if self.state != AWAY:
            return []
        self.state = RESIDENT
        return [Load()]

    def _evicted(self, why: str) -> list[Effect]:
        self._wanted, self.why = False, why
        if self.state != RESIDENT:
            return []
        self.state = LEAVING
        return [Unload()]

    def _unloaded(self) -> list[Effect]:
        if self.state != LEAVING:
            return []
        self.state = RESIDENT if self._wanted else AWAY
        return [Load()] if self._wanted else []


# --- who goes


def room(idle: Mapping[str, int]) -> Generator[frozenset[str], bool, list[str]]:
    """Which of the idle deployments go where another one needs their room: the cheapest to load again first, no more
    than needed. `idle` has the bytes that loading one reads. Sets of them are given out to be tried, and whether there
    is room without them is sent back. None: nothing would help."""
    chosen: list[str] = []
    for name in sorted(idle, key=lambda name: (idle[name], name)):
        chosen.append(name)
        if (yield frozenset(chosen)):
            break
    else:
        return []
    for name in reversed(list(chosen)):  # the dearest first: a small one that was not enough may not be needed
        fewer = [other for other in chosen if other != name]
        if (yield frozenset(fewer)):
            chosen = fewer
    return chosen
