#!/usr/bin/env python3
"""How long plans take: 100 models on a simulated server with 8 GPUs, each a plan from the beginning.

python benchmarks/placement.py          results in benchmarks/results/placement.md
"""

import random
import statistics
import time
from datetime import UTC, datetime
from itertools import combinations
from pathlib import Path

from run import machine

from llmd.daemon.errors import DoesNotFit
from llmd.daemon.gpus.links import Link
from llmd.daemon.planning.placement import Asked, Device, Form, place
from llmd.quantize import compute
from llmd.quantize.shape import Layer, Shape

GIB = 1 << 30
# blocks, embedding, ff, heads, kv heads, head width
MODELS = (
    (16, 2048, 8192, 32, 8, 64), (28, 3072, 8192, 24, 8, 128), (32, 4096, 14336, 32, 8, 128),
    (48, 5120, 13824, 40, 8, 128), (64, 5120, 27648, 40, 8, 128), (80, 8192, 28672, 64, 8, 128),
)  # fmt: skip
ASKED = (Asked(4096, 8), Asked(8192, 16), Asked(16384, 8), Asked(32768, 32), Asked(4096, 64, keep_slots=True))


def form(number: int) -> Form:
    blocks, embedding, ff, heads, kv_heads, key = MODELS[number % len(MODELS)]
    elements = 2 * embedding * key * (heads + kv_heads) + 3 * embedding * ff
    bits = (4.9, 8.5, 16)[number % 3]
    layer = Layer(
        k=kv_heads * key, v=kv_heads * key, heads=heads, kv_heads=kv_heads, q=heads * key, ff=ff,
        nbytes=int(elements * bits / 8) + number, shared=8 * embedding,
    )  # fmt: skip
    ends = int(128256 * embedding * bits / 8)
    shape = Shape("llama", 131072, 128256, embedding, (layer,) * blocks, key, key, host=ends, output=ends)
    return Form(f"m{number}", shape, int(elements * blocks * bits / 8))


def server() -> tuple[list[Device], dict[frozenset[str], Link]]:
    """Four of each of two kinds, with more or less taken; NVLink between those of a kind."""
    rng = random.Random(1)
    devices = []
    for i in range(8):
        total = (141 if i < 4 else 80) * GIB
        devices.append(Device(f"GPU-{i}", "big" if i < 4 else "small", int(total * rng.uniform(0.4, 1)), total, (9, 0)))
    near, far = Link("nvlink", "NV18", 28), Link("pcie", "SYS", 1)
    pairs = combinations(range(8), 2)
    return devices, {frozenset((f"GPU-{a}", f"GPU-{b}")): near if (a < 4) == (b < 4) else far for a, b in pairs}


def main() -> None:
    devices, links = server()
    took, refused = [], 0
    for number in range(100):
        one = form(number)
        compute._buffer.cache_clear()
        began = time.perf_counter()
        try:
            place([one], devices, links, ASKED[number % len(ASKED)])
        except DoesNotFit:
            refused += 1
        took.append(1e3 * (time.perf_counter() - began))
    text = (
        f"# How long plans take\n\n{machine()}, {datetime.now(UTC):%Y-%m-%d}. 100 models (1B to 70B, three kinds of "
        f"weights) on 8 GPUs, each a plan from the beginning; {refused} do not fit.\n\n"
        "Command: `python benchmarks/placement.py`\n\n| | measured | target |\n|---|---|---|\n"
        f"| all | {sum(took):.0f} ms | ≤ 50 ms |\n| one, median | {statistics.median(took):.2f} ms | |\n"
        f"| one, at most | {max(took):.2f} ms | |\n"
    )
    (Path(__file__).parent / "results" / "placement.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
