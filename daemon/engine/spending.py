"""How long a device has computed for whom. The engine thread adds, another one takes."""

import threading
from collections import defaultdict
from collections.abc import Mapping

from llmd.daemon.wire.control import Spent


class Spending:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seconds: defaultdict[str, float] = defaultdict(float)

    def add(self, seconds: float, tokens: Mapping[str, int]) -> None:
        """A step took so long, and computed so many tokens for each owner."""
        every = sum(tokens.values())
        with self._lock:
            for owner, count in tokens.items():
                self._seconds[owner] += seconds * count / every

    def take(self) -> tuple[Spent, ...]:
        """What was added since the last time."""
        with self._lock:
            taken, self._seconds = self._seconds, defaultdict(float)
        return tuple(Spent(owner, seconds) for owner, seconds in taken.items())
