"""The table that routes are registered in. Who may call a route stands at its declaration; nobody else may."""

from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Annotated, Any, get_type_hints

from fastapi import Depends, Request
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope

from llmd.api.http import rates
from llmd.api.http.body import Body, aside, read
from llmd.api.http.error_answers import OPENAI, Errors
from llmd.daemon.errors import BadRequest, Forbidden, LlmdError, NotFound, denied
from llmd.daemon.identity.principal import ROLES, Principal
from llmd.daemon.serving.answer import Serving
from llmd.daemon.serving.ask import Ask

INFER = frozenset({"infer", "admin"})
OPERATOR = frozenset({"operator", "admin"})
ADMIN = frozenset({"admin"})
ANYBODY = frozenset(ROLES)

# role to the names of routes
Granted = Mapping[str, Sequence[str]]
Who = Callable[[Request], Principal]
# told, with the route's name, of what is refused before there is a request to a model
Refused = Callable[[Request, str, LlmdError], None]
# the policy's rule by which a route is not there for somebody; "": it is
Judge = Callable[[Principal, str], str]
Handle = Callable[[Request], Coroutine[Any, Any, Response]]


@dataclass(frozen=True, slots=True)
class Route:
    """`endpoint` as FastAPI takes it: a pydantic model among its parameters is the body. `roles`: the roles that may
    call it. `answers`: status to `model` and other `content`, for /openapi.json, as FastAPI takes them; `events`: what
    the data of its Server-Sent Events are, where it may answer with them; `errors`: how its clients read errors;
    `ask_of`: what its body asks of a model, where it asks one (raises BadRequest); `lists`: it tells of models."""

    method: str
    path: str
    endpoint: Callable[..., Any]
    roles: frozenset[str]
    answers: dict[int | str, dict[str, Any]] = field(default_factory=dict)
    events: type[BaseModel] | None = None
    errors: Errors = OPENAI
    ask_of: Callable[[Any], Ask] | None = None
    lists: bool = False

    @property
    def name(self) -> str:
        return f"{self.method} {self.path}"

    @property
    def asks(self) -> bool:
        """It is about models: what it gives depends on which ones there are for who calls."""
        return self.ask_of is not None or self.lists


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
    """`who` says who calls, and `granted` and `judge` whether they may, before anything of the body is read; the body
    comes through `read`, and FastAPI hands on what it is. `refused` is told of whom this refuses; of whom the model is
    asked for, and is not, `Serving` writes."""

    def __init__(self, route: Route, who: Who, granted: Granted, refused: Refused, judge: Judge) -> None:
        self._name, self._who, self._granted, self._refused = route.name, who, granted, refused
        self._judge, self._subject = judge, subject(route.path)
        self.events, self.errors = route.events, route.errors
        self._body, self._ask_of = _body(route.endpoint), route.ask_of
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

    def hidden(self, principal: Principal) -> str:
        """The policy's rule by which it is not there for somebody; "": it is."""
        return self._judge(principal, self._subject)

    def get_route_handler(self) -> Handle:
        handle = super().get_route_handler()

        async def guarded(request: Request) -> Response:
            try:
                checked = await self._checked(request)
            except (Forbidden, BadRequest, NotFound) as e:
                self._refused(request, self._name, e)
                raise
            return await handle(checked)

        return guarded

    async def _checked(self, request: Request) -> Request:
        principal = self._who(request)
        if not self.granted_to(principal.role):
            raise Forbidden(f"the role {principal.role} may not call this route")
        if rule := self.hidden(principal):
            raise denied(no_route(request), rule)
        request.scope["principal"] = principal
        if self._body is None:
            return request
        body = await read(request, self._body)
        if self._ask_of is not None:
            until = rates.deadline(request.headers)
            ask = await _asked(request, partial(self._ask_of, body))
            request.scope["ask"] = ask if until is None else replace(ask, deadline=until)
        return _Read(request.scope, request.receive, body)


async def _asked(request: Request, ask: Callable[[], Ask]) -> Ask:
    return replace(await aside(request, ask), large=True) if request.scope["large"] else ask()


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


def subject(path: str) -> str:
    """What a policy calls a route: one of several things as all of them, /v1/models/{model} as /v1/models."""
    return path.partition("/{")[0]


def subjects(routes: Iterable[Route]) -> tuple[dict[str, frozenset[str]], frozenset[str]]:
    """What a policy may name of them, each with the roles that may call it; and which of these are about models."""
    roles: dict[str, frozenset[str]] = {}
    asking = set()
    for route in routes:
        name = subject(route.path)
        roles[name] = roles.get(name, frozenset()) | route.roles
        if route.asks:
            asking.add(name)
    return roles, frozenset(asking)


def table(routes: Iterable[Route]) -> Granted:
    """What each role may call, gathered from the routes' declarations; whatever does not stand here is denied."""
    found: dict[str, list[str]] = {}
    for route in routes:
        for role in sorted(route.roles):
            found.setdefault(role, []).append(route.name)
    return found


def matching(request: Request, path: str) -> list[GuardedRoute]:
    """The routes that a path may mean, of those that are there for who calls."""
    found = [r for r in request.app.routes if isinstance(r, GuardedRoute) and r.path_regex.match(path)]
    try:
        principal = request.app.state.who(request)
    except Forbidden:
        return found
    return [route for route in found if not route.hidden(principal)]


def no_route(request: Request) -> NotFound:
    """For a path that is none, or none for who calls; it says which one may be meant."""
    meant = _meant(request)
    return NotFound(f"there is no such route{f'; there is {meant}' if meant else ''}")


def _meant(request: Request) -> str | None:
    """The route that a path with slashes too many, or with more or less before it, was meant for."""
    parts = [part for part in request.url.path.split("/") if part]
    ends = [parts[-size:] for size in range(min(4, len(parts)), 0, -1)]
    for end in [parts, ["v1", *parts], *ends]:
        if found := matching(request, "/" + "/".join(end)):
            return found[0].path
    return None


# --- what an endpoint may ask for


async def _principal(request: Request) -> Principal:
    principal: Principal = request.scope["principal"]
    return principal


async def _ask(request: Request) -> Ask:
    ask: Ask = request.scope["ask"]
    return ask


async def _serving(request: Request) -> Serving:
    serving: Serving = request.app.state.serving
    return serving


Caller = Annotated[Principal, Depends(_principal)]
Asked = Annotated[Ask, Depends(_ask)]
Asks = Annotated[Serving, Depends(_serving)]
