"""Who may call what, and that /openapi.json tells the truth of it."""

import asyncio
import http.client
import json
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
from fastapi import FastAPI, Request, Response
from real_daemon import Llmd

from llmd.api.admin import table as admin
from llmd.api.http import openapi
from llmd.api.http.app import application
from llmd.api.http.openapi import callable_by, described
from llmd.api.http.probes import METRICS_TYPE
from llmd.api.http.routes import INFER, OPERATOR, GuardedRoute, Route, table
from llmd.api.http.streams import progress
from llmd.daemon.composition import CLIENT_ROUTES
from llmd.daemon.identity.principal import ROLES, Principal

JSON_TYPE = {"Content-Type": "application/json"}
CHAT = [{"role": "user", "content": "Say hello."}]


def test_who_may_call_what() -> None:
    """The policy, written out: a route that is granted to somebody is granted here too."""
    anybody = ["GET /livez", "GET /health", "GET /readyz", "GET /openapi.json"]
    models = ["GET /v1/models", "GET /v1/models/{model}"]
    infer = ["POST /v1/chat/completions", "POST /v1/completions", "POST /tokenize", "POST /detokenize", *models]
    granted = {role: set(names) for role, names in table(CLIENT_ROUTES).items()}
    assert granted == {
        "infer": {*anybody, *infer},
        "operator": {*anybody, *models, "GET /metrics"},
        "admin": {*anybody, *infer, "GET /metrics"},
        "auditor": {*anybody},
    }
    assert set(table(admin.ROUTES)) == {"admin"}


def test_each_role_may_call_what_the_routes_declare_and_nothing_else(llmd: Llmd, tmp_path: Path) -> None:
    """Each cell of the table of role by route, over mutual TLS."""
    cells = 0
    for role in ROLES:
        llmd.llmctl("client", "issue", f"cell-{role}", "--role", role, "--out", str(tmp_path))
        tls = llmd.tls(f"cell-{role}", tmp_path)
        for route in CLIENT_ROUTES:
            path = route.path.replace("{model}", "smol")
            connection = http.client.HTTPSConnection("127.0.0.1", llmd.port, context=tls, timeout=60)
            connection.request(route.method, path, b"{}" if route.method == "POST" else None, JSON_TYPE)
            answer = connection.getresponse()
            code = json.loads(answer.read())["error"]["code"] if answer.status >= 400 else ""
            connection.close()
            wanted = (400, "invalid_request") if route.method == "POST" else (200, "")
            assert (answer.status, code) == (wanted if role in route.roles else (403, "forbidden")), (role, route.name)
            cells += 1
    assert cells == len(ROLES) * len(CLIENT_ROUTES) == 44


@pytest.mark.parametrize("role", [*ROLES, "", "root"])
async def test_only_the_role_admin_gets_past_the_guard_of_the_admin_sockets_routes(role: str) -> None:
    guarded = application(admin.ROUTES, lambda _: Principal("a", role, "", "")).routes
    for route, declared in zip(guarded, admin.ROUTES, strict=True):
        assert isinstance(route, GuardedRoute)
        assert route.granted_to(role) == (role == "admin") == (role in declared.roles)


SCOPE = {
    "type": "http", "query_string": b"", "headers": [], "http_version": "1.1", "scheme": "http", "server": ("a", 1),
    "client": ("b", 2), "root_path": "",
}  # fmt: skip


async def nothing() -> dict[str, Any]:
    return {}


def app(role: str) -> FastAPI:
    def who(_: Request) -> Principal:
        return Principal("a", role, "", "")

    routes = (Route("GET", "/a", nothing, INFER), Route("GET", "/b", nothing, INFER | OPERATOR))
    return application(routes, who)


async def get(app: FastAPI, path: str) -> int:
    """The status of a GET."""
    return int((await ask(app, "GET", path))[0]["status"])


async def ask(app: FastAPI, method: str, path: str) -> list[Any]:
    """What the application sends."""
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    await app(SCOPE | {"method": method, "path": path, "raw_path": path.encode()}, receive, send)
    return sent


def told(sent: list[Any]) -> str:
    return str(json.loads(sent[1]["body"])["error"]["message"])


@pytest.mark.parametrize(
    ("role", "statuses"), [("infer", (200, 200)), ("operator", (403, 200)), ("auditor", (403, 403)), ("", (403, 403))]
)
async def test_a_role_that_a_route_does_not_name_is_refused(role: str, statuses: tuple[int, int]) -> None:
    assert (await get(app(role), "/a"), await get(app(role), "/b")) == statuses


async def test_head_is_wherever_get_is() -> None:
    got, head = await ask(app("infer"), "GET", "/a"), await ask(app("infer"), "HEAD", "/a")
    assert head[0] == got[0] and len(head) == 2 and not head[1].get("body")
    assert (await ask(app("operator"), "HEAD", "/a"))[0]["status"] == 403
    assert (await ask(app("infer"), "HEAD", "/c"))[0]["status"] == 404


