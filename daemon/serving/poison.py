"""Requests that end the process that answers them: pure, but for the clock.

One that was being answered in two crashes is refused for an hour. Whoever only was there too, and is answered later, is
none of them.
"""

import time
from collections import OrderedDict
from collections.abc import Callable, Hashable

from llmd.daemon.errors import RequestCrashesWorker

CRASHES = 2
SECONDS = 3600.0
KEPT = 4096  # requests, those that crashed last


class Poison:
    """Requests are known by their `digest`: whatever is equal for equal ones."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        # crashes, until when they count, and the process of the last one
        self._seen: OrderedDict[Hashable, tuple[int, float, int]] = OrderedDict()

    def check(self, digest: Hashable) -> None:
        """Raises RequestCrashesWorker."""
        crashes, until, _ = self._seen.get(digest, (0, 0.0, 0))
        if crashes and self._clock() >= until:
            del self._seen[digest]
        elif crashes >= CRASHES:
            minutes = max(1, round((until - self._clock()) / 60))
            raise RequestCrashesWorker(
                f"the model's process crashed {crashes} times while it answered this request; it is refused for "
                f"{minutes} minutes: change it, or ask an administrator to look into the server's log"
            )

    def crashed(self, digest: Hashable, process: int) -> None:
        """It was being answered as this process crashed; equal ones that were too are one."""
        crashes, until, last = self._seen.pop(digest, (0, 0.0, 0))
        now = self._clock()
        if now >= until:
            crashes = 0
        self._seen[digest] = (crashes if crashes and last == process else crashes + 1, now + SECONDS, process)
        while len(self._seen) > KEPT:
            self._seen.popitem(last=False)

    def answered(self, digest: Hashable) -> None:
        """It was not this one."""
        self._seen.pop(digest, None)
