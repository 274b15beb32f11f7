#!/usr/bin/env python3
"""llmd against llama-server on this machine: same model, threads, slots and client, one after the other in one run.

llmd answers with mutual TLS, SSE and the audit log; llama-server with plain HTTP. `make bench` builds llama-server from the
source that the engine is built from and calls this. Results go to benchmarks/results/.
"""

import argparse
import json
import os
import platform
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


def load(a: argparse.Namespace, target: list[str], work: Path) -> list[dict[str, Any]]:
    """Run the client at every concurrency. Returns its rows."""
    out = work / "rows.json"
    subprocess.run(
        [sys.executable, str(HERE / "bench_openai.py"), *target, "--concurrency", a.concurrency, "--requests", str(a.requests),
         "--prompt-words", str(a.prompt_words), "--max-tokens", str(a.max_tokens), "--extra", '{"ignore_eos": true}',
         "--json", str(out)], check=True,
    )  # fmt: skip
    rows: list[dict[str, Any]] = json.loads(out.read_text())["rows"]
    return rows


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
    p.add_argument("--prompt-words", type=int, default=64)
    p.add_argument("--max-tokens", type=int, default=64)
    p.add_argument("--out", default=str(HERE / "results" / "cpu"), help="where the table (.md) and the rows (.json) go")
    a = p.parse_args()
    results: dict[str, list[dict[str, Any]]] = {}
    for name, server in (("llama-server", llama_server), ("llmd", llmd)):
        with tempfile.TemporaryDirectory() as folder, server(a, Path(folder)) as target:
            print(f"--- {name}", flush=True)
            results[name] = load(a, target, Path(folder))
    head = (
        f"# llmd and llama-server\n\n{machine()}, {datetime.now(UTC):%Y-%m-%d}. {Path(a.model).name}, {a.threads} threads, "
        f"{a.slots} slots of {a.context} tokens, prompts of {a.prompt_words} words, {a.max_tokens} output tokens, {a.requests} "
        "requests a level. llmd with mutual TLS, SSE and audit; llama-server with plain HTTP.\n\nCommand: `make bench`\n\n"
    )
    text = head + table(results["llmd"], results["llama-server"]) + "\n"
    Path(a.out + ".md").write_text(text)
    arguments = vars(a) | {"peer": "llama-server"}
    Path(a.out + ".json").write_text(json.dumps({"arguments": arguments, "rows": results}, indent=1) + "\n")
    print(text)


if __name__ == "__main__":
    main()
