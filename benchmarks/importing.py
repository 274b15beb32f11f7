#!/usr/bin/env python3
"""What a Hugging Face folder takes from one command, `llmctl deploy FOLDER`, to its first token over mutual TLS, and
the memory of each process that it starts; or what `llmctl model import FILE` takes beside a copy and a digest of it.

python benchmarks/importing.py FOLDER [--import-only] [--ctx 512]      results in benchmarks/results/importing.md
python benchmarks/importing.py FOLDER --make 8b --tokenizer OTHER      an 8B Llama's shape first, random weights
python benchmarks/importing.py FILE.gguf [--state FOLDER]              each three times, in turn

A daemon of its own. What is imported is read once before, so it is in the page cache where memory holds it. Memory
is looked at ten times a second: `own` is what a process has for itself, `all` with the files that it has mapped.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from churn import Box
from run import machine

EIGHT_B: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
    "max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "tie_word_embeddings": False, "hidden_act": "silu",
    "rope_parameters": {"rope_theta": 500000.0, "rope_type": "default"}, "bos_token_id": 1, "eos_token_id": 2,
    "vocab_size": 131072, "dtype": "bfloat16",
}  # fmt: skip
DIGEST = "import hashlib, sys; hashlib.file_digest(open(sys.argv[1], 'rb'), 'sha256')"
CLI = "from llmd.api.cli.main import main; main()"


def make(folder: Path, tokenizer: Path) -> None:
    """In bfloat16, in one file; the tokenizer is another model's, with fewer tokens than the shape has."""
    import struct

    import numpy as np

    c = EIGHT_B
    width, inner, kv = c["hidden_size"], c["intermediate_size"], c["num_key_value_heads"] * c["head_dim"]
    shapes = {"model.embed_tokens.weight": (c["vocab_size"], width), "model.norm.weight": (width,)}
    for at in range(c["num_hidden_layers"]):
        layer = f"model.layers.{at}."
        for name, rows in (("q", width), ("k", kv), ("v", kv), ("o", width)):
            shapes[f"{layer}self_attn.{name}_proj.weight"] = (rows, width)
        shapes |= {f"{layer}mlp.{name}_proj.weight": (inner, width) for name in ("gate", "up")}
        shapes[f"{layer}mlp.down_proj.weight"] = (width, inner)
        shapes |= {f"{layer}{name}_layernorm.weight": (width,) for name in ("input", "post_attention")}
    shapes["lm_head.weight"] = (c["vocab_size"], width)
    at, header = 0, {}
    for name, shape in shapes.items():
        size = 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    folder.mkdir(parents=True)
    dice = np.random.default_rng(0)
    # a block of weights again and again: random numbers for all of it would take longer than the rest
    block = (dice.standard_normal(1 << 24, dtype=np.float32) * 0.02).view(np.uint32)
    weights = (block >> 16).astype(np.uint16)
    ones = np.full(width, 0x3F80, np.uint16)
    with (folder / "model.safetensors").open("wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        for shape in shapes.values():
            left = int(np.prod(shape))
            while left:
                piece = ones if len(shape) == 1 else np.roll(weights, int(dice.integers(1 << 24)))[:left]
                out.write(piece.tobytes())
                left -= len(piece)
    (folder / "config.json").write_text(json.dumps(c))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((tokenizer / name).read_bytes())


class Memory(threading.Thread):
    """The most that each program among a process's children had, in bytes, and how long it was there."""

    def __init__(self, parent: int) -> None:
        super().__init__(daemon=True)
        self.parent, self.most, self.stopped = parent, dict[str, dict[str, int]](), False
        self.lived: dict[str, list[float]] = {}  # when a program was first seen, and when last

    def run(self) -> None:
        while not self.stopped:
            for child in Path(f"/proc/{self.parent}/task/{self.parent}/children").read_text().split():
                with suppress(OSError, StopIteration, KeyError):  # it has just begun, or ended
                    self._look(child)
            time.sleep(0.1)

    def _look(self, child: str) -> None:
        words = Path(f"/proc/{child}/cmdline").read_bytes().decode().split("\0")
        program = next(word for word in words if word.startswith("llmd."))
        held = dict(re.findall(r"^(\w+):\s+(\d+) kB$", Path(f"/proc/{child}/status").read_text(), re.M))
        self.lived.setdefault(program, [time.monotonic()])[1:] = [time.monotonic()]
        most = self.most.setdefault(program, {"own": 0, "all": 0})
        most["own"] = max(most["own"], int(held["RssAnon"]) << 10)
        most["all"] = max(most["all"], int(held["VmRSS"]) << 10)


def file(path: Path, state: Path | None) -> None:
    """The import with its check and its trial. The copy is on the disk when it is done, as an import is."""
    seconds: dict[str, list[float]] = {}

    def timed(name: str, *command: str) -> None:
        began = time.monotonic()
        subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=True)
        seconds.setdefault(name, []).append(round(time.monotonic() - began, 2))

    with tempfile.TemporaryDirectory(dir=state) as folder:
        box, copy = Box([], Path(folder) / "state"), os.path.join(folder, "copy")
        llmctl = [sys.executable, "-P", "-c", CLI, "--socket", str(box.state / "admin.sock"), "model"]
        for _ in range(3):
            timed("llmctl model import", *llmctl, "import", str(path), "--name", "m")
            subprocess.run([*llmctl, "rm", "m"], stdout=subprocess.DEVNULL, check=True)
            timed("cp, and on the disk", "sh", "-c", 'cp --reflink=never "$0" "$1" && sync "$1"', str(path), copy)
            os.unlink(copy)
            timed("a digest of it", sys.executable, "-c", DIGEST, str(path))
        box.stop()
        kind = subprocess.run(["stat", "-f", "-c", "%T", folder], stdout=subprocess.PIPE, text=True).stdout.strip()
    told = {"machine": machine(""), "GB": round(path.stat().st_size / 1e9, 2), "file system": kind, "seconds": seconds}
    print(json.dumps(told, indent=1))


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("folder", type=Path)
    ap.add_argument("--make", choices=["8b"])
    ap.add_argument("--tokenizer", type=Path, help="a folder whose tokenizer the made one gets")
    ap.add_argument("--import-only", action="store_true")
    ap.add_argument("--ctx", default="512")
    ap.add_argument("--slots", default="1")
    ap.add_argument("--state", type=Path, help="where the daemon's files are; default: a temporary folder")
    a = ap.parse_args()
    if a.make:
        make(a.folder, a.tokenizer)
    for one in [a.folder] if a.folder.is_file() else a.folder.iterdir():
        with one.open("rb", buffering=0) as data:
            while data.read(1 << 24):
                pass
    if a.folder.is_file():
        return file(a.folder, a.state)
    with tempfile.TemporaryDirectory(dir=a.state) as state:
        box = Box([], Path(state) / "state")
        memory = Memory(box.process.pid)
        memory.start()
        words = ["model", "import"] if a.import_only else ["deploy", "--yes", "--ctx", a.ctx, "--slots", a.slots]
        command = [sys.executable, "-P", "-c", CLI, "--socket", str(box.state / "admin.sock"), *words, str(a.folder)]
        began = time.monotonic()
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
        seconds = time.monotonic() - began
        (job,) = box.admin.call("GET", "/jobs")["jobs"] or [{}]
        if done.returncode:
            raise SystemExit(f"{done.stdout}{job}")
        first = None if a.import_only else box.ask(job["model"], 1)
        told = {
            "machine": machine(""), "folder": a.folder.name, "command": " ".join(words),
            "GB": round(sum(f.stat().st_size for f in a.folder.iterdir()) / 1e9, 2), "command, s": round(seconds, 1),
            "to the first token, s": first and round(first.ended - began, 1), "job": job,
            "processes, s and GiB": {
                name: {
                    "s": round(memory.lived[name][-1] - memory.lived[name][0], 1),
                    **{kind: round(count / (1 << 30), 2) for kind, count in most.items()},
                }
                for name, most in memory.most.items()
            },
        }  # fmt: skip
        memory.stopped = True
        memory.join()
        box.stop()
        print(json.dumps(told, indent=1))


if __name__ == "__main__":
    os.umask(0o022)
    main()
