"""`llmctl usage`: who has used what."""

import csv
import sys
from typing import Any

import click

from llmd.api.cli.connection import Client
from llmd.api.cli.terminal import as_json, show_json, span, table

BY = ("principal", "model", "group", "day")
FIGURES = ("requests", "prompt", "cached", "output", "seconds", "joules")


@click.command()
@click.option("--by", type=click.Choice(BY), default="principal", show_default=True, help="A line for each of these.")
@click.option("--since", default="30d", show_default=True, metavar="DAY", help="2026-11-30, or the last days: 7d.")
@click.option("--csv", "csv_", is_flag=True, help="Comma-separated values, with every digit.")
@as_json
@click.pass_obj
def usage(client: Client, by: str, since: str, csv_: bool, json_: bool) -> None:
    """Tokens, time and energy, by whom they were used."""
    found = client.call("GET", "/usage", by=by, since=since)
    if json_:
        return show_json(found)
    rows = found["rows"]
    if csv_:
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow((by, *FIGURES))
        writer.writerows((row[by], *(row[name] for name in FIGURES)) for row in rows)
        return
    lines = [(row[by] or "(none)", *_shown(row)) for row in rows]
    table(
        (by, "requests", "prompt", "cached", "output", "computed", "energy"),
        [*lines, ("total", *_shown(found["total"]))],
    )
    if found["idle_joules"]:
        click.echo(f"GPUs that computed nothing took {_energy(found['idle_joules'])}")


def _shown(figures: dict[str, Any]) -> tuple[str, ...]:
    counts = (f"{figures[name]:,}" for name in ("requests", "prompt", "cached", "output"))
    return (*counts, span(figures["seconds"]), _energy(figures["joules"]))


def _energy(joules: float) -> str:
    if not joules:
        return ""
    return f"{joules / 3.6e6:.2f} kWh" if joules >= 3.6e5 else f"{joules / 3600:.1f} Wh"
