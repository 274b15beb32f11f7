"""`llmctl model`: the model files that the daemon has."""

import json
import re
import sys
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any, TextIO

import click

from llmd.api.cli.completion import models
from llmd.api.cli.connection import Client
from llmd.api.cli.jobs import DONE, follow
from llmd.api.cli.sources import import_file, import_folder
from llmd.api.cli.terminal import (
    Progress,
    as_json,
    begins,
    facts,
    json_before,
    moment,
    safe,
    show_json,
    size,
    table,
)

# what `template` shows where it is given nothing
SAMPLE: Any = [
    {"role": "user", "content": "Hello!"},
    {"role": "assistant", "content": "Hello! How can I help?"},
    {"role": "user", "content": "Name a colour."},
]


@click.group()
@json_before
def model() -> None:
    """Import, list and remove models."""


@model.command("import")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--name", metavar="N", help="Default: from the file's name.")
@click.option("--no-wait", is_flag=True, help="Only start a folder's conversion: `llmctl jobs` shows it.")
@as_json
@click.pass_obj
def import_(client: Client, file: Path, name: str | None, no_wait: bool, json_: bool) -> None:
    """Check a GGUF file and copy it in, or convert a Hugging Face model's folder. What is cut off leaves nothing."""
    if file.is_dir():
        job = import_folder(client, file, name, wait=not no_wait, json_=json_)
        if json_:
            show_json(job)
        elif job["state"] == DONE:
            _told(client.call("GET", f"/models/{_part(job['model'])}"))
        return sys.exit(1) if job["state"] in ("failed", "cancelled") else None
    bar = Progress(f"importing {safe(file.name)}", shown=not json_)
    try:
        found = import_file(client, file, name, bar)
    finally:
        bar.end()
    show_json(found) if json_ else _told(found)


def _told(found: dict[str, Any]) -> None:
    click.echo(f"imported {safe(found['name'])} ({size(found['size'])}, sha256 {begins(found['digest'])})")
    for line in _limits(found["info"]):
        click.echo(line)
    click.echo(f"serve it: llmctl deploy {safe(found['name'])}")


def _limits(info: dict[str, Any]) -> list[str]:
    """What a model's file does not do."""
    lines = []
    if proof := info.get("proof"):
        lines.append(_proven(proof))
    if not info.get("chat_template"):
        lines.append("it has no chat template: /v1/completions takes a prompt, /v1/chat/completions is refused")
    refused = {kind: reason for kind, reason in info.get("conversations", {}).items() if reason}
    lines += [f"its chat template does not take {safe(kind)}: {safe(reason)}" for kind, reason in refused.items()]
    for done, kinds in groupby(sorted(info.get("laid", {}).items(), key=itemgetter(1)), key=itemgetter(1)):
        named = " or ".join(safe(kind) for kind, _ in kinds)
        lines.append(f"its chat template does not take {named} as it comes: {safe(done)}")
    if info.get("tried") is False:
        lines.append("not tried: it is larger than the free memory; its first deploy tries it")
    return lines


def _proven(proof: dict[str, Any]) -> str:
    """How a converted model's first words compare with the original's."""
    if proof.get("unproven"):
        return f"not held against the original: {safe(proof['unproven'])}"
    same = "" if proof["same_tokens"] else "; its tokenizer cuts a sample text otherwise than the original's"
    return (
        f"its first {proof['tokens']} logits differ from the original's by {100 * proof['difference']:.2g} % "
        f"(KL {proof['kl']:.2g} nats){same}"
    )


@model.command("list")
@as_json
@click.pass_obj
def list_(client: Client, json_: bool) -> None:
    """Every imported model."""
    found = client.call("GET", "/models")["models"]
    if json_:
        return show_json(found)
    table(
        ("name", "size", "architecture", "context", "imported", "deployed", "forms", "sha256"),
        [
            (m["name"], size(m["size"]), m["info"].get("architecture"), m["info"].get("context_length"),
             moment(m["imported"]),
             m["deployed"], " ".join(f["name"].partition("@")[2] for f in m["forms"]), begins(m["digest"]))
            for m in found
        ],
    )  # fmt: skip


