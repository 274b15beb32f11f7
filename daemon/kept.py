"""What was found out for one client and is kept for its next time: each client's own, so that nobody is told, by how
long something takes, what others have asked."""

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

V = TypeVar("V")


class Kept(Generic[V]):
    """`most` values at a time, of one owner `each`; where there are more, the owner who has most of them loses the one
    that it used longest ago. Not for several threads."""

    def __init__(self, most: int, each: int) -> None:
        self._most, self._each = most, each
        self._owned: dict[str, OrderedDict[Hashable, V]] = {}
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def get(self, owner: str, key: Hashable) -> V | None:
        own = self._owned.get(owner)
        if own is None or key not in own:
            return None
        own.move_to_end(key)
        return own[key]

    def put(self, owner: str, key: Hashable, value: V) -> None:
        own = self._owned.setdefault(owner, OrderedDict())
        self._size += key not in own
        own[key] = value
        own.move_to_end(key)
        if len(own) > self._each:
            self._drop(owner)
        if self._size > self._most:
            self._drop(max(self._owned, key=lambda name: len(self._owned[name])))

    def _drop(self, owner: str) -> None:
        own = self._owned[owner]
        own.popitem(last=False)
        self._size -= 1
        if not own:
            del self._owned[owner]
