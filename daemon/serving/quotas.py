"""What each client has asked in a minute and in a day, and whether that is all that the policy gives it: pure, but for
the clocks that are given.

A request counts when it is let in, with the tokens that it is expected to have until it ends, then with those that it
had: of its prompts, those found in shared prefixes too, and of its answers. It is refused where nothing is left; what
it has more than was left, it has. A minute is the last 60 seconds, a day this machine's. A limit counts each of its
clients by itself, over all of its models together.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from math import ceil

from llmd.daemon.errors import RateLimited, denied
from llmd.daemon.identity.policy import Limit, Rights

MINUTE = 60.0
WHAT = {
    "requests_per_minute": "requests a minute",
    "requests_per_day": "requests a day",
    "tokens_per_minute": "tokens a minute",
    "tokens_per_day": "tokens a day",
    "streams": "answers at a time",
}


@dataclass(frozen=True, slots=True)
class Rate:
    """Of what is limited: how many there may be, how many are left, and in how many seconds that will be as many as
    there may be."""

    limit: int
    left: int
    reset: float


@dataclass(frozen=True, slots=True)
class Rates:
    """The tightest of a client's; None: there is none."""

    requests: Rate | None = None
    tokens: Rate | None = None


NO_RATES = Rates()


@dataclass(slots=True)
class _Used:
    """Of one client and model. `minute`: second, requests, tokens."""

    minute: deque[list[int]] = field(default_factory=deque)
    day: str = ""
    requests: int = 0  # of the day
    tokens: int = 0
    running: int = 0
    expected: float = 0.0  # tokens of those

    def note(self, now: float, day: str, requests: int, tokens: int) -> None:
        if not self.minute or self.minute[-1][0] != int(now):
            self.minute.append([int(now), 0, 0])
        self.minute[-1][1] += requests
        self.minute[-1][2] += tokens
        while self.minute[0][0] + MINUTE < now:
            self.minute.popleft()
        if self.day != day:
            self.day, self.requests, self.tokens = day, 0, 0
        self.requests += requests
        self.tokens += tokens


class Count:
    """A request that is let in. `end` or `undo` is called once."""

    __slots__ = ("_expected", "_quotas", "_used")

    def __init__(self, quotas: "Quotas", used: _Used, expected: float) -> None:
        self._quotas, self._used, self._expected = quotas, used, expected
        used.running += 1
        used.expected += expected
        quotas.note(used, 1, 0)

    def end(self, tokens: int) -> None:
        self._leave()
        self._quotas.note(self._used, 0, tokens)

    def undo(self) -> None:
        """It was not let in after all."""
        self._leave()
        self._quotas.note(self._used, -1, 0)

    def _leave(self) -> None:
        self._used.running -= 1
        self._used.expected = self._used.expected - self._expected if self._used.running else 0.0


