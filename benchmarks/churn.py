#!/usr/bin/env python3
"""Models come, go, change and die at random while clients ask others: nothing runs out of memory, and nobody's stream
suffers from what is done to another model. Also how long a deploy takes to its first token.

python benchmarks/churn.py MODEL.gguf ... [--minutes 5]        results in benchmarks/results/churn.md
"""

import argparse
import http.client
import json
import os
import random
import signal
import ssl
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from run import machine

from llmd.api.cli.connection import Client, DaemonError, NoDaemon

PORT = 18460
STALL = 0.25  # seconds between two pieces of one stream
SLOW = 0.1  # and of those that are kept, to see what stalls at once
PROMPT = "Once upon a time " * 8
SERVE = "from llmd.daemon.main import main; main()"
# what is done to a model's own requests ends with it; its clients hear of it a moment later
MOMENT = 1.0


@dataclass(slots=True)
class Act:
    """Something done to a model, from `began` to `ended` (0: it goes on)."""

    model: str
    kind: str
    began: float
    ended: float = 0.0


@dataclass(slots=True)
class Asked:
    """A request, how it ended, and its long waits between two pieces: when each began, and its seconds."""

    model: str
    began: float
    ended: float = 0.0
    end: str = ""
    waits: list[tuple[float, float]] = field(default_factory=list)


@dataclass(slots=True)
class Books:
    """What happened; every thread writes."""

    acts: list[Act] = field(default_factory=list)
    asked: list[Asked] = field(default_factory=list)
    first_tokens: list[tuple[str, float]] = field(default_factory=list)
    refused: Counter[str] = field(default_factory=Counter)

    def touched(self, model: str, begin: float, end: float) -> bool:
        """Whether something was done to this very model then."""
        return any(
            act.model == model and act.began - MOMENT < end and (act.ended or end) + MOMENT > begin for act in self.acts
        )


class Box:
    """A daemon of our own, with these models imported, this `config`, and these variables over its
    environment."""

    def __init__(self, files: list[Path], state: Path, port: int = PORT, config: str = "", **variables: str) -> None:
        self.state, self.port, self.log = state, port, (state.parent / "llmd.log").open("w")
        command = [sys.executable, "-P", "-c", SERVE, "serve", "--state-dir", str(state)]
        if config:
            (state.parent / "llmd.toml").write_text(config)
            command += ["--config", str(state.parent / "llmd.toml")]
        self.process = subprocess.Popen(
            [*command, "--listen", f"127.0.0.1:{port}"], stderr=self.log, stdout=self.log, env=os.environ | variables
        )
        self._wait()
        self.models = []
        for file in files:
            for line in self.admin.events("POST", "/models", {"path": str(file.absolute()), "name": None}):
                if "model" in line:
                    self.models.append(line["model"]["name"])
        self.tls = ssl.create_default_context(cafile=str(state / "pki/ca.crt"))
        self.tls.load_cert_chain(state / "pki/clients/demo.crt", state / "pki/clients/demo.key")

    @property
    def admin(self) -> Client:
        return Client(str(self.state / "admin.sock"))

    def client(self, name: str, folder: Path) -> ssl.SSLContext:
        """A new client, as it connects; its files are in that folder."""
        made = self.admin.call("POST", "/clients", {"name": name, "days": 1, "role": "infer", "again": False})
        for part, ending in (("certificate", "crt"), ("key", "key"), ("ca", "ca")):
            (folder / f"{name}.{ending}").write_text(made[f"{part}_pem"])
        tls = ssl.create_default_context(cafile=str(folder / f"{name}.ca"))
        tls.load_cert_chain(folder / f"{name}.crt", folder / f"{name}.key")
        return tls

    def _wait(self) -> None:
        for _ in range(600):
            with suppress(NoDaemon, DaemonError, OSError):
                self.admin.call("GET", "/status")
                return
            time.sleep(0.1)
        raise SystemExit("the daemon did not start")

    def ask(self, model: str, tokens: int, slow: float = SLOW, prompt: str = PROMPT) -> Asked:
        """One stream, read to its end; waits of more than `slow` seconds are kept."""
        asked = Asked(model, time.monotonic())
        connection = http.client.HTTPSConnection("127.0.0.1", self.port, context=self.tls, timeout=120)
        body = {"model": model, "prompt": prompt, "max_tokens": tokens, "stream": True}
        last = 0.0
        try:
            connection.request("POST", "/v1/completions", json.dumps({**body, "ignore_eos": True}))
            answer = connection.getresponse()
            asked.end = str(answer.status) if answer.status != 200 else "cut"
            for line in answer if answer.status == 200 else ():
                now = time.monotonic()
                if line.startswith(b"data: [DONE]"):
                    asked.end = "done"
                elif line.startswith(b"data: {") and b'"error"' in line:
                    asked.end = json.loads(line[6:])["error"]["code"]
                elif line.startswith(b"data: {"):
                    if last and now - last > slow:
                        asked.waits.append((last, now - last))
                    last = now
        except (OSError, http.client.HTTPException) as e:
            asked.end = type(e).__name__
        finally:
            connection.close()
        asked.ended = time.monotonic()
        return asked

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)
        self.log.close()


