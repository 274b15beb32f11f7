#!/usr/bin/env python3
"""How near `quantize/footprint.py` comes to what a device really holds: predicted and measured memory, case by case.

    python benchmarks/fit.py MODELS_DIR --out FILE [--quick] [--cpu]      writes FILE.json and FILE.md

Each case is a process of its own that loads a model with the engine's runner, runs the largest passes it can be given
(a full prompt batch, every slot generating, a prompt as long as the context) and asks NVML what the device holds beside
what it held before. llama.cpp's own account of its buffers is kept with each case, so that a part that is off can be
seen. A case that fails is reported as failed. Models are the *.gguf files of the folder; with two GPUs or more both
split modes are measured too. With --cpu it is the process's resident memory that is measured.
"""

import argparse
import dataclasses
import json
import os
import platform
import re
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from llmd.quantize import compute
from llmd.quantize.footprint import MIB, Calibration, Layout, Load, Measured, Split, need, on_cpu
from llmd.quantize.header import read_header
from llmd.quantize.shape import Shape, shape_of

BATCH = 2048
FULL_PROMPT = 16384
# context, slots, kv type, ubatch
CASES = [
    (4096, 8, "f16", 2048), (4096, 8, "f16", 512), (4096, 32, "f16", 2048), (16384, 4, "f16", 2048),
    (32768, 2, "f16", 2048),
    (8192, 8, "q8_0", 2048), (16384, 4, "q4_0", 1024), (2048, 64, "f16", 2048), (4096, 128, "f16", 2048),
    (8192, 1, "f16", 2048),
]  # fmt: skip
LARGE_CASES = [(4096, 8, "f16", 2048), (8192, 8, "q8_0", 2048), (16384, 4, "f16", 512), (4096, 16, "f16", 2048)]
SPLIT_CASES = [(4096, 8, "f16", 2048), (16384, 4, "f16", 2048)]
CPU_CASES = [(2048, 8, "f16", 512), (4096, 8, "f16", 512), (2048, 32, "f16", 512), (8192, 2, "q8_0", 512)]
LINE = re.compile(r"(\S+)\s+(model|KV|RS|compute|output) buffer size =\s+([\d.]+) MiB")


def cases(models: list[Path], gpus: int, quick: bool) -> list[dict[str, Any]]:
    found = []
    for model in models:
        large = model.stat().st_size > 20e9
        for case in (LARGE_CASES if large else CASES)[: 2 if quick else None]:
            found.append({"model": str(model), "split": "none", "devices": min(gpus, 1), "case": case})
        for devices in sorted({2, gpus}) if gpus > 1 else ():
            for split in ("layer", "tensor"):
                for case in SPLIT_CASES[: 1 if quick else None]:
                    found.append({"model": str(model), "split": split, "devices": devices, "case": case})
    return found


def cpu_cases(models: list[Path], quick: bool) -> list[dict[str, Any]]:
    return [
        {"model": str(model), "split": "none", "devices": 0, "case": case}
        for model in models
        for case in CPU_CASES[: 2 if quick else None]
    ]


def predict(shape: Shape, one: dict[str, Any], calibration: Calibration, machine: dict[str, Any]) -> dict[str, Any]:
    context, slots, kv_type, ubatch = one["case"]
    context = min(context, shape.context)
    if not one["devices"]:
        return {"devices": [], "host": Load(shape).host(on_cpu(context, slots, kv_type, BATCH)).to_dict()}
    layout = Layout(context, slots, kv_type, ubatch, BATCH, one["split"], (1,) * one["devices"])
    needs = need(shape, layout, calibration, capability=machine.get("capability"), cuda=machine.get("cuda"))
    return {"devices": [n.to_dict() for n in needs], "host": Load(shape).host(layout).to_dict()}


# --- the child


