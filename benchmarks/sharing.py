#!/usr/bin/env python3
"""Cores that others use too: models beside one another and beside busy processes of somebody else, and what a stream
feels while another model is deployed, tried or redeployed.

python benchmarks/sharing.py MODEL.gguf [--peer LLAMA_SERVER]        results in benchmarks/results/sharing.md

A daemon of its own on the CPU, the same file under four names. Every case is measured in turn with one model alone, so
that a machine whose speed drifts changes both. Somebody else's processes count in a loop, each in a session of its own.
With --peer, llama-servers under the same load.
"""

import argparse
import http.client
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from churn import PORT, Box
from run import machine

NAMES = ("one", "two", "three", "four")
WARM = 2.0  # seconds before a measurement
PEER_PORT = 18470
TOKENS = 256
BUSY = "while True: pass"

Connect = Callable[[], http.client.HTTPConnection]


@dataclass(slots=True)
class Target:
    """Where a model is asked."""

    connect: Connect
    model: str


@dataclass(slots=True)
class Stream:
    """One client: an answer after the other until it is stopped, and when each of their pieces came."""

    target: Target
    number: int
    answers: list[list[float]] = field(default_factory=list)
    stopped: bool = False
    thread: threading.Thread | None = None

    def start(self) -> None:
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        asked = 0
        while not self.stopped:
            connection, asked = self.target.connect(), asked + 1
            prompt = f"Story {self.number} {asked}: " + "Once upon a time there was a house. " * 6
            body = {"model": self.target.model, "prompt": prompt, "max_tokens": TOKENS, "stream": True}
            with suppress(OSError, http.client.HTTPException):
                connection.request("POST", "/v1/completions", json.dumps({**body, "ignore_eos": True}),
                                   {"Content-Type": "application/json"})  # fmt: skip
                self._read(connection.getresponse())
            connection.close()

    def _read(self, answer: http.client.HTTPResponse) -> None:
        if answer.status != 200:
            raise SystemExit(f"{self.target.model}: {answer.status} {answer.read()[:200]!r}")
        pieces: list[float] = []
        self.answers.append(pieces)
        for line in answer:
            if line.startswith(b"data: {"):
                pieces.append(time.monotonic())
            if self.stopped:
                return

    def tokens(self, begin: float, end: float) -> int:
        return sum(begin <= at < end for pieces in self.answers for at in pieces)

    def gap(self, begin: float, end: float) -> float:
        """The longest wait for a piece of an answer, in seconds."""
        waits = (b - a for pieces in self.answers for a, b in zip(pieces, pieces[1:], strict=False) if begin <= a < end)
        return max(waits, default=0.0)


@contextmanager
def streaming(targets: Sequence[Target], streams: int) -> Iterator[list[Stream]]:
    clients = [Stream(target, number) for target in targets for number in range(streams)]
    for client in clients:
        client.start()
    try:
        yield clients
    finally:
        for client in clients:
            client.stopped = True
        for client in clients:
            assert client.thread is not None
            client.thread.join(60)
        time.sleep(0.3)  # whoever served them has seen that they are gone