@model.command()
@click.argument("name", shell_complete=models)
@as_json
@click.pass_obj
def show(client: Client, name: str, json_: bool) -> None:
    """Everything known of one model."""
    found = client.call("GET", f"/models/{_part(name)}")
    if json_:
        return show_json(found)
    found_info, forms = found.pop("info"), found.pop("forms")
    info = {k: v for k, v in found_info.items() if k not in ("size", "proof", "syntax", "syntax_said", "laid")}
    if "syntax" in found_info and found_info.get("chat_template"):
        info["writes"] = _writes(found_info)
    info["title"] = info.pop("name", None)
    info["conversations"] = ", ".join(kind for kind, reason in info.get("conversations", {}).items() if not reason)
    info["ends"] = ", ".join(info.get("ends", ()))
    info["generation"] = ", ".join(f"{name} {value:g}" for name, value in (info.get("generation") or {}).items())
    if made := info.pop("converted", None):
        info["converted from"] = ", ".join(filter(None, (made["from"], made.get("method"))))
    shown = {**found, "imported": moment(found["imported"]), "size": size(found["size"]), **info}
    shown["forms"] = ", ".join(f"{form['name']} ({size(form['size'])})" for form in forms)
    facts({key.replace("_", " "): value for key, value in shown.items()})
    for line in _limits(found_info):
        click.echo(line)


@model.command()
@click.argument("name", shell_complete=models)
@click.option(
    "--conversation", type=click.File(), metavar="FILE", help="Messages as JSON, as chat completions take them."
)
@as_json
@click.pass_obj
def template(client: Client, name: str, conversation: TextIO | None, json_: bool) -> None:
    """The prompt that the model's chat template makes of a conversation."""
    messages = SAMPLE
    if conversation:
        try:
            messages = json.load(conversation)
        except ValueError as e:
            raise click.UsageError(f"{conversation.name} is not JSON: {e}") from e
        if isinstance(messages, dict):
            messages = messages.get("messages", [])
    done = client.call("POST", f"/models/{_part(name)}/template", {"messages": messages})
    if json_:
        return show_json(done)
    for line in done["prompt"].split("\n"):
        click.echo(safe(line))


@model.command()
@click.argument("name", shell_complete=models)
@click.argument("format_", metavar="FORMAT")
@as_json
@click.pass_obj
def syntax(client: Client, name: str, format_: str, json_: bool) -> None:
    """How a model writes calls of tools and what it thinks, where its chat template does not show it: hermes, qwen,
    llama, mistral, mistral-args, deepseek, deepseek-r1, harmony, gemma or functiongemma, and for what it thinks
    +think, +[think], +seed or a tag like +<thought> behind it. auto: as its template shows. From the next deploy on."""
    done = client.call("POST", f"/models/{_part(name)}/syntax", {"syntax": "" if format_ == "auto" else format_})
    show_json(done) if json_ else click.echo(
        f"{safe(name)} writes {safe(_writes(done['info']))}, from its next deploy on"
    )


def _writes(info: dict[str, Any]) -> str:
    """In which format."""
    found = info.get("syntax") or "no calls of its own: tools are explained to it"
    return f"{info['syntax_said']} (its chat template: {found})" if info.get("syntax_said") else found


@model.command()
@click.argument("name", shell_complete=models)
@click.argument("new")
@as_json
@click.pass_obj
def rename(client: Client, name: str, new: str, json_: bool) -> None:
    """Give a model that is not deployed another name."""
    done = client.call("POST", f"/models/{_part(name)}/rename", {"name": new})
    show_json(done) if json_ else click.echo(f"{safe(name)} is {safe(new)} now")


