#!/usr/bin/env python3
"""How long anything holds up the daemon's event loop: a probe wakes a hundred times a second beside it.

python benchmarks/loop_gaps.py        results in benchmarks/results/loop-gaps.md
"""

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import uvloop
from run import machine

from llmd.daemon.config import Config
from llmd.daemon.main import Daemon
from llmd.daemon.planning.plan import Wish

HERE = Path(__file__).parent
PORT = 18446
PERIOD = 0.01

CLIENT = """
import http.client, ssl, sys
state, route, file = sys.argv[1:]
tls = ssl.create_default_context(cafile=f"{state}/pki/ca.crt")
tls.load_cert_chain(f"{state}/pki/clients/demo.crt", f"{state}/pki/clients/demo.key")
connection = http.client.HTTPSConnection("127.0.0.1", PORT, context=tls, timeout=120)
connection.request("POST", route, open(file, "rb").read(), {"Content-Type": "application/json"})
response = connection.getresponse()
print(response.status, len(response.read()))
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

    async def post(self, route: str, body: bytes) -> str:
        file = self._state / "body"
        file.write_bytes(body)
        command = [sys.executable, "-c", CLIENT.replace("PORT", str(PORT)), str(self._state), route, str(file)]
        client = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
        out, _ = await client.communicate()
        return out.decode().strip()


def generate(**fields: Any) -> bytes:
    return json.dumps({"model": "fake", **fields}).encode()


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

    chat = [{"role": "user", "content": "x"}]
    long = generate(messages=chat, max_tokens=4096, n=4, logprobs=True, top_logprobs=20, ignore_eos=True)
    text, numbers = generate(prompt="a, b " * 800_000, max_tokens=1), generate(prompt=[5] * 99_000, max_tokens=1)
    return [
        ("nothing", lambda: asyncio.sleep(2)),
        ("20 certificates issued", issue),
        ("20 clients revoked", revoke),
        ("`llmctl status`, `llmctl client list`", lambda: asyncio.gather(service.status(), service.clients.list())),
        ("an audit log of 20,000 rows verified", daemon.audit.verify),
        ("a body of 4 MB of text", lambda: requests.post("/v1/completions", text)),
        ("a body of 99,000 numbers", lambda: requests.post("/v1/completions", numbers)),
        ("a body of two million values, refused", lambda: requests.post("/tokenize", b"[" + b"1," * 2_000_000 + b"1]")),
        (
            "an answer of 4 × 4,096 tokens with 20 log-probabilities",
            lambda: requests.post("/v1/chat/completions", long),
        ),
    ]


async def measure(state: Path) -> list[tuple[str, float, Any]]:
    daemon = Daemon(Config(state_dir=str(state), listen=f"127.0.0.1:{PORT}"))
    wish = Wish("", 8, 100_000, 2048, 1024, 1, runner="fake", fake={"text": "one two three"})
    deployment = daemon.pool.deploy("fake", "0" * 64, wish)
    running = asyncio.create_task(daemon.run())
    while not deployment.ready or not (state / "pki" / "clients" / "demo.key").exists():
        await asyncio.sleep(0.05)
    await asyncio.sleep(0.5)
    found = []
    for name, work in await steps(daemon, state):
        probe = Probe()
        probing = asyncio.create_task(probe.run())
        await asyncio.sleep(0.1)
        answer = await work()
        await asyncio.sleep(0.1)
        probing.cancel()
        found.append((name, probe.longest, answer if isinstance(answer, str) else ""))
        print(f"{name}: {probe.longest:.1f} ms {found[-1][2]}", flush=True)
    daemon._stopping.set()
    await running
    return found


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", default=str(HERE / "results" / "loop-gaps.md"))
    a = p.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = uvloop.run(measure(Path(folder)))
    text = (
        f"# What holds up the event loop\n\n{machine()}, {datetime.now(UTC):%Y-%m-%d}. The longest time that a probe, "
        "which wakes a hundred times a second, was late beside each. Target: 50 ms.\n\n"
        "Command: `.venv/bin/python benchmarks/loop_gaps.py`\n\n| | longest gap | answer |\n|---|---|---|\n"
    ) + "\n".join(f"| {name} | {gap:.1f} ms | {answer} |" for name, gap, answer in found)
    Path(a.out).write_text(text + "\n")


if __name__ == "__main__":
    main()
