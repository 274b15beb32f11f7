#!/usr/bin/env python3
"""Whether the time to the first token tells a client what another one has asked.

python benchmarks/isolation.py MODEL.gguf [--pairs 2000]        results in benchmarks/results/isolation.md

A pair: `victim` asks a prompt, and then `spy` asks the very same one, and another one of the same length that nobody
has asked, in random order. Then a control of the same kind with one client: `spy` asks again what it has asked itself,
which shares the prefix and must show. Told: the median of the differences, and Cliff's delta (of all pairs of two
measurements, the share in which the one is larger minus the share in which it is smaller; 0: they cannot be told apart,
1: always), with intervals of 95 % by resampling whole pairs.

The results are of the small llama with random weights that the tests make (`tests/small_models.py`: random_weights).
"""

import argparse
import http.client
import json
import random
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from churn import Box
from run import machine

HERE = Path(__file__).parent
RESAMPLED = 2000
WORDS = ("house", "sea", "old", "man", "lived", "river", "green", "stone", "walked", "night", "letter", "door")


class Client:
    """One connection that is kept."""

    def __init__(self, box: Box, name: str, folder: Path) -> None:
        tls = box.client(name, folder)
        self._connection = http.client.HTTPSConnection("127.0.0.1", box.port, context=tls, timeout=120)

    def ask(self, model: str, prompt: str) -> tuple[float, int]:
        """Milliseconds to the first token, and the tokens that were found computed."""
        body = {"model": model, "prompt": prompt, "max_tokens": 1, "temperature": 0, "stream": True,
                "stream_options": {"include_usage": True}}  # fmt: skip
        began, first, usage = time.perf_counter(), 0.0, dict[str, Any]()
        self._connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
        answer = self._connection.getresponse()
        if answer.status != 200:
            raise SystemExit(f"{answer.status} {answer.read()[:300]!r}")
        for line in answer:
            if line.startswith(b"data: {"):
                first = first or 1000 * (time.perf_counter() - began)
                usage = json.loads(line[6:]).get("usage") or usage
        return first, int(usage["prompt_tokens_details"]["cached_tokens"])


def prompt_of(dice: random.Random, number: int, words: int) -> str:
    """One that no other begins like."""
    return f"{number:08} " + " ".join(dice.choice(WORDS) for _ in range(words))


def measure(box: Box, pairs: int, words: int, folder: Path, seed: int, *, same: bool) -> tuple[np.ndarray, int]:
    """A row a pair: with another's request before it, and without; and the tokens that were found computed in all."""
    dice, number, cached, rows = random.Random(seed), 1_000_000 * seed, 0, []
    prefix = f"{'same' if same else 'other'}-{seed}"
    spy = Client(box, f"{prefix}-spy", folder)
    victim = spy if same else Client(box, f"{prefix}-victim", folder)
    for _ in range(20 + pairs):  # the first ones warm it up
        asked, fresh = (prompt_of(dice, number + n, words) for n in range(2))
        number += 2
        victim.ask(box.models[0], asked)
        took = {}
        for kind, prompt in dice.sample([("with", asked), ("without", fresh)], 2):
            took[kind], found = spy.ask(box.models[0], prompt)
            cached += found
        rows.append((took["with"], took["without"]))
    return np.array(rows[20:]), cached


def cliff(with_: np.ndarray, without: np.ndarray) -> float:
    order = np.sort(with_)
    below = np.searchsorted(order, without, side="left").sum()
    above = len(order) * len(without) - np.searchsorted(order, without, side="right").sum()
    return float(above - below) / (len(order) * len(without))


def told(rows: np.ndarray) -> dict[str, float]:
    dice = np.random.default_rng(3)
    again = [rows[dice.integers(0, len(rows), len(rows))] for _ in range(RESAMPLED)]
    deltas = np.percentile([cliff(one[:, 0], one[:, 1]) for one in again], (2.5, 97.5))
    gaps = np.percentile([np.median(one[:, 0] - one[:, 1]) for one in again], (2.5, 97.5))
    return {
        "with": float(np.median(rows[:, 0])), "without": float(np.median(rows[:, 1])),
        "gap": float(np.median(rows[:, 0] - rows[:, 1])), "gap low": gaps[0], "gap high": gaps[1],
        "delta": cliff(rows[:, 0], rows[:, 1]), "low": deltas[0], "high": deltas[1],
    }  # fmt: skip


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("model", type=Path)
    p.add_argument("--pairs", type=int, default=2000)
    p.add_argument("--control", type=int, default=200, help="pairs of one client")
    p.add_argument("--seeds", type=int, nargs="+", default=[1, 2], help="a run of all pairs for each")
    p.add_argument("--words", type=int, default=40, help="of a prompt")
    p.add_argument("--out", default=str(HERE / "results" / "isolation.md"))
    a = p.parse_args()
    lines = [
        "| who asked before | pairs | found computed | median with, without | difference, 95 % | Cliff's delta, 95 % |",
        "|---|---|---|---|---|---|",
    ]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        box = Box([a.model], folder / "state")
        for _ in box.admin.events("POST", "/deploy", {"model": box.models[0], "slots": 8, "ctx": 2048}):
            pass
        runs = [(f"another client, run {seed}", a.pairs, seed, False) for seed in a.seeds]
        for who, pairs, seed, same in (*runs, ("the same client (control)", a.control, a.seeds[0], True)):
            rows, cached = measure(box, pairs, a.words, folder, seed, same=same)
            t = told(rows)
            lines.append(
                f"| {who} | {pairs:,} | {cached:,} tokens | {t['with']:.2f} ms, {t['without']:.2f} ms | "
                f"{t['gap']:+.3f} ms ({t['gap low']:+.3f} to {t['gap high']:+.3f}) | "
                f"{t['delta']:+.3f} ({t['low']:+.3f} to {t['high']:+.3f}) |"
            )
        box.stop()
    said = (
        f"# Whether the time to the first token tells what another client has asked\n\n{machine()}, "
        f"{datetime.now(UTC):%Y-%m-%d}. {a.model.name}, prompts of {a.words} words, 8 slots, one request at a time. "
        "An interval that holds 0 tells nothing; the control shows that a shared prefix would.\n\n"
        "Command: `.venv/bin/python benchmarks/isolation.py MODEL.gguf`\n\n"
    ) + "\n".join(lines)
    Path(a.out).write_text(said + "\n")
    print(said)


if __name__ == "__main__":
    main()
