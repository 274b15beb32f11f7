#!/usr/bin/env python3
"""llmd against llama-server on this machine: same model, threads, slots and client, one after the other in one run.

With --gpus both compute on these GPUs, and with --ceiling (llama-batched-bench: the bare C++ loop, no sampling) the
table says what share of its speed each reaches.

A machine's speed drifts, so both servers stand ready and every level is measured on one right after the other,
`--rounds` times; the table shows each server's median round (lowest – highest), and what its failed requests failed of.

llmd answers with mutual TLS, SSE and the audit log; llama-server with plain HTTP. `make bench` builds llama-server from
the source that the engine is built from and calls this. Results go to benchmarks/results/.
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
LLMD = [sys.executable, "-P", "-m", "llmd.daemon.main"]
LLMCTL = [sys.executable, "-P", "-c", "from llmd.api.cli.main import main; main()"]


def seen(a: argparse.Namespace) -> dict[str, str] | None:
    """The environment of a peer, which sees the same GPUs."""
    return {**os.environ, "CUDA_VISIBLE_DEVICES": a.gpus} if a.gpus else None


def ceiling(a: argparse.Namespace) -> dict[str, float]:
    """Level to output tokens/s of llama.cpp's own loop, prompts and answers of the same lengths, no sampling."""
    command = [a.ceiling, "-m", a.model, "-c", str(a.slots * a.context), "-b", "2048", "-ub", "512", "-npp",
               str(a.prompt_tokens), "-ntg", str(a.max_tokens), "-npl", a.concurrency]  # fmt: skip
    command += ["-ngl", "99", "-fa", "on"] if a.gpus else ["-t", str(a.threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=seen(a))
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in done.stdout.splitlines() if "|" in line]
    return {row[2]: int(row[2]) * int(row[1]) / float(row[8]) for row in rows if row[0].isdigit()}


