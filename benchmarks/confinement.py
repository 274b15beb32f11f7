#!/usr/bin/env python3
"""What it costs that a model's process is confined: deploys and first tokens of two daemons in turn, one of them with
`daemon/machine/confined.py` switched off.

python benchmarks/confinement.py MODEL.gguf [--rounds 20] [--asks 20]     results in benchmarks/results/confinement.md

A round deploys (planned without a flag), asks for one token over mutual TLS as soon as the model is ready, then for one
token of `asks` prompts that are new and of `asks` that are known, and undeploys. The daemons take turns, each first as
often as the other. With `--before FOLDER` the other one is another version, which lies there as the package `llmd`.
"""

import argparse
import json
import os
import random
import statistics
import tempfile
import time
from pathlib import Path

from churn import PORT, Box
from run import machine

FREE = """
from llmd.daemon.machine import confined

confined.confine = confined.hold_to_paths = confined.refuse_calls = lambda *given, **named: None
confined.seal = lambda: None
"""


def words(dice: random.Random) -> str:
    return " ".join(dice.choice(("one", "two", "three", "four", "five")) for _ in range(40))


def once(box: Box, dice: random.Random, asks: int) -> dict[str, list[float]]:
    """Milliseconds, of one round."""
    model = box.models[0]
    began = time.monotonic()
    for _ in box.admin.events("POST", "/deploy", {"model": model, "ctx": None, "slots": None}):
        pass
    ready = time.monotonic()
    found: dict[str, list[float]] = {"new": [], "known": []}
    first = box.ask(model, 1, prompt=words(dice))
    for kind, prompts in (("new", [words(dice) for _ in range(asks)]), ("known", [words(dice)] * (asks + 1))):
        for prompt in prompts:
            asked = box.ask(model, 1, prompt=prompt)
            if asked.end != "done":
                raise SystemExit(f"a request ended with {asked.end}")
            found[kind].append(asked.ended - asked.began)
    box.admin.call("POST", "/undeploy", {"model": model})
    times = {"ready": [ready - began], "first": [first.ended - began], "new": found["new"], "known": found["known"][1:]}
    return {name: [1000 * value for value in values] for name, values in times.items()}


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("model", type=Path)
    ap.add_argument("--rounds", type=int, default=20)
    ap.add_argument("--asks", type=int, default=20)
    ap.add_argument("--before", type=Path, help="a folder with another version of the package llmd")
    ap.add_argument("--gpus", default="", help="as nvidia-smi takes them, for the machine's name only")
    a = ap.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        off, path, other = Path(folder) / "off", os.environ.get("PYTHONPATH", ""), "before" if a.before else "free"
        for name in ("off", "confined", other):
            (Path(folder) / name).mkdir()
        if not a.before:
            (off / "sitecustomize.py").write_text(FREE)
        found = f"{(a.before or off).absolute()}:{path}".strip(":")
        boxes = {
            "confined": Box([a.model], Path(folder) / "confined" / "state"),
            other: Box([a.model], Path(folder) / other / "state", PORT + 1, PYTHONPATH=found),
        }
        times: dict[str, dict[str, list[float]]] = {name: {} for name in boxes}
        for number in range(-1, a.rounds):
            for name in sorted(boxes, reverse=bool(number % 2)):
                for what, values in once(boxes[name], random.Random(number), a.asks).items():
                    times[name].setdefault(what, []).extend(values if number >= 0 else [])  # the first warms up
        for box in boxes.values():
            box.stop()
    print(json.dumps({"machine": machine(a.gpus), "model": a.model.name, "rounds": a.rounds}))
    print(f"| median, ms | confined | {other} | |\n|---|---|---|---|")
    for what in times[other]:
        confined, free = (statistics.median(times[name][what]) for name in ("confined", other))
        print(f"| {what} | {confined:.2f} | {free:.2f} | {100 * (confined / free - 1):+.1f} % |")


if __name__ == "__main__":
    main()
