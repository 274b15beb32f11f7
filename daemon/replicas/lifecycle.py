"""A replica's life, as a pure object: what is asked and what happens goes in, what is to be done comes out.

A replica has one run at a time: one process, from its start to its end. `on` answers an event with effects:

1. Asked: another wish than before, or the same `anew`. Nothing runs: start. It loads: stop it, it answers nobody. It
   pauses: start at once. It is ready: drain it. It drains or ends already: the wish is kept until it is gone.
2. Withdrawn: the same, with nothing to start afterwards; what pauses is over, what drains gets the new time.
3. Up: it is ready, unless it has to go in the meantime.
4. Drained: its requests have ended, or their time: stop it.
5. Down: its process is gone. It had to go: start what is wanted now, or it is over. Else it pauses, for 1, 2, 4 … 60
   seconds, less after a long life, and starts again. With the fifth crash in ten minutes it does not: it is in
   quarantine, until it is asked for once more, in the same way too.
6. Due: the pause is over: start.

Events of a run that is over are not for the one that is now, and have no effect.
"""

from dataclasses import dataclass
from typing import TypeAlias

from llmd.daemon.planning.plan import Wish

PAUSE_SECONDS = (1.0, 60.0)
# a run that lasted this long pauses no longer than the first time
HEALTHY_SECONDS = 60.0
MAX_CRASHES, CRASH_SECONDS = 5, 600.0

# --- events


@dataclass(frozen=True, slots=True)
class Asked:
    wish: Wish
    anew: bool = False  # leave where it is: its GPU fails


@dataclass(frozen=True, slots=True)
class Withdrawn:
    grace: float  # seconds for its running requests


@dataclass(frozen=True, slots=True)
class Up:
    run: int


@dataclass(frozen=True, slots=True)
class Drained:
    run: int


@dataclass(frozen=True, slots=True)
class Down:
    run: int
    reason: str
    lived: float  # seconds
    crashed: float | None = None  # when (monotonic); None: it was ended, or had said why it ends


@dataclass(frozen=True, slots=True)
class Due:
    run: int


Event: TypeAlias = Asked | Withdrawn | Up | Drained | Down | Due

# --- effects


@dataclass(frozen=True, slots=True)
class Start:
    """Plan and start a process; answered by Up and Down, or by Down alone."""

    run: int
    wish: Wish


@dataclass(frozen=True, slots=True)
class Drain:
    """No new requests; answered by Drained, or by Down."""

    run: int
    grace: float


@dataclass(frozen=True, slots=True)
class Stop:
    """End the process, which fails what it still answers; answered by Down."""

    run: int


@dataclass(frozen=True, slots=True)
class Pause:
    """Answered by Due."""

    run: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Quarantine:
    """It crashes again and again, and is not started any more."""

    run: int
    reason: str


@dataclass(frozen=True, slots=True)
class Over:
    """Nothing is left of the deployment."""


Effect: TypeAlias = Start | Drain | Stop | Pause | Quarantine | Over

# --- the machine

LOADING, READY, DRAINING, ENDING, PAUSING = "loading", "ready", "draining", "ending", "pausing"
QUARANTINED = "quarantined"


class Lifecycle:
    """One replica. `redeploy_grace`: seconds that running requests have when other settings are asked for."""

    def __init__(self, redeploy_grace: float, pause: tuple[float, float] = PAUSE_SECONDS) -> None:
        self.wanted: Wish | None = None
        self.wish: Wish | None = None  # of the run
        self.run = 0  # its number; each start has another
        self.restarts = 0
        self.reason = ""  # why it is not ready
        self.over = False
        self._phase = ENDING  # of the run; none yet
        self._crashes: list[float] = []  # when
        self._replaces = False  # the run that loads follows one that answered
        self._grace, self._pauses, self._pause = redeploy_grace, pause, pause[0]

    @property
    def state(self) -> str:
        """loading, ready, restarting, quarantined, replacing (other settings were asked for, and it is on its way),
        stopping."""
        if self.wanted is None:
            return "stopping"
        if self._phase in (DRAINING, ENDING) or (self._phase == LOADING and self._replaces):
            return "replacing"
        if self._phase == PAUSING or (self._phase == LOADING and self.reason):
            return "restarting"
        return self._phase

    def on(self, event: Event) -> list[Effect]:
        match event:
            case Asked(wish, anew):  # 1
                return self._asked(wish, anew)
            case Withdrawn(grace):  # 2
                self.wanted = None
                return [Drain(self.run, grace)] if self._phase == DRAINING else self._leave(grace)
            case Up(run) | Drained(run) | Down(run) | Due(run) if run != self.run:
                return []
            case Up():  # 3
                return self._up()
            case Drained():  # 4
                return self._stop() if self._phase == DRAINING else []
            case Down():  # 5
                return self._down(event)
            case Due():  # 6
                return self._start() if self._phase == PAUSING else []

    def _asked(self, wish: Wish, anew: bool) -> list[Effect]:
        if wish == self.wanted and not anew and self._phase != QUARANTINED:
            return []
        self.wanted, self.reason = wish, ""
        if self.run == 0:
            return self._start()
        return self._leave(self._grace)

    def _leave(self, grace: float) -> list[Effect]:
        """The run has to go; what is wanted then follows it."""
        if self._phase == READY:
            self._phase, self._replaces = DRAINING, True
            return [Drain(self.run, grace)]
        if self._phase == LOADING:
            return self._stop()
        if self._phase in (PAUSING, QUARANTINED):
            self._crashes.clear()
            return self._follow()
        return []

    def _stop(self) -> list[Effect]:
        self._phase = ENDING
        return [Stop(self.run)]

    def _up(self) -> list[Effect]:
        if self._phase == LOADING:
            self._phase, self._replaces, self.reason = READY, False, ""
        return []

    def _down(self, end: Down) -> list[Effect]:
        if self._phase in (DRAINING, ENDING):
            return self._follow()
        self._replaces, self.reason = False, end.reason
        if end.crashed is not None:
            self._crashes = [at for at in self._crashes if at > end.crashed - CRASH_SECONDS] + [end.crashed]
            if len(self._crashes) >= MAX_CRASHES:
                self._phase = QUARANTINED
                minutes = round(CRASH_SECONDS / 60)
                self.reason = (
                    f"its process crashed {MAX_CRASHES} times in {minutes} minutes, at last because {end.reason}"
                )
                return [Quarantine(self.run, self.reason)]
        if end.lived > HEALTHY_SECONDS:
            self._pause = self._pauses[0]
        seconds, self._pause = self._pause, min(2 * self._pause, self._pauses[1])
        self._phase = PAUSING
        self.restarts += 1
        return [Pause(self.run, seconds)]

    def _follow(self) -> list[Effect]:
        if self.wanted is not None:
            self._pause = self._pauses[0]
            return self._start()
        self._phase, self.over = ENDING, True
        return [Over()]

    def _start(self) -> list[Effect]:
        assert self.wanted is not None
        self.run += 1
        self._phase, self.wish = LOADING, self.wanted
        return [Start(self.run, self.wanted)]
