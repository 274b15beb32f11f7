#!/usr/bin/env python3
"""Where a step's time goes: the engine (runner, scheduler, loop) in this process, without daemon and TLS.

A line a level: `launch` is the calls that have the device begin, `wait` for it and for the copy of the logits, `sample`
choosing tokens, `plan`/`apply` the scheduler, `show` texts and frames (on a GPU while it computes), `rest` the others.
Then what a pass costs, by its length and by how many prompts share it. For a GPU: CUDA_VISIBLE_DEVICES, --gpus 1.
"""

import argparse
import itertools
import os
import random
import socket
import time
from collections.abc import Callable
from typing import Any

import llama_cpp.llama_cpp as lib

from llmd.daemon.engine.llama.passes import Call
from llmd.daemon.engine.llama.runner import LlamaRunner
from llmd.daemon.engine.llama.sampling import Sampling
from llmd.daemon.engine.loop import Engine
from llmd.daemon.engine.types import Chunk, Request, SamplingParams
from llmd.daemon.wire import frames

clock = time.perf_counter
PARTS = ("launch", "wait", "sample", "plan", "apply", "show")


class Spent:
    """Seconds of each part of the running step; what is within another part counts for the inner one."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._inner = [0.0]

    def timed(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **named: Any) -> Any:
            began = clock()
            self._inner.append(0.0)
            try:
                return call(*arguments, **named)
            finally:
                took = clock() - began
                inner = self._inner.pop()
                self._inner[-1] += took
                self.seconds[name] = self.seconds.get(name, 0.0) + took - inner

        return run


def sink() -> socket.socket:
    """A socket whose other end stands for the daemon: it reads and forgets."""
    ours, theirs = socket.socketpair()
    if os.fork() == 0:
        ours.close()
        while theirs.recv(1 << 16):
            pass
        os._exit(0)
    theirs.close()
    return ours


def level(runner: LlamaRunner, out: socket.socket, spent: Spent, a: argparse.Namespace, streams: int) -> None:
    """`streams` requests at once."""
    rng = random.Random(streams)
    engine = Engine(runner, lambda m: out.sendall(frames.encode(m)), batch=a.batch, chunk=a.chunk)
    scheduler = engine.scheduler
    plans: list[Any] = []
    make = scheduler.plan

    def plan() -> Any:
        plans.append(make())
        return plans[-1]

    scheduler.plan = spent.timed("plan", plan)  # type: ignore[method-assign]
    scheduler.apply = spent.timed("apply", scheduler.apply)  # type: ignore[method-assign]
    engine._show = spent.timed("show", engine._show)  # type: ignore[method-assign]
    params = SamplingParams(max_tokens=a.tokens, ignore_eos=True)
    for id_ in range(1, streams + 1):
        size = a.prompt + rng.randrange(-4, 5)
        engine.add(Request(id_, "me", tuple(rng.randrange(runner.info.vocab) for _ in range(size)), params))
    steps, began = [], clock()
    engine._drain()
    while scheduler.busy:
        spent.seconds.clear()
        at = clock()
        engine._step()
        read = sum(len(chunk.tokens) for chunk in plans[-1].chunks if len(chunk.tokens) > 1)
        steps.append(
            (read, sum(len(chunk.tokens) == 1 for chunk in plans[-1].chunks), clock() - at, dict(spent.seconds))
        )
    whole = clock() - began
    for kind, some in (
        ("decode", [s for s in steps if not s[0] and s[1] == streams]),
        ("prompts", [s for s in steps if s[0]]),
    ):
        if not some:
            continue
        total = sum(s[2] for s in some)
        parts = {name: sum(s[3].get(name, 0.0) for s in some) for name in PARTS}
        parts["rest"] = total - sum(parts.values())
        speed = (
            f"{streams * len(some) / total:.0f} tok/s"
            if kind == "decode"
            else f"{sum(s[0] for s in some) / total:.0f} prompt tok/s"
        )
        told = " ".join(f"{name} {1000 * seconds / len(some):.2f}" for name, seconds in parts.items())
        print(
            f"n={streams:3d} {kind:7} {len(some):3d} steps of {1000 * total / len(some):7.2f} ms = {told} | {speed}",
            flush=True,
        )
    print(f"n={streams:3d} whole   {streams * a.tokens / whole:.0f} tok/s; chunk {scheduler.chunk}", flush=True)


def passes(runner: LlamaRunner, a: argparse.Namespace) -> None:
    """One call with prompts in adjacent slots, by itself."""
    sizes = [(1, n) for n in (8, 16, 17, 32, 64, 101, 128, 192, 256, 384, 512, 1024, 2048)]
    sizes += [(k, 101) for k in (2, 3, 4, 5, 8, 16)] + [(k, 17) for k in (2, 4, 8, 16, 32)]
    sizes += [(k, 1) for k in (1, 2, 4, 8, 16, 32, 64, 96, 128, 256)]
    for prompts, size in sizes:
        if prompts > runner.info.slots or size > runner.info.context or prompts * size > a.batch:
            continue
        took = []
        for _ in range(5):
            began = clock()
            rows = runner._decode(Call([Chunk(slot, 0, [5] * size, True) for slot in range(prompts)]))
            launched = clock() - began
            lib.llama_get_logits_ith(runner._ctx, rows[0][0])
            took.append((clock() - began, launched))
            lib.llama_memory_clear(runner._memory, False)
        best, launched = min(took)
        speed = f"(call {1000 * launched:.2f}), {prompts * size / best:.0f} tok/s"
        print(f"pass of {prompts:3d} x {size:4d}: {1000 * best:6.2f} ms {speed}", flush=True)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("model")
    p.add_argument("--slots", type=int, default=128)
    p.add_argument("--context", type=int, default=512)
    p.add_argument("--batch", type=int, default=512)
    p.add_argument("--chunk", type=int, default=256)
    p.add_argument("--ubatch", type=int, default=0)
    p.add_argument("--gpus", type=int, default=0)
    p.add_argument("--threads", type=int, default=0)
    p.add_argument("--levels", default="1,8,32,128")
    p.add_argument("--prompt", type=int, default=101, help="tokens, give or take 4")
    p.add_argument("--tokens", type=int, default=64)
    p.add_argument("--sampling-threads", default="", help="to try one after the other, as in 1,2,4,8")
    p.add_argument("--passes", action="store_true")
    a = p.parse_args()
    out, began = sink(), clock()
    runner = LlamaRunner(
        a.model, slots=a.slots, context=a.context, batch=a.batch, gpus=a.gpus, ubatch=a.ubatch, threads=a.threads
    )
    print(f"batch {a.batch} ubatch {a.ubatch or 512}; ready after {clock() - began:.2f} s", flush=True)
    if a.passes:
        passes(runner, a)
    spent = Spent()
    runner._decode = spent.timed("launch", runner._decode)  # type: ignore[method-assign]
    lib.llama_get_logits_ith = spent.timed("wait", lib.llama_get_logits_ith)
    runner._sample_all = spent.timed("sample", runner._sample_all)  # type: ignore[method-assign]
    levels = [int(n) for n in a.levels.split(",")]
    for threads, n in itertools.product([int(t) for t in a.sampling_threads.split(",") if t] or [0], levels):
        if threads:
            runner._sampling = Sampling(a.slots, threads)
            print(f"{threads} sampling threads", end=" ")
        level(runner, out, spent, a, n)
    os._exit(0)


if __name__ == "__main__":
    main()
