"""From a connection's peer to a principal, for every request anew: a revoked or expired certificate ends at once."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from llmd.daemon.errors import CertificateExpired, CertificateRevoked, ClientUnknown, Forbidden
from llmd.daemon.identity.pki import PeerIdentity
from llmd.daemon.identity.register import Register

# who may call what stands at the routes (`llmd.api.http.routes`)
ROLES = ("infer", "operator", "admin", "auditor")
DEFAULT_ROLE = "infer"


@dataclass(frozen=True, slots=True)
class Principal:
    """Who asks. `serial` is their certificate's, in hex; "" for the local admin."""

    name: str
    role: str
    serial: str
    address: str

    @property
    def local(self) -> bool:
        """The admin of this machine, over the admin socket."""
        return not self.serial


class Identity:
    """`revoked` gives the revoked serial numbers, `role` a client name's role or None, `register` knows what was issued
    here; all are asked at every request."""

    def __init__(
        self,
        node: str,
        revoked: Callable[[], frozenset[int]],
        role: Callable[[str], str | None],
        register: Register,
    ) -> None:
        self._prefix = f"llmd://{node}/client/"
        self._revoked, self._role, self._register = revoked, role, register

    def principal(self, peer: PeerIdentity | None, address: str) -> Principal:
        """Who `peer` is. Raises Forbidden, in this order: 1. no certificate; 2. revoked; 3. expired; 4. of another
        node; 5. not issued here, or nothing here remembers it, be it for a client that there is."""
        if peer is None:  # 1
            raise Forbidden("a client certificate is required")
        if peer.serial in self._revoked():  # 2
            raise CertificateRevoked("this client certificate is revoked")
        if peer.not_after <= datetime.now(UTC):  # 3
            raise CertificateExpired("this client certificate has expired")
        name = peer.uri.removeprefix(self._prefix)
        if name == peer.uri:  # 4
            raise ClientUnknown("this client certificate was made for another node")
        known, role = self._register.knows(peer, name), self._role(name)
        if not known or role is None:  # 5
            raise ClientUnknown(
                "this certificate is not among those that this server remembers: ask its administrator for another one "
                f"(llmctl client issue {name} --again)"
            )
        return Principal(name, role, f"{peer.serial:x}", address)