def child(text: str) -> None:
    """Load, warm up, look at the devices; one JSON line."""
    import llama_cpp.llama_cpp as lib

    import llmd.daemon.engine.llama.vocabulary as vocabulary
    from llmd.daemon.engine.llama.runner import LlamaRunner

    one = json.loads(text)
    lines: list[str] = []
    vocabulary._log_callback = lib.llama_log_callback(
        lambda _level, line, _user: lines.append(line.decode(errors="replace"))
    )
    context, slots, kv_type, ubatch = one["case"]
    started = time.monotonic()
    runner = LlamaRunner(
        one["model"], slots=slots, context=context, batch=BATCH, threads=0, gpus=one["devices"], split=one["split"],
        kv_type=kv_type, ubatch=ubatch,
    )  # fmt: skip
    loaded = time.monotonic() - started
    at_load = device_memory(one["uuids"])
    warm_up(runner, full=not one["cpu"])
    answer = {"at_load": at_load, "after": device_memory(one["uuids"]), "own": own_memory(one["uuids"]),
              "llama": account("".join(lines)), "load_s": round(loaded, 1), "resident": resident()}  # fmt: skip
    print(json.dumps(answer), flush=True)
    os._exit(0)


def warm_up(runner: Any, full: bool) -> None:
    """The largest passes: a prompt as long as the context in one slot, then every slot's next token, twice."""
    import random

    from llmd.daemon.engine.types import Chunk, Plan, SamplingParams, Start

    slots, context = runner.info.slots, runner.info.context
    params, rng = SamplingParams(max_tokens=1, temperature=0.0), random.Random(1)
    starts = [Start(slot, -1, 0, params, (1,), 0) for slot in range(slots)]
    length = min(context - 8, FULL_PROMPT) if full else 64
    at, plan = 0, Plan(starts=starts)
    while at < length:
        size = min(BATCH, length - at)
        tokens = [rng.randrange(runner.info.vocab) for _ in range(size)]
        plan.chunks = [Chunk(0, at, tokens, at + size == length)]
        step(runner, plan)
        at, plan = at + size, Plan()
    for turn in range(2):
        chunks = [
            Chunk(slot, (at if slot == 0 else 0) + turn, [rng.randrange(runner.info.vocab)], True)
            for slot in range(slots)
        ]
        step(runner, Plan(chunks=chunks))


def step(runner: Any, plan: Any) -> None:
    runner.launch(plan)
    list(runner.collect())


def resident() -> int:
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def account(text: str) -> dict[str, float]:
    """llama.cpp's last word on each of its buffers, in MiB; the buffers of two caches of one kind are added up."""
    found: dict[str, float] = {}
    for device, part, size in LINE.findall(text):
        key = f"{device} {part}"
        found[key] = float(size) + (found.get(key, 0.0) if part in ("KV", "model") else 0.0)
    return found


# --- NVML


def device_memory(uuids: list[str]) -> list[int]:
    return [pynvml_used(uuid) for uuid in uuids]


def pynvml_used(uuid: str) -> int:
    import pynvml

    pynvml.nvmlInit()
    handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
    try:
        return int(pynvml.nvmlDeviceGetMemoryInfo(handle, pynvml.nvmlMemory_v2).used)
    except pynvml.NVMLError:
        return int(pynvml.nvmlDeviceGetMemoryInfo(handle).used)


def own_memory(uuids: list[str]) -> list[int | None]:
    """What NVML says of this process; None where it does not tell (another pid namespace)."""
    import pynvml

    found: list[int | None] = []
    for uuid in uuids:
        processes = pynvml.nvmlDeviceGetComputeRunningProcesses(pynvml.nvmlDeviceGetHandleByUUID(uuid))
        mine = [p for p in processes if p.pid == os.getpid()] or (processes if len(processes) == 1 else [])
        found.append(mine[0].usedGpuMemory if mine else None)
    return found