def operate(box: Box, books: Books, seed: int, until: float, contexts: list[int]) -> None:
    """Deploy, change, undeploy, kill, one after the other."""
    dice = random.Random(seed)
    while time.monotonic() < until:
        served = {m["model"]: m for m in box.admin.call("GET", "/status")["models"]}
        model = dice.choice(box.models)
        kinds = ["undeploy", "undeploy", "change", "change", "kill"] if model in served else ["deploy"]
        kind = dice.choice(kinds)
        act = Act(model, kind, time.monotonic())
        books.acts.append(act)
        try:
            if kind == "undeploy":
                box.admin.call("POST", "/undeploy", {"model": model})
            elif kind == "kill" and served[model].get("pid"):
                os.kill(served[model]["pid"], signal.SIGKILL)
            elif kind in ("deploy", "change"):
                wanted: dict[str, Any] = {"model": model, "slots": dice.choice((1, 2, 4, 8, 16)),
                                          "ctx": dice.choice(contexts), "evict": dice.random() < 0.3}  # fmt: skip
                for _ in box.admin.events("POST", "/deploy", {**wanted, "kv": dice.choice((None, None, "q8_0"))}):
                    pass
                first = box.ask(model, 1)
                if kind == "deploy" and first.end == "done":
                    books.first_tokens.append((model, first.ended - act.began))
        except DaemonError as e:
            books.refused[f"{kind}: {e.code}"] += 1
        except (OSError, ProcessLookupError):
            books.refused[f"{kind}: gone"] += 1
        act.ended = time.monotonic()
        time.sleep(dice.random())


def clients(box: Box, books: Books, seed: int, until: float) -> None:
    dice = random.Random(1000 + seed)
    while time.monotonic() < until:
        ready = [m["model"] for m in box.admin.call("GET", "/status")["models"] if m["state"] == "ready"]
        if ready:
            books.asked.append(box.ask(dice.choice(ready), dice.choice((16, 64, 256))))
        else:
            time.sleep(0.1)


def evicted(box: Box) -> list[Act]:
    """What was done to models by deploying others."""
    rows = box.admin.call("GET", "/audit/query", kind="admin.evict", limit=2000)["rows"]
    shift = time.monotonic() - time.time()
    found = ((row["body"]["model"], datetime.fromisoformat(row["ts"]).timestamp() + shift) for row in rows)
    return [Act(model, "evict", at, at + MOMENT) for model, at in found]


def stalls(books: Books) -> list[dict[str, Any]]:
    """Of streams to whose model nothing was done meanwhile; with each what was done to others (and for how long by
    then), and the streams that waited at the same time."""
    found = []
    for one in books.asked:
        for at, seconds in one.waits:
            if seconds <= STALL or books.touched(one.model, at, at + seconds):
                continue
            end = at + seconds
            acts = [act for act in books.acts if act.began < end and (act.ended or end) > at - MOMENT]
            waited = {o.model for o in books.asked for t, s in o.waits if o is not one and t < end and t + s > at}
            streamed = {o.model for o in books.asked if o is not one and o.began < at and o.ended > end}
            found.append({"model": one.model, "ms": round(1000 * seconds), "waited too": sorted(waited),
                          "streamed": sorted(streamed - waited),
                          "acts": [f"{a.kind} {a.model} since {at - a.began:.2f} s, ends in {a.ended - end:.2f} s"
                                   for a in acts]})  # fmt: skip
    return found


def judge(box: Box, books: Books) -> dict[str, Any]:
    lost = box.admin.call("GET", "/audit/query", kind="worker.lost", limit=2000)["rows"]
    books.acts += evicted(box)
    failed = [a for a in books.asked if a.end != "done"]
    unexcused = [a for a in failed if not books.touched(a.model, a.began, a.ended)]
    stalled = stalls(books)
    first = [seconds for _, seconds in books.first_tokens]
    return {
        "requests": len(books.asked),
        "ends": dict(Counter(a.end for a in books.asked)),
        "failed though nothing was done to their model": Counter(a.end for a in unexcused),
        "stalls over 250 ms though nothing was done to their model": len(stalled),
        "longest of them, ms": max((one["ms"] for one in stalled), default=0),
        "stalls": stalled,
        "out of memory": sum(r["body"]["code"] == "gpu_out_of_memory" for r in lost),
        "workers lost": dict(Counter(r["body"]["code"] for r in lost)),
        "acts": dict(Counter(act.kind for act in books.acts)),
        "refused acts": dict(books.refused),
        "deploy to first token, s": {"median": round(statistics.median(first), 2) if first else None,
                                     "worst": round(max(first, default=0.0), 2)},
    }  # fmt: skip


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("models", nargs="+", type=Path)
    ap.add_argument("--minutes", type=float, default=5.0)
    ap.add_argument("--clients", type=int, default=12)
    ap.add_argument("--contexts", type=int, nargs="+", default=[2048, 4096, 8192])
    ap.add_argument("--gpus", default="", help="as nvidia-smi takes them, for the machine's name only")
    ap.add_argument("--seed", type=int, default=1)
    ap.add_argument("--out", type=Path)
    a = ap.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        box, books = Box(a.models, Path(folder) / "state"), Books()
        until = time.monotonic() + 60 * a.minutes
        work = [threading.Thread(target=operate, args=(box, books, a.seed + n, until, a.contexts)) for n in range(2)]
        work += [threading.Thread(target=clients, args=(box, books, a.seed + n, until)) for n in range(a.clients)]
        for thread in work:
            thread.start()
        for thread in work:
            thread.join()
        found = {"machine": machine(a.gpus), "minutes": a.minutes, "models": box.models, **judge(box, books)}
        box.stop()
        if a.out:
            a.out.write_text(json.dumps(found, indent=1, default=dict) + "\n")
            (a.out.with_suffix(".log")).write_text((Path(folder) / "llmd.log").read_text())
    print(json.dumps(found, indent=1, default=dict))


if __name__ == "__main__":
    main()
