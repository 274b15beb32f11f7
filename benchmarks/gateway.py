#!/usr/bin/env python3
"""What llmd's gateway itself costs: mutual TLS, identity, audit, SSE and metrics, with a runner that has no model.

A real daemon and a real worker process; the worker's fake runner writes the nanosecond at which a request reached it
and at which a token left it into each token. The client, in its own process, holds that against its own clock:

    python benchmarks/gateway.py                       every measurement; results in benchmarks/results/gateway.md
    python benchmarks/gateway.py --against CHECKOUT    the same of another checkout (with its .venv),
    round by round in turn

A machine's speed drifts, so each figure is the median of --rounds rounds, with the lowest and the highest beside it.
"""

import argparse
import asyncio
import gc
import re
import ssl
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import uvloop
from run import machine

HERE = Path(__file__).parent
PORT = 18444
TEXT = re.compile(rb'"text":"(\d+):(\d+) "')


def serve(state: str, slots: int, step_seconds: float) -> None:
    """The daemon, with a fake worker as the model `fake`."""
    from llmd.daemon.composition import Daemon
    from llmd.daemon.config import Config
    from llmd.daemon.planning.plan import Wish

    async def main() -> None:
        daemon = Daemon(Config(state_dir=state, listen=f"127.0.0.1:{PORT}", queue=1000))
        wish = Wish(
            path="",
            slots=slots,
            context=100_000,
            batch=512,
            chunk=512,
            threads=1,
            engine="fake",
            fake={"step_seconds": step_seconds},
        )
        daemon.pool.deploy("fake", "0" * 64, wish)
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
    made = [
        await loop.create_connection(Stream, "127.0.0.1", PORT, ssl=tls, server_hostname="localhost")
        for _ in range(count)
    ]
    return [protocol for _, protocol in made]


@dataclass(frozen=True, slots=True)
class Round:
    """One round's figures: milliseconds that the gateway adds, the daemon's CPU time an event, events a second,
    memory."""

    ttft: float  # p95
    token: float  # p95
    cpu: float  # microseconds of the daemon an event, at a fixed pace, with the request's share
    rate: float  # events a second, at full speed
    memory: float  # MiB


async def paced(tls: ssl.SSLContext, daemon: psutil.Process, seconds: float) -> tuple[float, float, float]:
    """A new request every 50 ms, each of 48 tokens at 30 a second: 32 streams at once. Returns p95 of TTFT and of a
    token's delay in ms, and CPU microseconds an event."""
    free = await connect(tls, 60)
    everyone, running = list(free), set()
    deadline = time.monotonic() + seconds
    before = cpu_seconds(daemon)
    while time.monotonic() < deadline:
        stream = free.pop(0)
        asked = stream.ask(48)
        asked.add_done_callback(partial(_give_back, free, stream))
        running.add(asked)
        await asyncio.sleep(0.05)
    await asyncio.gather(*running)
    cpu = cpu_seconds(daemon) - before
    delays = [s.delays() for s in everyone]
    return (
        percentile([t for ttft, _ in delays for t in ttft], 0.95),
        percentile([t for _, tokens in delays for t in tokens], 0.95),
        1e6 * cpu / sum(s.events() for s in everyone),
    )


def _give_back(free: list[Stream], stream: Stream, _: object) -> None:
    free.append(stream)


async def flat_out(tls: ssl.SSLContext, streams: int, tokens: int) -> float:
    """Events a second that arrive over `streams` connections when the runner never waits."""
    everyone = await connect(tls, streams)
    began = time.monotonic()
    await asyncio.gather(*(s.ask(tokens) for s in everyone))
    seconds = time.monotonic() - began
    return sum(s.events() for s in everyone) / seconds


def cpu_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


