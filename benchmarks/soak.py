#!/usr/bin/env python3
"""Ten minutes of clients that come, vanish, read slowly, and lose packets where network namespaces can be made (root
and ip); two models, one deployed anew each minute. Descriptors, threads and memory end where they began, and each
request has one end.

python benchmarks/soak.py [--minutes 10 --clients 200]        results in benchmarks/results/soak.md
"""

import argparse
import asyncio
import json
import os
import random
import shutil
import signal
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import uvloop
from run import machine

from llmd.daemon.composition import Daemon
from llmd.daemon.config import Config
from llmd.daemon.planning.plan import Wish

HERE = Path(__file__).parent
PORT = 18450
SPACES = ("llmd-soak-s", "llmd-soak-c")
SERVER, CLIENT = "10.203.8.1", "10.203.8.2"
# the wire between them is cut for CUT_SECONDS each CUT_EVERY: what is sent meanwhile is lost
CUT_EVERY, CUT_SECONDS = 15.0, 1.0
SETTLE_SECONDS = 90


# --- the server: a program of its own, in its own namespace


def wish(step: float) -> Wish:
    return Wish("", 8, 4096, 512, 256, 1, engine="fake", fake={"text": "one two three", "step_seconds": step})


async def serve(state: Path, host: str) -> None:
    daemon = Daemon(Config(state_dir=str(state), listen=f"{host}:{PORT}", queue=400))
    for name in ("first", "second"):
        daemon.pool.deploy(name, "0" * 64, wish(0.01))
    deploying = asyncio.create_task(deploy_again(daemon))
    await daemon.run()
    deploying.cancel()


async def deploy_again(daemon: Daemon) -> None:
    """One of the two anew each minute, with other settings."""
    for number in range(10**6):
        await asyncio.sleep(60)
        daemon.pool.deploy(("first", "second")[number % 2], "0" * 64, wish(0.01 + number % 3 / 1000))


# --- the clients: a program of its own


class Clients:
    """Each does one thing after the other until time is up, and counts how it ended."""

    def __init__(self, state: Path, host: str, until: float) -> None:
        self._tls = ssl.create_default_context(cafile=str(state / "pki/ca.crt"))
        self._tls.load_cert_chain(state / "pki/clients/demo.crt", state / "pki/clients/demo.key")
        self._host, self._until = host, until
        self.ends: Counter[str] = Counter()

    async def run(self, count: int) -> None:
        await asyncio.gather(*(self._client(random.Random(i)) for i in range(count)))

    async def _client(self, rng: random.Random) -> None:
        kinds: list[tuple[str, Callable[..., Any]]] = [
            ("read", self._read), ("read", self._read), ("left", self._leave), ("reset", self._reset),
            ("slow", self._slowly), ("silent", self._silent),
        ]  # fmt: skip
        while time.monotonic() < self._until:
            name, work = rng.choice(kinds)
            try:
                async with asyncio.timeout(60):
                    self.ends[f"{name}: {await work(rng)}"] += 1
            except (OSError, asyncio.IncompleteReadError) as e:
                self.ends[f"{name}: {type(e).__name__}"] += 1
            await asyncio.sleep(rng.random())

    async def _ask(self, rng: random.Random) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection(
            self._host, PORT, ssl=self._tls, server_hostname="localhost", ssl_handshake_timeout=20
        )
        body = json.dumps(
            {"model": rng.choice(("first", "second")), "prompt": "a", "max_tokens": rng.randrange(1, 200),
             "stream": rng.random() < 0.7}
        ).encode()  # fmt: skip
        head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
        writer.write(f"{head}Connection: close\r\n\r\n".encode() + body)
        return reader, writer

    async def _read(self, rng: random.Random) -> str:
        reader, writer = await self._ask(rng)
        answer = await reader.read()
        writer.close()
        return answer.split(b" ", 2)[1].decode() if answer else "nothing"

    async def _leave(self, rng: random.Random) -> str:
        reader, writer = await self._ask(rng)
        await reader.read(200)
        writer.close()
        return "left"

    async def _reset(self, rng: random.Random) -> str:
        _, writer = await self._ask(rng)
        await asyncio.sleep(rng.random() / 2)
        writer.transport.abort()
        return "reset"

    async def _slowly(self, rng: random.Random) -> str:
        reader, writer = await self._ask(rng)
        for _ in range(rng.randrange(5, 20)):
            if not await reader.read(1):
                break
            await asyncio.sleep(1)
        writer.transport.abort()
        return "slow"

    async def _silent(self, rng: random.Random) -> str:
        _, writer = await asyncio.open_connection(self._host, PORT)
        await asyncio.sleep(rng.random() * 8)
        writer.close()
        return "silent"


# --- what is held against the beginning


def figures(pid: int) -> dict[str, float]:
    process = psutil.Process(pid)
    return {"descriptors": process.num_fds(), "threads": process.num_threads(),
            "memory, MiB": round(process.memory_info().rss / (1 << 20), 1)}  # fmt: skip


