#!/usr/bin/env python3
"""How long a model takes from `deploy` to its first token, with nothing else going on and its file in the page cache.

python benchmarks/deploy.py MODEL.gguf [--rounds 5] [--slots N] [--ctx N]       results in benchmarks/results/deploy.md

A daemon of its own. Each round deploys (planned without a flag, but for --slots and --ctx), asks for one token over
mutual TLS as soon as the model is ready, and undeploys.
"""

import argparse
import json
import re
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from churn import Box
from run import machine


def once(box: Box, model: str, asked: dict[str, Any]) -> dict[str, Any]:
    """Seconds of one round: until it is ready, to the first token of all, and to that of the next request."""
    began = time.monotonic()
    placed: dict[str, Any] = {}
    for line in box.admin.events("POST", "/deploy", {"model": model, **asked}):
        placed = line
    ready = time.monotonic()
    first = box.ask(model, 1)
    if first.end != "done":
        raise SystemExit(f"the first request ended with {first.end}")
    then = box.ask(model, 1)
    box.admin.call("POST", "/undeploy", {"model": model})
    return {"ready": ready - began, "first": first.ended - began, "next": then.ended - then.began, "said": placed}


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("model", type=Path)
    ap.add_argument("--rounds", type=int, default=5)
    ap.add_argument("--slots", type=int)
    ap.add_argument("--ctx", type=int)
    ap.add_argument("--gpus", default="", help="as nvidia-smi takes them, for the machine's name only")
    a = ap.parse_args()
    asked = {"slots": a.slots, "ctx": a.ctx}
    with tempfile.TemporaryDirectory() as folder:
        box = Box([a.model], Path(folder) / "state")
        rounds = [once(box, box.models[0], asked) for _ in range(a.rounds)]
        box.stop()
        log = (Path(folder) / "llmd.log").read_text()
    figures = {
        name: [round(r[name], 2) for r in rounds] for name in ("ready", "first", "next")
    }  # seconds, a round each
    print(json.dumps({"machine": machine(a.gpus), "model": a.model.name, **figures,
                      "worst first token, s": max(figures["first"]),
                      "median first token, s": statistics.median(figures["first"]),
                      "log": re.findall(r"is ready.*", log), "said": rounds[-1]["said"]}, indent=1))  # fmt: skip


if __name__ == "__main__":
    main()