def machine(cpu: bool) -> dict[str, Any]:
    facts: dict[str, Any] = {"host": platform.machine(), "python": platform.python_version(), "uuids": []}
    if cpu:
        return facts
    import pynvml

    pynvml.nvmlInit()
    handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
    facts["uuids"] = [pynvml.nvmlDeviceGetUUID(handle) for handle in handles]
    facts["gpus"] = [pynvml.nvmlDeviceGetName(handle) for handle in handles]
    facts["driver"] = pynvml.nvmlSystemGetDriverVersion()
    facts["cuda"] = pynvml.nvmlSystemGetCudaDriverVersion_v2() // 1000
    facts["capability"] = tuple(pynvml.nvmlDeviceGetCudaComputeCapability(handles[0]))
    return facts


# --- the parent


def run(one: dict[str, Any], facts: dict[str, Any]) -> dict[str, Any]:
    uuids = facts["uuids"][: one["devices"]]
    before = device_memory(uuids)
    given = json.dumps({**one, "uuids": uuids, "cpu": not uuids})
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": ",".join(uuids)}
    try:
        done = subprocess.run(
            [sys.executable, __file__, "--child", given], env=env, capture_output=True, text=True, timeout=180
        )
        answer = json.loads(done.stdout.splitlines()[-1])
    except (subprocess.TimeoutExpired, ValueError, IndexError) as e:
        tail = done.stderr[-600:] if "done" in locals() else str(e)
        return {**one, "failed": tail}
    measured = [after - then for after, then in zip(answer["after"], before, strict=True)] or [answer["resident"]]
    return {**one, **answer, "measured": measured}


def show(row: dict[str, Any]) -> str:
    context, slots, kv_type, ubatch = row["case"]
    head = f"{Path(row['model']).stem[:28]:28} {row['split']:6} {row['devices']} "
    head += f"ctx {context:6} slots {slots:4} {kv_type:5} ub {ubatch:5}"
    if "failed" in row:
        return f"{head} FAILED {(row['failed'].strip().splitlines() or ['?'])[-1][:120]}"
    text = head
    for part, measured in zip(parts_of(row), row["measured"], strict=True):
        parts = " ".join(f"{name} {part[name] / MIB:.0f}" for name in ("weights", "kv", "compute", "overhead"))
        text += f"\n    predicted {part['total'] / MIB:9.1f} MiB ({parts}), "
        text += f"measured {measured / MIB:9.1f}, ratio {part['total'] / measured:.4f}"
    return text + "\n    llama.cpp " + ", ".join(f"{name} {size:.2f}" for name, size in row["llama"].items())


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("models", type=Path)
    ap.add_argument("--out", type=Path, default=Path("fit"))
    ap.add_argument("--speed", action="store_true", help="nothing but how long an answer for eight devices takes")
    ap.add_argument("--quick", action="store_true", help="two cases a model")
    ap.add_argument("--cpu", action="store_true", help="no GPU: compare with llama.cpp's account")
    ap.add_argument("--seconds", type=float, default=300, help="start no case after this long")
    ap.add_argument("--calibration", type=Path, help="a JSON list, as quantize/footprint.py's Calibration writes it")
    a = ap.parse_args()
    if a.speed:
        speed([shape_of(read_header(path)) for path in sorted(a.models.glob("*.gguf"))])
        return
    facts = machine(a.cpu)
    calibration = Calibration.from_list(json.loads(a.calibration.read_text())) if a.calibration else Calibration()
    models = sorted(a.models.glob("*.gguf"), key=lambda path: path.stat().st_size)
    shapes = {str(path): shape_of(read_header(path)) for path in models}
    rows: list[dict[str, Any]] = []
    started = time.monotonic()
    for one in cpu_cases(models, a.quick) if a.cpu else cases(models, len(facts["uuids"]), a.quick):
        if time.monotonic() - started > a.seconds:
            print("the time is up: the other cases were left out")
            break
        row = run(one, facts)
        row["predicted"] = predict(shapes[one["model"]], one, calibration, facts)
        row["model"] = Path(one["model"]).name
        rows.append(row)
        print(show(row), flush=True)
        write(a.out, facts, rows, calibrated(rows, facts, calibration))
    summary(rows)


