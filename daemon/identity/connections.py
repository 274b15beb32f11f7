"""The register of open connections: what a revocation cuts."""

import asyncio
from collections.abc import Callable

from llmd.daemon import limits


class Connections:
    """The open TLS connections, by certificate: to bound them, and to end a revoked client's at once. `descriptors`:
    how many this process may have for them. `revoked` gives the serial numbers that are refused."""

    def __init__(
        self, descriptors: int = limits.MAX_CONNECTIONS, revoked: Callable[[], frozenset[int]] = frozenset
    ) -> None:
        self._descriptors, self.revoked = descriptors, revoked
        self._by_serial: dict[int, set[asyncio.Transport]] = {}
        self.count = 0

    @property
    def most(self) -> int:
        return min(limits.MAX_CONNECTIONS, self._descriptors)

    def add(self, serial: int, transport: asyncio.Transport) -> bool:
        """False: there are too many already, of this client or in all."""
        mine = self._by_serial.get(serial, set())
        if self.count >= self.most or len(mine) >= limits.MAX_CONNECTIONS_PER_CLIENT:
            return False
        self._by_serial.setdefault(serial, mine).add(transport)
        self.count += 1
        return True

    def discard(self, serial: int, transport: asyncio.Transport) -> None:
        mine = self._by_serial.get(serial)
        if mine and transport in mine:
            mine.remove(transport)
            self.count -= 1
            if not mine:
                del self._by_serial[serial]

    def abort(self, serial: int) -> int:
        """End every connection of a certificate now, streams and all. Returns how many there were."""
        mine = list(self._by_serial.get(serial, ()))
        for transport in mine:
            transport.abort()
        return len(mine)