@contextmanager
def llama_server(a: argparse.Namespace, work: Path) -> Iterator[list[str]]:
    """llama-server with plain HTTP; yields the client's arguments for it."""
    command = [a.peer, "-m", a.model, "-t", str(a.threads), "-tb", str(a.threads), "-np", str(a.slots),
               "-c", str(a.slots * a.context), "--host", "127.0.0.1", "--port", "18080"]  # fmt: skip
    command += [*(["-ngl", "99", "-fa", "on"] if a.gpus else []), *a.peer_args.split()]
    with (work / "llama-server.log").open("w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, env=seen(a))
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
    config.write_text(
        f'slots = {a.slots}\ncontext = {a.context}\nthreads = {a.threads}\nqueue = 512\nstate_dir = "{work}/state"\n'
    )
    command = [*LLMD, "serve", "--config", str(config), "--listen", "127.0.0.1:18443"]
    with (work / "llmd.log").open("w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log)
    pki = work / "state" / "pki"
    llmctl = [*LLMCTL, "--socket", str(work / "state" / "admin.sock")]
    placed = ["--gpus", a.gpus, "--ubatch", str(a.ubatch)] if a.gpus else []
    try:
        wait_for(lambda: "clients on" in (work / "llmd.log").read_text(), server)
        try:
            subprocess.run([*llmctl, "model", "import", a.model, "--name", NAME], check=True, stdout=subprocess.DEVNULL)
            subprocess.run([*llmctl, "deploy", NAME, *placed], check=True)
        except subprocess.CalledProcessError as e:
            raise SystemExit((work / "llmd.log").read_text()[-3000:]) from e
        yield ["--url", "https://127.0.0.1:18443", "--ca", str(pki / "ca.crt"), "--model", NAME,
               "--cert", str(pki / "clients" / "demo.crt"), "--key", str(pki / "clients" / "demo.key")]  # fmt: skip
    finally:
        server.terminate()
        server.wait()


def wait_for(ready: Any, server: subprocess.Popen[bytes]) -> None:
    for _ in range(600):
        if server.poll() is not None:
            raise SystemExit(f"{server.args!r} ended with {server.returncode}")
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
        [
            sys.executable,
            str(HERE / "bench_openai.py"),
            *target,
            "--concurrency",
            level,
            "--requests",
            str(max(a.requests, 3 * int(level))),
            "--prompt-words",
            str(a.prompt_words),
            "--max-tokens",
            str(a.max_tokens),
            "--extra",
            '{"ignore_eos": true}',
            "--seed",
            str(seed),  # other prompts every round: a prefix cache may not help
            "--json",
            str(out),
        ],
        check=True,
    )
    row: dict[str, Any] = json.loads(out.read_text())["rows"][0]
    return row


Rows = list[dict[str, Any]]  # of one server at one level, a round each


def spread(rows: Rows, key: str, at: int | None = None) -> tuple[float, float, float]:
    """A figure's median, lowest and highest over the rounds."""
    values = [float(r[key] if at is None else r[key][at]) for r in rows]
    return statistics.median(values), min(values), max(values)


def table(rounds: dict[str, dict[str, Rows]], most: dict[str, float]) -> str:
    """`rounds`: server to level to its rows. `most`: the ceiling of a level."""
    lines = ["| streams | | llmd | llama-server | llmd ÷ llama-server |", "|---|---|---|---|---|"]
    for level, mine in rounds["llmd"].items():
        theirs = rounds["llama-server"][level]
        for title, unit, form, key, at in (
            ("output tokens/s", "", "{:.1f}", "tok_s", None),
            ("the same with failed requests' tokens", "", "{:.1f}", "tok_s_all", None),
            ("TTFT p50", " ms", "{:.0f}", "ttft_ms", 0),
            ("TTFT p95", " ms", "{:.0f}", "ttft_ms", 1),
            ("between tokens p95", " ms", "{:.0f}", "gap_ms", 1),
        ):
            figures = [spread(rows, key, at) for rows in (mine, theirs)]
            cells = [f"{form.format(m)}{unit} ({form.format(low)} – {form.format(high)})" for m, low, high in figures]
            lines.append(f"| {level} | {title} | {' | '.join(cells)} | {figures[0][0] / figures[1][0]:.2f} |")
        if level in most:
            reached = [f"{spread(rows, 'tok_s')[0] / most[level]:.2f}" for rows in (mine, theirs)]
            lines.append(f"| {level} | of the bare loop's {most[level]:.0f} | {' | '.join(reached)} | |")
        failed = [sum(r["failed"] for r in rows) for rows in (mine, theirs)]
        lines.append(f"| {level} | failed requests | {failed[0]} | {failed[1]} | |")
    return "\n".join(lines)


def failures(rounds: dict[str, dict[str, Rows]]) -> str:
    """Each reason with how often it came and how many tokens were lost with it; "" where nothing failed."""
    lines = []
    for name, levels in rounds.items():
        for level, rows in levels.items():
            reasons: dict[str, list[int]] = {}
            for failure in (f for r in rows for f in r["failures"]):
                reasons.setdefault(failure["reason"], []).append(failure["tokens"])
            lines += [
                f"- {name}, {level} streams: {len(tokens)} × `{reason}`, after {sum(tokens)} tokens in all"
                for reason, tokens in reasons.items()
            ]
    return "\nWhy requests failed:\n\n" + "\n".join(lines) + "\n" if lines else ""


def machine(gpus: str = "") -> str:
    names = [
        line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    return f"{len(os.sched_getaffinity(0))} cores of {names[0] if names else platform.machine()}{gpu(gpus)}"


def gpu(gpus: str) -> str:
    if not gpus:
        return ""
    query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader", "-i", gpus]
    return ", " + subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip().replace("\n", ", ")


def shown(name: str, value: Any) -> Any:
    """An argument as others would type it."""
    return {"gpus": "UUID", "ceiling": "llama-batched-bench", "peer_args": f'"{value}"'}.get(name, value)


def command(p: argparse.ArgumentParser, a: argparse.Namespace) -> str:
    """What was typed: `make bench` names the peer and the model."""
    given = [
        f"--{k.replace('_', '-')} {shown(k, v)}"
        for k, v in vars(a).items()
        if v != p.get_default(k) and k not in ("peer", "model", "out")
    ]
    return "make bench" + (f" ARGS='{' '.join(given)}'" if given else "")


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--peer", required=True, help="llama-server")
    p.add_argument("--model", required=True, help="the GGUF that both serve")
    p.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    p.add_argument("--slots", type=int, default=32)
    p.add_argument("--context", type=int, default=1024, help="tokens a slot")
    p.add_argument("--concurrency", default="1,8,32")
    p.add_argument("--requests", type=int, default=64)
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--prompt-words", type=int, default=64)
    p.add_argument("--max-tokens", type=int, default=64)
    p.add_argument("--gpus", default="", help="their UUIDs; none: the CPU")
    p.add_argument("--ubatch", type=int, default=2048, help="of llmd on a GPU")
    p.add_argument("--peer-args", default="", help="more of llama-server's own")
    p.add_argument("--ceiling", default="", help="llama-batched-bench")
    p.add_argument("--prompt-tokens", type=int, default=101, help="of a prompt, for the ceiling")
    p.add_argument("--out", default=str(HERE / "results" / "cpu"), help="where the table (.md) and the rows (.json) go")
    a = p.parse_args()
    levels = a.concurrency.split(",")
    most = ceiling(a) if a.ceiling else {}
    rounds: dict[str, dict[str, Rows]] = {name: {n: [] for n in levels} for name in ("llama-server", "llmd")}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        with llama_server(a, work) as theirs, llmd(a, work) as ours:
            for number in range(a.rounds):
                for level in levels:
                    # who goes first changes, so that neither always meets the warmer machine
                    for name, target in (("llama-server", theirs), ("llmd", ours))[:: 1 if number % 2 == 0 else -1]:
                        print(f"{name:12} ", end="", flush=True)
                        rounds[name][level].append(load(a, target, level, number + 1, work))
    head = (
        f"# llmd and llama-server\n\n{machine(a.gpus)}, {datetime.now(UTC):%Y-%m-%d}. {Path(a.model).name}, "
        f"{a.threads} threads, {a.slots} slots of {a.context} tokens, prompts of {a.prompt_words} words, "
        f"{a.max_tokens} output tokens, {a.requests} requests a level, medians of {a.rounds} rounds (lowest – highest; "
        "failures: sums). llmd with mutual TLS, SSE and audit; llama-server with plain HTTP.\n\n"
        f"Command: `{command(p, a)}`\n\n"
    )
    text = head + table(rounds, most) + "\n" + failures(rounds)
    Path(a.out + ".md").write_text(text)
    arguments = {k: shown(k, v) for k, v in vars(a).items()}
    arguments |= {"peer": "llama-server", "model": Path(a.model).name, "out": ""}
    Path(a.out + ".json").write_text(json.dumps({"arguments": arguments, "rounds": rounds}, indent=1) + "\n")
    print(text)


if __name__ == "__main__":
    main()
