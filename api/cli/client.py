"""`llmctl client`: who may connect."""

import os
import sys
from pathlib import Path
from urllib.parse import quote

import click

from llmd.api.cli.connection import Client
from llmd.api.cli.terminal import SHORT, as_json, json_before, moment, safe, short, show_json, table


@click.group()
@json_before
def client() -> None:
    """Issue, list and revoke client certificates; give roles."""


@client.command()
@click.argument("name")
@click.option("--days", type=int, default=90, show_default=True, help="How long it is valid.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), default=Path(), help="Folder for the files.")
@click.option("--role", help="infer (the default), operator, admin or auditor.")
@click.option("--again", is_flag=True, help="One more certificate for a client that has one.")
@click.option("--force", is_flag=True, help="Overwrite files that are there.")
@as_json
@click.pass_obj
def issue(
    daemon: Client, name: str, days: int, out: Path, role: str | None, again: bool, force: bool, json_: bool
) -> None:
    """Make a certificate: NAME.crt, NAME.key and ca.crt. The key is kept nowhere else."""
    files = {"certificate": out / f"{name}.crt", "key": out / f"{name}.key", "ca": out / "ca.crt"}
    taken = [str(files[part]) for part in ("certificate", "key") if files[part].exists()]
    if taken and not force:
        raise click.UsageError(f"{taken[0]} is there already; give --force or another --out")
    made = daemon.call("POST", "/clients", {"name": name, "days": days, "role": role, "again": again})
    try:
        out.mkdir(parents=True, exist_ok=True)
        for part, mode in (("certificate", 0o644), ("key", 0o600), ("ca", 0o644)):
            _write(files[part], made.pop(f"{part}_pem"), mode)
    except OSError as e:
        raise click.ClickException(
            f"{e.filename}: {e.strerror}; the certificate was made but its key is lost: revoke it with "
            f"`llmctl client revoke {name}`"
        ) from e
    if json_:
        return show_json({**made, "files": {part: str(path.absolute()) for part, path in files.items()}})
    click.echo(f"{safe(made['uri'])}, role {safe(made['role'])}, until {moment(made['not_after'])}")
    for path in files.values():
        click.echo(f"  {path}")
    where = f"--cacert {files['ca']} --cert {files['certificate']} --key {files['key']}"
    click.echo(f"try it: curl {where} https://{made['listen']}/v1/models")


def _write(path: Path, text: str, mode: int) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(fd, "w") as file:
        os.fchmod(fd, mode)
        file.write(text)


@client.command("list")
@as_json
@click.pass_obj
def list_(daemon: Client, json_: bool) -> None:
    """Every client and its certificates."""
    clients = daemon.call("GET", "/clients")["clients"]
    if json_:
        return show_json(clients)
    table(
        ("client", "role", "serial", "valid until", "revoked"),
        [
            (
                c["name"],
                c["role"],
                short(cert["serial"], SHORT),
                moment(cert["not_after"]),
                moment(cert["revoked_at"]) if cert["known"] else "not known here: refused",
            )
            for c in clients
            for cert in c["certificates"]
        ],
    )


@client.command()
@click.argument("name")
@click.argument("role")
@as_json
@click.pass_obj
def role(daemon: Client, name: str, role: str, json_: bool) -> None:
    """What a client may do: infer, operator (metrics), admin (both) or auditor. From its next request on."""
    done = daemon.call("POST", f"/clients/{quote(name, safe='')}/role", {"role": role})
    if json_:
        return show_json(done)
    click.echo(f"{safe(name)} has the role {safe(done['role'])}; it was {safe(done['before'])}")


@client.command()
@click.argument("name")
@click.option("--serial", metavar="S", help="Only the certificate whose serial number begins so.")
@as_json
@click.pass_obj
def revoke(daemon: Client, name: str, serial: str | None, json_: bool) -> None:
    """Refuse a client from now on; its connections and streams end."""
    # as `client list` shows it
    done = daemon.call("DELETE", f"/clients/{quote(name, safe='')}", serial=serial and serial.rstrip("…"))
    if json_:
        return show_json(done)
    if not done["revoked"]:
        click.echo(f"{safe(name)} had no {'such ' if serial else ''}certificate that was good")
        sys.exit(1)
    click.echo(f"revoked {safe(name)}: certificates {len(done['revoked'])}, connections cut {done['connections']}")
