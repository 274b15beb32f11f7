"""`llmctl policy` and `llmctl group`: who may use what."""

import sys
import tempfile
from pathlib import Path
from typing import Any

import click

from llmd.api.cli import completion
from llmd.api.cli.audit import Time
from llmd.api.cli.connection import Client, DaemonError, NoDaemon
from llmd.api.cli.terminal import as_json, json_before, moment, safe, show_json, table

# names of clients in a line
MAX_CLIENTS = 5
yes_option = click.option("--yes", is_flag=True, help="Do not ask, whatever it takes away.")


@click.group()
@json_before
def policy() -> None:
    """Who may use which models, by which routes, how much and when. Without one, roles alone decide."""


@policy.command()
@click.argument("version", type=click.IntRange(0), required=False)
@as_json
@click.pass_obj
def show(client: Client, version: int | None, json_: bool) -> None:
    """The policy that holds, or one that held before, as it was written."""
    found = client.call("GET", "/policy", version=version)
    if json_:
        return show_json(found)
    if not found["text"]:
        click.echo("there is no policy: roles alone decide; llmctl policy edit begins one", err=True)
    click.echo("\n".join(map(safe, found["text"].splitlines())))


@policy.command()
@as_json
@click.pass_obj
def history(client: Client, json_: bool) -> None:
    """Every policy that held, and who set it; the audit log has them too (kind admin.policy)."""
    versions = client.call("GET", "/policy/history")["versions"]
    if json_:
        return show_json(versions)
    table(
        ("version", "since", "set by", ""),
        [
            (v["version"], moment(v["created"]), v["actor"], "; ".join(
                [*(["holds"] if v["holds"] else []), *([] if v["exists"] else ["no policy: roles alone decide"])]))
            for v in versions
        ],
    )  # fmt: skip


@policy.command()
@click.option("--file", "file", type=click.Path(path_type=Path, allow_dash=True), metavar="F",
              help="What is to hold, instead of what an editor gives; - is standard input.")  # fmt: skip
@yes_option
@as_json
@click.pass_obj
def edit(client: Client, file: Path | None, yes: bool, json_: bool) -> None:
    """Change the policy in an editor (VISUAL or EDITOR). It is taken whole or refused with the line that is wrong; you
    are shown whom it takes what away, and asked."""
    now = client.call("GET", "/policy")
    if file is not None:
        return _apply(client, {"text": _text(file), "base": now["version"]}, yes, json_)
    before = now["text"] or client.call("GET", "/policy/begin")["text"]
    text = before
    while True:
        edited = click.edit(text, extension=".toml")
        if edited is None or edited.strip() in ("", before.strip()):
            click.echo("nothing was changed", err=True)
            return
        text = edited
        try:
            return _apply(client, {"text": text, "base": now["version"]}, yes, json_)
        except (DaemonError, NoDaemon, click.Abort) as e:
            gone = isinstance(e, NoDaemon) or isinstance(e.__context__, KeyboardInterrupt)
            if gone or not sys.stdin.isatty():
                _keep(text)
                raise
            if isinstance(e, DaemonError):
                click.echo(f"llmctl: {safe(str(e))}", err=True)
            if not _again(isinstance(e, DaemonError)):
                _keep(text)
                sys.exit(1)


def _text(file: Path) -> str:
    raw = sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
    try:
        return raw.decode("utf-8-sig")  # some editors begin a file with a byte order mark
    except UnicodeDecodeError as e:
        raise click.ClickException(f"{file}: this is not UTF-8 text") from e


def _again(refused: bool) -> bool:
    try:
        return click.confirm("Edit it again?", default=refused, err=True)
    except click.Abort:
        return False


def _keep(text: str) -> None:
    """What was written is not lost."""
    with tempfile.NamedTemporaryFile("w", prefix="llmd-policy-", suffix=".toml", delete=False) as kept:
        kept.write(text)
    click.echo(f"what you wrote is in {kept.name}: llmctl policy edit --file {kept.name}", err=True)


@policy.command()
@click.argument("version", type=click.IntRange(0))
@yes_option
@as_json
@click.pass_obj
def revert(client: Client, version: int, yes: bool, json_: bool) -> None:
    """What held as VERSION holds again, as a new version; 0: no policy, roles alone decide."""
    _apply(client, {"revert": version}, yes, json_)