def speed(shapes: list[Shape]) -> None:
    """How long an answer for eight devices takes: for a model that was never asked for, and again."""
    for shape in shapes:
        compute._buffer.cache_clear()
        for slots in (8, 8, 16):
            began = time.perf_counter()
            need(shape, Layout(4096, slots, split="layer", shares=(1,) * 8))
            took = 1e3 * (time.perf_counter() - began)
            print(f"{shape.architecture}, {len(shape.layers)} blocks, {slots} slots: {took:.2f} ms")


def write(out: Path, facts: dict[str, Any], rows: list[dict[str, Any]], calibration: list[dict[str, Any]]) -> None:
    """After each case, so that an interrupted run keeps what it has."""
    told = {"date": datetime.now(UTC).isoformat(timespec="seconds"), "command": " ".join(sys.argv),
            "machine": {k: v for k, v in facts.items() if k != "uuids"}, "calibration": calibration,
            "cases": rows}  # fmt: skip
    out.with_suffix(".json").write_text(json.dumps(told, indent=1) + "\n")
    out.with_suffix(".md").write_text(table(told))


def table(told: dict[str, Any]) -> str:
    """What a person reads."""
    lines = [
        "# Predicted and measured memory", "",
        f"{', '.join(sorted(set(told['machine'].get('gpus', ['CPU']))))}, {told['date'][:10]}. MiB of each device.", "",
        f"Command: `{told['command']}`", "",
        "| model | split | context × slots | KV | ubatch | predicted | measured | ratio |", "|---" * 8 + "|",
    ]  # fmt: skip
    for row in told["cases"]:
        context, slots, kv_type, ubatch = row["case"]
        head = f"| {row['model']} | {row['split']} {row['devices']} | {context} × {slots} | {kv_type} | {ubatch} |"
        if "failed" in row:
            lines.append(f"{head} failed | | |")
            continue
        for part, measured in zip(parts_of(row), row["measured"], strict=True):
            ratio = part["total"] / measured
            lines.append(f"{head} {part['total'] / MIB:,.0f} | {measured / MIB:,.0f} | {ratio:.3f} |")
    return "\n".join(lines) + "\n"


def parts_of(row: dict[str, Any]) -> list[dict[str, int]]:
    """What was predicted of each device, or of the CPU's memory."""
    return row["predicted"]["devices"] or [row["predicted"]["host"]]


def calibrated(rows: list[dict[str, Any]], facts: dict[str, Any], assumed: Calibration) -> list[dict[str, Any]]:
    """What processes took beside the parts that are computed: for each split and number of GPUs the most that was
    seen."""
    found: dict[tuple[int, Split], list[int]] = {}
    for row in (row for row in rows if "failed" not in row):
        key = (row["devices"], row["split"])
        overhead = assumed.overhead(facts.get("capability"), facts.get("cuda"), *key)
        parts = zip(parts_of(row), row["measured"], strict=True)
        found.setdefault(key, []).extend(measured - part["total"] + overhead for part, measured in parts)
    told = f"{facts.get('gpus', ['?'])[0]}, driver {facts.get('driver')}, {datetime.now(UTC):%Y-%m-%d}"
    return [
        dataclasses.asdict(
            Measured(
                max(seen),
                facts.get("capability"),
                facts.get("cuda"),
                devices,
                split,
                conditions=f"{told}, {len(seen)} from {min(seen)}",
            )
        )
        for (devices, split), seen in found.items()
        if seen
    ]


def summary(rows: list[dict[str, Any]]) -> None:
    good = [row for row in rows if "failed" not in row]
    pairs = [pair for row in good for pair in zip(parts_of(row), row["measured"], strict=True)]
    ratios = [part["total"] / measured for part, measured in pairs]
    print(f"{len(good)} cases, {len(rows) - len(good)} failed")
    if ratios:
        print(f"predicted / measured: {min(ratios):.4f} to {max(ratios):.4f}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2])
    else:
        main()
