#!/usr/bin/env python3
"""What llmd's gateway itself costs: mutual TLS, identity, audit, SSE and metrics, with a runner that has no model.

A real daemon and a real worker process; the worker's fake runner writes the nanosecond at which a request reached it and at which
a token left it into each token. The client, in its own process, holds that against its own clock:

    python benchmarks/gateway.py          both measurements; results in benchmarks/results/gateway.md
"""

import argparse
import asyncio
import gc
import re
import ssl
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import uvloop
from run import machine

HERE = Path(__file__).parent
PORT = 18444
TEXT = re.compile(rb'"text":"(\d+):(\d+) "')


def serve(state: str, slots: int, step_seconds: float) -> None:
    """The daemon, with a fake worker as the model `fake`."""
    from llmd.daemon.config import Config
    from llmd.daemon.main import Daemon
    from llmd.daemon.worker import Settings

    async def main() -> None:
        daemon = Daemon(Config(state_dir=state, listen=f"127.0.0.1:{PORT}", queue=1000))
        daemon.pool.deploy("fake", "0" * 64, Settings("", slots, 100_000, 512, 512, 1, "fake", {"step_seconds": step_seconds}))
        await daemon.run()

    uvloop.run(main())


class Stream(asyncio.Protocol):
    """One kept-alive connection: a request, its events, the next request."""

    def __init__(self) -> None:
        self.transport: Any = None
        self.sent = 0
        self.received: list[tuple[int, bytes]] = []
        self.answers: list[tuple[int, list[tuple[int, bytes]]]] = []
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def ask(self, max_tokens: int) -> asyncio.Future[None]:
        body = b'{"model":"fake","prompt":"measure","stream":true,"max_tokens":%d}' % max_tokens
        self.done = asyncio.get_running_loop().create_future()
        self.sent = time.monotonic_ns()
        self.transport.write(
            b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
        )
        return self.done

    def data_received(self, data: bytes) -> None:
        # parsed later: what this costs would delay the next stream's time stamp
        self.received.append((time.monotonic_ns(), data))
        if b"[DONE]" in data:
            self.answers.append((self.sent, self.received))
            self.received = []
            if not self.done.done():
                self.done.set_result(None)

    def delays(self) -> tuple[list[float], list[float]]:
        """Milliseconds that the gateway added to each first token, and each other token's."""
        ttft, tokens = [], []
        for sent, received in self.answers:
            first = True
            for now, data in received:
                for arrived, emitted in TEXT.findall(data):
                    if first:
                        ttft.append((now - sent - (int(emitted) - int(arrived))) / 1e6)
                    else:
                        tokens.append((now - int(emitted)) / 1e6)
                    first = False
        return ttft, tokens

    def events(self) -> int:
        return sum(data.count(b"data: ") for _, received in self.answers for _, data in received)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(ConnectionError("the server closed the connection"))


async def connect(tls: ssl.SSLContext, count: int) -> list[Stream]:
    loop = asyncio.get_running_loop()
    made = [await loop.create_connection(Stream, "127.0.0.1", PORT, ssl=tls, server_hostname="localhost") for _ in range(count)]
    return [protocol for _, protocol in made]


async def paced(tls: ssl.SSLContext, seconds: float) -> tuple[list[float], list[float]]:
    """A new request every 50 ms, each of 48 tokens at 30 a second: 32 streams at once. Returns TTFT and token delays in ms."""
    free = await connect(tls, 60)
    everyone, running = list(free), set()
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        stream = free.pop(0)
        task = asyncio.ensure_future(stream.ask(48))
        task.add_done_callback(lambda _, s=stream: free.append(s))
        running.add(task)
        await asyncio.sleep(0.05)
    await asyncio.gather(*running)
    delays = [s.delays() for s in everyone]
    return [t for ttft, _ in delays for t in ttft], [t for _, tokens in delays for t in tokens]


async def flat_out(tls: ssl.SSLContext, streams: int, tokens: int) -> float:
    """Events a second that arrive over `streams` connections when the runner never waits."""
    everyone = await connect(tls, streams)
    began = time.monotonic()
    await asyncio.gather(*(s.ask(tokens) for s in everyone))
    seconds = time.monotonic() - began
    return sum(s.events() for s in everyone) / seconds


def with_server(step_seconds: float, slots: int, measure: Any) -> tuple[Any, int]:
    """Run `measure(tls)` against a fresh daemon. Returns what it gives and the daemon's memory in MiB."""
    with tempfile.TemporaryDirectory() as folder:
        server = subprocess.Popen([sys.executable, __file__, "--serve", folder, str(slots), str(step_seconds)],
                                  stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)  # fmt: skip
        try:
            assert server.stdout is not None
            for line in server.stdout:
                if line.startswith("llmd serves"):
                    break
            pki = Path(folder) / "pki"
            tls = ssl.create_default_context(cafile=str(pki / "ca.crt"))
            tls.load_cert_chain(pki / "clients" / "demo.crt", pki / "clients" / "demo.key")
            value = uvloop.run(measure(tls))
            status = Path(f"/proc/{server.pid}/status").read_text()
            return value, int(re.search(r"VmRSS:\s+(\d+)", status)[1]) // 1024  # type: ignore[index]
        finally:
            server.terminate()
            server.wait()


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--seconds", type=float, default=20.0, help="of the paced measurement")
    p.add_argument("--out", default=str(HERE / "results" / "gateway.md"))
    p.add_argument("--serve", nargs=3, metavar=("STATE", "SLOTS", "STEP"), help=argparse.SUPPRESS)
    a = p.parse_args()
    if a.serve:
        serve(a.serve[0], int(a.serve[1]), float(a.serve[2]))
        return
    gc.disable()  # the client's own collections are not the gateway's
    (ttft, tokens), memory = with_server(1 / 30, 64, lambda tls: paced(tls, a.seconds))
    rate, _ = with_server(0.0, 32, lambda tls: flat_out(tls, 32, 4000))
    rows = [
        f"| TTFT added, p50 / p95 / p99 of {len(ttft)} requests | "
        + " / ".join(f"{percentile(ttft, q):.2f}" for q in (0.5, 0.95, 0.99)) + " ms | p95 ≤ 5 ms |",
        f"| a token's delay, p50 / p95 / p99 of {len(tokens)} tokens | "
        + " / ".join(f"{percentile(tokens, q):.2f}" for q in (0.5, 0.95, 0.99)) + " ms | p95 ≤ 1 ms |",
        f"| events a second, 32 streams at full speed | {rate:,.0f} | ≥ 10,000 |",
        f"| the daemon's memory without workers, after {len(ttft)} requests | {memory} MiB | ≤ 120 MB |",
    ]  # fmt: skip
    text = (
        f"# What the gateway costs\n\n{machine()}, {datetime.now(UTC):%Y-%m-%d}. Client, daemon and fake worker on this machine; "
        "mutual TLS, SSE and audit on. Paced: 32 streams of 30 tokens/s, a new request every 50 ms.\n\nCommand: "
        "`.venv/bin/python benchmarks/gateway.py`\n\n| | measured | target |\n|---|---|---|\n" + "\n".join(rows) + "\n"
    )
    Path(a.out).write_text(text)
    print(text)


if __name__ == "__main__":
    main()
