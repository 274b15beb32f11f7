"""What holds now and may be replaced: whoever needs it reads it here when it needs it."""

from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Current(Generic[T]):
    """The event loop owns it."""

    def __init__(self, now: T) -> None:
        self.now = now
        self._told: list[Callable[[T, T], None]] = []

    def follow(self, tell: Callable[[T, T], None]) -> None:
        """For what must be done at a change: it gets what held, and what does."""
        self._told.append(tell)

    def use(self, new: T) -> None:
        was, self.now = self.now, new
        for tell in self._told:
            tell(was, new)