@contextmanager
def server(checkout: Path, step_seconds: float, slots: int) -> Iterator[tuple[ssl.SSLContext, psutil.Process]]:
    """A fresh daemon of that checkout: the client's TLS, and the daemon's process."""
    command = [checkout / ".venv/bin/python", checkout / "benchmarks/gateway.py", "--serve"]
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(
            [*map(str, command), folder, str(slots), str(step_seconds)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        try:
            assert process.stdout is not None
            if not any(line.startswith("llmd serves") for line in process.stdout):
                raise SystemExit(f"the daemon of {checkout} does not start: run `make setup` there")
            pki = Path(folder) / "pki"
            tls = ssl.create_default_context(cafile=str(pki / "ca.crt"))
            tls.load_cert_chain(pki / "clients" / "demo.crt", pki / "clients" / "demo.key")
            yield tls, psutil.Process(process.pid)
        finally:
            process.terminate()
            process.wait()


def measure(checkout: Path, seconds: float) -> Round:
    gc.collect()
    with server(checkout, 1 / 30, 64) as (tls, daemon):
        ttft, token, cpu = uvloop.run(paced(tls, daemon, seconds))
        memory = daemon.memory_info().rss / (1 << 20)
    with server(checkout, 0.0, 32) as (tls, _):
        rate = uvloop.run(flat_out(tls, 32, 4000))
    return Round(ttft, token, cpu, rate, memory)


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


# --- what a person reads

FIGURES = (
    ("TTFT added, p95", "ttft", "{:.2f}", "ms", "≤ 5 ms"),
    ("a token's delay, p95", "token", "{:.2f}", "ms", "≤ 1 ms"),
    ("the daemon's CPU time an event", "cpu", "{:.1f}", "µs", ""),
    ("events a second, 32 streams at full speed", "rate", "{:,.0f}", "", "≥ 10,000"),
    ("the daemon's memory without workers", "memory", "{:.0f}", "MiB", "≤ 120"),
)


def table(rounds: dict[str, list[Round]]) -> str:
    """A column a checkout, and with two of them the first's share of the second."""
    names = list(rounds)
    ratio = [f"{names[0]} ÷ {names[1]}"] if len(names) == 2 else []
    lines = [f"| | {' | '.join(names + ratio)} | target |", "|---" * (2 + len(names + ratio)) + "|"]
    for title, name, form, unit, target in FIGURES:
        values = [[getattr(r, name) for r in taken] for taken in rounds.values()]
        middles = [statistics.median(v) for v in values]
        cells = [
            f"{form.format(m)} {unit} ({form.format(min(v))} – {form.format(max(v))})"
            for m, v in zip(middles, values, strict=True)
        ]
        cells += [f"{middles[0] / middles[1]:.3f}"] if ratio else []
        lines.append(f"| {title} | {' | '.join(cells)} | {target} |")
    return "\n".join(lines)


def filesystem(folder: str) -> str:
    """Its type: an fsync costs nothing on a tmpfs."""
    mounts = [m for m in psutil.disk_partitions(all=True) if Path(folder).is_relative_to(m.mountpoint)]
    return str(max(mounts, key=lambda m: len(m.mountpoint)).fstype)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--seconds", type=float, default=10.0, help="of a round's paced measurement")
    p.add_argument("--against", type=Path, metavar="CHECKOUT")
    p.add_argument("--out", default=str(HERE / "results" / "gateway.md"))
    p.add_argument("--serve", nargs=3, metavar=("STATE", "SLOTS", "STEP"), help=argparse.SUPPRESS)
    a = p.parse_args()
    if a.serve:
        serve(a.serve[0], int(a.serve[1]), float(a.serve[2]))
        return
    gc.disable()  # the client's own collections are not the gateway's
    checkouts = {"measured": HERE.parent}
    if a.against:
        checkouts = {"this": HERE.parent, "other": a.against.resolve()}
    rounds: dict[str, list[Round]] = {name: [] for name in checkouts}
    for number in range(a.rounds):
        # who goes first changes, so that neither always meets the warmer machine
        for name in list(checkouts)[:: 1 if number % 2 == 0 else -1]:
            rounds[name].append(measure(checkouts[name], a.seconds))
            print(number + 1, name, rounds[name][-1], flush=True)
    text = (
        f"# What the gateway costs\n\n{machine()}, {datetime.now(UTC):%Y-%m-%d}. Client, daemon and fake worker on "
        "this machine; mutual TLS, SSE and audit on. Paced: 32 streams of 30 tokens/s, a new request every 50 ms; the "
        f"CPU time is the daemon's, with its 20 requests a second. Medians of {a.rounds} rounds (lowest – highest).\n\n"
        f"Command: `.venv/bin/python benchmarks/gateway.py`, the state on {filesystem(tempfile.gettempdir())}\n\n"
        f"{table(rounds)}\n"
    )
    Path(a.out).write_text(text)
    print(text)


if __name__ == "__main__":
    main()