async def test_head_of_a_stream_without_an_end_ends_it() -> None:
    ended = asyncio.Event()

    async def values() -> AsyncIterator[int]:
        try:
            while True:
                yield 1
                await asyncio.sleep(0)
        finally:
            ended.set()

    async def endless() -> Response:
        return progress(values())

    routes = (Route("GET", "/endless", endless, INFER),)
    endless_app = application(routes, lambda _: Principal("a", "infer", "", ""))
    sent: list[Any] = []

    async def receive() -> Any:
        while len(sent) < 2:
            await asyncio.sleep(0)
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    async with asyncio.timeout(10):
        await endless_app(SCOPE | {"method": "HEAD", "path": "/endless"}, receive, send)
        await ended.wait()
    assert [m["type"] for m in sent] == ["http.response.start", "http.response.body"]
    assert not any(name == b"connection" for name, _ in sent[0]["headers"])


async def test_405_says_every_method_of_the_path() -> None:
    routes = [Route(m, path, nothing, INFER) for m, path in (("GET", "/a"), ("POST", "/a"), ("POST", "/b"))]
    both = application(routes, lambda _: Principal("a", "infer", "", ""))
    for path, method, allowed in (
        ("/a", "DELETE", b"GET, HEAD, POST"),
        ("/b", "GET", b"POST"),
        ("/b", "HEAD", b"POST"),
    ):
        sent = await ask(both, method, path)
        assert sent[0]["status"] == 405 and dict(sent[0]["headers"])[b"allow"] == allowed


@pytest.mark.parametrize(
    ("path", "meant"),
    [
        ("/v1/models/", "/v1/models"), ("//v1//models", "/v1/models"), ("/v1/completions/", "/v1/completions"),
        ("/chat/completions", "/v1/chat/completions"), ("/v1/v1/chat/completions", "/v1/chat/completions"),
        ("/openai/v1/models", "/v1/models"), ("/v1/models/a/", "/v1/models/{model}"), ("/v1/health", "/health"),
    ],
)  # fmt: skip
async def test_a_path_that_is_not_quite_a_route_is_told_the_route_and_never_redirected(path: str, meant: str) -> None:
    client_app = application(CLIENT_ROUTES, lambda _: Principal("a", "infer", "", ""))
    sent = await ask(client_app, "GET", path)
    assert sent[0]["status"] == 404 and told(sent) == f"there is no such route; there is {meant}"
    assert b"location" not in dict(sent[0]["headers"])


async def test_a_path_that_is_no_route_is_not_repeated() -> None:
    client_app = application(CLIENT_ROUTES, lambda _: Principal("a", "infer", "", ""))
    for path in ("/", "/foo/bar", "/" * 8000, "/v1/" + "x/" * 4000):
        sent = await ask(client_app, "GET", path)
        assert sent[0]["status"] == 404 and told(sent) == "there is no such route"


def test_a_role_is_told_of_what_it_may_call() -> None:
    def of(role: str) -> set[str]:
        return set(described(callable_by(Principal("a", role, "", ""), app("admin")))["paths"])

    assert of("infer") == {"/a", "/b"} and of("operator") == {"/b"} and of("auditor") == set()


