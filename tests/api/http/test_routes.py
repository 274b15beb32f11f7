"""Who may call what, and that /openapi.json tells the truth of it."""

from typing import Any

import pytest
from fastapi import FastAPI, Request
from real_daemon import Llmd

from llmd.api.admin import routes as admin
from llmd.api.http.app import application
from llmd.api.http.openapi import described
from llmd.api.http.probes import METRICS_TYPE
from llmd.api.http.routes import ADMIN, INFER, Route, table
from llmd.api.openai.answers import ChatCompletion, Completion, DetokenizeAnswer, TokenizeAnswer
from llmd.api.openai.models import Model, ModelList
from llmd.daemon.identity.principal import Principal
from llmd.daemon.main import CLIENT_ROUTES

CHAT = [{"role": "user", "content": "Say hello."}]


def test_who_may_call_what() -> None:
    """The policy, written out: a route that is granted to somebody is granted here too."""
    assert table(CLIENT_ROUTES) == {
        "infer": [
            "POST /v1/chat/completions", "POST /v1/completions", "POST /tokenize", "POST /detokenize",
            "GET /v1/models", "GET /v1/models/{model}", "GET /livez", "GET /health",
            "GET /readyz", "GET /metrics", "GET /openapi.json",
        ]
    }  # fmt: skip
    assert set(table(admin.ROUTES)) == {"admin"}


async def nothing() -> dict[str, Any]:
    return {}


def app(role: str) -> FastAPI:
    def who(_: Request) -> Principal:
        return Principal("a", role, "", "")

    routes = (Route("GET", "/a", nothing, INFER), Route("GET", "/b", nothing, INFER | ADMIN))
    return application(routes, who)


async def get(app: FastAPI, path: str) -> int:
    """The status of a GET."""
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http", "method": "GET", "path": path, "raw_path": path.encode(), "query_string": b"", "headers": [],
        "http_version": "1.1", "scheme": "http", "server": ("a", 1), "client": ("b", 2), "root_path": "",
    }  # fmt: skip
    await app(scope, receive, send)
    return int(sent[0]["status"])


@pytest.mark.parametrize(
    ("role", "statuses"), [("infer", (200, 200)), ("admin", (403, 200)), ("auditor", (403, 403)), ("", (403, 403))]
)
async def test_a_role_that_a_route_does_not_name_is_refused(role: str, statuses: tuple[int, int]) -> None:
    assert (await get(app(role), "/a"), await get(app(role), "/b")) == statuses


def test_a_role_is_told_of_what_it_may_call() -> None:
    assert set(described(app("admin"), "infer")["paths"]) == {"/a", "/b"}
    assert set(described(app("admin"), "admin")["paths"]) == {"/b"}
    assert described(app("admin"), "auditor")["paths"] == {}


def test_openapi_lists_every_route_and_what_it_takes(llmd: Llmd) -> None:
    status, _, document = llmd.get("/openapi.json")
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


def test_real_answers_are_what_openapi_says(llmd: Llmd) -> None:
    def post(route: str, **body: Any) -> Any:
        status, _, answer = llmd.post(route, body)
        assert status == 200, answer
        return answer

    for more in ({}, {"n": 2}, {"logprobs": True, "top_logprobs": 2}):
        ChatCompletion.model_validate(post("/v1/chat/completions", messages=CHAT, max_tokens=2, **more), strict=True)
    for logprobs in (None, 2):
        Completion.model_validate(post("/v1/completions", prompt="1 2", max_tokens=2, logprobs=logprobs), strict=True)
    tokens = TokenizeAnswer.model_validate(post("/tokenize", prompt="one two"), strict=True)
    text = DetokenizeAnswer.model_validate(post("/detokenize", tokens=tokens.tokens), strict=True)
    assert text.prompt == "one two"
    ModelList.model_validate(llmd.get("/v1/models")[2], strict=True)
    Model.model_validate(llmd.get("/v1/models/smol")[2], strict=True)
