#!/usr/bin/env python3
"""llmd against llama-server on this machine: same model, threads, slots and client, one after the other in one run.

A machine's speed drifts, so both servers stand ready and every level is measured on one right after the other, `--rounds` times;
the table shows each server's median round.

llmd answers with mutual TLS, SSE and the audit log; llama-server with plain HTTP. `make bench` builds llama-server from the
source that the engine is built from and calls this. Results go to benchmarks/results/.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
NAME = "bench"


@contextmanager
def llama_server(a: argparse.Namespace, work: Path) -> Iterator[list[str]]:
    """llama-server with plain HTTP; yields the client's arguments for it."""
    command = [a.peer, "-m", a.model, "-t", str(a.threads), "-tb", str(a.threads), "-np", str(a.slots),
               "-c", str(a.slots * a.context), "--host", "127.0.0.1", "--port", "18080"]  # fmt: skip
    with (work / "llama-server.log").open("w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        wait_for(lambda: urllib.request.urlopen("http://127.0.0.1:18080/health", timeout=2).status == 200, server)
        yield ["--url", "http://127.0.0.1:18080"]
    finally:
        server.terminate()
        server.wait()


@contextmanager
def llmd(a: argparse.Namespace, work: Path) -> Iterator[list[str]]:
    """llmd with mutual TLS and audit; yields the client's arguments for it."""
    config = work / "llmd.toml"
    config.write_text(f'slots = {a.slots}\ncontext = {a.context}\nthreads = {a.threads}\nstate_dir = "{work}/state"\n')
    command = [str(Path(sys.executable).parent / "llmd"), "serve", "--config", str(config), "--listen", "127.0.0.1:18443",
               "--default-model", f"{NAME}={a.model}"]  # fmt: skip
    out = work / "llmd.out"
    with out.open("w") as stdout, (work / "llmd.log").open("w") as log:
        server = subprocess.Popen(command, stdout=stdout, stderr=log)
    pki = work / "state" / "pki"
    try:
        wait_for(lambda: "llmd serves" in out.read_text(), server)
        yield ["--url", "https://127.0.0.1:18443", "--ca", str(pki / "ca.crt"), "--model", NAME,
               "--cert", str(pki / "clients" / "demo.crt"), "--key", str(pki / "clients" / "demo.key")]  # fmt: skip
    finally:
        server.terminate()
        server.wait()


def wait_for(ready: Any, server: subprocess.Popen[bytes]) -> None:
    for _ in range(600):
        if server.poll() is not None:
            raise SystemExit(f"{server.args[0]} ended with {server.returncode}")  # type: ignore[index]
        try:
            if ready():
                return
        except OSError:
            pass
        time.sleep(0.1)
    raise SystemExit("the server did not become ready in a minute")


def load(a: argparse.Namespace, target: list[str], level: str, seed: int, work: Path) -> dict[str, Any]:
    """Run the client at one concurrency. Returns its row."""
    out = work / "rows.json"
    subprocess.run(
        [sys.executable, str(HERE / "bench_openai.py"), *target, "--concurrency", level, "--requests", str(a.requests),
         "--prompt-words", str(a.prompt_words), "--max-tokens", str(a.max_tokens), "--extra", '{"ignore_eos": true}',
         "--seed", str(seed),  # other prompts every round: a prefix cache may not help
         "--json", str(out)], check=True,
    )  # fmt: skip
    row: dict[str, Any] = json.loads(out.read_text())["rows"][0]
    return row


def median(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Each figure's median over the rounds; failures are summed."""

    def middle(pick: Any) -> float:
        return float(statistics.median(pick(r) for r in rounds))

    return {
        "concurrency": rounds[0]["concurrency"], "failed": sum(r["failed"] for r in rounds),
        "tok_s": middle(lambda r: r["tok_s"]), "ttft_ms": [middle(lambda r, i=i: r["ttft_ms"][i]) for i in range(3)],
        "gap_ms": [middle(lambda r, i=i: r["gap_ms"][i]) for i in range(3)],
    }  # fmt: skip


def table(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> str:
    lines = ["| streams | | llmd | llama-server | llmd ÷ llama-server |", "|---|---|---|---|---|"]
    for mine, other in zip(ours, theirs, strict=True):
        n = mine["concurrency"]
        lines += [
            f"| {n} | output tokens/s | {mine['tok_s']:.1f} | {other['tok_s']:.1f} | {mine['tok_s'] / other['tok_s']:.2f} |",
            *(
                f"| {n} | TTFT p{q} | {mine['ttft_ms'][i]:.0f} ms | {other['ttft_ms'][i]:.0f} ms "
                f"| {mine['ttft_ms'][i] / other['ttft_ms'][i]:.2f} |"
                for i, q in ((0, 50), (1, 95))
            ),
            f"| {n} | between tokens p95 | {mine['gap_ms'][1]:.0f} ms | {other['gap_ms'][1]:.0f} ms | |",
            f"| {n} | failed requests | {mine['failed']} | {other['failed']} | |",
        ]
    return "\n".join(lines)


def machine() -> str:
    names = [line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line]
    return f"{len(os.sched_getaffinity(0))} cores of {names[0] if names else platform.machine()}"


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--peer", required=True, help="llama-server")
    p.add_argument("--model", required=True, help="the GGUF that both serve")
    p.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    p.add_argument("--slots", type=int, default=32)
    p.add_argument("--context", type=int, default=1024, help="tokens a slot")
    p.add_argument("--concurrency", default="1,8,32")
    p.add_argument("--requests", type=int, default=64)
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--prompt-words", type=int, default=64)
    p.add_argument("--max-tokens", type=int, default=64)
    p.add_argument("--out", default=str(HERE / "results" / "cpu"), help="where the table (.md) and the rows (.json) go")
    a = p.parse_args()
    rounds: dict[tuple[str, str], list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        with llama_server(a, work) as theirs, llmd(a, work) as ours:
            for number in range(a.rounds):
                for level in a.concurrency.split(","):
                    # who goes first changes, so that neither always meets the warmer machine
                    for name, target in (("llama-server", theirs), ("llmd", ours))[:: 1 if number % 2 == 0 else -1]:
                        print(f"{name:12} ", end="", flush=True)
                        row = load(a, target, level, number + 1, work)
                        rounds.setdefault((name, level), []).append(row)
    levels = a.concurrency.split(",")
    results = {name: [median(rounds[name, level]) for level in levels] for name in ("llama-server", "llmd")}
    head = (
        f"# llmd and llama-server\n\n{machine()}, {datetime.now(UTC):%Y-%m-%d}. {Path(a.model).name}, {a.threads} threads, "
        f"{a.slots} slots of {a.context} tokens, prompts of {a.prompt_words} words, {a.max_tokens} output tokens, "
        f"{a.requests} requests a level, medians of {a.rounds} rounds (failures: sums). llmd with mutual TLS, "
        "SSE and audit; llama-server with plain HTTP.\n\nCommand: `make bench`\n\n"
    )
    text = head + table(results["llmd"], results["llama-server"]) + "\n"
    Path(a.out + ".md").write_text(text)
    every = [{"server": name, **row} for (name, _), rows in rounds.items() for row in rows]
    arguments = vars(a) | {"peer": "llama-server", "model": Path(a.model).name, "out": ""}
    Path(a.out + ".json").write_text(json.dumps({"arguments": arguments, "rounds": every, "medians": results}, indent=1) + "\n")
    print(text)


if __name__ == "__main__":
    main()
