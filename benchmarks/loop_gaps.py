#!/usr/bin/env python3
"""How long anything holds up the daemon's event loop: a probe wakes a hundred times a second beside it. What an admin
and a client may do, and a row for each route of the tables of routes, asked 40 times at once.

python benchmarks/loop_gaps.py        results in benchmarks/results/loop-gaps.md
"""

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import uvloop
from run import machine

from llmd.api.admin.table import ROUTES as ADMIN_ROUTES
from llmd.api.http.body import LARGE_BYTES, is_large, made
from llmd.api.openai.bodies import ChatBody
from llmd.daemon import limits
from llmd.daemon.composition import CLIENT_ROUTES, Daemon
from llmd.daemon.config import Config
from llmd.daemon.errors import BadRequest
from llmd.daemon.planning.plan import Wish

HERE = Path(__file__).parent
PORT = 18446
PERIOD = 0.01

COUNT = 40  # equal requests at once
LIMIT_MS = 50.0
LARGEST = 4_000_000  # bytes of a body; limits.MAX_BODY_BYTES is a little more

# So many connections, and a request on each at once, once a line comes.
CLIENT = """
import collections, http.client, json, os, socket, ssl, sys, threading
os.nice(19)  # on machines of their own, clients take no processor time from the daemon
asked = json.loads(sys.argv[1])
body = open(asked["body"], "rb").read() if asked["body"] else None
gate = threading.Barrier(asked["count"] + 1)
seen = collections.Counter()

def connected():
    if asked["socket"]:
        made = http.client.HTTPConnection("llmd", timeout=300)
        made.sock = socket.socket(socket.AF_UNIX)
        made.sock.connect(asked["socket"])
        return made
    tls = ssl.create_default_context(cafile=asked["ca"])
    tls.load_cert_chain(asked["certificate"], asked["key"])
    made = http.client.HTTPSConnection("127.0.0.1", asked["port"], context=tls, timeout=300)
    made.connect()
    return made

def ask():
    connection = connected()
    gate.wait()
    gate.wait()
    try:
        connection.request(asked["method"], asked["path"], body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        size = len(answer.read())
        seen[f"{answer.status} {size}" if asked["count"] == 1 else str(answer.status)] += 1
    except OSError as e:  # it answered before the body had come, and went
        seen[type(e).__name__] += 1

threads = [threading.Thread(target=ask) for _ in range(asked["count"])]
for thread in threads:
    thread.start()
gate.wait()
print("ready", flush=True)
sys.stdin.readline()
gate.wait()
for thread in threads:
    thread.join()
print(" ".join(f"{n} × {what}" if asked["count"] > 1 else what for what, n in sorted(seen.items())))
"""


class Probe:
    """The longest time that a wake-up was late, in milliseconds, since `start`."""

    def __init__(self) -> None:
        self.longest = 0.0

    async def run(self) -> None:
        while True:
            due = time.perf_counter() + PERIOD
            await asyncio.sleep(PERIOD)
            self.longest = max(self.longest, 1000 * (time.perf_counter() - due))


