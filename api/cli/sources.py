"""What a model comes from: a GGUF file, which is imported while its bar goes on, or a Hugging Face folder, by a job."""

import sys
from pathlib import Path
from typing import Any

import click

from llmd.api.cli.connection import Client, DaemonError
from llmd.api.cli.jobs import follow
from llmd.api.cli.terminal import Progress, safe, size, span


def is_path(text: str) -> bool:
    """A model's name has no slash, whatever lies in the folder where somebody is."""
    return "/" in text


def import_file(client: Client, file: Path, name: str | None, bar: Progress) -> dict[str, Any]:
    """The model. One that is imported already under that name stays as it is."""
    found: dict[str, Any] = {}
    for line in client.events("POST", "/models", {"path": str(file.absolute()), "name": name}):
        if "model" in line:
            found = line["model"]
        else:
            bar.at(line["done"], line["total"])
    return found


def import_folder(client: Client, folder: Path, name: str | None, *, wait: bool, json_: bool) -> dict[str, Any]:
    """The job, as it has ended where it was waited for."""
    job = client.call("POST", "/models/folders", {"path": str(folder.absolute()), "name": name})
    if not json_:
        click.echo(f"job {job['id']}: {safe(folder.name)} becomes {safe(job['model'])}", err=True)
    return follow(client, job["id"], json_) if wait else job


def is_file(path: str) -> bool:
    """Whether it is a GGUF file, and no folder: a folder's name may end so too; one that this user may not look into is
    the daemon's to read."""
    return Path(path).is_file() or (path.endswith(".gguf") and not Path(path).is_dir())


def fitting(client: Client, asked: dict[str, Any], name: str | None, yes: bool, json_: bool) -> dict[str, Any]:
    """What is to be made of the folder `asked["model"]`, as the daemon says it. One question at most."""
    folder = Path(asked["model"]).absolute()
    if not json_:
        click.echo(f"looking at {safe(folder.name)}", err=True)
    found: dict[str, Any] = client.call("POST", "/fitting/folder", {**asked, "model": str(folder), "name": name})
    if found["type"]:
        _ask(found, yes, json_)
    return found


def _ask(found: dict[str, Any], yes: bool, json_: bool) -> None:
    model, kind = found["model"], found["type"]
    if found["why"]:
        click.echo(f"{safe(model)} does not fit in full precision: {safe(found['why'])}", err=True)
    makes, disk = size(found["bytes"]), size(found["now"] + found["bytes"])
    if found["method"]:
        click.echo(f"Its weights are quantized already ({safe(found['method'])}): {kind} loses once more.", err=True)
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