async def test_the_document_is_made_once_a_role(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes a tenth of a second of the loop."""
    made: list[int] = []

    def counted(routes: Sequence[GuardedRoute]) -> dict[str, Any]:
        made.append(len(routes))
        return described(routes)

    def serving(role: str) -> FastAPI:
        return application(CLIENT_ROUTES, lambda _: Principal("a", role, "", ""))

    monkeypatch.setattr(openapi, "described", counted)
    for role in ("infer", "admin", "infer"):
        asked = serving(role)
        for _ in range(3):
            sent = await ask(asked, "GET", "/openapi.json")
            assert sent[0]["status"] == 200 and json.loads(sent[1]["body"])["paths"].keys() >= {"/livez"}
    assert made == [10, 11, 10], "each of three servers was asked three times"


def test_openapi_lists_every_route_and_what_it_takes(llmd: Llmd, tmp_path: Path) -> None:
    llmd.llmctl("client", "issue", "reader", "--role", "admin", "--out", str(tmp_path))
    status, _, document = llmd.get("/openapi.json", llmd.tls("reader", tmp_path))
    assert status == 200 and document["openapi"].startswith("3.1")
    listed = {f"{method.upper()} {path}" for path, methods in document["paths"].items() for method in methods}
    assert listed == {route.name for route in CLIENT_ROUTES}
    operations = [o for methods in document["paths"].values() for o in methods.values()]
    assert all("422" not in o["responses"] and "4XX" in o["responses"] for o in operations)
    chat = document["paths"]["/v1/chat/completions"]["post"]
    assert set(chat["responses"]["200"]["content"]) == {"application/json", "text/event-stream"}
    assert set(document["paths"]["/metrics"]["get"]["responses"]["200"]["content"]) == {METRICS_TYPE}
    assert "503" in document["paths"]["/readyz"]["get"]["responses"]
    body = document["components"]["schemas"][chat["requestBody"]["content"]["application/json"]["schema"]["$ref"][21:]]
    assert body["additionalProperties"] is False and "messages" in body["required"]
    assert document["components"]["securitySchemes"] == {"certificate": {"type": "mutualTLS"}}


WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {
    "type": "object", "properties": {"days": {"type": "integer", "maximum": 9}}, "required": ["days"]}}}  # fmt: skip
CALLED = {"tools": [WEATHER], "tool_choice": "required", "parallel_tool_calls": False, "max_tokens": 100}


class Document:
    """What /openapi.json says of an answer."""

    def __init__(self, llmd: Llmd) -> None:
        self._llmd, (_, _, self._document) = llmd, llmd.get("/openapi.json")

    def check(self, schema: dict[str, Any], value: Any) -> None:
        whole = {**schema, "components": self._document["components"]}
        jsonschema_rs.Draft202012Validator(whole, validate_formats=True, offline=True).validate(value)

    def content(self, method: str, path: str, status: int, kind: str) -> dict[str, Any]:
        responses = self._document["paths"][path][method]["responses"]
        found: dict[str, Any] = responses.get(str(status)) or responses[f"{status // 100}XX"]
        content: dict[str, Any] = found["content"][kind]
        return content

    def asked(self, path: str, body: Any = None, *, shown: str = "", status: int = 200) -> Any:
        """The answer, which is as the document says."""
        got, headers, answer = self._llmd.post(path, body)
        method = "get" if body is None else "post"
        kind = headers.get("content-type", headers.get("Content-Type", "")).partition(";")[0]
        assert got == status, answer
        self.check(self.content(method, shown or path, status, kind)["schema"], answer)
        return answer

    def streamed(self, path: str, **body: Any) -> list[dict[str, Any]]:
        """The data of each event, which are as the document says."""
        connection = http.client.HTTPSConnection("127.0.0.1", self._llmd.port, context=self._llmd.tls(), timeout=60)
        connection.request("POST", path, json.dumps({**body, "stream": True}), JSON_TYPE)
        answer = connection.getresponse()
        lines = answer.read().decode().splitlines()
        connection.close()
        item = self.content("post", path, 200, "text/event-stream")["itemSchema"]
        data = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
        assert answer.status == 200 and data.pop() == "[DONE]"
        for one in data:
            self.check(item, {"data": one})
            self.check(item["properties"]["data"]["anyOf"][1]["contentSchema"], json.loads(one))
        return [json.loads(one) for one in data]


def test_real_answers_are_what_openapi_says(llmd: Llmd) -> None:
    document = Document(llmd)
    chat, plain = "/v1/chat/completions", "/v1/completions"
    for more in ({}, {"n": 2}, {"logprobs": True, "top_logprobs": 2}, CALLED):
        document.asked(chat, {"messages": CHAT, "max_tokens": 2, **more})
    for logprobs in (None, 2):
        document.asked(plain, {"prompt": "1 2", "max_tokens": 2, "logprobs": logprobs})
    tokens = document.asked("/tokenize", {"prompt": "one two"})["tokens"]
    assert document.asked("/detokenize", {"tokens": tokens})["prompt"] == "one two"
    for path in ("/v1/models", "/livez", "/health", "/readyz"):
        document.asked(path)
    document.asked("/v1/models/smol", shown="/v1/models/{model}")
    document.asked("/v1/models/none", shown="/v1/models/{model}", status=404)
    for body in ({}, {"messages": CHAT, "tools": [{}]}, {"messages": CHAT, "response_format": {"type": "json_schema"}}):
        document.asked(chat, body, status=400)


def test_real_events_are_what_openapi_says(llmd: Llmd) -> None:
    document = Document(llmd)
    usage = {"stream_options": {"include_usage": True}}
    for more in ({}, usage, {"logprobs": True, "top_logprobs": 1}, CALLED | usage):
        events = document.streamed("/v1/chat/completions", **{"messages": CHAT, "max_tokens": 3, **more})
        assert ("usage" in events[-1]) == ("stream_options" in more)
    for more in ({}, usage, {"logprobs": 2, "n": 2}):
        document.streamed("/v1/completions", prompt="1 2", max_tokens=3, **more)
    # a stop string cuts it
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"const": "abc"}}}
    asked = {"messages": CHAT, "max_tokens": 50, "stop": ["b"], "response_format": form}
    cut = document.streamed("/v1/chat/completions", **asked)
    assert cut[-1]["error"]["code"] == "answer_invalid"
