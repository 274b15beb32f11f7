#!/usr/bin/env python3
"""What planning a step costs the engine thread: 128 requests come at once to an engine with 128 slots.

python benchmarks/planning.py        results in benchmarks/results/planning.md
"""

import argparse
import gc
import statistics
import time
from datetime import UTC, datetime
from pathlib import Path

from run import machine

from llmd.daemon.engine.scheduler import Scheduler
from llmd.daemon.engine.types import ModelInfo, Request, Sample, SamplingParams

HERE = Path(__file__).parent
SLOTS = 128


def arrivals(prefix: int, length: int, block: int) -> list[float]:
    """Milliseconds of each step's plan from the arrival of SLOTS requests until all have a token; each prompt is
    `length` tokens behind a common prefix of `prefix`."""
    info = ModelInfo(128_000, 8192, SLOTS, frozenset(), True, block, "", 0, 0)
    scheduler = Scheduler(info, batch=2048, chunk=1024)
    for i in range(SLOTS):
        own = [1000 + (i * 7919 + k * 31) % 100_000 for k in range(length)]
        prompt = (*range(1, prefix + 1), *own)
        scheduler.add(Request(i, f"client {i % 8}", prompt, SamplingParams(10_000, ignore_eos=True)))
    gc.collect()
    gc.freeze()  # as a worker does
    took = []
    while scheduler.waiting or any(not s.generated for s in scheduler.running):
        began = time.perf_counter()
        plan = scheduler.plan()
        took.append(1000 * (time.perf_counter() - began))
        scheduler.apply(plan, [Sample(c.slot, 5) for c in plan.chunks if c.sample])
    return took


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--rounds", type=int, default=20)
    p.add_argument("--out", default=str(HERE / "results" / "planning.md"))
    a = p.parse_args()
    lines = ["| prompts | steps | plan, median | plan, longest of a round (median) |", "|---|---|---|---|"]
    for title, prefix, length, block in (
        ("96 tokens", 0, 96, 0),
        ("96 tokens, cut at blocks of 64", 0, 96, 64),
        ("32 tokens behind a common prefix of 1,000", 1000, 32, 0),
        ("2,000 tokens", 0, 2000, 0),
    ):
        rounds = [arrivals(prefix, length, block) for _ in range(a.rounds)]
        middle = statistics.median(t for r in rounds for t in r)
        longest = statistics.median(max(r) for r in rounds)
        lines.append(f"| {title} | {len(rounds[0])} | {middle:.3f} ms | {longest:.3f} ms |")
    text = (
        f"# What planning a step costs\n\n{machine()}, {datetime.now(UTC):%Y-%m-%d}. {SLOTS} requests of 8 clients "
        f"come at once to {SLOTS} slots, {a.rounds} rounds. Target: 1 ms.\n\n"
        "Command: `.venv/bin/python benchmarks/planning.py`\n\n"
    ) + "\n".join(lines)
    Path(a.out).write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
