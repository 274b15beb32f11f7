"""`llmctl ca-key`: the CA's root key lies where only root reads, and systemd hands it to the service."""

import re
import stat
from pathlib import Path
from typing import Any

import click

from llmd.api.cli import unit
from llmd.api.cli.connection import DaemonError
from llmd.api.cli.terminal import as_json, safe, show_json

DROP_IN = "credential"
LOAD = "LoadCredential"
NAME = "root.key"


@click.command("ca-key")
@click.argument("file", required=False, type=click.Path(path_type=Path))
@click.option("--none", "none", is_flag=True, help="No longer: it is in the state folder again, or nowhere.")
@as_json
def ca_key(file: Path | None, none: bool, json_: bool) -> None:
    """Have systemd hand in the CA's root key from FILE, from the next start on."""
    if (file is None) != none:
        raise click.UsageError("give FILE, or --none")
    unit.change(DROP_IN, {unit.SERVICE: [f"{LOAD}={NAME}:{_checked(file)}"] if file else []})
    if json_:
        return show_json({"ca_key": str(file) if file else None})
    click.echo(f"from the next start on {NAME} comes from {safe(str(file)) if file else 'the state folder'}")
    click.echo("restart it: systemctl restart llmd")


def _checked(file: Path) -> Path:
    """Raises DaemonError for a file that is not for this, with what to type."""
    if not re.fullmatch(r"/[A-Za-z0-9_./-]+", str(file)):
        raise click.UsageError("FILE begins at /, and has letters, digits, dots, hyphens and underscores")
    try:
        found = file.stat()
        if not stat.S_ISREG(found.st_mode):
            raise DaemonError(f"{file} is no file")
        if b"PRIVATE KEY" not in file.read_bytes()[:4096]:
            raise DaemonError(f"{file} holds no private key: it is pki/root.key of llmd's state folder that is wanted")
    except OSError as e:
        raise DaemonError(f"{file} cannot be read: {e.strerror}") from e
    if found.st_uid != 0 or found.st_mode & 0o077:
        raise DaemonError(f"{file} is not root's alone: chown root: {file} && chmod 600 {file}")
    return file


def checks() -> list[dict[str, Any]]:
    """Doctor's: where it comes from, where somebody has said so."""
    handed = [one for one in unit.held(unit.SERVICE, DROP_IN, LOAD) if one.startswith(f"{NAME}:")]
    return [
        {"name": "ca key", "ok": True, "message": f"systemd hands it in from {one.partition(':')[2]}", "fix": ""}
        for one in handed
    ]
