"""The register of open connections: what a revocation cuts."""

import asyncio

from llmd.daemon import limits


class Connections:
    """The open TLS connections, by certificate: to bound them, and to end a revoked client's at once."""

    def __init__(self) -> None:
        self._by_serial: dict[int, set[asyncio.Transport]] = {}
        self.count = 0

    def add(self, serial: int, transport: asyncio.Transport) -> bool:
        """False: there are too many already, of this client or in all."""
        mine = self._by_serial.get(serial, set())
        if self.count >= limits.MAX_CONNECTIONS or len(mine) >= limits.MAX_CONNECTIONS_PER_CLIENT:
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
