"""The certificates that were issued here: no other gets in, whoever signed it.

The CA's key alone does not make a client. A certificate that the state database has lost, and that the audit log does
not know either, is one that nobody can revoke by its client's name: so it is refused, and shown.
"""

import time
from collections.abc import Iterable
from dataclasses import dataclass

from llmd.daemon.identity.pki import PeerIdentity

MAX_STRANGERS = 64


@dataclass(frozen=True, slots=True)
class Stranger:
    """One that was shown and was not issued here. `not_after` and `seen` are Unix seconds."""

    name: str
    serial: str
    not_after: float
    seen: float


class Register:
    """`serials` in hex. The event loop owns it."""

    def __init__(self, serials: Iterable[str] = ()) -> None:
        self._known = {int(serial, 16) for serial in serials}
        self._strangers: dict[int, Stranger] = {}

    def add(self, serial: int) -> None:
        self._known.add(serial)
        self._strangers.pop(serial, None)

    def knows(self, peer: PeerIdentity, name: str) -> bool:
        """One that it does not know is remembered, the last MAX_STRANGERS of them."""
        if peer.serial in self._known:
            return True
        if len(self._strangers) >= MAX_STRANGERS and peer.serial not in self._strangers:
            del self._strangers[next(iter(self._strangers))]
        now = time.time()
        self._strangers[peer.serial] = Stranger(name, f"{peer.serial:x}", peer.not_after.timestamp(), now)
        return False

    @property
    def strangers(self) -> list[Stranger]:
        return list(self._strangers.values())
