"""The table that routes are registered in. Who may call a route stands at its declaration; nobody else may."""

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response

from llmd.daemon.errors import Forbidden
from llmd.daemon.identity.principal import Identity, Principal
from llmd.daemon.serving.answer import Serving

Handler = Callable[[Request, Serving, Principal], Awaitable[Response]]

INFER = frozenset({"infer"})


@dataclass(frozen=True, slots=True)
class Route:
    """`roles`: the roles that may call it."""

    method: str
    path: str
    handler: Handler
    roles: frozenset[str]


def granted(route: Route, identity: Identity, request: Request) -> Principal:
    """Who calls. Raises Forbidden for whoever has no identity here, or a role that is not one of the route's."""
    peer = request.scope.get("extensions", {}).get("tls", {}).get("peer")
    principal = identity.principal(peer, request.client.host if request.client else "")
    if principal.role not in route.roles:
        raise Forbidden(f"the role {principal.role} may not call this route")
    return principal


def table(routes: Iterable[Route]) -> dict[str, list[str]]:
    """The routes that each role may call, as `METHOD PATH`."""
    found: dict[str, list[str]] = {}
    for route in routes:
        for role in sorted(route.roles):
            found.setdefault(role, []).append(f"{route.method} {route.path}")
    return found
