#!/usr/bin/env python3
"""More is asked than a model can answer: what is answered all the same, by whom, and how soon the others are told.

python benchmarks/overload.py MODEL.gguf [--seconds 300]        results in benchmarks/results/overload.md

1. Peak: eight clients ask in turn, as many at a time as there are slots. Output tokens a second of whole answers.
2. Overload: seven modest clients ask, at random times, five times as much as that; an eighth, greedy one asks as much
   as all of them together. `--seconds` with it, `--seconds` without it, in `--rounds` of both, with a peak before and
   after each: a machine's speed drifts. Told: the share of the peak that is answered (goodput, the median round's), how
   long a refusal takes, /livez on a connection of its own, and each modest client's time to its first token, of those
   that are answered.
3. Shares: three clients with weights of 1, 2 and 4 ask more than there is; tokens that each got.
4. Greed: another client's first token while a greedy one has 256 prompts of four answers running, or eight long
   answers, or 55 texts of 250 kB to tokenize; and alone.
"""

import argparse
import asyncio
import json
import random
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
from bench_openai import WORDS
from churn import Box
from run import machine

HERE = Path(__file__).parent
MODEST = [f"modest{n}" for n in range(1, 8)]
OVERLOAD = 10.0


@dataclass
class Seen:
    """Of one client. Seconds; `answers`: of each whole one its first token's time, its last one's and how many it has;
    `all` tokens with their prompts."""

    first: list[float] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)
    answers: list[tuple[float, float, int]] = field(default_factory=list)
    all: int = 0
    failed: int = 0

    def tokens(self, since: float, until: float) -> float:
        """Generated between the two."""
        return sum(n * max(0.0, min(b, until) - max(a, since)) / (b - a) for a, b, n in self.answers)


class Person:
    """A client with a certificate of its own."""

    def __init__(self, box: Box, name: str, folder: Path) -> None:
        self.tls = box.client(name, folder)
        self.name, self.url, self.seen = name, f"https://127.0.0.1:{box.port}", Seen()
        self.dice = random.Random(name)
        self.model = box.models[0]
        self.session: aiohttp.ClientSession
        self.answered: set[asyncio.Task[Any]] = set()  # those that have a first token

    async def __aenter__(self) -> "Person":
        connector = aiohttp.TCPConnector(ssl=self.tls, limit=0, keepalive_timeout=60)
        self.session = aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=3600))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.session.close()

    def prompt(self, words: int) -> str:
        return " ".join(self.dice.choice(WORDS) for _ in range(words))

    async def ask(self, a: argparse.Namespace, tokens: int = 0) -> float | None:
        """One answer of `tokens`. The seconds to its first token; None: it was refused."""
        body = {"model": self.model, "prompt": self.prompt(a.words), "max_tokens": tokens or a.tokens, "stream": True,
                "ignore_eos": True, "stream_options": {"include_usage": True}}  # fmt: skip
        began, first, usage = time.perf_counter(), None, dict[str, Any]()
        async with self.session.post(f"{self.url}/v1/completions", json=body) as answer:
            if answer.status in (429, 503):
                await answer.read()
                self.seen.refused.append(time.perf_counter() - began)
                return None
            async for line in answer.content:
                if line.startswith(b"data: {"):
                    event = json.loads(line[6:])
                    if "error" in event:
                        self.seen.failed += 1
                        return None
                    if first is None and event["choices"]:
                        first = time.perf_counter() - began
                        self._answers()
                    usage = event.get("usage") or usage
        if first is None or not usage:
            self.seen.failed += 1
            return None
        self.seen.first.append(first)
        self.seen.answers.append((began + first, time.perf_counter(), usage["completion_tokens"]))
        self.seen.all += usage["total_tokens"]
        return first

    def _answers(self) -> None:
        task = asyncio.current_task()
        assert task
        self.answered.add(task)
        task.add_done_callback(self.answered.discard)

    async def post(self, route: str, body: dict[str, Any]) -> int:
        async with self.session.post(self.url + route, json={"model": self.model, **body}) as answer:
            await answer.read()
            return answer.status


async def flood(person: Person, a: argparse.Namespace, rate: float, until: float) -> None:
    """Requests at random times, so many a second; those that have no first token at the end are left."""
    running: set[asyncio.Task[Any]] = set()
    while (now := time.perf_counter()) < until:
        task = asyncio.create_task(person.ask(a))
        running.add(task)
        task.add_done_callback(running.discard)
        await asyncio.sleep(min(until - now, person.dice.expovariate(rate)))
    for task in running - person.answered:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)


async def lives(person: Person, until: float) -> list[float]:
    """How long /livez takes, ten times a second."""
    took = []
    while time.perf_counter() < until:
        began = time.perf_counter()
        async with person.session.get(f"{person.url}/livez") as answer:
            await answer.read()
        took.append(time.perf_counter() - began)
        await asyncio.sleep(0.1)
    return took


