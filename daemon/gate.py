"""Who waits for whom where only a few can be served at once."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


@dataclass(slots=True)
class _Turns:
    """Of one owner: `there` are those who have one or wait for one."""

    free: asyncio.Semaphore
    there: int = 0


class Gate:
    """`places` at once (0: as many as come), of one owner `each`: the others of its own wait, and leave a place to
    everybody else."""

    def __init__(self, places: int, each: int = 1) -> None:
        self._places = asyncio.Semaphore(places) if places else None
        self._each = each
        self._owners: dict[str, _Turns] = {}

    @asynccontextmanager
    async def enter(self, owner: str) -> AsyncIterator[None]:
        turns = self._owners.setdefault(owner, _Turns(asyncio.Semaphore(self._each)))
        turns.there += 1
        try:
            async with turns.free:
                if self._places is None:
                    yield
                else:
                    async with self._places:
                        yield
        finally:
            turns.there -= 1
            if not turns.there:
                del self._owners[owner]


class Aside:
    """What takes long, in threads, which let go of the interpreter often: everybody else has their turn meanwhile. Two
    of them, and one at most for each owner: each more would have a turn before the event loop has. Whoever is cancelled
    waits for the end of his: a thread cannot be ended."""

    def __init__(self) -> None:
        self.gate = Gate(2)

    async def run(self, owner: str, work: Callable[[], T]) -> T:
        async with self.gate.enter(owner):
            running = asyncio.ensure_future(asyncio.to_thread(work))
            try:
                return await asyncio.shield(running)
            except asyncio.CancelledError:
                await asyncio.wait({running})
                raise
