#!/usr/bin/env python3
"""What a decision of the policy costs: 1,000 clients in 100 groups, 50 models, grants by name and by pattern, limits.

python benchmarks/policy.py        results in benchmarks/results/policy.md

Each decision is what the gateway makes of a request: a model's name to its deployment, the forms of it that may
answer, hours and bounds. `first`: the first one of a client, a model and a route; `again`: the same one once more;
`of a whole request`: it is judged as it comes, before it is let in, and before it begins. What is denied names the
models that are there for the client: that is no part of the decision, and stands in a line of its own.
"""

import argparse
import gc
import random
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from run import machine

from llmd.daemon.errors import ModelNotFound
from llmd.daemon.identity.policy import InForce
from llmd.daemon.identity.policy_text import Known, read
from llmd.daemon.identity.principal import Principal
from llmd.daemon.replicas.deployment import Deployment
from llmd.daemon.serving.access import Access
from llmd.daemon.serving.ask import Ask
from llmd.daemon.wire.work import Generate, RawText, SamplingWish

HERE = Path(__file__).parent
CLIENTS, GROUPS, MODELS = 1000, 100, 50
ROUTES = ("/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize", "/v1/models")
KNOWN = Known(
    tuple(f"client-{n}" for n in range(CLIENTS)), dict.fromkeys(ROUTES, frozenset({"infer"})), frozenset(ROUTES)
)
TARGET = 50.0


def text(dice: random.Random) -> str:
    """A policy of that size, as somebody would write it."""
    names = list(KNOWN.clients)
    lines = ["[groups]"]
    lines += [f"group-{n} = {_list(dice.sample(names, 20))}" for n in range(GROUPS)]
    for n in range(GROUPS):
        models = dice.choice(([f"model-{dice.randrange(MODELS)}"], [f"model-{dice.randrange(5)}*", "*-tiny@Q4*"]))
        lines += ["[[grants]]", f'to = ["group-{n}"]', f"models = {_list(models)}"]
        lines += [f"routes = {_list(dice.sample(ROUTES, 2))}"] if n % 3 == 0 else []
    for n in range(0, GROUPS, 4):
        lines += ["[[limits]]", f'of = ["group-{n}"]', 'hours = ["Mon-Sun 00:00-23:59"]', 'zone = "Europe/Berlin"']
        lines += [f"longest_output = {100 + n}", "longest_context = 4096"]
    return "\n".join(lines)


def _list(names: list[str]) -> str:
    return "[" + ", ".join(f'"{name}"' for name in names) + "]"


class Deployed:
    """What `Access` asks of the pool."""

    def __init__(self) -> None:
        self._all = {f"model-{n}": _deployment(f"model-{n}") for n in range(MODELS)}

    def known(self, model: str) -> Deployment | None:
        return self._all.get(model)

    def all(self) -> list[Deployment]:
        return list(self._all.values())


def _deployment(name: str) -> Deployment:
    found = Deployment(name, "0" * 64)
    found.wanted = cast(Any, SimpleNamespace(form=f"{name}@Q4_K_M"))
    return found


def measure(rounds: int) -> dict[str, list[float]]:
    """Microseconds of each decision."""
    dice, took = random.Random(1), dict[str, list[float]]()
    written, held, pool = text(dice), InForce(), Deployed()
    access = Access(cast(Any, pool), held)
    work = Generate((RawText("hi"),), SamplingWish(10))
    gc.collect()
    gc.freeze()  # as the daemon does
    for version in range(rounds):
        made = read(written, version, KNOWN)
        for name in KNOWN.clients:  # as whoever sets it does
            made.of(name)
        held.use(made)
        for name in dice.sample(list(KNOWN.clients), CLIENTS):
            who = Principal(name, "infer", "1f", "127.0.0.1")
            ask = Ask(dice.choice(ROUTES[:4]), f"model-{dice.randrange(MODELS)}", work)
            for kind in ("first", "again"):
                began = time.perf_counter()
                known = pool.known(ask.model or "")
                decision = held.of(who).decide(ask.model or "", known.forms if known else frozenset(), ask.route)
                closed = decision.hours and decision.closed(datetime.now(UTC))
                took.setdefault(kind, []).append(1e6 * (time.perf_counter() - began))
            kind = "of a whole request" if decision.forms and not closed else "denied, and told what there is"
            began = time.perf_counter()
            _whole(access, who, ask)
            took.setdefault(kind, []).append(1e6 * (time.perf_counter() - began))
    return took


def _whole(access: Access, who: Principal, ask: Ask) -> None:
    """As a request is judged: as it comes, before it is let in, and before it begins."""
    with suppress(ModelNotFound):
        asked = access.named(who, ask)
        for _ in range(3):
            asked = access.judged(who, asked)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--rounds", type=int, default=20)
    p.add_argument("--out", default=str(HERE / "results" / "policy.md"))
    a = p.parse_args()
    lines = ["| decision | p50 | p99 | longest |", "|---|---|---|---|"]
    for kind, values in measure(a.rounds).items():
        values.sort()
        p50, p99 = (values[int(share * len(values))] for share in (0.5, 0.99))
        lines.append(f"| {kind} | {p50:.1f} µs | {p99:.1f} µs | {values[-1]:.1f} µs |")
    said = (
        f"# What a decision of the policy costs\n\n{machine()}, {datetime.now(UTC):%Y-%m-%d}. {CLIENTS:,} clients, "
        f"{GROUPS} groups, {MODELS} models, {a.rounds * CLIENTS:,} decisions of each kind. Target: {TARGET:.0f} µs at "
        "p99 of a decision.\n\n"
        "Command: `.venv/bin/python benchmarks/policy.py`\n\n"
    ) + "\n".join(lines)
    Path(a.out).write_text(said + "\n")
    print(said)


if __name__ == "__main__":
    main()
