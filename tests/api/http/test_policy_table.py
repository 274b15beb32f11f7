"""Every route, for every role, in every state of the policy: a table that is generated, asked of the real application
with real certificates' principals, and held against what the words say."""

import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI, Request

from llmd.api.http.app import application, noted
from llmd.api.http.routes import Route, subject, subjects
from llmd.api.openai import chat
from llmd.daemon.composition import CLIENT_ROUTES, Daemon
from llmd.daemon.config import Config
from llmd.daemon.identity.policy import Policy
from llmd.daemon.identity.policy_text import Known, read
from llmd.daemon.identity.principal import ROLES, Principal

ROUTES, ASKING = subjects(CLIENT_ROUTES)
KNOWN = Known(("client", "other"), ROUTES, ASKING)
BODIES: dict[str, dict[str, Any]] = {
    chat.CHAT: {"messages": [{"role": "user", "content": "hi"}]}, chat.COMPLETIONS: {"prompt": "hi"},
    chat.TOKENIZE: {"prompt": "hi"}, chat.DETOKENIZE: {"tokens": [1]},
}  # fmt: skip


def grant(to: str, routes: list[str] | None = None, models: list[str] | None = None) -> str:
    lines = ["[[grants]]", f"to = {json.dumps([to])}"]
    lines += [f"models = {json.dumps(models)}"] if models else []
    lines += [f"routes = {json.dumps(routes)}"] if routes else []
    return "\n".join(lines)


# each state with the routes that it has for the client; None: no policy
STATES: dict[str, tuple[str | None, set[str]]] = {
    "no policy": (None, set(ROUTES)),
    "everything": (grant("*", models=["*"]), set(ROUTES)),
    "everything for the client": (grant("client", models=["*"]), set(ROUTES)),
    "for somebody else": (grant("other", models=["*"]), set()),
    "no model that there is": (grant("client", models=["zz"]), set(ROUTES)),
    **{f"only {route}": (grant("client", [route], ["*"] if route in ASKING else None), {route}) for route in ROUTES},
    "all under /v1": (grant("client", ["/v1/*"], ["*"]), {route for route in ROUTES if route.startswith("/v1/")}),
    "in a group": (f'[groups]\ng = ["client"]\n{grant("g", models=["*"])}', set(ROUTES)),
    "outside its hours": (
        grant("client", models=["*"]) + '\n[[limits]]\nof = ["client"]\nhours = ["Mon 00:00-00:01"]\nzone = "UTC"',
        set(ROUTES),
    ),
    "that cannot be read": ("", set()),
}
CELLS = [(role, route, state) for role in ROLES for route in CLIENT_ROUTES for state in STATES]


class Server:
    """A daemon's application, which asks as `client`."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon, self.role = daemon, "infer"

        def who(_: Request) -> Principal:
            return Principal("client", self.role, "1f", "127.0.0.1")

        self.app: FastAPI = application(
            CLIENT_ROUTES, who, noted(daemon.serving.books.refusals), serving=daemon.serving,
            doctor=daemon.service.doctor,
        )  # fmt: skip

    def hold(self, text: str | None) -> None:
        policy = Policy.none() if text is None else read(text, 1, KNOWN) if text else Policy(1, "not to be read")
        self.daemon.serving.policy.use(policy)

    async def ask(self, method: str, path: str, body: Any = None) -> tuple[int, bytes]:
        data = json.dumps(body).encode() if body is not None else b""
        sent: list[Any] = []

        async def receive() -> Any:
            return {"type": "http.request", "body": data, "more_body": False}

        async def send(message: Any) -> None:
            sent.append(message)

        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(data)).encode())]
        scope = {
            "type": "http", "http_version": "1.1", "scheme": "https", "server": ("a", 1), "client": ("b", 2),
            "root_path": "", "query_string": b"", "headers": headers, "method": method, "path": path,
            "raw_path": path.encode(), "extensions": {},
        }  # fmt: skip
        await self.app(scope, receive, send)
        return sent[0]["status"], b"".join(part.get("body", b"") for part in sent[1:])


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    daemon = Daemon(Config(state_dir=str(tmp_path), node="test"))
    yield Server(daemon)
    await daemon.serving.schemas.close()
    await daemon.pool.close(0)
    await daemon.close()


def wanted(role: str, route: Route, state: str) -> int:
    """The status. No model is deployed, so what asks one is a 404 of the model, and the probes find none ready."""
    if role not in route.roles:
        return 403
    if subject(route.path) not in STATES[state][1]:
        return 404
    if route.ask_of is not None or route.path.endswith("{model}"):
        return 404
    return 503 if route.path in ("/health", "/readyz") else 200


def code(route: Route, state: str) -> str:
    return "model_not_found" if subject(route.path) in STATES[state][1] else "not_found"


async def test_each_cell_of_route_by_role_by_policy(server: Server) -> None:
    wrong = []
    for role, route, state in CELLS:
        server.hold(STATES[state][0])
        server.role = role
        path = route.path.replace("{model}", "m")
        status, answer = await server.ask(
            route.method, path, BODIES.get(route.path) and {"model": "m", **BODIES[route.path]}
        )
        expected = wanted(role, route, state)
        if status != expected or (status == 404 and json.loads(answer)["error"]["code"] != code(route, state)):
            wrong.append((role, route.name, state, status, expected, answer[:200]))
    assert wrong == [] and len(CELLS) == len(ROLES) * len(CLIENT_ROUTES) * len(STATES)
    assert len(STATES) == 9 + len(ROUTES)


def _hidden() -> Iterator[str]:
    yield from (route.path.replace("{model}", "m") for route in CLIENT_ROUTES)


@pytest.mark.parametrize("path", sorted(_hidden()))
async def test_a_route_that_is_not_given_is_answered_as_one_that_there_is_not(server: Server, path: str) -> None:
    """Byte for byte, by every method, with a body or without."""
    server.role = "admin"
    server.hold(grant("client", ["/livez" if path != "/livez" else "/health"]))
    for method in ("GET", "POST", "PUT", "DELETE", "OPTIONS", "HEAD"):
        for body in (None, {"model": "m"}, {"nonsense": 1}):
            assert await server.ask(method, path, body) == await server.ask(method, "/v1/no-such-route", body)


async def test_a_hint_names_no_route_that_is_not_given(server: Server) -> None:
    server.hold(None)
    assert b"there is /v1/models" in (await server.ask("GET", "/models"))[1]
    server.hold(grant("client", ["/livez"]))
    assert b"there is /v1" not in (await server.ask("GET", "/models"))[1]
    assert b"there is /livez" in (await server.ask("GET", "/x/livez"))[1]


async def test_the_document_has_the_routes_that_are_given(server: Server) -> None:
    for state, (text, given) in STATES.items():
        server.hold(text)
        status, document = await server.ask("GET", "/openapi.json")
        assert status == (200 if "/openapi.json" in given else 404)
        if status == 200:
            listed = {subject(path) for path in json.loads(document)["paths"]}
            assert listed == {route for route in given if "infer" in ROUTES[route]}, state


async def test_who_is_refused_a_route_stands_in_the_audit_log_with_the_rule(server: Server) -> None:
    server.hold(STATES["for somebody else"][0])
    await server.ask("GET", "/v1/models")
    (row,) = (row["body"] for row in await server.daemon.audit.tail(20) if row["kind"] == "refused")
    assert row["reason"] == "denied by policy" and row["rule"] == "policy 1: no grant gives client /v1/models"
    assert row["route"] == "GET /v1/models" and row["status"] == 404
