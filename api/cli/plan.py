"""`llmctl plan`: where a model would go, what it would take there, and why."""

from typing import Any

import click

from llmd.api.cli.completion import models
from llmd.api.cli.connection import Client
from llmd.api.cli.terminal import as_json, safe, show_json, size, table

HEADS = ("gpu", "name", "needs", "weights", "keys and values", "computing", "else", "free")


@click.command()
@click.argument("model", shell_complete=models)
@click.option("--ctx", type=int, metavar="N", help="Tokens a slot. Default: the configuration's, or less.")
@click.option(
    "--slots", type=int, metavar="N", help="Requests answered at once. Default: the configuration's, or less."
)
@click.option("--gpus", metavar="UUID,…", help="The GPUs that it is to lie on, as `nvidia-smi -L` names them.")
@click.option("--split", help="Over several GPUs: layer or tensor.")
@click.option("--kv", help="Type of keys and values: f16, q8_0 or q4_0.")
@click.option("--ubatch", type=int, metavar="N", help="The most tokens that a GPU computes in one pass.")
@click.option("--form", metavar="TYPE", help="Of several forms this one, as `llmctl model show` names them: Q4_K_M.")
@click.option("--explain", is_flag=True, help="What was tried before, and why it was not taken.")
@as_json
@click.pass_obj
def plan(client: Client, /, model: str, gpus: str | None, explain: bool, json_: bool, **given: Any) -> None:
    """Where an imported model would go; nothing is loaded."""
    named = [name.strip() for name in (gpus or "").split(",") if name.strip()]
    found = client.call("POST", "/plan", {"model": model, "gpus": named, **given})
    if json_:
        return show_json(found)
    if explain:
        for step in found["steps"]:
            click.echo(f"{'taken' if step['taken'] else 'not  '}  {safe(step['what'])}: {safe(step['why'])}")
    split = f", split by {found['split']}" if len(found["gpus"]) > 1 else ""
    click.echo(
        f"{safe(found['form'])}: {found['slots']} slots of {found['context']} tokens, keys and values "
        f"{found['kv']}{split}"
    )
    for line in found["buys"] if explain else ():
        click.echo(f"with {safe(line)}")
    table(HEADS, [_row(device) for device in found["devices"]])
    click.echo(f"deploy it so: {_command(model, found)}")


def _row(device: dict[str, Any]) -> tuple[str, ...]:
    need = device["need"]
    parts = (need[part] for part in ("total", "weights", "kv", "compute", "overhead"))
    return (device["uuid"] or "none", device["name"], *(size(part) for part in parts), size(device["free"]))


def _command(model: str, found: dict[str, Any]) -> str:
    """What deploys it just so."""
    flags = [f"--ctx {found['context']}", f"--slots {found['slots']}"]
    if found["kv"] != "f16":
        flags.append(f"--kv {found['kv']}")
    if found["gpus"]:
        flags += [f"--gpus {','.join(found['gpus'])}", f"--ubatch {found['ubatch']}"]
    if len(found["gpus"]) > 1:
        flags.append(f"--split {found['split']}")
    return safe(" ".join(["llmctl deploy", model, *flags]))
