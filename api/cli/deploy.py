"""`llmctl deploy`: a model serves, in a form that fits."""

import sys
from pathlib import Path
from typing import Any

import click

from llmd.api.cli.completion import models_or_paths
from llmd.api.cli.connection import Client, DaemonError
from llmd.api.cli.jobs import DONE, follow
from llmd.api.cli.sources import fitting, import_file, is_file, is_path, long
from llmd.api.cli.terminal import Progress, as_json, safe, show_json, size

# what a daemon says where memory does not hold a model
NO_ROOM = {"does_not_fit", "unavailable"}


@click.command()
@click.argument("model", metavar="MODEL|FILE|FOLDER", shell_complete=models_or_paths)
@click.option("--ctx", type=int, metavar="N", help="Tokens a slot. Default: the configuration's.")
@click.option("--slots", type=int, metavar="N", help="Requests answered at once. Default: the configuration's.")
@click.option("--gpus", metavar="UUID,…", help="The GPUs that it is to lie on. Default: those of `llmctl plan`.")
@click.option("--split", help="Over several GPUs: layer or tensor.")
@click.option("--kv", help="Type of keys and values: f16, q8_0 or q4_0.")
@click.option("--ubatch", type=int, metavar="N", help="The most tokens that a GPU computes in one pass.")
@click.option("--form", metavar="TYPE", help="Of several forms this one, as `llmctl model show` names them: Q4_K_M.")
@click.option(
    "--replicas", metavar="N|auto", default="1", help="Copies on different GPUs; auto: one on each that holds it whole."
)
@click.option("--name", metavar="N", help="Of what is imported. Default: from the name of the file or folder.")
@click.option("--evict/--no-evict", default=None, help="Where there is no room: take idle models out of service.")
@click.option("--yes", is_flag=True, help="Where no form of it fits, make one that does without asking.")
@as_json
@click.pass_obj
def deploy(
    client: Client, /, model: str, gpus: str | None, replicas: str, name: str | None, yes: bool, json_: bool,
    **given: Any,
) -> None:  # fmt: skip
    """Serve an imported model, or a GGUF file or Hugging Face folder, which is imported first; waits until it is ready.
    Where it does not fit, a form that does is proposed."""
    named = [name.strip() for name in (gpus or "").split(",") if name.strip()]
    if replicas != "auto" and not replicas.isdecimal():
        raise click.UsageError("--replicas takes a number, or auto")
    count = replicas if replicas == "auto" else int(replicas)
    asked = {"model": model, "gpus": named, "replicas": count, **given}
    if is_path(model):
        last = _of_path(client, asked, name, yes, json_)
        model = last["model"]
    else:
        last = _of_model(client, asked, yes, json_)
    if json_:
        return show_json(last)
    click.echo(
        f"{safe(model)} is ready: {last['slots']} slots of {last['context']} tokens, keys and values "
        f"{last['kv']}, on {safe(', '.join(last['gpus'])) or 'the CPU'}{_copies(last)}"
    )


def _of_path(client: Client, asked: dict[str, Any], name: str | None, yes: bool, json_: bool) -> dict[str, Any]:
    """A file is imported; what is to be made of a folder is one job of the daemon's, to its end."""
    bar = Progress(f"deploying {safe(Path(asked['model']).name)}", shown=not json_)
    try:
        if is_file(asked["model"]):
            model = import_file(client, Path(asked["model"]), name, bar)["name"]
            return _deployed(client, asked | {"model": model}, quiet=True)
        found = fitting(client, asked, name, yes, json_)
        if found["there"]:
            return _deployed(client, asked | {"model": found["model"]}, quiet=True)
        made = {"type": found["type"], "bytes": found["bytes"]} if found["type"] else None
        folder = {"model": str(Path(asked["model"]).absolute()), "name": found["model"], "made": made}
        return _served(client, client.call("POST", "/deploy/folder", asked | folder), json_, bar)
    finally:
        bar.end()


def _of_model(client: Client, asked: dict[str, Any], yes: bool, json_: bool) -> dict[str, Any]:
    try:
        return _deployed(client, asked, quiet=json_)
    except DaemonError as error:
        if error.code not in NO_ROOM or asked["form"] or "@" in asked["model"]:
            raise
        best = _one_that_fits(client, asked, error, yes, json_)
    job = client.call("POST", "/deploy/form", {**asked, "type": best["type"], "requantize": best["again"]})
    return _served(client, job, json_)


def _deployed(client: Client, asked: dict[str, Any], *, quiet: bool) -> dict[str, Any]:
    last: dict[str, Any] = {}
    for last in client.events("POST", "/deploy", asked):
        if not quiet and last["state"] != "ready":
            click.echo(f"{safe(asked['model'])}: {last['state']}", err=True)
    return last


def _served(client: Client, job: dict[str, Any], json_: bool, bar: Progress | None = None) -> dict[str, Any]:
    """What it serves with once the job is done."""
    job = follow(client, job["id"], json_, bar)
    if job["state"] != DONE:
        why = f"{job['error']}; " if json_ and job["error"] else ""  # people have read it
        raise DaemonError(f"{job['model']} does not serve: {why}llmctl jobs show {job['id']}")
    found: dict[str, Any] = job["result"]["serves"]
    return found


def _one_that_fits(client: Client, asked: dict[str, Any], error: DaemonError, yes: bool, json_: bool) -> dict[str, Any]:
    """The form to make; raises `error` where none would fit, or nobody wants it."""
    model = asked["model"]
    try:
        best: dict[str, Any] = client.call("POST", "/fitting", asked)
    except DaemonError:
        raise error from None
    click.echo(f"{safe(model)} does not fit: {safe(str(error))}", err=True)
    takes, free = size(best["bytes"]), size(best["free"])
    click.echo(f"As {best['type']} it would: {takes} instead of {size(best['now'])}.", err=True)
    click.echo(f"Making that takes about {long(best['seconds'])} here, and {takes} of {free} of disk.", err=True)
    if not yes:
        if json_ or not sys.stdin.isatty():
            raise DaemonError(f"no form of {model} fits; --yes makes {best['type']}, and deploys that", error.code)
        click.confirm("Make it?", abort=True, err=True)
    return best


def _copies(model: dict[str, Any]) -> str:
    serve = sum("slots" in one for one in model["replicas"])
    return f", {serve} replicas" if serve > 1 else ""