def llmctl(state: Path, *arguments: str) -> Any:
    command = [str(Path(sys.executable).parent / "llmctl"), "--socket", str(state / "admin.sock"), *arguments, "--json"]
    return json.loads(subprocess.run(command, capture_output=True, check=True, timeout=60).stdout)


def rows(state: Path) -> Counter[str]:
    """Rows of the audit log by kind, of its file."""
    import sqlite3

    with sqlite3.connect(f"file:{state / 'audit.db'}?mode=ro", uri=True) as db:
        found = db.execute("SELECT kind, count(*) FROM audit WHERE kind IN ('admit', 'finish') GROUP BY kind")
        return Counter(dict(found))


def spaces() -> tuple[list[str], list[str], str]:
    """How to run the server and the clients, and the server's address."""

    def ip(*arguments: str) -> None:
        subprocess.run(["ip", *arguments], check=True, capture_output=True)

    if os.getuid() != 0 or not shutil.which("ip"):
        return [], [], "127.0.0.1"
    for name in SPACES:
        ip("netns", "add", name)
    ip("link", "add", "llmd0", "netns", SPACES[0], "type", "veth", "peer", "name", "llmd0", "netns", SPACES[1])
    for name, address in zip(SPACES, (SERVER, CLIENT), strict=True):
        ip("-n", name, "address", "add", f"{address}/30", "dev", "llmd0")
        ip("-n", name, "link", "set", "llmd0", "up")
        ip("-n", name, "link", "set", "lo", "up")
    inside = ["ip", "netns", "exec"]
    return [*inside, SPACES[0]], [*inside, SPACES[1]], SERVER


def cut(stop: threading.Event) -> None:
    """Cut the wire now and then, until `stop`."""
    while not stop.wait(CUT_EVERY):
        for state, seconds in (("down", CUT_SECONDS), ("up", 0.0)):
            subprocess.run(["ip", "-n", SPACES[1], "link", "set", "llmd0", state], check=True)
            time.sleep(seconds)


def soak(state: Path, minutes: float, count: int) -> list[str]:
    server, clients, host = spaces()
    me = [sys.executable, __file__, "--state", str(state), "--host", host]
    with subprocess.Popen([*server, *me, "--serve"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as daemon:
        while not (state / "pki/clients/demo.key").exists() or not (state / "admin.sock").exists():
            time.sleep(0.1)
        time.sleep(3)
        # once, so that what the first requests make is there before the count begins
        ask = [*clients, *me, "--ask", "--clients", str(count)]
        subprocess.run([*ask, "--minutes", "0.25"], check=True, capture_output=True)
        time.sleep(SETTLE_SECONDS)
        before = figures(daemon.pid)
        stop = threading.Event()
        cutting = threading.Thread(target=cut, args=(stop,))
        if clients:
            cutting.start()
        done = subprocess.run([*ask, "--minutes", str(minutes)], check=True, capture_output=True, text=True)
        stop.set()
        time.sleep(SETTLE_SECONDS)
        after, status = figures(daemon.pid), llmctl(state, "status")
        daemon.send_signal(signal.SIGTERM)
        code = daemon.wait(60)
    audit = rows(state)
    lines = ["| | before | after |", "|---|---|---|", *(f"| {k} | {before[k]} | {after[k]} |" for k in before)]
    running = sum(m.get("running", 0) for m in status["models"])
    lines += ["", f"Requests: {audit['admit']} admitted, {audit['finish']} finished."]
    lines += ["", f"At the end: {status['connections']} connections, {running} running; exit {code}."]
    ends = json.loads(done.stdout)
    lines += ["", "How they ended for their clients: " + ", ".join(f"{k} {v}" for k, v in sorted(ends.items())) + "."]
    wire = (
        f"cut for {CUT_SECONDS:g} s each {CUT_EVERY:g} s" if clients else "whole: there are no network namespaces here"
    )
    lines += ["", f"The wire was {wire}."]
    return lines


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--minutes", type=float, default=10)
    p.add_argument("--clients", type=int, default=200)
    for name in ("--serve", "--ask"):
        p.add_argument(name, action="store_true", help=argparse.SUPPRESS)
    for name in ("--state", "--host"):
        p.add_argument(name, help=argparse.SUPPRESS)
    a = p.parse_args()
    if a.serve:
        return uvloop.run(serve(Path(a.state), a.host))
    if a.ask:
        clients = Clients(Path(a.state), a.host, time.monotonic() + 60 * a.minutes)
        uvloop.run(clients.run(a.clients))
        return print(json.dumps(clients.ends))
    try:
        with tempfile.TemporaryDirectory() as folder:
            lines = soak(Path(folder), a.minutes, a.clients)
    finally:
        for name in SPACES:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)
    head = f"# Soak\n\n{datetime.now(UTC):%Y-%m-%d}, {machine()}. {a.clients} clients for {a.minutes:g} minutes.\n"
    text = "\n".join([head, "Command: `benchmarks/soak.py`", "", *lines]) + "\n"
    (HERE / "results" / "soak.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
