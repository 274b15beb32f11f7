#!/usr/bin/env python3
"""A long audit log read as a whole while it is written: how fast `llmctl audit query --limit 0` is, how much memory
the daemon and `llmctl` take for it, and how long an audited act takes meanwhile.

python benchmarks/audit_export.py [--rows 1000000]      results in benchmarks/results/audit-export.md
"""

import argparse
import re
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

from run import machine

from llmd.api.cli.connection import Client, NoDaemon
from llmd.daemon.audit.chain import COLUMNS, Entry, Row, Value, body_text, link, timestamp

BIN = Path(sys.executable).parent
PORT = 18447
BATCH = 20_000
ADMIT: dict[str, Value] = {
    "principal": "alice", "serial": "5f" * 16, "address": "10.1.2.3", "route": "/v1/chat/completions", "model": "m",
    "digest": "0f" * 32, "params": "1e" * 32, "prompt_mac": "2d" * 32, "prompt_bytes": 512,
}  # fmt: skip
FINISH: dict[str, Value] = {
    "outcome": "stop",
    "prompt_tokens": 128,
    "completion_tokens": 64,
    "ttft_ms": 31.5,
    "seconds": 1.25,
}


def fill(file: Path, rows: int) -> None:
    """So many more rows of the kind that requests leave, chained."""
    admit, finish, begun = body_text(ADMIT), body_text({**ADMIT, **FINISH}), datetime.now(UTC) - timedelta(days=30)
    with closing(sqlite3.connect(file)) as db:
        seq, before = db.execute("SELECT seq, hash FROM audit ORDER BY seq DESC LIMIT 1").fetchone()
        live: set[str] = set()
        for at in range(0, rows, BATCH):
            ts = timestamp(begun + timedelta(seconds=at))
            requests = [f"req-{at + i:024x}" for i in range(BATCH // 2)]
            entries = [
                Entry(kind, ts, request, body)
                for request in requests
                for kind, body in (("admit", admit), ("finish", finish))
            ]
            made: list[Row] = link(entries, (seq, before), live)
            seq, before = made[-1].seq, made[-1].hash
            db.executemany(f"INSERT INTO audit({COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?)", made)
            db.commit()


def mib(pid: int, name: str) -> float:
    found = re.search(rf"{name}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return int(found[1]) / 1024 if found else 0.0


class Acts(threading.Thread):
    """An audited act again and again, which waits for its row on the disk; how long each took."""

    def __init__(self, admin: Client) -> None:
        super().__init__(daemon=True)
        self._admin, self.ms, self.over = admin, list[float](), threading.Event()

    def run(self) -> None:
        while not self.over.wait(0.05):
            begun = time.perf_counter()
            self._admin.call("POST", "/clients/demo/role", {"role": "infer"})
            self.ms.append(1000 * (time.perf_counter() - begun))

    def told(self) -> str:
        self.over.set()
        self.join()
        worst = statistics.quantiles(self.ms, n=20)[-1]
        return f"{statistics.median(self.ms):.1f} / {worst:.1f} / {max(self.ms):.1f} ms of {len(self.ms)}"


def serve(state: Path) -> tuple[subprocess.Popen[bytes], Client]:
    command = [str(BIN / "llmd"), "serve", "--state-dir", str(state), "--listen", f"127.0.0.1:{PORT}"]
    daemon = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    admin = Client(str(state / "admin.sock"))
    while True:
        try:
            admin.call("GET", "/status")
            return daemon, admin
        except NoDaemon:
            time.sleep(0.1)


def export(state: Path, form: str, out: Path) -> tuple[float, int, float]:
    """Seconds, lines, and the most MiB that llmctl had."""
    command = [str(BIN / "llmctl"), "--socket", str(state / "admin.sock"), "audit", "query", "--limit", "0"]
    begun, most = time.perf_counter(), 0.0
    with out.open("wb") as file, subprocess.Popen([*command, "--format", form], stdout=file) as llmctl:
        while llmctl.poll() is None:
            most = max(most, mib(llmctl.pid, "VmHWM"))
            time.sleep(0.05)
        assert llmctl.returncode == 0
    seconds = time.perf_counter() - begun
    with out.open("rb") as written:
        return seconds, sum(1 for _ in written), most


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--rows", type=int, default=1_000_000)
    rows = arguments.parse_args().rows
    with tempfile.TemporaryDirectory() as name:
        state = Path(name) / "state"
        daemon, _ = serve(state)
        daemon.terminate()
        daemon.wait(60)
        fill(state / "audit.db", rows)
        size = (state / "audit.db").stat().st_size / (1 << 20)
        print(f"{machine()} The log has {rows:,} rows, {size:,.0f} MiB.\n")
        daemon, admin = serve(state)
        try:
            alone = Acts(admin)
            alone.start()
            time.sleep(10)
            print(f"An audited act with nothing beside it (p50 / p95 / worst): {alone.told()}\n")
            print("| format | rows/s | seconds | rows | llmctl, MiB | daemon, MiB more | an act, p50 / p95 / worst |")
            print("|---|---|---|---|---|---|---|")
            for form in ("jsonl", "csv"):
                before, beside = mib(daemon.pid, "VmHWM"), Acts(admin)
                beside.start()
                seconds, lines, most = export(state, form, Path(name) / "out")
                more = mib(daemon.pid, "VmHWM") - before
                print(
                    f"| {form} | {lines / seconds:,.0f} | {seconds:.1f} | {lines:,} | {most:.0f} | {more:.0f} | "
                    f"{beside.told()} |"
                )
        finally:
            daemon.terminate()
            daemon.wait(60)


if __name__ == "__main__":
    main()
