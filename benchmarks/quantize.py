#!/usr/bin/env python3
"""What quantizing takes, beside llama.cpp's own program, and what it takes from the streams of a model that serves.

python benchmarks/quantize.py MODEL.gguf [--peer llama-quantize] [--types Q4_K_M Q8_0] [--threads N] [--rounds 3]
                              [--serve OTHER.gguf]                      results in benchmarks/results/quantize.md

MODEL is in full precision. Both programs read it from the page cache, in turn; `llmd` is the child process of a job (on
an idle machine its low priority costs nothing). With --serve: a daemon of our own streams OTHER to four clients, first
alone, then while a job quantizes MODEL.
"""

import argparse
import filecmp
import json
import os
import statistics
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from churn import Box
from run import machine

STREAMS = 4
ALONE_SECONDS = 20.0
BESIDE_SECONDS = 40.0  # at most: on few cores a job waits for the streams


def timed(command: list[str]) -> tuple[float, int]:
    """Seconds, and the most bytes of memory that it held."""
    began = time.monotonic()
    quiet = os.open(os.devnull, os.O_WRONLY)
    actions = [(os.POSIX_SPAWN_DUP2, quiet, 1), (os.POSIX_SPAWN_DUP2, quiet, 2)]
    pid = os.posix_spawnp(command[0], command, os.environ, file_actions=actions)
    os.close(quiet)
    _, status, usage = os.wait4(pid, 0)
    if status:
        raise SystemExit(f"{command[0]} ended with {status}")
    return time.monotonic() - began, usage.ru_maxrss << 10


def side_by_side(model: Path, kind: str, peer: Path | None, threads: int, rounds: int, folder: Path) -> dict[str, Any]:
    ours, theirs, held = [], [], []
    program = [sys.executable, "-P", "-m", "llmd.quantize.quantizing", "make"]
    for _ in range(rounds):
        if peer:
            theirs.append(timed([str(peer), str(model), str(folder / "peer.gguf"), kind, str(threads)])[0])
        seconds, most = timed([*program, str(model), str(folder / "llmd.gguf"), kind, str(threads)])
        ours.append(seconds)
        held.append(most)
        if peer and not filecmp.cmp(folder / "peer.gguf", folder / "llmd.gguf", shallow=False):
            raise SystemExit(f"{kind}: the two files differ")
    found: dict[str, Any] = {
        "type": kind, "llmd, s": round(statistics.median(ours), 2), "most memory, GiB": round(max(held) / (1 << 30), 2),
        "GB": round((folder / "llmd.gguf").stat().st_size / 1e9, 2),
    }  # fmt: skip
    if theirs:
        found |= {"llama-quantize, s": round(statistics.median(theirs), 2)}
        found |= {"ratio": round(statistics.median(ours) / statistics.median(theirs), 3)}
    return found


def pauses(box: Box, model: str, until: threading.Event) -> list[float]:
    """Seconds between two pieces of each of the streams, while they go on."""
    waits: list[float] = []

    def stream() -> None:
        while not until.is_set():
            waits.extend(seconds for _, seconds in box.ask(model, 64, slow=0.0).waits)

    running = [threading.Thread(target=stream) for _ in range(STREAMS)]
    for one in running:
        one.start()
    for one in running:
        one.join()
    return waits


def beside(model: Path, serve: Path, kind: str) -> dict[str, Any]:
    """p95 between two pieces of a stream, alone and beside a job."""
    with tempfile.TemporaryDirectory() as folder:
        box = Box([serve, model], Path(folder) / "state")
        served, source = box.models
        for _ in box.admin.events("POST", "/deploy", {"model": served}):
            pass
        over = threading.Event()
        threading.Timer(ALONE_SECONDS, over.set).start()
        alone = pauses(box, served, over)
        job = box.admin.call("POST", f"/models/{source}/quantize", {"type": kind})
        over = threading.Event()

        def follow() -> None:
            with suppress(Exception):
                for event in box.admin.events("POST", f"/jobs/{job['id']}/follow"):
                    job.update(event["job"])
            over.set()

        threading.Thread(target=follow).start()
        threading.Timer(BESIDE_SECONDS, over.set).start()
        with_job = pauses(box, served, over)
        done = job["done"] / job["total"] if job.get("total") else 1.0
        box.stop()
    p95 = [statistics.quantiles(one, n=20)[-1] * 1000 for one in (alone, with_job)]
    return {
        "streams": STREAMS, "of the job was done": round(done, 2), "p95 between pieces alone, ms": round(p95[0], 1),
        "beside the job, ms": round(p95[1], 1), "ratio": round(p95[1] / p95[0], 2),
    }  # fmt: skip


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("model", type=Path)
    ap.add_argument("--peer", type=Path)
    ap.add_argument("--types", nargs="+", default=["Q4_K_M", "Q8_0"])
    ap.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    ap.add_argument("--rounds", type=int, default=3)
    ap.add_argument("--serve", type=Path)
    a = ap.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = [side_by_side(a.model, kind, a.peer, a.threads, a.rounds, Path(folder)) for kind in a.types]
    found: dict[str, Any] = {"machine": machine(""), "model": a.model.name, "threads": a.threads, "types": rows}
    if a.serve:
        found["beside a model that serves"] = beside(a.model, a.serve, a.types[0])
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
