"""The table that routes are registered in. Who may call a route stands at its declaration; nobody else may."""

from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, get_type_hints

from fastapi import Depends, Request
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope

from llmd.api.http.body import Body, read
from llmd.api.http.errors import OPENAI, Errors
from llmd.daemon.errors import BadRequest, Forbidden, LlmdError
from llmd.daemon.identity.principal import ROLES, Principal
from llmd.daemon.serving.answer import Serving

INFER = frozenset({"infer", "admin"})
OPERATOR = frozenset({"operator", "admin"})
ADMIN = frozenset({"admin"})
ANYBODY = frozenset(ROLES)

# role to the names of routes
Granted = Mapping[str, Sequence[str]]
Who = Callable[[Request], Principal]
# told, with the route's name, of what is refused before there is a request to a model
Refused = Callable[[Request, str, LlmdError], None]
Handle = Callable[[Request], Coroutine[Any, Any, Response]]


@dataclass(frozen=True, slots=True)
class Route:
    """`endpoint` as FastAPI takes it: a pydantic model among its parameters is the body. `roles`: the roles that may
    call it. `answers`: status to `model` and other `content`, for /openapi.json, as FastAPI takes them; `events`: what
    the data of its Server-Sent Events are, where it may answer with them; `errors`: how its clients read errors."""

    method: str
    path: str
    endpoint: Callable[..., Any]
    roles: frozenset[str]
    answers: dict[int | str, dict[str, Any]] = field(default_factory=dict)
    events: type[BaseModel] | None = None
    errors: Errors = OPENAI

    @property
    def name(self) -> str:
        return f"{self.method} {self.path}"


class _Read(Request):
    """A request whose body has been read and validated by us."""

    def __init__(self, scope: Scope, receive: Receive, value: Body) -> None:
        super().__init__(scope, receive)
        self._value = value

    async def body(self) -> bytes:
        return b"{}"  # FastAPI asks only whether there is one

    async def json(self) -> Body:
        return self._value


class GuardedRoute(APIRoute):
    """`who` says who calls, and `granted` whether they may, before anything of the body is read; the body comes through
    `read`, and FastAPI hands on what it is."""

    def __init__(self, route: Route, who: Who, granted: Granted, refused: Refused) -> None:
        self._name, self._who, self._granted, self._refused = route.name, who, granted, refused
        self.events, self.errors = route.events, route.errors
        self._body = _body(route.endpoint)
        ok = route.answers.get(200, {})
        super().__init__(
            route.path,
            route.endpoint,
            methods=[route.method],
            response_model=None,
            strict_content_type=False,
            # without a media type of its own, the document has none beside the ones that are declared
            response_class=Response if "content" in ok and "model" not in ok else JSONResponse,
            responses={
                "4XX": {"model": route.errors.answer, "description": "refused"},
                "5XX": {"model": route.errors.answer, "description": "not answered"},
                **route.answers,
                **_streamed(route),
            },
        )

    def granted_to(self, role: str) -> bool:
        return self._name in self._granted.get(role, ())

    def get_route_handler(self) -> Handle:
        handle = super().get_route_handler()

        async def guarded(request: Request) -> Response:
            try:
                return await handle(await self._checked(request))
            except (Forbidden, BadRequest) as e:
                if not e.logged:
                    self._refused(request, self._name, e)
                raise

        return guarded

    async def _checked(self, request: Request) -> Request:
        principal = self._who(request)
        if not self.granted_to(principal.role):
            raise Forbidden(f"the role {principal.role} may not call this route")
        request.scope["principal"] = principal
        if self._body is None:
            return request
        return _Read(request.scope, request.receive, await read(request, self._body))


def _streamed(route: Route) -> dict[int | str, dict[str, Any]]:
    """Its Server-Sent Events, each an object, as OpenAPI 3.2 has them (`itemSchema`)."""
    if route.events is None:
        return {}
    names = [route.events.__name__, route.errors.answer.__name__]
    said = {
        "type": "string",
        "contentMediaType": "application/json",
        "contentSchema": {"anyOf": [{"$ref": f"#/components/schemas/{name}"} for name in names]},
    }
    data = {"anyOf": [{"const": "[DONE]"}, said]}
    event = {"type": "string", "enum": ["message", "error"]}
    item = {"type": "object", "properties": {"data": data, "event": event}, "required": ["data"]}
    ok = route.answers.get(200, {})
    return {200: {**ok, "content": {**ok.get("content", {}), "text/event-stream": {"itemSchema": item}}}}


def _body(endpoint: Callable[..., Any]) -> type[Body] | None:
    """What an endpoint takes for the body; what it takes from the query is annotated as such."""
    kinds = get_type_hints(endpoint, include_extras=True).values()
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Body)), None)


def table(routes: Iterable[Route]) -> Granted:
    """What each role may call, gathered from the routes' declarations; whatever does not stand here is denied."""
    found: dict[str, list[str]] = {}
    for route in routes:
        for role in sorted(route.roles):
            found.setdefault(role, []).append(route.name)
    return found


# --- what an endpoint may ask for


async def _principal(request: Request) -> Principal:
    principal: Principal = request.scope["principal"]
    return principal


async def _serving(request: Request) -> Serving:
    serving: Serving = request.app.state.serving
    return serving


Caller = Annotated[Principal, Depends(_principal)]
Asks = Annotated[Serving, Depends(_serving)]
