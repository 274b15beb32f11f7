"""`llmctl doctor`: what the daemon finds, what systemd knows of its unit, and where the daemon does not answer, why."""

import sys
import time
from typing import Any

import click

from llmd.api.cli import credential, network, unit
from llmd.api.cli.connection import Client, DaemonError, NoDaemon
from llmd.api.cli.terminal import as_json, safe, show_json

Check = dict[str, Any]
# a unit that fails is started again and again: its last words are there in between
WORDS_SECONDS = 6.0
LOOK_SECONDS = 0.2
NO_CREDENTIAL = "243"  # systemd.exec(5): a credential could not be handed in
MARKS = {True: "ok  ", False: "FAIL", None: "info"}


@click.command()
@as_json
@click.pass_obj
def doctor(client: Client, json_: bool) -> None:
    """What is wrong on this machine, and what to do."""
    try:
        checks = client.call("GET", "/doctor")["checks"]
    except NoDaemon as e:
        checks = [_away(str(e))]
    try:
        checks += [*network.checks(), *credential.checks()]
    except DaemonError as e:
        checks.append({"name": "systemd", "ok": False, "message": str(e), "fix": "systemctl status llmd"})
    if json_:
        show_json({"checks": checks})
    else:
        for c in checks:
            click.echo(f"{MARKS[c['ok']]}  {safe(c['name'])}: {safe(c['message'])}")
            if c["fix"]:
                click.echo(f"      do: {safe(c['fix'])}")
    if any(c["ok"] is False for c in checks):
        sys.exit(3 if checks[0]["name"] == "daemon" else 1)


def _away(reason: str) -> Check:
    """Why nobody answers: 1. it was stopped; 2. it fails: systemd cannot start it, or with its last words, or without;
    3. it starts or serves, or there is no unit: what connecting says."""
    found = _unit()
    state, words = found.get("ActiveState", ""), found.get("StatusText", "")
    if state == "inactive":  # 1
        reason, fix = "it is stopped", "systemctl start llmd"
    elif found.get("ExecMainStatus") == NO_CREDENTIAL:  # 2
        reason, fix = "systemd cannot hand in the CA's key: its file is away", "put it back, or llmctl ca-key --none"
    elif words.startswith("failed: "):
        reason, fix = words.removeprefix("failed: "), "do what it says: systemd starts it again by itself"
    elif state in ("failed", "activating"):
        reason, fix = f"it does not come up ({found.get('Result') or state})", "journalctl -u llmd -n 30"
    else:  # 3
        fix = "systemctl start llmd, or llmd serve"
    return {"name": "daemon", "ok": False, "message": reason, "fix": fix}


def _unit() -> dict[str, str]:
    """What systemd knows of the service; between two of its starts, with its last words."""
    end = time.monotonic() + WORDS_SECONDS
    while True:
        try:
            found = unit.told(unit.SERVICE, "ActiveState", "Result", "StatusText", "ExecMainStatus")
        except DaemonError:
            return {}
        waits = found.get("ActiveState") == "activating" and not found.get("StatusText")
        if not waits or time.monotonic() > end or found.get("ExecMainStatus") == NO_CREDENTIAL:
            return found
        time.sleep(LOOK_SECONDS)
