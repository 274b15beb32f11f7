"""`llmctl jobs`, and following one that was started."""

import sys
from typing import Any

import click

from llmd.api.cli.connection import Client
from llmd.api.cli.terminal import Progress, as_json, facts, json_before, moment, safe, show_json, size, table

DONE = "done"
SIZES = {"bytes", "read", "size", "done", "total"}


@click.group(invoke_without_command=True)
@json_before
@click.pass_context
def jobs(ctx: click.Context) -> None:
    """What takes a while: quantizing, converting. It goes on without anybody, and after a restart."""
    if ctx.invoked_subcommand is None:
        ctx.invoke(list_)


@jobs.command("list")
@as_json
@click.pass_obj
def list_(client: Client, json_: bool) -> None:
    """Every job, the oldest first."""
    found = client.call("GET", "/jobs")["jobs"]
    if json_:
        return show_json(found)
    table(
        ("job", "what", "model", "state", "begun", "ended", "result"),
        [(j["id"], _what(j), j["model"], _state(j), moment(j["started"]) if j["started"] else "",
          moment(j["ended"]) if j["ended"] else "", j["error"] or _made(j)) for j in found],
    )  # fmt: skip


@jobs.command()
@click.argument("number", type=int)
@click.option("--wait", is_flag=True, help="Until it has ended; Ctrl-C stops waiting and nothing else.")
@as_json
@click.pass_obj
def show(client: Client, number: int, wait: bool, json_: bool) -> None:
    """Everything known of one job."""
    job = follow(client, number, json_) if wait else client.call("GET", f"/jobs/{number}")
    if json_:
        show_json(job)
    elif not wait:
        told = {**_flat(job.pop("asked")), **_flat(job.pop("result")), **job}
        facts({key.replace("_", " "): size(told[key]) if key in SIZES else value for key, value in told.items()})
    if wait and job["state"] != DONE:
        sys.exit(1)


@jobs.command()
@click.argument("number", type=int)
@as_json
@click.pass_obj
def cancel(client: Client, number: int, json_: bool) -> None:
    """End it; nothing of it is left."""
    job = client.call("DELETE", f"/jobs/{number}")
    show_json(job) if json_ else click.echo(f"job {number} is {job['state']}")


@jobs.command()
@click.argument("number", type=int)
@as_json
@click.pass_obj
def logs(client: Client, number: int, json_: bool) -> None:
    """What it said, the last lines."""
    found = client.call("GET", f"/jobs/{number}/log")
    if json_:
        return show_json(found)
    for line in found["lines"]:
        click.echo(safe(line))


def follow(client: Client, number: int, json_: bool, bar: Progress | None = None) -> dict[str, Any]:
    """A bar until it has ended, and how. Ctrl-C goes away from it. `bar`: one that goes on behind it."""
    job: dict[str, Any] = {}
    own = bar is None  # else whoever gave it ends it
    try:
        for event in client.events("POST", f"/jobs/{number}/follow"):
            job = event["job"]
            if job.get("total"):
                bar = bar or Progress(f"job {number}, {_what(job)} of {safe(job['model'])}", shown=not json_)
                bar.at(job["done"], job["total"])
    except KeyboardInterrupt:
        if bar:
            bar.end()
        click.echo(
            f"it goes on: llmctl jobs show {number} --wait comes back, llmctl jobs cancel {number} ends it", err=True
        )
        raise
    if bar and (own or job["state"] != DONE):
        bar.end()
    if not json_ and (own or job["state"] != DONE):
        click.echo(_ended(job), err=job["state"] != DONE)
    return job


def _flat(told: dict[str, Any]) -> dict[str, Any]:
    """Without names within names. A proof is what `llmctl model show` has in words."""
    found: dict[str, Any] = {}
    for name, value in told.items():
        found |= _flat(value) if isinstance(value, dict) and name != "proof" else {name: value}
    return {name: value for name, value in found.items() if name not in ("proof", "replicas")}


def _what(job: dict[str, Any]) -> str:
    return f"{safe(job['kind'])} {safe(job['asked'].get('type', ''))}".strip()


def _made(job: dict[str, Any]) -> str:
    return str(job["result"].get("form") or job["result"].get("model", ""))


def _state(job: dict[str, Any]) -> str:
    if not job.get("total"):
        return str(job["state"])
    left = "" if job["seconds_left"] is None else f", {job['seconds_left']:.0f} s left"
    return f"{job['state']}, {100 * job['done'] / job['total']:.0f} %{left}"


def _ended(job: dict[str, Any]) -> str:
    if job["state"] == DONE:
        return f"made {safe(_made(job))}"
    why = f": {safe(job['error'])}" if job["error"] else ""
    return f"job {job['id']} is {job['state']}{why}; llmctl jobs logs {job['id']} has what it said"
