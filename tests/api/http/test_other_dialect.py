"""What a dialect takes that is added: a file, and a line in the table of routes. Its clients meet a real worker."""

import asyncio
import inspect
import json
import threading
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import other_dialect
import pytest
from fastapi import FastAPI

from llmd.api.http.app import application, noted
from llmd.api.http.body import LARGE_BYTES
from llmd.api.http.routes import Route
from llmd.daemon.audit.log import AuditLog
from llmd.daemon.identity.principal import Principal
from llmd.daemon.metrics import Metrics
from llmd.daemon.planning.plan import Wish
from llmd.daemon.replicas.pool import Pool
from llmd.daemon.serving.answer import Serving
from llmd.daemon.serving.ask import Ask
from llmd.daemon.tasks import Tasks

WEATHER = {"weather": {"properties": {"city": {"enum": ["Bonn"]}}, "required": ["city"]}}
ASKED = {"who": "m", "text": "Does it rain?", "most": 100}


@pytest.fixture
async def serving(tmp_path: Path) -> AsyncIterator[Serving]:
    audit, metrics, tasks = AuditLog(tmp_path / "audit.db", bytes(32)), Metrics(), Tasks()
    audit.open()
    pool = Pool(metrics, tasks, pause=(0.1, 1.0))
    found = Serving(pool, lambda: 1, audit, metrics, tasks)
    deployment = pool.deploy("m", "d" * 64, Wish("", 1, 4096, 64, 32, 1, engine="fake", fake={"text": "one two"}))
    async with asyncio.timeout(30):
        while not deployment.ready:
            await deployment.changed.wait()
    yield found
    await found.schemas.close()
    await pool.close(0)
    audit.close()


def app(serving: Serving, role: str = "infer", route: Route = other_dialect.ROUTE) -> FastAPI:
    who = Principal("alice", role, "1f", "127.0.0.1")
    return application([route], lambda _: who, noted(serving.books.refusals), serving=serving)


async def post(app: FastAPI, body: dict[str, Any]) -> tuple[int, str]:
    """Status and body; the client stays until all of it has come."""
    sent: list[Any] = []
    given = [{"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}]
    scope = {
        "type": "http", "http_version": "1.1", "method": "POST", "path": "/say", "raw_path": b"/say", "root_path": "",
        "query_string": b"", "headers": [(b"content-type", b"application/json")], "scheme": "https",
    }  # fmt: skip

    async def receive() -> Any:
        return given.pop() if given else await asyncio.Event().wait()

    async def send(message: Any) -> None:
        sent.append(message)

    async with asyncio.timeout(30):
        await app(scope, receive, send)
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent[1:]).decode()


def told(text: str) -> list[dict[str, Any]]:
    return [json.loads(event.removeprefix("data: ")) for event in text.strip().split("\n\n")]


def test_it_is_small() -> None:
    assert len(inspect.getsource(other_dialect).splitlines()) <= 60


async def test_a_streamed_chat_calls_a_tool(serving: Serving) -> None:
    status, text = await post(app(serving), ASKED | {"usable": WEATHER})
    begun, *argued, over = told(text)
    assert status == 200 and begun["uses"] == "weather" and begun["as"].startswith("use-")
    assert json.loads("".join(part["with"] for part in argued)) == {"city": "Bonn"}
    assert over == {"over": "used", "by": None}
    rows = [row["body"] for row in await serving.audit.tail(100) if row["kind"] in ("admit", "finish")]
    assert rows[0]["dialect"] == "other" and rows[0]["route"] == "/say" and rows[1]["outcome"] == "stop"


async def test_it_says_which_stop_string_ended_a_text(serving: Serving) -> None:
    _, text = await post(app(serving), ASKED | {"until": ["zz", "two"]})
    assert told(text) == [{"says": "one "}, {"over": "stop", "by": "two"}]
    _, text = await post(app(serving), ASKED | {"most": 1})
    assert told(text) == [{"says": "one "}, {"over": "length", "by": None}]


@pytest.mark.parametrize("large", [False, True])
async def test_what_a_large_body_asks_is_found_out_beside_the_event_loop(serving: Serving, large: bool) -> None:
    threads: list[threading.Thread] = []

    def noted(body: other_dialect.Said) -> Ask:
        threads.append(threading.current_thread())
        return other_dialect.ask_of(body)

    words = "a " * (LARGE_BYTES if large else 1)
    await post(app(serving, route=replace(other_dialect.ROUTE, ask_of=noted)), ASKED | {"text": words})
    assert (threads == [threading.main_thread()]) is not large


@pytest.mark.parametrize(
    ("body", "role", "wanted", "model"),
    [
        (ASKED, "auditor", (403, "forbidden"), None),
        (ASKED | {"most": "x"}, "infer", (400, "invalid_request"), None),
        (ASKED | {"usable": {"a": {"type": "array"}}}, "infer", (400, "invalid_request"), None),
        (ASKED | {"who": "other"}, "infer", (404, "model_not_found"), "other"),
    ],
    ids=["its role", "its body", "what it asks", "the model"],
)
async def test_each_refusal_is_written_as_its_clients_read_it_and_logged_once(
    serving: Serving, body: dict[str, Any], role: str, wanted: tuple[int, str], model: str | None
) -> None:
    status, text = await post(app(serving, role), body)
    assert (status, json.loads(text)["wrong"]) == wanted
    (row,) = [row["body"] for row in await serving.audit.tail(100) if row["kind"] == "refused"]
    assert row["reason"] == wanted[1] and row.get("model") == model