class Requests:
    """Requests by a client in a process of its own."""

    def __init__(self, state: Path) -> None:
        self._state = state

    async def ask(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        *,
        count: int = 1,
        by: str = "demo",
        admin: bool = False,
    ) -> "Begun":
        """Ready to go. `by`: a client of ours; `admin`: over the admin socket."""
        file = self._state / "body"
        if body is not None:
            file.write_bytes(body)
        pki = self._state / "pki"
        asked = {
            "method": method, "path": path, "body": str(file) if body is not None else "", "count": count, "port": PORT,
            "socket": str(self._state / "admin.sock") if admin else "", "ca": str(pki / "ca.crt"),
            "certificate": str(pki / "clients" / f"{by}.crt"), "key": str(pki / "clients" / f"{by}.key"),
        }  # fmt: skip
        client = await asyncio.create_subprocess_exec(
            sys.executable, "-c", CLIENT, json.dumps(asked), stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert client.stdout
        await client.stdout.readline()
        return Begun(client)


@dataclass(slots=True)
class Begun:
    client: asyncio.subprocess.Process

    async def end(self) -> str:
        """Let them go. What was answered."""
        out, _ = await self.client.communicate(b"go\n")
        return out.decode().strip()


@dataclass(frozen=True, slots=True)
class Row:
    """One kind of request to a route, or something else that the daemon does."""

    route: str
    kind: str
    body: bytes | None = None
    by: str = "demo"
    admin: bool = False


def rows() -> Iterator[Row]:
    """Every route of both listeners: valid where that is known here, refused, and with the largest body."""
    for routes, admin in ((CLIENT_ROUTES, False), (ADMIN_ROUTES, True)):
        for route in routes:
            valid, largest = BODIES.get(route.name, (None, None)) if not admin else (None, None)
            if route.method == "GET":
                yield Row(route.name, "valid", admin=admin, by="demo" if "infer" in route.roles else "operator")
                if not admin and "auditor" not in route.roles:
                    yield Row(route.name, "refused", by="auditor")
                continue
            if valid:
                yield Row(route.name, "valid", valid, admin=admin)
            yield Row(route.name, "refused", b'{"nothing": 1}', admin=admin)
            yield Row(route.name, "refused, of many errors", MANY, admin=admin)
            yield Row(route.name, "largest", largest or b'{"nothing": "' + b"a" * LARGEST + b'"}', admin=admin)
            yield Row(
                route.name, "largest, of many values", b'{"nothing": [' + b"1," * (LARGEST // 2) + b"1]}", admin=admin
            )
            for kind, body in OTHERS.get(route.name, {}).items() if not admin else ():
                yield Row(route.name, kind, body)


def generate(**fields: Any) -> bytes:
    return json.dumps({"model": "fake", **fields}).encode()


TURNS = [{"role": role, "content": "word " * 200} for _ in range(1900) for role in ("user", "assistant")]
MANY = json.dumps({f"k{i}": 1 for i in range(6000)}).encode()
# what is valid, and the largest that is; other routes have no body, or are tried with what is refused
BODIES: dict[str, tuple[bytes, bytes]] = {
    "POST /v1/chat/completions": (
        generate(messages=TURNS[:1], max_tokens=4), generate(messages=[*TURNS, TURNS[0]], max_tokens=4)
    ),
    "POST /v1/completions": (
        generate(prompt="one", max_tokens=4), generate(prompt=[[5] * 380] * 256, max_tokens=1)
    ),
    "POST /tokenize": (generate(prompt="one two"), generate(prompt="a, b " * (LARGEST // 5))),
    "POST /detokenize": (generate(tokens=[5, 6]), generate(tokens=[5] * 99_000)),
}  # fmt: skip


def _tool(**fields: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "a", **fields}}


PROPERTIES = {f"p{i}": {"type": "string", "description": "x" * 95} for i in range(24_000)}
WRONG = 21_000
# what else a client may try
OTHERS = {
    "POST /v1/chat/completions": {
        f"62 kB, wrong {WRONG:,} times": b'{"messages": [' + b"[]," * WRONG + b"[]]}",
        f"62 kB, a field of a turn wrong {WRONG:,} times":
            b'{"messages": [{"role": "assistant", "annotations": [' + b"1," * (WRONG * 3 // 2) + b"1]}]}",
        "62 kB of biases, all wrong":
            json.dumps({"messages": TURNS[:1], "logit_bias": {f"x{i}": [] for i in range(5000)}}).encode(),
        "a tool of 3.4 MB": generate(messages=TURNS[:1], max_tokens=4, tools=[_tool(
            parameters={"type": "object", "properties": PROPERTIES})]),
        "a tool's description of 3.4 MB": generate(messages=TURNS[:1], max_tokens=4, tools=[_tool(
            description="a, b " * 680_000)]),
        "a schema of 3.4 MB": generate(messages=TURNS[:1], max_tokens=4, response_format={
            "type": "json_schema",
            "json_schema": {"name": "a", "schema": {"type": "object", "properties": PROPERTIES}}}),
    },
}  # fmt: skip


async def steps(daemon: Daemon, state: Path) -> list[tuple[str, Callable[[], Awaitable[Any]]]]:
    """What is measured, each with its name."""
    requests, service = Requests(state), daemon.service
    for i in range(20_000):
        daemon.audit.event("bench.row", number=i)
    await daemon.audit.tail(1)

    async def issue() -> None:
        for i in range(20):
            await service.clients.issue(f"client-{i}", 30, "bench")

    async def revoke() -> None:
        for i in range(20):
            await service.clients.revoke(f"client-{i}", "bench")

    async def post(path: str, body: bytes) -> str:
        return await (await requests.ask("POST", path, body)).end()

    chat = [{"role": "user", "content": "x"}]
    long = generate(messages=chat, max_tokens=4096, n=4, logprobs=True, top_logprobs=20, ignore_eos=True)
    text, numbers = generate(prompt="a, b " * 800_000, max_tokens=1), generate(prompt=[5] * 99_000, max_tokens=1)
    return [
        ("nothing", lambda: asyncio.sleep(2)),
        ("20 certificates issued", issue),
        ("20 clients revoked", revoke),
        ("`llmctl status`, `llmctl client list`", lambda: asyncio.gather(service.status(), service.clients.list())),
        ("an audit log of 20,000 rows verified", daemon.audit.verify),
        ("a body of 4 MB of text", lambda: post("/v1/completions", text)),
        ("a body of 99,000 numbers", lambda: post("/v1/completions", numbers)),
        ("a body of two million values, refused", lambda: post("/tokenize", b"[" + b"1," * 2_000_000 + b"1]")),
        ("an answer of 4 × 4,096 tokens with 20 log-probabilities", lambda: post("/v1/chat/completions", long)),
    ]


def on_the_loop() -> Iterator[tuple[str, int, float]]:
    """What the largest bodies take that are read on the loop itself: what, bytes, milliseconds (the least of five)."""
    turn = {"role": "user", "content": "x"}
    bodies: dict[str, Callable[[int], dict[str, Any]]] = {
        "a text": lambda n: {"messages": [{"role": "user", "content": "a" * n}]},
        "a text in escapes": lambda n: {"messages": [{"role": "user", "content": "é" * n}]},
        "turns": lambda n: {"messages": [turn] * n},
        "turns, all wrong": lambda n: {"messages": [[]] * n},
        "unknown keys": lambda n: {"messages": [turn], **{f"k{i}": 1 for i in range(n)}},
        "biases, all wrong": lambda n: {"messages": [turn], "logit_bias": {f"x{i}": [] for i in range(n)}},
        "a schema": lambda n: {"messages": [turn], "tools": [_tool(parameters={
            "type": "object", "properties": {f"p{i}": {"type": "null"} for i in range(n)}})]},
    }  # fmt: skip
    for what, make in bodies.items():
        size = LARGE_BYTES
        while is_large(data := json.dumps(make(size)).encode()):
            size = size * 99 // 100
        took = []
        for _ in range(5):
            began = time.perf_counter()
            with suppress(BadRequest):
                made(data, ChatBody)
            took.append(time.perf_counter() - began)
        yield what, len(data), 1000 * min(took)


async def gap(work: Callable[[], Awaitable[Any]]) -> tuple[float, Any]:
    """The loop's longest gap beside it."""
    probe = Probe()
    probing = asyncio.create_task(probe.run())
    await asyncio.sleep(0.1)
    answer = await work()
    await asyncio.sleep(0.1)
    probing.cancel()
    return probe.longest, answer


async def measure(state: Path, only: str) -> tuple[list[tuple[str, float, Any]], list[tuple[Row, float, str]]]:
    daemon = Daemon(Config(state_dir=str(state), listen=f"127.0.0.1:{PORT}", queue=1000))
    wish = Wish("", 8, 100_000, 2048, 1024, 1, engine="fake", fake={"text": "one two three"})
    deployment = daemon.pool.deploy("fake", "0" * 64, wish)
    running = asyncio.create_task(daemon.run())
    while not deployment.ready or not (state / "pki" / "clients" / "demo.key").exists():
        await asyncio.sleep(0.05)
    await asyncio.sleep(0.5)
    found, routes = [], []
    for name, work in await steps(daemon, state) if not only else ():
        longest, answer = await gap(work)
        found.append((name, longest, answer if isinstance(answer, str) else ""))
        print(f"{name}: {longest:.1f} ms {found[-1][2]}", flush=True)
    for role in ("operator", "auditor"):
        issued = await daemon.service.clients.issue(role, 30, "bench", role=role)
        (state / "pki" / "clients" / f"{role}.crt").write_bytes(issued.certificate_pem)
        (state / "pki" / "clients" / f"{role}.key").write_bytes(issued.key_pem)
    requests = Requests(state)
    for row in (row for row in rows() if only in f"{row.route} {row.kind}"):
        method, path = row.route.split(" ")
        path = path.replace("{model}", "fake").replace("{name}", "fake")
        begun = await requests.ask(method, path, row.body, count=COUNT, by=row.by, admin=row.admin)
        longest, answer = await gap(begun.end)
        routes.append((row, longest, answer))
        print(f"{row.route}, {row.kind}: {longest:.1f} ms {answer}", flush=True)
    daemon._stopping.set()
    await running
    return found, routes


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", default=str(HERE / "results" / "loop-gaps.md"))
    p.add_argument("--only", default="", help="a part of some rows' names: shown, and not written")
    a = p.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found, routes = uvloop.run(measure(Path(folder), a.only))
    over = [f"{row.route}, {row.kind}" for row, gap, _ in routes if gap > LIMIT_MS]
    print(f"over {LIMIT_MS:.0f} ms: {', '.join(over) or 'none'}")
    if a.only:
        return
    text = (
        f"# What holds up the event loop\n\n{machine()}, {datetime.now(UTC):%Y-%m-%d}. The longest time that a probe, "
        "which wakes a hundred times a second, was late beside each. Target: 50 ms.\n\n"
        "Command: `.venv/bin/python benchmarks/loop_gaps.py`\n\n| | longest gap | answer |\n|---|---|---|\n"
    ) + "\n".join(f"| {name} | {gap:.1f} ms | {answer} |" for name, gap, answer in found)
    text += (
        f"\n\n## On the loop itself\n\nBodies of fewer than {LARGE_BYTES // 1024} KiB and {limits.LARGE_VALUES:,} "
        "values are read there, one in a turn; larger ones in a thread.\n\n| what | bytes | time |\n|---|---|---|\n"
    ) + "\n".join(f"| {what} | {size:,} | {ms:.2f} ms |" for what, size, ms in on_the_loop())
    text += (
        f"\n\n## {COUNT} equal requests at once\n\nLimit: {LIMIT_MS:.0f} ms a request. Every route, "
        "the client in a process of its own on the same "
        "machine: the longest gap, and how many were answered how.\n\n"
        "| route | | longest gap | answers |\n|---|---|---|---|\n"
    ) + "\n".join(
        f"| {'admin: ' if row.admin else ''}{row.route} | {row.kind} | {gap:.1f} ms | {answer} |"
        for row, gap, answer in routes
    )
    Path(a.out).write_text(text + "\n")


if __name__ == "__main__":
    main()
