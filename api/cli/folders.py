"""A Hugging Face folder from `llmctl`: imported, and with `deploy` made to fit and served, with one bar."""

import sys
from pathlib import Path
from typing import Any

import click

from llmd.api.cli.connection import Client, DaemonError
from llmd.api.cli.jobs import DONE, follow
from llmd.api.cli.terminal import Progress, safe, size, span


def is_folder(text: str) -> bool:
    """What was given is a path, and no model's name."""
    return "/" in text or Path(text).is_dir()


def import_folder(client: Client, folder: Path, name: str | None, *, wait: bool, json_: bool) -> dict[str, Any]:
    """The job, as it has ended where it was waited for."""
    job = client.call("POST", "/models/folders", {"path": str(folder.absolute()), "name": name})
    if not json_:
        click.echo(f"job {job['id']}: {safe(folder.name)} becomes {safe(job['model'])}", err=True)
    return follow(client, job["id"], json_) if wait else job


def made_of_folder(
    client: Client, asked: dict[str, Any], name: str | None, yes: bool, bar: Progress, json_: bool
) -> tuple[str, str | None]:
    """The model that was made of the folder `asked["model"]`, and the type of the form that fits (None: as it is). One
    question at most, at the beginning."""
    folder = Path(asked["model"]).absolute()
    if not json_:
        click.echo(f"looking at {safe(folder.name)}", err=True)
    found = client.call("POST", "/fitting/folder", {**asked, "model": str(folder), "name": name})
    model, kind = str(found["model"]), found["type"]
    if found["there"]:
        return model, asked["form"]
    if kind:
        _ask(found, yes, json_)
    wanted = {"type": kind, "bytes": found["bytes"]} if kind else None
    job = client.call("POST", "/models/folders", {"path": str(folder), "name": model, "form": wanted})
    job = follow(client, job["id"], json_, bar)
    if job["state"] != DONE:
        raise DaemonError(f"{model} was not made: llmctl jobs show {job['id']}")
    return model, kind


def _ask(found: dict[str, Any], yes: bool, json_: bool) -> None:
    model, kind = found["model"], found["type"]
    if found["why"]:
        click.echo(f"{safe(model)} does not fit in full precision: {safe(found['why'])}", err=True)
    makes, disk = size(found["bytes"]), size(found["now"] + found["bytes"])
    click.echo(f"As {kind} it takes {makes} instead of {size(found['now'])}.", err=True)
    click.echo(
        f"Converting, quantizing and deploying it takes about {long(found['seconds'])} here, and {disk} of "
        f"{size(found['free'])} of disk.", err=True,
    )  # fmt: skip
    if yes:
        return
    if json_ or not sys.stdin.isatty():
        raise DaemonError(f"{model} fits as {kind} only; --yes makes that, and deploys it", "does_not_fit")
    click.confirm("Do that?", abort=True, err=True)


def long(seconds: float) -> str:
    return f"{max(1, round(seconds))} s" if seconds < 120 else span(seconds)
