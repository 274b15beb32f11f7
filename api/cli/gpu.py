"""`llmctl gpus`: what there is to compute on, what runs on it and how it does."""

import json
import sys
import time
from collections.abc import Iterator
from typing import Any

import click

from llmd.api.cli.connection import Client
from llmd.api.cli.terminal import as_json, device, moment, safe, show_json, size, table

WATCH_SECONDS = 1.0
HEADS = ("gpu", "name", "uuid", "memory used", "power", "temp", "load", "health", "processes")
WAYS = {
    "PIX": "through one PCIe switch",
    "PXB": "through several PCIe switches",
    "PHB": "through a CPU's PCIe",
    "NODE": "through a CPU's PCIe, from one root to another",
    "SYS": "from CPU to CPU",
}


@click.command()
@click.option("--watch", is_flag=True, help="Again each second; Ctrl-C ends.")
@click.option("--ignore", metavar="UUID", help="Keep a GPU out of every plan; what runs on it moves.")
@click.option("--use", metavar="UUID", help="Use an ignored GPU again, or a drained or removed one, once it was reset.")
@as_json
@click.pass_obj
def gpus(client: Client, watch: bool, ignore: str | None, use: str | None, json_: bool) -> None:
    """Every GPU: memory, load, health, processes and links."""
    if sum((watch, ignore is not None, use is not None)) > 1:
        raise click.UsageError("--watch, --ignore and --use go one at a time.")
    if ignore is not None:
        done = client.call("POST", "/gpus/ignore", {"gpu": ignore})
        said = f"GPU {safe(ignore)} is ignored: no model goes there, and what runs there moves (`llmctl status`)"
        return show_json(done) if json_ else click.echo(said)
    if use is not None:
        done = client.call("POST", "/gpus/use", {"gpu": use})
        return show_json(done) if json_ else click.echo(_used(done))
    while True:
        found = client.call("GET", "/gpus")
        if json_:
            click.echo(json.dumps(found)) if watch else show_json(found)
        else:
            if watch:
                click.clear()  # on a terminal only
            _show(found)
        if not watch:
            return
        if not json_ and not sys.stdout.isatty():
            click.echo()
        sys.stdout.flush()
        time.sleep(WATCH_SECONDS)


def _show(found: dict[str, Any]) -> None:
    if found["absent"] and not found["gpus"] and not found["gone"]:
        return click.echo(f"No GPU, so models run on the CPU: {safe(found['reason'])}.")
    if not found["answered"] and found["gpus"]:
        click.echo(f"{safe(found['reason'])}; this is how it was at {moment(found['at'])}:")
    if found["gpus"]:
        click.echo(f"NVIDIA driver {safe(found['driver']) or 'unknown'}, CUDA {safe(found['cuda']) or 'unknown'}")
        table(HEADS, _rows(found["gpus"]))
    else:
        click.echo(f"No GPU can be used: {safe(found['reason'])}.")
    for line in (*_said(found), *_links(found)):
        click.echo(line)


def _rows(found: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    """A GPU in MIG mode gets a row of its own, its instances stand indented under it."""
    rows: list[tuple[Any, ...]] = []
    above = ""
    for gpu in found:
        whole, _, part = gpu["name"].partition(" MIG ")
        rest = (_watts(gpu), _unit(gpu["temperature"], "°C"), _unit(gpu["utilization"], "%"))
        if gpu["parent"] and gpu["parent"] != above:
            rows.append((gpu["index"], whole, device(gpu["parent"]), "", *rest, "", ""))
        above = gpu["parent"]
        state, running = _state(gpu), _processes(gpu["processes"])
        if above:
            rows.append(("", f"  MIG {part}", device(gpu["uuid"]), _memory(gpu), "", "", "", state, running))
        else:
            rows.append((gpu["index"], gpu["name"], device(gpu["uuid"]), _memory(gpu), *rest, state, running))
    return rows


def _said(found: dict[str, Any]) -> Iterator[str]:
    """What is to be known of a GPU beside its row."""
    for gpu in found["gpus"]:
        if gpu["health"]["reasons"]:
            yield f"GPU {_label(gpu)} is {gpu['health']['state']}: {safe('; '.join(gpu['health']['reasons']))}"
        if gpu["health"]["ignored"]:
            whole = gpu["parent"] if gpu["parent"] in found["ignored"] else gpu["uuid"]
            yield f"GPU {_label(gpu)} is ignored: `llmctl gpus --use {safe(whole)}` ends that"
        elif gpu["no_code"]:
            yield f"GPU {_label(gpu)} takes no model: {safe(gpu['no_code'])}"
    for gpu in found["gone"]:
        name = f"{gpu['name']} ({gpu['uuid']})" if gpu["name"] else gpu["uuid"]
        yield f"{safe(name)} is {_state(gpu)}: {safe('; '.join(gpu['health']['reasons']))}"
    every = [*found["gpus"], *found["gone"]]
    here = {name for gpu in every for name in (gpu["uuid"], gpu.get("parent"))}
    yield from (f"{safe(uuid)} is ignored, and not there" for uuid in found["ignored"] if uuid not in here)
    if every and all(gpu["health"]["ignored"] for gpu in every):
        yield "Every GPU is ignored, so models run on the CPU."


def _used(done: dict[str, Any]) -> str:
    if done["state"] == "removed":
        return f"GPU {safe(done['gpu'])} is not ignored any more; it is not there now."
    return f"GPU {safe(done['gpu'])} is used again: {done['state']}"


def _state(gpu: dict[str, Any]) -> str:
    state, ignored = gpu["health"]["state"], gpu["health"]["ignored"]
    return str(state) if not ignored else "ignored" if state == "ok" else f"{state}, ignored"


def _label(gpu: dict[str, Any]) -> str:
    return f"{gpu['index']}, instance {safe(device(gpu['uuid']))}," if gpu["parent"] else str(gpu["index"])


def _memory(gpu: dict[str, Any]) -> str:
    if not gpu["total"]:
        return "unknown"
    whose = " (the server's)" if gpu["unified"] else ""
    return f"{size(gpu['total'] - gpu['free'])} of {size(gpu['total'])}{whose}"


def _watts(gpu: dict[str, Any]) -> str:
    draw, limit = gpu["power_draw"], gpu["power_limit"]
    if draw is None:
        return ""
    return f"{draw:.0f} W" if limit is None else f"{draw:.0f} of {limit:.0f} W"


def _unit(value: int | None, unit: str) -> str:
    return "" if value is None else f"{value} {unit}"


def _processes(running: list[dict[str, Any]]) -> str:
    return ", ".join(str(p["pid"]) + (f" ({size(p['used'])})" if p["used"] is not None else "") for p in running)


def _links(found: dict[str, Any]) -> list[str]:
    """One line a kind of link, the nearest first, with the pairs that have it."""
    index = {gpu["uuid"]: gpu["index"] for gpu in found["gpus"] if not gpu["parent"]}
    levels: dict[tuple[int, str], list[str]] = {}
    for link in found["links"]:
        pair = sorted(index[uuid] for uuid in link["between"] if uuid in index)
        levels.setdefault((-link["rank"], link["level"]), []).append("-".join(map(str, pair)))
    every = len(index) * (len(index) - 1) // 2
    return [
        f"{_way(level)} ({level}): "
        + ("every pair of GPUs" if len(pairs) == every else "GPUs " + ", ".join(sorted(pairs)))
        for (_, level), pairs in sorted(levels.items())
    ]


def _way(level: str) -> str:
    if level in WAYS:
        return WAYS[level]
    count = level.removeprefix("NV")
    return "1 NVLink" if count == "1" else f"{count} NVLinks"
