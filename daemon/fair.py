"""Who is next where several owners share one thing, by what each has had of it: pure, but for `FairQueue`.

Start-time fair queueing (P. Goyal, H. Vin, H. Cheng, SIGCOMM 1996): next is who has had the least for its weight, and
who comes anew begins where those who wait are, for being away is no credit. The shares are those of deficit round
robin; its bursts of a quantum are not there: of two who wait, one with v times the other's weight has at most v times
what the other's last turn cost, and one turn more, before the other's next.
"""

import threading
from collections import deque
from collections.abc import Iterable
from typing import Generic, TypeVar

T = TypeVar("T")

# owners that are not forgotten although being away has made them all alike
KEPT = 256


class Order:
    """Whoever uses it says who waits: `come` where an owner has nothing that waits, and then has; `took` for each
    turn. Costs are in whatever is shared, tokens as a rule."""

    def __init__(self) -> None:
        self._had: dict[str, float] = {}  # for a weight of 1
        self._now = 0.0  # what whoever had the last turn had had before it

    def come(self, owner: str) -> None:
        self._had[owner] = max(self._had.get(owner, 0.0), self._now)
        if len(self._had) > KEPT:
            self._had = {name: had for name, had in self._had.items() if had > self._now or name == owner}

    def had(self, owner: str) -> float:
        """For a weight of 1, from when the first one came."""
        return self._had.get(owner, self._now)

    def next(self, owners: Iterable[str]) -> str:
        """Of those who wait, at least one; of equals the first."""
        return min(owners, key=self.had)

    def took(self, owner: str, cost: float, weight: float = 1.0) -> None:
        had = self.had(owner)
        self._now = max(self._now, had)
        self._had[owner] = had + cost / weight

    def correct(self, owner: str, by: float, weight: float = 1.0) -> None:
        """A turn cost so much more than was said; less, where it is negative."""
        self._had[owner] = self.had(owner) + by / weight


class FairQueue(Generic[T]):
    """What several owners ask of one thread. Any thread."""

    def __init__(self) -> None:
        self._lock, self._there, self._order = threading.Lock(), threading.Semaphore(0), Order()
        self._waiting: dict[str, deque[tuple[T, float, float]]] = {}

    def put(self, owner: str, item: T, cost: float = 1.0, weight: float = 1.0) -> None:
        with self._lock:
            if owner not in self._waiting:
                self._waiting[owner] = deque()
                self._order.come(owner)
            self._waiting[owner].append((item, cost, weight))
        self._there.release()

    def get(self) -> T:
        """The next one; waits until there is one."""
        self._there.acquire()
        with self._lock:
            owner = self._order.next(self._waiting)
            item, cost, weight = self._waiting[owner].popleft()
            self._order.took(owner, cost, weight)
            if not self._waiting[owner]:
                del self._waiting[owner]
        return item
