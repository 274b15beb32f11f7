"""On how many of its cores a worker computes, from how long its steps take. Pure: times are passed in.

The threads of a step meet hundreds of times, and one that waits for a core holds up all: two threads of which one
shares its core with a busy process are slower than one, sometimes by a hundred times. What others cost is measured:

1. When steps take much longer than such steps did, they are made with fewer threads, a few times. What is faster stays,
   and fewer still are tried.
2. So it is once at the beginning: how long steps take undisturbed is not known then.
3. With fewer than it has, more are tried again after a while: half of what is missing, but no more than there are cores
   that had nothing to do; less and less often if it is no good.

Only steps of one kind (as many sequences, prompts about as long) are held against each other.
"""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean, median
from typing import TypeAlias

SAMPLES = 4  # steps that are looked at together
SLOWER = 1.4  # times as long as usual: somebody is in the way
STUCK, STUCK_SAMPLES = 3.0, 2  # times as long: so few steps are enough
BETTER = 0.95  # of the time before: worth it
HOPELESS = 1.3  # times as long as before: no more steps are needed
WEIGHT = 0.1  # of a new measurement
# seconds before more are tried, the first time and at most, and after it was good; more that is good for less than
# RELAPSE was no good
FIRST_PAUSE, LAST_PAUSE, CLIMB = 1.0, 16.0, 0.2
RELAPSE = 5.0
STEPS = 20  # that are made at least before more are tried
MAX_KINDS = 512

Kind: TypeAlias = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Attempt:
    """With `less` threads than it has, where steps took `before` seconds."""

    less: int
    before: float


class Threads:
    """`count` before a step, `note` after it. `idle` tells how many cores had nothing to do since it was last asked."""

    def __init__(self, idle: Callable[[], float]) -> None:
        self._idle = idle
        self._limit = 0  # as many as it has
        self._less = 0  # how many of them it leaves to others
        self._attempt: Attempt | None = None
        self._kind: Kind = (0, 0)
        self._last: list[float] = []  # seconds of the last steps, all of one kind and with as many threads
        self._usual: dict[tuple[Kind, int], float] = {}  # seconds of a step of a kind with so many threads
        self._lowers = True  # fewer are tried next
        self._due = self._risen = 0.0  # when more are tried; when that was last good
        self._pause = FIRST_PAUSE

    @property
    def used(self) -> int:
        return max(1, self._limit - (self._attempt.less if self._attempt else self._less))

    @property
    def limit(self) -> int:
        return self._limit

    def count(self, limit: int) -> int:
        """With how many the next step is made, of `limit` that it has."""
        if limit != self._limit:
            self._limit = limit
            self._drop()
        return self.used

    def note(self, sequences: int, prompts: int, seconds: float, now: float) -> None:
        """A step computed so many sequences' tokens and tokens of prompts with `count` threads, until `now`."""
        kind = (sequences, (prompts + 63) // 64)
        if kind != self._kind:
            self._kind = kind
            self._drop()
        self._last.append(seconds)
        if self._attempt:
            self._judge(self._attempt, now)
        elif len(self._last) == SAMPLES or self._stuck():
            self._look(now)
            self._last.clear()

    def _drop(self) -> None:
        """What was seen is of no use for what comes."""
        self._attempt = None
        self._last.clear()

    def _stuck(self) -> bool:
        usual = self._usual.get((self._kind, self.used))
        last = self._last[-STUCK_SAMPLES:]
        return usual is not None and len(last) == STUCK_SAMPLES and min(last) > STUCK * usual

    def _look(self, now: float) -> None:
        took, middle, used = fmean(self._last), median(self._last), self.used
        usual = self._usual.setdefault((self._kind, used), middle)
        disturbed = middle > SLOWER * usual
        if used > 1 and (disturbed or (self._lowers and not self._kind[1])):  # a prompt's step may take a second
            self._attempt = Attempt(self._less + max(1, used // 4), took)  # 1, 2
        elif self._less and now >= self._due:
            more = min(self._less - self._less // 2, round(self._idle()))
            if more:
                self._attempt = Attempt(self._less - more, took)  # 3
            else:
                self._due = now + FIRST_PAUSE
        elif not disturbed:
            self._usual[self._kind, used] = usual + WEIGHT * (middle - usual)
            if len(self._usual) > MAX_KINDS:
                del self._usual[next(iter(self._usual))]

    def _judge(self, attempt: Attempt, now: float) -> None:
        took = fmean(self._last)
        if len(self._last) < SAMPLES and took < HOPELESS * attempt.before:
            return
        fewer, good = attempt.less > self._less, took < BETTER * attempt.before
        self._drop()
        if not good:
            self._lowers = False
            if fewer:  # what disturbs it, it has to live with
                self._usual[self._kind, self.used] = attempt.before
            else:
                self._wait(now, took, min(2 * self._pause, LAST_PAUSE))
        elif fewer:
            relapsed = now - self._risen < RELAPSE
            self._wait(now, took, min(2 * self._pause, LAST_PAUSE) if relapsed else FIRST_PAUSE)
            self._less, self._lowers = attempt.less, True
            self._idle()  # from now on
        else:
            self._less, self._risen, self._due, self._lowers = attempt.less, now, now + CLIMB, False

    def _wait(self, now: float, took: float, pause: float) -> None:
        self._pause, self._due = pause, now + max(pause, STEPS * took)