@policy.command()
@click.argument("name", metavar="CLIENT", shell_complete=completion.clients)
@click.argument("model", shell_complete=completion.models)
@click.argument("route")
@click.option("--at", type=Time(), metavar="TIME", help="As in 2026-11-23T18:00; without it: now.")
@as_json
@click.pass_obj
def test(client: Client, name: str, model: str, route: str, at: str | None, json_: bool) -> None:
    """Whether a client may ask a model by a route (as /v1/chat/completions), or the rule that forbids.

    Exit codes: 0 allowed, 1 forbidden.
    """
    found = client.call("POST", "/policy/test", {"client": name, "model": model, "route": route, "at": at})
    if json_:
        show_json(found)
    else:
        bounds = [f"{what} {found[key]:,} tokens" for key, what in _BOUNDS.items() if found[key]]
        forms = [f"forms {', '.join(found['forms'])}"] if found["forms"] else []
        left = [f"{one['name']}: {one['left']:,} of {one['most']:,} left" for one in found["left"]]
        weight = [f"weight {found['weight']:g}"] if found["weight"] != 1 else []
        deadline = [f"deadline {found['deadline']:,} s"] if found["deadline"] else []
        more = "; ".join([*forms, *bounds, *left, *weight, *deadline, *([found["note"]] if found["note"] else [])])
        told = "allowed" if found["allowed"] else f"forbidden: {found['rule']}"
        click.echo(safe(f"{told}{f' ({more})' if more else ''}"))
    if not found["allowed"]:
        sys.exit(1)


_BOUNDS = {"context": "context", "output": "output"}


# --- groups


@click.group()
@json_before
def group() -> None:
    """Groups of clients, as the policy names them."""


@group.command("list")
@as_json
@click.pass_obj
def list_(client: Client, json_: bool) -> None:
    """Every group and its clients."""
    groups = client.call("GET", "/groups")["groups"]
    if json_:
        return show_json(groups)
    for one in groups:
        click.echo(safe(f"{one['name']}: {', '.join(one['clients'])}"))


@group.command()
@click.argument("name")
@click.argument("clients", nargs=-1, required=True, metavar="CLIENT…", shell_complete=completion.clients)
@yes_option
@as_json
@click.pass_obj
def add(client: Client, name: str, clients: tuple[str, ...], yes: bool, json_: bool) -> None:
    """Add clients to a group, which is made where there is none. Without a policy one is made that takes nothing from
    anybody."""
    _apply(client, {"group": name, "add": clients}, yes, json_)


@group.command()
@click.argument("name")
@click.argument("clients", nargs=-1, metavar="[CLIENT…]", shell_complete=completion.clients)
@yes_option
@as_json
@click.pass_obj
def remove(client: Client, name: str, clients: tuple[str, ...], yes: bool, json_: bool) -> None:
    """Remove clients from a group, or without any the group itself."""
    _apply(client, {"group": name, "remove": clients, "gone": not clients}, yes, json_)


# --- what all of them do


def _apply(client: Client, asked: dict[str, Any], yes: bool, json_: bool) -> None:
    """Ask the daemon what it would do, show that, ask, and have it done to the very policy that was looked at."""
    found = client.call("POST", "/policy", {**asked, "dry": True})
    takes = [one for one in found["changes"] if one["takes"]]
    if not json_:
        _tell(found)
    if found["version"] == found["before"]:
        if json_:
            return show_json(found)
        return click.echo("nothing changes")
    if takes and not yes:
        if json_ or not sys.stdin.isatty():
            whom = _clients(sorted(name for one in takes for name in one["clients"]))
            raise DaemonError(f"it takes something away from {whom}: --yes does that", "takes_away")
        click.confirm("Do that?", abort=True, err=True)
    done = client.call("POST", "/policy", {**asked, "base": found["before"]})
    if json_:
        return show_json(done)
    ended = f"; running answers that it ended: {done['ended']}" if done["ended"] else ""
    click.echo(f"policy {done['version']} holds{ended}")


def _tell(found: dict[str, Any]) -> None:
    for one in found["changes"]:
        who = _clients(one["clients"])
        if one["takes"]:
            click.echo(safe(f"takes from {who}: {'; '.join(one['takes'])}"), err=True)
        if one["gives"]:
            click.echo(safe(f"gives {who}: {'; '.join(one['gives'])}"), err=True)
    for remark in found["remarks"]:
        click.echo(safe(f"note: {remark}"), err=True)


def _clients(names: list[str]) -> str:
    more = f" and {len(names) - MAX_CLIENTS} more" if len(names) > MAX_CLIENTS else ""
    return ", ".join(names[:MAX_CLIENTS]) + more
