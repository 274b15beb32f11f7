#!/usr/bin/env python3
"""What asking for all GPUs costs in Python, without NVML's own time: eight of them, linked, with 64 foreign processes.

    python benchmarks/inventory.py          results in benchmarks/results/inventory.md

The fake of the tests answers each query at once.
"""

import statistics
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

from run import machine

from llmd.daemon.gpus.nvml import Nvml

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests"))
from fake_nvml import GIB, FakeNvml, h200  # noqa: E402


def main() -> None:
    fake = FakeNvml(*(h200(n) for n in range(8)))
    for pid in range(64):
        fake.hold(fake.gpus[pid % 8].uuid, 1000 + pid, GIB)
    first: list[float] = []
    later: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        root = fake.root(Path(folder))
        for _ in range(20):
            nvml = Nvml(fake, root)
            for figures in (first, later):
                began = time.perf_counter()
                found = nvml.inventory()
                figures.append(1e3 * (time.perf_counter() - began))
            assert len(found.gpus) == 8 and sum(len(gpu.processes) for gpu in found.gpus) == 64
            nvml.close()
    rows = (("the first time, with the links", first, ""), ("every five seconds", later, "≤ 20 ms"))
    text = (
        f"# What asking for all GPUs costs\n\n{machine()}, {datetime.now(UTC):%Y-%m-%d}. Eight fake GPUs with 18 "
        "NVLinks each and 64 foreign processes; medians of 20, the fake's own time included.\n\n"
        "Command: `python benchmarks/inventory.py`\n\n| | measured | target |\n|---|---|---|\n"
        + "".join(f"| {what} | {statistics.median(took):.1f} ms | {target} |\n" for what, took, target in rows)
    )
    (HERE / "results" / "inventory.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
