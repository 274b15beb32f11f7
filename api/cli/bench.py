"""`llmctl bench`: how fast a deployed model answers, the way its clients ask it: over mutual TLS, in the audit log."""

import http.client
import json
import random
import ssl
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Any
from urllib.parse import quote

import click

from llmd.api.cli.audit import pages
from llmd.api.cli.completion import deployed
from llmd.api.cli.connection import Client
from llmd.api.cli.terminal import as_json, show_json, table

NAME = "bench"  # of the client that asks; its certificate is revoked at the end
WORDS = "time year people way day man thing woman life child world school state family student group country".split()
SECONDS = 300.0  # of one request


@dataclass
class Seen:
    """What came back, in seconds; a thread a stream adds to it."""

    first: list[float] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)
    tokens: int = 0
    failed: list[str] = field(default_factory=list)


class Load:
    """`body`: what every request has, besides its prompt of `words` words."""

    def __init__(self, address: tuple[str, int], tls: ssl.SSLContext, body: dict[str, Any], words: int) -> None:
        self._address, self._tls, self._body, self._words = address, tls, body, words

    def run(self, streams: int, requests: int) -> tuple[Seen, float]:
        """`requests` in all, `streams` at a time; and how long it took."""
        seen, left = Seen(), SimpleQueue[str]()
        for _ in range(requests):
            left.put(" ".join(random.choices(WORDS, k=self._words)))
        threads = [threading.Thread(target=self._stream, args=(left, seen), daemon=True) for _ in range(streams)]
        began = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return seen, time.perf_counter() - began

    def _stream(self, left: "SimpleQueue[str]", seen: Seen) -> None:
        """One client: a request after the other, on one connection while that lasts."""
        host, port = self._address
        connection = http.client.HTTPSConnection(host, port, context=self._tls, timeout=SECONDS)
        while True:
            try:
                prompt = left.get_nowait()
            except Empty:
                return connection.close()
            try:
                self._ask(connection, prompt, seen)
            except (OSError, http.client.HTTPException, ValueError, KeyError) as e:
                seen.failed.append(f"{type(e).__name__}: {e}"[:200])
                connection.close()

    def _ask(self, connection: http.client.HTTPSConnection, prompt: str, seen: Seen) -> None:
        began = time.perf_counter()
        body = json.dumps({**self._body, "prompt": prompt})
        connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        if response.status != 200:
            raise ValueError(f"{response.status} {json.loads(response.read())['error']['message']}")
        times: list[float] = []
        tokens = 0
        for line in response:
            data = line[5:].strip() if line.startswith(b"data:") else b""
            if not data or data == b"[DONE]":
                continue
            event = json.loads(data)
            if "error" in event:
                raise ValueError(event["error"]["message"])
            if any(choice.get("text") for choice in event["choices"]):
                times.append(time.perf_counter())
            tokens = (event.get("usage") or {}).get("completion_tokens", tokens)
        if not times:
            raise ValueError("no token came")
        seen.first.append(times[0] - began)
        seen.gaps += [after - before for before, after in zip(times, times[1:], strict=False)]
        seen.whole.append(time.perf_counter() - began)
        seen.tokens += tokens


@contextmanager
def certified(daemon: Client) -> Iterator[ssl.SSLContext]:
    """A client of the daemon's, with a certificate that is good until this is left."""
    made = daemon.call("POST", "/clients", {"name": NAME, "days": 1, "role": "infer", "again": True})
    try:
        tls = ssl.create_default_context(cadata=made["ca_pem"])
        with tempfile.NamedTemporaryFile("w") as file:  # readable by this user only
            file.write(made["key_pem"] + made["certificate_pem"])
            file.flush()
            tls.load_cert_chain(file.name)
        yield tls
    finally:
        daemon.call("DELETE", f"/clients/{quote(NAME)}", serial=made["serial"])


