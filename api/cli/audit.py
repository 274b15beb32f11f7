"""`llmctl audit`: who asked what."""

import csv
import json
import sys
from collections.abc import Iterator
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import click

from llmd.api.cli.completion import clients, models
from llmd.api.cli.connection import Client, DaemonError, NoDaemon
from llmd.api.cli.terminal import as_json, json_before, moment, safe, short, show_json

# of what a row says is shown whole: a name
MAX_NAME = 64


@click.group()
@json_before
def audit() -> None:
    """Read and verify the audit log."""


def _print(row: dict[str, Any], json_: bool) -> None:
    if json_:
        return click.echo(json.dumps(row))
    body = {k: v for k, v in row["body"].items() if v not in (None, "", 0)}
    details = " ".join(
        f"{k}={short(v, MAX_NAME)}" for k, v in body.items() if k not in ("digest", "params", "prompt_mac", "serial")
    )
    when = moment(row["ts"], seconds=True)
    click.echo(f"{row['seq']:>8} {when} {safe(row['kind']):<8} {safe(row['request'] or '')} {details}")


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


class Time(click.ParamType[str]):
    """A date or a time, in this machine's zone where it names none. As the daemon takes it: with its zone."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            return datetime.fromisoformat(value).astimezone().isoformat()
        except (ValueError, OverflowError):  # a zone can move the first or the last day out of the calendar
            self.fail("it takes a date or time, as in 2026-11-23, 2026-11-23T18:00 or 2026-11-23T18:00+01:00")


@audit.command()
@click.option("--principal", help="A client's name.", shell_complete=clients)
@click.option("--model", shell_complete=models)
@click.option("--outcome", help="ok, stop, length, cancelled, error or lost.")
@click.option("--kind", help="admit, finish, refused, start, stop or an admin's action.")
@click.option("--request", "request_", metavar="ID")
@click.option("--since", type=Time(), metavar="TIME", help="As in 2026-11-23 or 2026-11-23T18:00.")
@click.option("--until", type=Time(), metavar="TIME", help="What was before it.")
@click.option("--after", type=click.IntRange(0), metavar="ROW", help="The first rows after that one, not the newest.")
@click.option("--limit", type=click.IntRange(0), default=100, show_default=True, help="How many rows; 0: all.")
@click.option("--format", "format_", type=click.Choice(["text", "jsonl", "csv"]), help="jsonl is --json.")
@as_json
@click.pass_obj
def query(client: Client, /, json_: bool, request_: str | None, format_: str | None, **given: Any) -> None:
    """Rows that match everything given: the newest, oldest first. What is left out is told."""
    if json_ and format_ in ("text", "csv"):
        raise click.UsageError(f"--json is not --format {format_}: give one of them")
    show = _Csv().show if format_ == "csv" else partial(_print, json_=json_ or format_ == "jsonl")
    empty, older = True, False
    for page in pages(client, request=request_, **given):
        for row in page["rows"]:
            show(row)
        empty, older = empty and not page["rows"], older or page["older"]
    if empty:
        say("no row matches")
    if older:
        say("these are the newest: older rows match too; --after 0 begins with the first, --limit 0 shows all")
    if page["after"] is not None:
        say(f"more rows match: --after {page['after']} goes on")


def say(text: str) -> None:
    """Beside what was asked for."""
    click.echo(f"llmctl: {text}", err=True)


def pages(client: Client, *, limit: int, after: int | None = None, **query: Any) -> Iterator[dict[str, Any]]:
    """The daemon's pages of rows, one after the other, until there are `limit` of them; 0: all."""
    left = limit
    while True:
        page = client.call("GET", "/audit/query", limit=left, after=after, **query)
        yield page
        left, after = max(0, left - len(page["rows"])), page["after"]
        if after is None or limit and not left:
            return


class _Csv:
    """Rows as CSV (RFC 4180), times in UTC, with the fields that are asked for most in columns and all of them in
    `body`, which is JSON."""

    FIELDS = ("principal", "actor", "model", "outcome", "result")

    def __init__(self) -> None:
        self._write = csv.writer(sys.stdout, lineterminator="\n").writerow
        self._write(["seq", "ts", "kind", "request", *self.FIELDS, "body", "hash"])

    def show(self, row: dict[str, Any]) -> None:
        named = (row["body"].get(name) for name in self.FIELDS)
        cells = (row["ts"], row["kind"], row["request"], *named, json.dumps(row["body"]), row["hash"])
        self._write([row["seq"], *map(_cell, cells)])


def _cell(value: Any) -> str:
    """A text that no spreadsheet takes for a formula: clients choose models' names (OWASP: CSV Injection)."""
    text = safe(value)
    return f"'{text}" if text.lstrip().startswith(("=", "+", "-", "@", "＝", "＋", "－", "＠")) else text


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
        f", {moment(report['earliest'], seconds=True)} to {moment(report['latest'], seconds=True)}"
        if report["rows"]
        else ""
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
