#!/usr/bin/env python3
"""Whether the energy that `llmctl usage` tells is what the GPUs drew: its sums against power samples, which are taken
beside the daemon and integrated by themselves.

python benchmarks/energy.py MODEL.gguf [--seconds 60]        results in benchmarks/results/energy.md

Two clients ask, the one twice as many answers at a time as the other; then nobody does. Both sides are of the same
moments: those at which the daemon read the counters.
"""

import argparse
import http.client
import json
import ssl
import tempfile
import threading
import time
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import pynvml
from churn import Box
from run import machine

HERE = Path(__file__).parent
SAMPLE_SECONDS = 0.02


class Samples(threading.Thread):
    """Watts of every GPU together, by the wall clock."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        pynvml.nvmlInit()
        self.handles = [pynvml.nvmlDeviceGetHandleByIndex(n) for n in range(pynvml.nvmlDeviceGetCount())]
        self.taken: list[tuple[float, float]] = []
        self.ends = False

    def run(self) -> None:
        while not self.ends:
            watts = sum(map(self._watts, self.handles))
            self.taken.append((time.time(), watts))
            time.sleep(SAMPLE_SECONDS)

    def _watts(self, handle: Any) -> float:
        """At this moment; the other call tells a mean of the last second."""
        (value,) = pynvml.nvmlDeviceGetFieldValues(handle, [pynvml.NVML_FI_DEV_POWER_INSTANT])
        if value.nvmlReturn == 0:
            return float(value.value.uiVal) / 1000
        return float(pynvml.nvmlDeviceGetPowerUsage(handle)) / 1000

    def joules(self, begin: float, end: float) -> float:
        """By trapezoids."""
        inside = [(max(begin, a), max(begin, min(end, b)), p, q) for (a, p), (b, q) in pairwise(self.taken)
                  if b > begin and a < end]  # fmt: skip
        return sum((b - a) * (p + q) / 2 for a, b, p, q in inside)


def polled(box: Box) -> float:
    """When the daemon read the counters last, in Unix seconds; it does so now."""
    before = box.admin.call("GET", "/gpus")["at"]
    while (at := box.admin.call("GET", "/gpus")["at"]) == before:
        time.sleep(0.1)
    return datetime.fromisoformat(at).timestamp()


def used(box: Box) -> dict[str, Any]:
    return box.admin.call("GET", "/usage", by="principal", since="1d")


def ask(box: Box, tls: ssl.SSLContext, until: float) -> None:
    body = {"model": box.models[0], "prompt": "Once upon a time " * 40, "max_tokens": 200, "ignore_eos": True}
    connection = http.client.HTTPSConnection("127.0.0.1", box.port, context=tls, timeout=120)
    while time.time() < until:
        connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        if answer.status != 200:
            raise SystemExit(f"{answer.status} {answer.read()[:300]!r}")
        answer.read()


def measure(box: Box, folder: Path, a: argparse.Namespace) -> list[str]:
    tls = {name: box.client(name, folder) for name in ("one", "two")}
    time.sleep(a.idle)  # what an idle GPU draws is learned
    samples = Samples()
    samples.start()
    time.sleep(1)
    begin, before = polled(box), used(box)
    for _ in range(a.rounds):
        until = time.time() + a.seconds / a.rounds
        names = ["one"] * a.streams + ["two"] * (2 * a.streams)
        threads = [threading.Thread(target=ask, args=(box, tls[name], until)) for name in names]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        time.sleep(a.idle / 2)
    end, after = polled(box), used(box)
    time.sleep(0.5)
    samples.ends = True
    was = {row["principal"]: row for row in before["rows"]}
    lines = ["| whose | output tokens | seconds of the GPU | energy |", "|---|---|---|---|"]
    total = after["idle_joules"] - before["idle_joules"]
    idle = total
    for row in after["rows"]:
        old = was.get(row["principal"], dict.fromkeys(row, 0))
        output, seconds, joules = (row[name] - old[name] for name in ("output", "seconds", "joules"))
        total += joules
        lines.append(f"| {row['principal']} | {output:,} | {seconds:.1f} | {joules:,.0f} J |")
    drawn = samples.joules(begin, end)
    lines += [
        f"| nobody's | | | {idle:,.0f} J |",
        f"| all, in {end - begin:.0f} s | | | {total:,.0f} J |",
        "",
        f"Power samples, {len(samples.taken):,} of them, integrated: {drawn:,.0f} J. "
        f"`llmctl usage` is {100 * (total / drawn - 1):+.1f} % from that (target: 5 %).",
    ]
    return lines


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("model", type=Path)
    p.add_argument("--seconds", type=float, default=60.0, help="of asking")
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--idle", type=float, default=20.0, help="seconds before, and half of them after each round")
    p.add_argument("--streams", type=int, default=8, help="of the first client; the second has twice as many")
    p.add_argument("--slots", type=int, default=32)
    p.add_argument("--out", default=str(HERE / "results" / "energy.md"))
    a = p.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        box = Box([a.model], folder / "state")
        try:
            for _ in box.admin.events("POST", "/deploy", {"model": box.models[0], "slots": a.slots, "ctx": 2048}):
                pass
            lines = measure(box, folder, a)
        finally:
            box.stop()
    gpus = ", ".join(sorted({pynvml.nvmlDeviceGetName(handle) for handle in Samples().handles}))
    said = (
        f"# Energy by client\n\n{gpus}, {machine()}, {datetime.now(UTC):%Y-%m-%d}. {a.model.name}.\n\n"
        "Command: `.venv/bin/python benchmarks/energy.py MODEL.gguf`\n\n"
    ) + "\n".join(lines)
    Path(a.out).write_text(said + "\n")
    print(said)


if __name__ == "__main__":
    main()
