"""Connections from their accept to the end of their TLS handshake, when nobody knows yet who they are.

Whoever has a certificate gets in whatever others do, at the same address too:

1. an address whose handshakes were more than HANDSHAKES_PER_SECOND, over a burst, is refused the next ones; those that
   stayed silent, or sent what is no TLS, cost nothing and do not count;
2. where MAX_HANDSHAKES are under way, or there is no room for more connections, one of the address that has the most
   gives way: the oldest that has been silent for SILENT_SECONDS, else the oldest. A handshake takes milliseconds;
3. a handshake that has not ended after HANDSHAKE_SECONDS is ended.

One that fails is told why, by TLS's alert. Where that is for its certificate, what the client has sent meanwhile is
read away for a moment: closing with that unread would take the alert from it.
"""

import asyncio
import socket
import struct
from collections.abc import Awaitable, Callable
from contextlib import suppress

from llmd.daemon import limits
from llmd.daemon.identity.tls import HANDSHAKE

# of a client that has been told why it is not let in
DRAIN_SECONDS, DRAIN_BYTES = 1.0, 16 * 1024
# a client that has something to say has said it by then
SILENT_SECONDS = 0.25
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


class _Handshake:
    """One, as `identity/tls.py` tells of it. Whoever shook hands closes `connection` then."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._left: socket.socket | None = None
        self.silent, self.costs = True, False
        self.began = asyncio.get_running_loop().time()

    def heard(self) -> None:
        self.silent = False

    def computed(self) -> None:
        self.costs = True

    def farewell(self, words: bytes, certificate: bool) -> None:
        with suppress(OSError):
            self._connection.send(words)
            if certificate:
                self._left = self._connection.dup()
                self._left.setblocking(False)
                self._left.shutdown(socket.SHUT_WR)

    async def drain(self) -> None:
        read, loop = 0, asyncio.get_running_loop()
        with suppress(OSError):  # among them a timeout
            async with asyncio.timeout(DRAIN_SECONDS):
                while self._left and read < DRAIN_BYTES and (data := await loop.sock_recv(self._left, DRAIN_BYTES)):
                    read += len(data)

    def close(self) -> None:
        if self._left:
            self._left.close()


class Handshakes:
    """`shake(connection)` is one handshake. The event loop owns it."""

    def __init__(self, shake: Callable[[socket.socket], Awaitable[object]]) -> None:
        self._shake = shake
        self._rates = Rates(asyncio.get_running_loop().time)
        # of each address, the oldest first
        self._running: dict[str, dict[asyncio.Task[None], _Handshake]] = {}
        self.count = 0

    def begin(self, connection: socket.socket, address: str, room: bool = True) -> None:
        """`room`: there may be one more connection than there are."""
        if not self._rates.allows(address) or not (room or self.count):  # 1
            refuse(connection)
            return
        if self.count >= limits.MAX_HANDSHAKES or not room:  # 2
            self._give_way()
        handshake = _Handshake(connection)
        task = asyncio.create_task(self._run(connection, address, handshake), name="handshake")
        self._running.setdefault(address, {})[task] = handshake
        self.count += 1
        task.add_done_callback(lambda done: self._ended(done, address))

    def _give_way(self) -> None:
        busiest = max(self._running.values(), key=len)
        long_ago = asyncio.get_running_loop().time() - SILENT_SECONDS
        silent = (task for task, one in busiest.items() if one.silent and one.began <= long_ago)
        going = next(silent, next(iter(busiest)))
        going.cancel()
        busiest[going] = busiest.pop(going)  # it is gone soon; the next one is not this one
        busiest[going].silent = False

    def stop(self) -> None:
        for tasks in self._running.values():
            for task in tasks:
                task.cancel()

    async def _run(self, connection: socket.socket, address: str, handshake: _Handshake) -> None:
        HANDSHAKE.set(handshake)
        try:
            await self._shake(connection)  # 3: it has a timeout
        except OSError:  # among them TLS's own, and a timeout
            await handshake.drain()
        finally:
            handshake.close()
            if handshake.costs:
                self._rates.spend(address)

    def _ended(self, task: asyncio.Task[None], address: str) -> None:
        self.count -= 1
        mine = self._running[address]
        del mine[task]
        if not mine:
            del self._running[address]


def refuse(connection: socket.socket) -> None:
    """Reset: nothing of it stays here."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    connection.close()