@model.command()
@click.argument("name", shell_complete=models)
@click.option("--type", "kind", metavar="TYPE", help="As Q4_K_M; --dry-run lists them.")
@click.option("--budget", metavar="SIZE", help="The largest standard type that takes no more: 5GiB.")
@click.option("--bpw", type=float, metavar="BITS", help="The largest standard type with no more bits a weight: 4.5.")
@click.option("--dry-run", is_flag=True, help="What each type would take; nothing is made.")
@click.option("--requantize", is_flag=True, help="Of a file that is quantized already, which loses twice.")
@click.option("--no-wait", is_flag=True, help="Only start it: `llmctl jobs` shows it.")
@as_json
@click.pass_obj
def quantize(
    client: Client, name: str, kind: str | None, budget: str | None, bpw: float | None, dry_run: bool,
    requantize: bool, no_wait: bool, json_: bool,
) -> None:  # fmt: skip
    """Make another form of a model, in the background. Ctrl-C goes away from it, and it goes on."""
    if dry_run:
        return _sizes(client.call("GET", f"/models/{_part(name)}/sizes"), json_)
    if sum(value is not None for value in (kind, budget, bpw)) != 1:
        raise click.UsageError("give one of --type, --budget and --bpw, or --dry-run")
    body = {"type": kind, "budget": _bytes(budget) if budget else None, "bpw": bpw, "requantize": requantize}
    job = client.call("POST", f"/models/{_part(name)}/quantize", body)
    if not json_:
        what = f"{safe(name)} as {job['asked']['type']}, {size(job['asked']['bytes'])}"
        click.echo(f"job {job['id']}: {what}", err=True)
    if not no_wait:
        job = follow(client, job["id"], json_)
    if json_:
        show_json(job)
    if job["state"] in ("failed", "cancelled"):
        sys.exit(1)


def _sizes(found: dict[str, Any], json_: bool) -> None:
    if json_:
        return show_json(found)
    rows = [
        (s["type"], size(s["bytes"]), f"{s['bytes']:,}", f"{s['bits']:.2f}", s["fallbacks"] or "")
        for s in found["sizes"]
    ]
    table(("type", "size", "bytes", "bits a weight", "tensors of another type"), rows)


def _bytes(text: str) -> int:
    """5GiB, 800MB, or bytes. Raises UsageError."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([kKMGT]i?B?|B)?", text.strip())
    if not found:
        raise click.UsageError(f"--budget takes a size, as 5GiB or 800MB, not {text!r}")
    unit = (found[2] or "B").upper().removesuffix("B")
    power = " KMGT".index(unit[:1] or " ")
    return int(float(found[1]) * (1024 if unit.endswith("I") else 1000) ** power)


@model.command()
@click.argument("name", shell_complete=models)
@as_json
@click.pass_obj
def rm(client: Client, name: str, json_: bool) -> None:
    """Remove a model that is not deployed, with its forms; or one form: NAME@TYPE."""
    whole, _, kind = name.partition("@")
    form = f"/forms/{_part(kind)}" if kind else ""
    done = client.call("DELETE", f"/models/{_part(whole)}{form}")
    show_json(done) if json_ else click.echo(f"removed {safe(name)}")


@model.command()
@click.argument("name", shell_complete=models)
@as_json
@click.pass_obj
def verify(client: Client, name: str, json_: bool) -> None:
    """Read the whole file and hold it against its digest."""
    done = client.call("POST", f"/models/{_part(name)}/verify")
    if json_:
        show_json(done)
    else:
        click.echo(
            f"{safe(name)} is as it was imported" if done["ok"] else f"{safe(name)} HAS CHANGED: {safe(done['do'])}"
        )
    if not done["ok"]:
        sys.exit(1)


def _part(name: str) -> str:
    """A name as one part of a path."""
    from urllib.parse import quote

    return quote(name, safe="")