def percentile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")


def all_tokens(people: list[Person], since: float, until: float) -> float:
    return sum(person.seen.tokens(since, until) for person in people)


async def peak(people: list[Person], a: argparse.Namespace) -> tuple[float, float]:
    """Output tokens and requests a second, all slots taken. What each has seen before stays."""

    async def one(person: Person) -> int:
        done = 0
        while time.perf_counter() < until:
            await person.ask(a)
            done += 1
        return done

    kept = [person.seen for person in people]
    for person in people:
        person.seen = Seen()
    began = time.perf_counter()
    until = began + a.peak_seconds
    done = sum(await asyncio.gather(*(one(people[n % len(people)]) for n in range(a.slots))))
    requests = done / (time.perf_counter() - began)
    found = all_tokens(people, began, until) / a.peak_seconds
    for person, seen in zip(people, kept, strict=True):
        person.seen = seen
    return found, requests


async def overload(
    modest: list[Person], greedy: Person | None, probe: Person, a: argparse.Namespace, rate: float
) -> tuple[float, list[float]]:
    """Output tokens a second, and how long /livez took."""
    began = time.perf_counter()
    until = began + a.seconds / a.rounds
    work: list[Awaitable[Any]] = [flood(p, a, rate / 2 / len(modest), until) for p in modest]
    if greedy:
        work.append(flood(greedy, a, rate / 2, until))
    probed, *_ = await asyncio.gather(lives(probe, until), *work)
    return all_tokens([*modest, *([greedy] if greedy else [])], began, until) / (until - began), probed


async def shares(box: Box, people: list[Person], a: argparse.Namespace, rate: float) -> list[int]:
    """Tokens of clients with weights of 1, 2 and 4."""
    limits = "".join(
        f'[[limits]]\nof = ["{p.name}"]\nweight = {weight}\n' for p, weight in zip(people, (1, 2, 4), strict=True)
    )
    text = f'[groups]\n[[grants]]\nto = ["*"]\nmodels = ["*"]\n{limits}'
    box.admin.call("POST", "/policy", {"text": text})
    for person in people:
        person.seen = Seen()
    until = time.perf_counter() + a.share_seconds
    await asyncio.gather(*(flood(p, a, rate, until) for p in people))
    return [p.seen.all for p in people]


