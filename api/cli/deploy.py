"""`llmctl deploy`: a model serves, in a form that fits."""

import sys
from pathlib import Path
from typing import Any
from urllib.parse import quote

import click

from llmd.api.cli.completion import models_or_paths
from llmd.api.cli.connection import Client, DaemonError
from llmd.api.cli.jobs import DONE, follow
from llmd.api.cli.sources import is_path, long, made_of
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
    bar = None
    if is_path(model):
        bar = Progress(f"deploying {safe(Path(model).name)}", shown=not json_)
        try:
            model, form = made_of(client, asked, name, yes, bar, json_)
        except BaseException:
            bar.end()
            raise
        asked |= {"model": model, "form": form}
    try:
        last = _deployed(client, asked, json_ or bar is not None)
    except DaemonError as error:
        if error.code not in NO_ROOM or asked["form"] or "@" in model:
            raise
        made = _make_one_that_fits(client, asked, error, yes, json_)
        last = _deployed(client, {**asked, "form": made}, json_)
    finally:
        if bar:
            bar.end()
    if json_:
        return show_json(last)
    click.echo(
        f"{safe(model)} is ready: {last['slots']} slots of {last['context']} tokens, keys and values {last['kv']}, "
        f"on {safe(', '.join(last['gpus'])) or 'the CPU'}{_copies(last)}"
    )


def _deployed(client: Client, asked: dict[str, Any], json_: bool) -> dict[str, Any]:
    last: dict[str, Any] = {}
    for last in client.events("POST", "/deploy", asked):
        if not json_ and last["state"] != "ready":
            click.echo(f"{safe(asked['model'])}: {last['state']}", err=True)
    return last


def _make_one_that_fits(client: Client, asked: dict[str, Any], error: DaemonError, yes: bool, json_: bool) -> str:
    """The type of a form that was made; raises `error` where none would fit, or nobody wants it."""
    model = asked["model"]
    try:
        best = client.call("POST", "/fitting", asked)
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
    wanted = {"type": best["type"], "requantize": best["again"]}
    job = client.call("POST", f"/models/{quote(model, safe='')}/quantize", wanted)
    if follow(client, job["id"], json_)["state"] != DONE:
        raise DaemonError(f"{model} was not made as {best['type']}: llmctl jobs show {job['id']}")
    return str(best["type"])


def _copies(model: dict[str, Any]) -> str:
    serve = sum("slots" in one for one in model["replicas"])
    return f", {serve} replicas" if serve > 1 else ""
