"""Connections from their accept to the end of their TLS handshake, when nobody knows yet who they are.

Whoever has a certificate gets in whatever others do:

1. an address whose handshakes were more than HANDSHAKES_PER_SECOND, over a burst, is refused the next ones; those that
   stayed silent cost nothing and do not count;
2. where MAX_HANDSHAKES are under way, the oldest of the address that has the most gives way: a handshake takes
   milliseconds, and what is older is silent;
3. a handshake that has not ended after HANDSHAKE_SECONDS is ended.
"""

import asyncio
import socket
import struct
from collections.abc import Awaitable, Callable

from llmd.daemon import limits

# addresses whose rate is remembered
MAX_ADDRESSES = 4096
_RESET = struct.pack("ii", 1, 0)


class Rates:
    """Handshakes that each address may have: tokens, and when they were counted."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._known: dict[str, tuple[float, float]] = {}

    def allows(self, address: str) -> bool:
        return self._tokens(address) >= 1

    def spend(self, address: str) -> None:
        tokens = self._tokens(address)
        if len(self._known) >= MAX_ADDRESSES and address not in self._known:
            del self._known[next(iter(self._known))]
        self._known[address] = (tokens - 1, self._clock())

    def _tokens(self, address: str) -> float:
        now = self._clock()
        tokens, at = self._known.get(address, (float(limits.HANDSHAKE_BURST), now))
        return min(float(limits.HANDSHAKE_BURST), tokens + (now - at) * limits.HANDSHAKES_PER_SECOND)


class Handshakes:
    """`shake(connection)` is one handshake. The event loop owns it."""

    def __init__(self, shake: Callable[[socket.socket], Awaitable[object]]) -> None:
        self._shake = shake
        self._rates = Rates(asyncio.get_running_loop().time)
        self._running: dict[str, list[asyncio.Task[None]]] = {}  # of each address, the oldest first
        self.count = 0

    def begin(self, connection: socket.socket, address: str) -> None:
        if not self._rates.allows(address):
            refuse(connection)
            return
        if self.count >= limits.MAX_HANDSHAKES:
            busiest = max(self._running.values(), key=len)
            busiest[0].cancel()
            busiest.append(busiest.pop(0))  # it is gone soon; the next one is not this one
        task = asyncio.create_task(self._run(connection, address), name="handshake")
        self._running.setdefault(address, []).append(task)
        self.count += 1
        task.add_done_callback(lambda done: self._ended(done, address))

    def stop(self) -> None:
        for tasks in self._running.values():
            for task in tasks:
                task.cancel()

    async def _run(self, connection: socket.socket, address: str) -> None:
        try:
            await self._shake(connection)
        except TimeoutError:
            return
        except OSError:  # among them TLS's own: nobody is told anything before it has said who it is
            pass
        self._rates.spend(address)

    def _ended(self, task: asyncio.Task[None], address: str) -> None:
        self.count -= 1
        mine = self._running[address]
        mine.remove(task)
        if not mine:
            del self._running[address]


def refuse(connection: socket.socket) -> None:
    """Reset: nothing of it stays here."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    connection.close()