class Quotas:
    """Made once, by `Serving`. `clock` is monotonic; `today` gives the day, as a text, and how many seconds of it are
    left."""

    def __init__(self, clock: Callable[[], float], today: Callable[[], tuple[str, float]]) -> None:
        self._clock, self._today = clock, today
        self._clients: dict[str, dict[str, _Used]] = {}

    def had(self, client: str, model: str, day: str, requests: int, tokens: int) -> None:
        """Before this start."""
        used = self._used(client, model)
        used.day, used.requests, used.tokens = day, requests, tokens

    def enter(self, rights: Rights, model: str, counts: Iterable[tuple[int, Limit]], expected: float) -> Count:
        """Raises RateLimited."""
        self.check(rights, counts)
        return Count(self, self._used(rights.client, model), expected)

    def check(self, rights: Rights, counts: Iterable[tuple[int, Limit]]) -> None:
        """Raises RateLimited where a request would not be let in now."""
        for number, limit in counts:
            for name, most in limit.numbers.items():
                if name in WHAT and (wait := self._wait(rights.client, limit, name, most)) is not None:
                    after = max(1, ceil(wait))
                    error = RateLimited(
                        f"you may have {most:,} {WHAT[name]}; try again in {after} s", retry_after=after
                    )
                    error.rates = self.rates(rights.client, counts)
                    raise denied(error, rights.used_up(number, name))

    def rates(self, client: str, counts: Iterable[tuple[int, Limit]]) -> Rates:
        """What is left."""
        found: dict[str, list[Rate]] = {"requests": [], "tokens": []}
        for _, limit in counts:
            for name, most in limit.numbers.items():
                kind, _, per = name.partition("_per_")
                if per:
                    used, reset = self._spent(client, limit, kind, per)
                    found[kind].append(Rate(most, max(0, most - ceil(used)), reset))
        least = {kind: min(of, key=lambda rate: (rate.left, -rate.reset), default=None) for kind, of in found.items()}
        return Rates(least["requests"], least["tokens"]) if any(least.values()) else NO_RATES

    def left(self, client: str, counts: Iterable[tuple[int, Limit]]) -> list[tuple[int, str, int, int]]:
        """Of each limit that counts: its number, its name, how many there may be and how many are left."""
        found = []
        for number, limit in counts:
            for name, most in limit.numbers.items():
                kind, _, per = name.partition("_per_")
                if name == "streams":
                    used: float = sum(used.running for used in self._of(client, limit))
                elif per:
                    used, _ = self._spent(client, limit, kind, per)
                else:
                    continue
                found.append((number, name, most, max(0, most - ceil(used))))
        return found

    def note(self, used: _Used, requests: int, tokens: int) -> None:
        used.note(self._clock(), self._today()[0], requests, tokens)

    def _used(self, client: str, model: str) -> _Used:
        return self._clients.setdefault(client, {}).setdefault(model, _Used())

    def _of(self, client: str, limit: Limit) -> list[_Used]:
        return [used for model, used in self._clients.get(client, {}).items() if limit.covers(model)]

    def _spent(self, client: str, limit: Limit, kind: str, per: str) -> tuple[float, float]:
        """What of it is used, and how long until none of that counts any more."""
        of = self._of(client, limit)
        expected = sum(used.expected for used in of) if kind == "tokens" else 0.0
        if per == "day":
            day, left = self._today()
            return expected + sum(getattr(used, kind) for used in of if used.day == day), left
        seconds = list(self._minute(of, kind))
        last = max((second for second, _ in seconds), default=-MINUTE)
        return expected + sum(count for _, count in seconds), max(0.0, last + MINUTE - self._clock())

    def _minute(self, of: Iterable[_Used], kind: str) -> Iterator[tuple[int, int]]:
        at, began = 1 if kind == "requests" else 2, self._clock() - MINUTE
        return ((entry[0], entry[at]) for used in of for entry in used.minute if entry[0] > began and entry[at])

    def _wait(self, client: str, limit: Limit, name: str, most: int) -> float | None:
        """Seconds until one more is let in; None: one is now."""
        if name == "streams":
            return 1.0 if sum(used.running for used in self._of(client, limit)) >= most else None
        kind, _, per = name.partition("_per_")
        used, reset = self._spent(client, limit, kind, per)
        if used < most:
            return None
        if per == "day":
            return reset
        for second, count in sorted(self._minute(self._of(client, limit), kind)):
            used -= count
            if used < most:
                return second + MINUTE - self._clock()
        return 1.0  # what runs now is expected to use it up


def today() -> tuple[str, float]:
    """This machine's day, and how many seconds of it are left."""
    now = datetime.now().astimezone()
    end = datetime.combine(now.date() + timedelta(days=1), datetime.min.time()).astimezone()
    return now.date().isoformat(), (end - now).total_seconds()


class Today:
    """The same, looked up once a second."""

    def __init__(self) -> None:
        self._at, self._found = -1.0, ("", 0.0)

    def __call__(self) -> tuple[str, float]:
        now = time.monotonic()
        if now - self._at >= 1.0 or self._at < 0:
            self._at, self._found = now, today()
        return self._found