async def greed(modest: Person, greedy: Person, a: argparse.Namespace) -> dict[str, tuple[float, float]]:
    """Median and most seconds to a first token, alone and beside each kind of greed."""
    text = " ".join(WORDS)
    long_text = (text * (250_000 // len(text) + 1))[:250_000]
    several: dict[str, Callable[[], list[Awaitable[Any]]]] = {
        "alone": lambda: [],
        "256 prompts, n = 4": lambda: [
            greedy.post("/v1/completions", {"prompt": [greedy.prompt(a.words) for _ in range(256)], "n": 4,
                                            "max_tokens": 200, "ignore_eos": True})],
        "8 long answers": lambda: [greedy.ask(a, 1500) for _ in range(8)],
        "55 /tokenize of 250 kB": lambda: [greedy.post("/tokenize", {"prompt": f"{n} {long_text}"}) for n in range(55)],
    }  # fmt: skip
    found = {}
    for name, work in several.items():
        running = [asyncio.ensure_future(one) for one in work()]
        await asyncio.sleep(2.0 if running else 0.0)
        took = []
        for _ in range(a.asks):
            first = await modest.ask(a)
            took.append(float("inf") if first is None else first)
        found[name] = statistics.median(took), max(took)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        await asyncio.sleep(2.0)
    return found


async def run(box: Box, folder: Path, a: argparse.Namespace) -> list[str]:
    people = {name: Person(box, name, folder) for name in (*MODEST, "greedy", "probe", "one", "two", "four")}
    for person in people.values():
        await person.__aenter__()
    modest, greedy, probe = [people[name] for name in MODEST], people["greedy"], people["probe"]
    lines: list[str] = []
    best, requests = await peak([*modest, greedy], a)
    print(f"Peak: {best:.1f} output tokens/s, {requests:.2f} requests/s.\n", flush=True)
    rate = OVERLOAD * requests
    if "overload" in a.parts:
        lines += await beyond(modest, greedy, probe, a, rate, best)
        print("\n".join(lines), flush=True)
    if "shares" in a.parts:
        of = [people[name] for name in ("one", "two", "four")]
        got = await shares(box, of, a, rate / 3)
        apart = max(abs(got[n] / got[0] / weight - 1) for n, weight in ((1, 2), (2, 4)))
        lines += [
            f"Weights of 1, 2 and 4: {got[0]:,}, {got[1]:,} and {got[2]:,} tokens, "
            f"1 : {got[1] / got[0]:.2f} : {got[2] / got[0]:.2f}, at most {100 * apart:.0f} % apart (target: 10 %).\n",
        ]
        print(lines[-1], flush=True)
        await asyncio.sleep(3)
    if "greed" in a.parts:
        lines += ["| beside | first token, median | most | later than alone (target: 1 s) |", "|---|---|---|---|"]
        found = await greed(modest[0], greedy, a)
        for name, (middle, most) in found.items():
            later = f"{middle - found['alone'][0]:.2f} s, at most {most - found['alone'][0]:.2f} s"
            lines.append(f"| {name} | {middle:.2f} s | {most:.2f} s | {later if name != 'alone' else ''} |")
    for person in people.values():
        await person.__aexit__()
    return lines


async def beyond(
    modest: list[Person], greedy: Person, probe: Person, a: argparse.Namespace, rate: float, best: float
) -> list[str]:
    """Overload without and with the greedy one, in turn."""
    everybody = [*modest, greedy]
    alone = {p.name: Seen() for p in modest}
    beside = {p.name: Seen() for p in everybody}
    peaks, without, with_, probed = [best], list[float](), list[float](), list[float]()

    async def part(greedy: Person | None, seen: dict[str, Seen]) -> list[float]:
        for person in everybody:
            person.seen = seen.get(person.name, Seen())
        tokens, took = await overload(modest, greedy, probe, a, rate)
        peaks.append((await peak(everybody, a))[0])
        (with_ if greedy else without).append(tokens / statistics.mean(peaks[-2:]))
        return took

    for _ in range(a.rounds):
        await part(None, alone)
        probed += await part(greedy, beside)
    refused = [took for seen in beside.values() for took in seen.refused]
    worst = max(percentile(beside[p.name].first, 0.95) / percentile(alone[p.name].first, 0.95) for p in modest)
    tokens = {name: sum(n for *_, n in seen.answers) for name, seen in beside.items()}
    shown = "goodput, of the peak, the median of {} rounds ({:.2f} to {:.2f}); without the greedy one {:.2f}"
    said = shown.format(a.rounds, min(with_), max(with_), statistics.median(without))
    return [
        "| overload, ten times the peak | figure | target |",
        "|---|---|---|",
        f"| peaks, output tokens/s | {', '.join(f'{one:.0f}' for one in peaks)} | |",
        f"| {said} | {statistics.median(with_):.2f} | ≥ 0.9 |",
        f"| refusals' p99, of {len(refused):,} | {1000 * percentile(refused, 0.99):.0f} ms | ≤ 100 ms |",
        f"| /livez p99, of {len(probed):,} | {1000 * percentile(probed, 0.99):.0f} ms | ≤ 100 ms |",
        f"| a modest client's TTFT p95, worst of with / without | {worst:.2f} | ≤ 1.5 |",
        f"| the greedy one's tokens, of a modest one's mean | "
        f"{tokens[greedy.name] / statistics.mean(tokens[p.name] for p in modest):.2f} | 1 |",
        f"| answers that failed | {sum(seen.failed for seen in beside.values())} | 0 |",
        "",
    ]


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("model", type=Path)
    p.add_argument("--seconds", type=float, default=300.0)
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--peak-seconds", type=float, default=25.0)
    p.add_argument("--share-seconds", type=float, default=120.0)
    p.add_argument("--slots", type=int, default=8)
    p.add_argument("--queue", type=int, default=8, help="requests of a client that may wait")
    p.add_argument("--context", type=int, default=4096)
    p.add_argument("--words", type=int, default=30, help="of a prompt")
    p.add_argument("--tokens", type=int, default=32, help="of an answer")
    p.add_argument("--asks", type=int, default=10, help="of the modest client beside each kind of greed")
    p.add_argument("--parts", nargs="+", default=["overload", "shares", "greed"])
    p.add_argument("--out", default=str(HERE / "results" / "overload.md"))
    a = p.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        box = Box([a.model], folder / "state", config=f"queue = {a.queue}\n")
        try:
            for _ in box.admin.events("POST", "/deploy", {"model": box.models[0], "slots": a.slots, "ctx": a.context}):
                pass
            lines = asyncio.run(run(box, folder, a))
        finally:
            with suppress(Exception):
                box.stop()
    said = (
        f"# More than there is\n\n{machine()}, {datetime.now(UTC):%Y-%m-%d}. {a.model.name}, {a.slots} slots, a queue "
        f"of {a.queue} a client, prompts of {a.words} words, answers of {a.tokens} tokens, "
        f"{a.seconds:.0f} s of overload in {a.rounds} parts. The clients compute on the same cores.\n\n"
        "Command: `.venv/bin/python benchmarks/overload.py MODEL.gguf`\n\n"
    ) + "\n".join(lines)
    Path(a.out).write_text(said + "\n")
    print(said)


if __name__ == "__main__":
    main()
