"""What several owners ask of one thread."""

import threading
from collections import OrderedDict, deque
from typing import Generic, TypeVar

T = TypeVar("T")


class FairQueue(Generic[T]):
    """An owner after the other has a turn, so that nobody waits for all that another one has asked. Any thread."""

    def __init__(self) -> None:
        self._lock, self._there = threading.Lock(), threading.Semaphore(0)
        self._waiting: OrderedDict[str, deque[T]] = OrderedDict()

    def put(self, owner: str, item: T) -> None:
        with self._lock:
            self._waiting.setdefault(owner, deque()).append(item)
        self._there.release()

    def get(self) -> T:
        """The next one; waits until there is one."""
        self._there.acquire()
        with self._lock:
            owner, items = self._waiting.popitem(last=False)
            item = items.popleft()
            if items:
                self._waiting[owner] = items
        return item
