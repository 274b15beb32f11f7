"""`llmctl audit`: who asked what."""

import json
import sys
from pathlib import Path
from typing import Any

import click

from llmd.api.cli.connection import Client, DaemonError, NoDaemon
from llmd.api.cli.terminal import as_json, json_before, safe, short, show_json


@click.group()
@json_before
def audit() -> None:
    """Read and verify the audit log."""


def _print(row: dict[str, Any], json_: bool) -> None:
    if json_:
        return click.echo(json.dumps(row))
    body = {k: v for k, v in row["body"].items() if v not in (None, "", 0)}
    details = " ".join(
        f"{k}={short(v)}" for k, v in body.items() if k not in ("digest", "params", "prompt_mac", "serial")
    )
    click.echo(f"{row['seq']:>8} {safe(row['ts'])[:19]} {safe(row['kind']):<8} {safe(row['request'] or '')} {details}")


@audit.command()
@click.option("-n", "count", type=click.IntRange(0, 2000), default=20, show_default=True, help="How many rows.")
@click.option("-f", "follow", is_flag=True, help="Wait for new rows; Ctrl-C ends.")
@as_json
@click.pass_obj
def tail(client: Client, count: int, follow: bool, json_: bool) -> None:
    """The last rows."""
    if not follow:
        for row in client.call("GET", "/audit/tail", n=count)["rows"]:
            _print(row, json_)
        return
    for row in client.events("GET", "/audit/tail", n=count, follow=1):
        _print(row, json_)
        sys.stdout.flush()


@audit.command()
@click.option("--principal", help="A client's name.")
@click.option("--model")
@click.option("--outcome", help="ok, stop, length, cancelled, error or lost.")
@click.option("--kind", help="admit, finish, refused, start, stop or an admin's action.")
@click.option("--request", "request_", metavar="ID")
@click.option("--since", metavar="TIME", help="As in 2026-11-23 or 2026-11-23T18:00.")
@click.option("--until", metavar="TIME")
@click.option("--limit", type=click.IntRange(1, 2000), default=100, show_default=True)
@as_json
@click.pass_obj
def query(client: Client, /, json_: bool, request_: str | None, **given: Any) -> None:
    """Rows that match everything given."""
    rows = client.call("GET", "/audit/query", request=request_, **given)["rows"]
    for row in rows:
        _print(row, json_)
    if not rows:
        click.echo("llmctl: no row matches", err=True)


@audit.command()
@click.argument("file", type=click.Path(path_type=Path), required=False)
@as_json
@click.pass_obj
def verify(client: Client, file: Path | None, json_: bool) -> None:
    """Check the chain of the daemon's log, or without a daemon that of a FILE, copied or live; says where it breaks.

    Exit codes: 0 it holds, 1 it is broken, 2 it could not be checked.
    """
    report = _report(client, file)
    read = f"{report['rows']} rows" + (
        f", {report['earliest'][:19]}Z to {report['latest'][:19]}Z" if report["rows"] else ""
    )
    if json_:
        show_json(report)
    elif report["verdict"] == "holds":
        click.echo(f"the chain holds: {read}, read from {safe(report['source'])}\nhead {report['head']}")
    elif report["verdict"] == "broken":
        click.echo(f"THE CHAIN IS BROKEN at row {report['broken']['seq']}: {safe(report['broken']['detail'])}")
        click.echo(f"good before it: {read}, read from {safe(report['source'])}")
    else:
        click.echo(f"NOT CHECKED: {safe(report['error'])}", err=True)
    sys.exit({"holds": 0, "broken": 1}.get(report["verdict"], 2))


def _report(client: Client, file: Path | None) -> dict[str, Any]:
    if file is not None:
        from llmd.daemon.audit.offline import verify_file  # only here: it works without a daemon

        return verify_file(file).to_dict()
    try:
        return client.call("GET", "/audit/verify")
    except (NoDaemon, DaemonError) as e:
        return {"ok": False, "verdict": "unchecked", "rows": 0, "error": str(e)}
