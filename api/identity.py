"""From a connection's peer to a principal, for every request anew: a revoked or expired certificate ends at once."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from starlette.requests import Request

from llmd.daemon.errors import Forbidden
from llmd.daemon.pki import PeerIdentity

# what a role may call on the client listener, by route path; every route is denied unless it stands here
GRANTS: dict[str, frozenset[str]] = {
    "infer": frozenset({
        "/v1/chat/completions", "/v1/completions", "/v1/models", "/v1/models/{model}",
        "/tokenize", "/detokenize", "/livez", "/readyz", "/metrics",
    }),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Principal:
    """Who asks. `serial` is their certificate's, in hex; "" for the local admin."""

    name: str
    role: str
    serial: str
    address: str


class Identity:
    """`revoked` gives the revoked serial numbers, `role` a client name's role or None; both are asked at every
    request."""

    def __init__(self, node: str, revoked: Callable[[], frozenset[int]], role: Callable[[str], str | None]) -> None:
        self._prefix = f"llmd://{node}/client/"
        self._revoked, self._role = revoked, role

    def principal(self, request: Request) -> Principal:
        """Raises Forbidden, in this order: 1. no certificate; 2. revoked; 3. expired; 4. of another node; 5. unknown
        here;
        6. the role does not grant the route."""
        peer: PeerIdentity | None = request.scope.get("extensions", {}).get("tls", {}).get("peer")
        if peer is None:
            raise Forbidden("a client certificate is required")
        if peer.serial in self._revoked():
            raise Forbidden("this client certificate is revoked")
        if peer.not_after <= datetime.now(UTC):
            raise Forbidden("this client certificate has expired")
        name = peer.uri.removeprefix(self._prefix)
        if name == peer.uri:
            raise Forbidden("this client certificate was made for another node")
        role = self._role(name)
        if role is None:
            raise Forbidden("this client is not known here")
        if request.scope["route"].path not in GRANTS.get(role, frozenset()):
            raise Forbidden(f"the role {role} may not call this route")
        address = request.client.host if request.client else ""
        return Principal(name, role, f"{peer.serial:x}", address)
