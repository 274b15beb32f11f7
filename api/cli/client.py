"""`llmctl client`: who may connect."""

import os
import shlex
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from urllib.parse import quote

import click

from llmd.api.cli import completion
from llmd.api.cli.connection import Client, DaemonError
from llmd.api.cli.terminal import as_json, begins, json_before, moment, safe, show_json, table


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
    taken = [path for part, path in files.items() if _there(path) and (path.is_dir() or part != "ca" and not force)]
    if taken:
        do = "another --out" if taken[0].is_dir() else "--force or another --out"
        raise click.UsageError(f"{taken[0]} is there already; give {do}")
    with _room(out) as room:
        made = daemon.call("POST", "/clients", {"name": name, "days": days, "role": role, "again": again})
        try:
            for part, mode in (("certificate", 0o644), ("key", 0o600), ("ca", 0o644)):
                room.keep(files[part], made.pop(f"{part}_pem"), mode)
        except (OSError, KeyboardInterrupt) as e:
            daemon.call("DELETE", f"/clients/{quote(name, safe='')}", serial=made["serial"])
            if not isinstance(e, OSError):
                raise
            raise DaemonError(f"{e.filename}: {e.strerror}; the certificate that was made is revoked again") from e
    tried = made.pop("try")
    if json_:
        return show_json({**made, "files": {part: str(path.absolute()) for part, path in files.items()}})
    click.echo(f"{safe(made['uri'])}, role {safe(made['role'])}, until {moment(made['not_after'])}")
    for path in files.values():
        click.echo(f"  {safe(path)}")
    if not made["granted"]:
        click.echo(f"the policy gives {safe(name)} nothing yet: llmctl policy edit, or llmctl group add", err=True)
    host = ["-H", f"Host: {tried['host']}"] if tried["host"] else []
    where = ["--cacert", files["ca"], "--cert", files["certificate"], "--key", files["key"]]
    click.echo(f"try it: {safe(shlex.join(map(str, ['curl', *where, *host, tried['url']])))}")


def _there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name that no file can have: the daemon says which there are
        return False


class _Room:
    """Files that can be written, before there is anything to write: what they will take of the disk is theirs."""

    BYTES = 16384  # more than a certificate with its chain, or a key

    def __init__(self, folder: Path) -> None:
        self._files: list[Path] = []
        self._kept: list[Path] = []
        try:
            for _ in range(3):
                fd, name = tempfile.mkstemp(prefix=".llmctl-", dir=folder)
                self._files.append(Path(name))
                with os.fdopen(fd, "wb"):
                    os.posix_fallocate(fd, 0, self.BYTES)
        except OSError:
            self.close()
            raise

    def keep(self, path: Path, text: str, mode: int) -> None:
        """One more of them, under its name."""
        file = self._files[-1]
        with file.open("r+") as out:
            out.write(text)
            out.truncate()
            out.flush()
            os.fchmod(out.fileno(), mode)
            os.fsync(out.fileno())
        file.replace(path)
        self._kept.append(path)
        self._files.pop()

    def close(self) -> None:
        """Where not all is kept, nothing is."""
        for file in (*self._files, *(self._kept if self._files else ())):
            file.unlink(missing_ok=True)


@contextmanager
def _room(folder: Path) -> Iterator[_Room]:
    """Raises DaemonError for a folder that cannot be written. What fails leaves nothing."""
    with ExitStack() as failed:
        try:
            for one in [one for one in (folder, *folder.parents) if not one.exists()][::-1]:
                one.mkdir()
                failed.callback(_remove, one)
            room = _Room(folder)
        except OSError as e:
            raise DaemonError(f"{folder} cannot be written: {e.strerror}; nothing was made. Give another --out") from e
        with closing(room):
            yield room
        failed.pop_all()


def _remove(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()


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
                begins(cert["serial"]),
                moment(cert["not_after"]),
                moment(cert["revoked_at"]) if cert["known"] else "not known here: refused",
            )
            for c in clients
            for cert in c["certificates"]
        ],
    )


@client.command()
@click.argument("name", shell_complete=completion.clients)
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
@click.argument("name", shell_complete=completion.clients)
@click.option("--serial", metavar="S", help="Only the certificate whose serial number begins so.")
@as_json
@click.pass_obj
def revoke(daemon: Client, name: str, serial: str | None, json_: bool) -> None:
    """Refuse a client from now on; its connections and streams end."""
    # as `client list` shows it
    done = daemon.call("DELETE", f"/clients/{quote(name, safe='')}", serial=serial and serial.rstrip("…"))
    if json_:
        show_json(done)
    elif not done["revoked"]:
        click.echo(f"{safe(name)} had no {'such ' if serial else ''}certificate that was good")
    else:
        click.echo(f"revoked {safe(name)}: certificates {len(done['revoked'])}, connections cut {done['connections']}")
    if not done["revoked"]:
        sys.exit(1)