def measured(seen: Seen, seconds: float, stages: list[dict[str, Any]]) -> dict[str, Any]:
    """A level's figures. `stages`: the finish rows of its requests, which say what the server did when."""
    whole = 1000 * sum(seen.whole)
    queue, generate = (sum(row.get(name) or 0.0 for row in stages) for name in ("queue_ms", "generate_ms"))
    share = {"prompt": queue / whole, "generate": generate / whole} if whole else {"prompt": 0.0, "generate": 0.0}
    return {
        "requests": len(seen.whole), "failed": len(seen.failed), "failures": sorted(set(seen.failed)),
        "tokens_per_second": round(seen.tokens / seconds, 1),
        "requests_per_second": round(len(seen.whole) / seconds, 2),
        "ttft_ms": percentiles(seen.first), "gap_ms": percentiles(seen.gaps),
        "share": {name: round(value, 3) for name, value in {**share, "rest": 1 - sum(share.values())}.items()},
    }  # fmt: skip


def percentiles(seconds: list[float]) -> dict[str, float]:
    """p50, p95 and p99 in milliseconds; 0 of nothing."""
    ordered = sorted(seconds) or [0.0]
    return {f"p{p}": round(1000 * ordered[min(len(ordered) - 1, len(ordered) * p // 100)], 1) for p in (50, 95, 99)}


def _levels(_: click.Context, __: click.Parameter, given: str) -> list[int]:
    try:
        levels = [int(text) for text in given.split(",")]
    except ValueError as e:
        raise click.BadParameter("numbers with commas between them, as in 1,8,32") from e
    if not all(1 <= level <= 512 for level in levels):
        raise click.BadParameter("1 to 512 each")
    return levels


@click.command()
@click.argument("model", shell_complete=deployed)
@click.option("--streams", default="1,8,32", show_default=True, callback=_levels, help="Requests at a time.")
@click.option("--requests", type=click.IntRange(1), help="A level. Default: 3 a stream, and 8 at least.")
@click.option("--prompt-words", type=click.IntRange(1, 100_000), default=96, show_default=True)
@click.option("--max-tokens", type=click.IntRange(1, 100_000), default=64, show_default=True)
@as_json
@click.pass_obj
def bench(
    daemon: Client,
    model: str,
    streams: list[int],
    requests: int | None,
    prompt_words: int,
    max_tokens: int,
    json_: bool,
) -> None:
    """Measure a deployed model as its clients see it: mutual TLS, streams, the audit log.

    TTFT is the time to the first token, a gap that between two. Of a request's time, `prompt` is waiting for a slot and
    reading the prompt, `generate` from the first token to the last, `rest` TLS, the audit log and this client.
    """
    host, _, port = daemon.call("GET", "/status")["listen"].rpartition(":")
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host.strip("[]"), host.strip("[]"))
    body = {"model": model, "max_tokens": max_tokens, "ignore_eos": True, "stream": True,
            "stream_options": {"include_usage": True}}  # fmt: skip
    levels: dict[str, dict[str, Any]] = {}
    with certified(daemon) as tls:
        load = Load((host, int(port)), tls, body, prompt_words)
        for level in streams:
            if not json_:
                click.echo(f"{level} at a time …", err=True)
            seen, seconds = load.run(level, requests or max(8, 3 * level))
            found = pages(daemon, principal=NAME, kind="finish", limit=max(1, len(seen.whole)))
            levels[str(level)] = measured(seen, seconds, [row["body"] for page in found for row in page["rows"]])
    show_json({"model": model, "streams": levels}) if json_ else _print(levels)
    if any(level["failed"] for level in levels.values()):
        sys.exit(1)


def _print(levels: dict[str, dict[str, Any]]) -> None:
    def three(figures: dict[str, float]) -> str:
        return " / ".join(f"{value:.0f}" if value >= 100 else f"{value:.1f}" for value in figures.values())

    percents = "p50/p95/p99 ms"
    table(
        ("streams", "tok/s", "req/s", f"ttft {percents}", f"gap {percents}", "prompt", "generate", "rest", "failed"),
        [
            (name, f"{level['tokens_per_second']:.0f}", f"{level['requests_per_second']:.1f}", three(level["ttft_ms"]),
             three(level["gap_ms"]), *(f"{100 * share:.0f} %" for share in level["share"].values()), level["failed"])
            for name, level in levels.items()
        ],
    )  # fmt: skip
    for name, level in levels.items():
        for reason in level["failures"]:
            click.echo(f"{name} at a time: {reason}", err=True)
