#!/usr/bin/env python3
"""A good client beside sockets that are held open without a word: its latencies with and without them.

python benchmarks/sockets.py [--counts 2000 10000]        results in benchmarks/results/sockets.md
"""

import argparse
import http.client
import resource
import socket
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

from run import machine

HERE = Path(__file__).parent
PORT = 18449
REQUESTS = 300


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
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--counts", type=int, nargs="*", default=[2000, 10000])
    counts = parser.parse_args().counts
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    lines = ["| silent sockets | client | p50, ms | p99, ms |", "|---|---|---|---|"]
    with tempfile.TemporaryDirectory() as folder:
        command = [
            str(Path(sys.executable).parent / "llmd"),
            "serve",
            "--state-dir",
            folder,
            "--listen",
            f"127.0.0.1:{PORT}",
        ]
        daemon = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        try:
            while not (Path(folder) / "pki/clients/demo.key").exists() or not answers():
                time.sleep(0.1)
            good = Good(Path(folder))
            good.measure()
            for count in (0, *(c for c in counts if c + 256 < hard)):
                held = hold(count)
                one, each = good.measure()
                lines += [
                    f"| {count} | {row('kept connection', one)} |",
                    f"| {count} | {row('new connections', each)} |",
                ]
                for client in held:
                    client.close()
                time.sleep(6)
        finally:
            daemon.kill()
            daemon.wait()
    head = (
        f"# A good client beside silent sockets\n\n{datetime.now(UTC):%Y-%m-%d}, {machine()}. `benchmarks/sockets.py`\n"
    )
    text = "\n".join([head, *lines]) + "\n"
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
