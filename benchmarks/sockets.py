#!/usr/bin/env python3
"""A good client beside strangers at its own address: its latencies, and how often it is kept out.

python benchmarks/sockets.py [--counts 2000 10000] [--asks 200]       results in benchmarks/results/sockets.md

First beside sockets that are held open without a word, then beside floods of new connections: silent ones, ones that
send what is no TLS, handshakes with a foreign certificate; and silent ones with as many descriptors as a shell gives.
"""

import argparse
import asyncio
import contextlib
import http.client
import resource
import socket
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from run import machine

HERE = Path(__file__).parent
PORT = 18449
REQUESTS = 300
# strangers' new connections a second; a handshake costs a signature
FLOODS = {"silent": 1400, "garbage": 1400, "foreign": 200}
FEW_DESCRIPTORS = 1024
TICK = 0.01


class Good:
    """A client with a certificate."""

    def __init__(self, state: Path) -> None:
        self._tls = ssl.create_default_context(cafile=str(state / "pki/ca.crt"))
        self._tls.load_cert_chain(state / "pki/clients/demo.crt", state / "pki/clients/demo.key")

    def connect(self) -> http.client.HTTPSConnection:
        return http.client.HTTPSConnection("127.0.0.1", PORT, context=self._tls, timeout=30)

    def ask(self, connection: http.client.HTTPSConnection) -> float:
        """Milliseconds of one GET, with the handshake where the connection is new."""
        began = time.perf_counter()
        connection.request("GET", "/livez")
        assert connection.getresponse().read()
        return 1000 * (time.perf_counter() - began)

    def measure(self) -> tuple[list[float], list[float]]:
        """Latencies on a kept connection, and on a new one each time."""
        kept = self.connect()
        one = [self.ask(kept) for _ in range(REQUESTS)]
        kept.close()
        each = []
        for _ in range(REQUESTS):
            fresh = self.connect()
            each.append(self.ask(fresh))
            fresh.close()
        return one, each

    def alone(self, asks: int) -> tuple[list[float], int]:
        """Latencies of requests on a new connection each, and how many of so many got no answer."""
        took, lost = [], 0
        for _ in range(asks):
            fresh = self.connect()
            try:
                took.append(self.ask(fresh))
            except (OSError, http.client.HTTPException):
                lost += 1
            fresh.close()
            time.sleep(TICK)
        return took, lost


async def flood(kind: str, rate: int, folder: Path) -> None:
    """So many new connections a second, for ever; each stays until the server ends it."""
    tls = ssl.create_default_context(cafile=str(folder / "pki/ca.crt"))
    if kind == "foreign":
        tls.load_cert_chain(folder / "foreign.pem")

    async def one() -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            reader, writer = await asyncio.open_connection("127.0.0.1", PORT, ssl=tls if kind == "foreign" else None)
            try:
                if kind == "garbage":
                    writer.write(bytes(range(1, 101)))
                await reader.read()
            finally:
                writer.transport.abort()

    running, next_ = set[asyncio.Task[None]](), time.monotonic()
    while True:
        for _ in range(int(rate * TICK)):
            task = asyncio.create_task(one())
            running.add(task)
            task.add_done_callback(running.discard)
        next_ += TICK
        await asyncio.sleep(max(0.0, next_ - time.monotonic()))


@contextlib.contextmanager
def flooding(kind: str, folder: Path) -> Iterator[None]:
    command = [sys.executable, __file__, "--flood", kind, str(folder)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        try:
            time.sleep(3)
            yield
        finally:
            process.kill()


@contextlib.contextmanager
def serving(folder: Path, descriptors: int = 0) -> Iterator[None]:
    """A daemon with a state folder of its own."""
    command = [str(Path(sys.executable).parent / "llmd"), "serve", "--state-dir", str(folder), "--listen",
               f"127.0.0.1:{PORT}"]  # fmt: skip
    if descriptors:
        command = ["prlimit", f"--nofile={descriptors}:{descriptors}", *command]
    daemon = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        while not (folder / "pki/clients/demo.key").exists() or not answers():
            time.sleep(0.1)
        made = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=x -keyout - -out -"
        other = subprocess.run(["openssl", *made.split()], capture_output=True, check=True)
        (folder / "foreign.pem").write_bytes(other.stdout)
        yield
    finally:
        daemon.kill()
        daemon.wait()


def hold(count: int) -> list[socket.socket]:
    """So many connections that say nothing; those that are refused or ended count too."""
    held = []
    for _ in range(count):
        try:
            held.append(socket.create_connection(("127.0.0.1", PORT), timeout=5))
        except OSError:
            continue
    return held


def row(name: str, values: list[float]) -> str:
    cuts = statistics.quantiles(values, n=100)
    return f"{name} | {cuts[49]:.1f} | {cuts[98]:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", type=int, nargs="*", default=[2000, 10000])
    parser.add_argument("--asks", type=int, default=200)
    parser.add_argument("--flood", nargs=2, help=argparse.SUPPRESS)
    a = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if a.flood:
        return asyncio.run(flood(a.flood[0], FLOODS[a.flood[0]], Path(a.flood[1])))
    lines = ["| silent sockets | client | p50, ms | p99, ms |", "|---|---|---|---|"]
    floods = ["| new connections a second | kept out | p50, ms | p99, ms |", "|---|---|---|---|"]
    with tempfile.TemporaryDirectory() as folder, serving(Path(folder)):
        good = Good(Path(folder))
        good.measure()
        for count in (0, *(c for c in a.counts if c + 256 < hard)):
            held = hold(count)
            one, each = good.measure()
            lines += [f"| {count} | {row('kept connection', one)} |", f"| {count} | {row('new connections', each)} |"]
            for client in held:
                client.close()
            time.sleep(6)
        for kind, rate in FLOODS.items():
            with flooding(kind, Path(folder)):
                took, lost = good.alone(a.asks)
            floods.append(f"| {row(f'{rate} {kind} | {lost} of {a.asks}', took)} |")
            time.sleep(6)
    with tempfile.TemporaryDirectory() as folder, serving(Path(folder), FEW_DESCRIPTORS):
        with flooding("silent", Path(folder)):
            took, lost = Good(Path(folder)).alone(a.asks)
        name = f"{FLOODS['silent']} silent, {FEW_DESCRIPTORS} descriptors | {lost} of {a.asks}"
        floods.append(f"| {row(name, took)} |")
    head = f"# A good client beside strangers\n\n{datetime.now(UTC):%Y-%m-%d}, {machine()}. `benchmarks/sockets.py`\n"
    text = "\n".join([head, *lines, "", *floods]) + "\n"
    (HERE / "results" / "sockets.md").write_text(text)
    print(text)


def answers() -> bool:
    try:
        socket.create_connection(("127.0.0.1", PORT), timeout=1).close()
    except OSError:
        return False
    return True


if __name__ == "__main__":
    main()
