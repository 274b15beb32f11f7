"""How errors look: as the dialect of the route writes them, whoever raises them."""

import json
from contextlib import suppress
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.responses import Response

from llmd.api.http.app import application
from llmd.api.http.body import Body
from llmd.api.http.error_answers import OPENAI, ErrorAnswer, Errors
from llmd.api.http.routes import INFER, OPERATOR, Route
from llmd.daemon.errors import LlmdError, QueueFull, ShuttingDown
from llmd.daemon.identity.principal import Principal


class Given(Body):
    n: int


async def full(body: Given) -> Response:
    raise {1: QueueFull("full", retry_after=7), 2: ShuttingDown("stopping"), 3: ValueError("secret")}[body.n]


def other(error: LlmdError) -> dict[str, Any]:
    return {"type": "error", "code": error.code}


def app(errors: Errors, roles: frozenset[str] = INFER) -> FastAPI:
    return application([Route("POST", "/there", full, roles, errors=errors)], lambda _: Principal("a", "infer", "", ""))


async def answer(app: FastAPI, body: bytes, path: str = "/there", **headers: str) -> tuple[int, dict[str, str], Any]:
    """Status, headers and JSON."""
    sent: list[Any] = []
    given = [(b"content-type", b"application/json"), *((k.encode(), v.encode()) for k, v in headers.items())]
    scope = {
        "type": "http", "http_version": "1.1", "method": "POST", "path": path, "raw_path": path.encode(),
        "query_string": b"", "headers": given, "scheme": "https", "root_path": "",
    }  # fmt: skip

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    with suppress(ValueError):  # what nobody expected is answered, and raised for the log
        await app(scope, receive, send)
    start, *rest = sent
    told = {k.decode(): v.decode() for k, v in start["headers"]}
    return start["status"], told, json.loads(b"".join(m.get("body", b"") for m in rest))


@pytest.mark.parametrize("body", [b'{"n": 1}', b'{"n": 2}', b'{"n": 3}', b'{"n": "x"}', b"{", b"{}"])
async def test_an_error_is_written_as_the_route_says_wherever_it_comes_from(body: bytes) -> None:
    status, headers, plain = await answer(app(OPENAI), body)
    assert set(plain["error"]) == {"message", "type", "param", "code"} and "secret" not in str(plain)
    found = await answer(app(Errors(other, ErrorAnswer)), body)
    assert found[0] == status and found[2] == {"type": "error", "code": plain["error"]["code"]}
    assert found[1].get("retry-after") == headers.get("retry-after") == {b'{"n": 1}': "7", b'{"n": 2}': "1"}.get(body)


async def test_two_dialects_on_one_path_are_told_apart_by_a_header() -> None:
    both = app(Errors(OPENAI.write, ErrorAnswer, beside={"x-other-version": other}))
    assert "error" in (await answer(both, b'{"n": 1}'))[2]
    assert (await answer(both, b'{"n": 1}', **{"x-other-version": "1"}))[2] == {"type": "error", "code": "queue_full"}


async def test_who_may_not_call_is_told_in_the_dialect_of_the_route() -> None:
    refused = app(Errors(other, ErrorAnswer), OPERATOR - INFER)
    assert (await answer(refused, b'{"n": 1}'))[::2] == (403, {"type": "error", "code": "forbidden"})
    assert (await answer(refused, b"", "/nowhere"))[2]["error"]["code"] == "not_found", "it is no dialect's"