@contextmanager
def busy(count: int) -> Iterator[None]:
    """Somebody else's processes."""
    running = [subprocess.Popen([sys.executable, "-c", BUSY], start_new_session=True) for _ in range(count)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def rate(targets: Sequence[Target], streams: int, seconds: float, others: int = 0) -> float:
    """Tokens a second, of all together."""
    with busy(others), streaming(targets, streams) as clients:
        time.sleep(WARM)
        begin = time.monotonic()
        time.sleep(seconds)
        end = time.monotonic()
        return sum(client.tokens(begin, end) for client in clients) / (end - begin)


@dataclass(slots=True)
class Case:
    """`models` at once, each with `streams`, beside `others` busy processes, against one model with as many."""

    title: str
    models: int
    streams: int
    others: int
    target: str


CASES = (
    Case("two models at once, one stream each", 2, 1, 0, "1.1"),
    Case("two models at once, eight streams each", 2, 8, 0, "1.0"),
    Case("four models at once, one stream each", 4, 1, 0, "1.0"),
    Case("one model beside one busy process", 1, 1, 1, "0.55"),
    Case("one model beside two busy processes", 1, 1, 2, "0.4"),
)


def measured(case: Case, targets: Sequence[Target], a: argparse.Namespace) -> dict[str, Any]:
    alone, shared = [], []
    for _ in range(a.rounds):
        alone.append(rate(targets[:1], case.streams, a.seconds))
        shared.append(rate(targets[: case.models], case.streams, a.seconds, case.others))
    row = {"alone": alone, "shared": shared, "ratio": statistics.median(shared) / statistics.median(alone)}
    print(f"{case.title:40} {row['ratio']:.2f}  {shared} ÷ {alone}", flush=True)
    return row


# --- what a stream feels


def other_file(model: Path, folder: Path) -> Path:
    """The same model with another name in its header: a file that nobody has tried yet."""
    data = model.read_bytes()
    at = data.index(b"general.name") + len(b"general.name") + 4
    size = int.from_bytes(data[at : at + 8], "little")
    out = folder / "other.gguf"
    out.write_bytes(data[: at + 8] + b"x" * size + data[at + 8 + size :])
    return out


def felt(box: Box, target: Target, acts: Sequence[tuple[str, Callable[[], None]]]) -> dict[str, float]:
    """The longest gap of one stream during each act, and a moment after, in milliseconds."""
    found: dict[str, float] = {}
    for title, act in acts:
        with streaming([target], 1) as (client,):
            time.sleep(WARM)
            begin = time.monotonic()
            act()
            time.sleep(1.0)
            found[title] = round(1000 * client.gap(begin, time.monotonic()), 1)
        print(f"{title:40} {found[title]} ms", flush=True)
    return found


def call(box: Box, route: str, **body: Any) -> None:
    for line in box.admin.events("POST", route, body):
        if "error" in line:
            raise SystemExit(str(line))


# --- the peer


@contextmanager
def llama_servers(a: argparse.Namespace, folder: Path) -> Iterator[list[Target]]:
    """As many as there are names, with the threads that each would take by itself."""
    threads = str(len(os.sched_getaffinity(0)))
    with ExitStack() as stack:
        targets = []
        for i, name in enumerate(NAMES[:2]):
            port = PEER_PORT + i
            log = stack.enter_context((folder / f"peer-{i}.log").open("w"))
            command = [a.peer, "-m", str(a.model), "-t", threads, "-tb", threads, "-np", "8", "-c", str(8 * 1024)]
            server = subprocess.Popen([*command, "--host", "127.0.0.1", "--port", str(port)], stdout=log, stderr=log)
            stack.callback(server.wait)
            stack.callback(server.terminate)
            targets.append(Target(partial(http.client.HTTPConnection, "127.0.0.1", port, timeout=120), name))
            _until_healthy(port)
        yield targets


def _until_healthy(port: int) -> None:
    for _ in range(600):
        with suppress(OSError, http.client.HTTPException):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            connection.request("GET", "/health")
            if connection.getresponse().status == 200:
                return
        time.sleep(0.1)
    raise SystemExit("llama-server did not become ready")


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("model", type=Path)
    ap.add_argument("--peer", help="llama-server")
    ap.add_argument("--rounds", type=int, default=3)
    ap.add_argument("--seconds", type=float, default=6.0)
    ap.add_argument("--cases", default="", help="parts of their titles, with commas between")
    a = ap.parse_args()
    wanted = [case for case in CASES if any(part in case.title for part in a.cases.split(","))]
    told: dict[str, Any] = {"machine": machine(), "date": f"{datetime.now(UTC):%Y-%m-%d}", "model": a.model.name}
    with tempfile.TemporaryDirectory() as folder:
        box = Box([], Path(folder) / "state")
        for name in NAMES:
            call(box, "/models", path=str(a.model.absolute()), name=name)
            call(box, "/deploy", model=name, slots=8, ctx=1024)

        def target(name: str) -> Target:
            return Target(lambda: http.client.HTTPSConnection("127.0.0.1", PORT, context=box.tls, timeout=120), name)

        targets = [target(name) for name in NAMES]
        told["llmd"] = {case.title: measured(case, targets, a) for case in wanted}
        for name in NAMES[1:]:
            box.admin.call("POST", "/undeploy", {"model": name})
        if "gap" in a.cases or not a.cases:
            file = other_file(a.model, Path(folder))
            told["longest gap, ms"] = felt(box, targets[0], (
                ("nothing", lambda: time.sleep(3)),
                ("another model is deployed", lambda: call(box, "/deploy", model="two", slots=8, ctx=1024)),
                ("another file is imported and tried", lambda: call(box, "/models", path=str(file), name="five")),
                ("another model is redeployed", lambda: call(box, "/deploy", model="two", slots=4, ctx=2048)),
                ("the model itself is redeployed", lambda: call(box, "/deploy", model="one", slots=4, ctx=2048)),
            ))  # fmt: skip
        box.stop()
        if a.peer:
            with llama_servers(a, Path(folder)) as peers:
                told["llama-server"] = {c.title: measured(c, peers, a) for c in wanted if c.models <= len(peers)}
    print(json.dumps(told, indent=1))


if __name__ == "__main__":
    main()
