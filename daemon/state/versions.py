"""`state.db` from one version of llmd to the next, and back.

Before a migration the file is copied beside itself (`state.db.v6` is how version 6 of the tables left it). An older
llmd that finds a newer file takes that copy. What was decided since about who may connect and use what goes with it:
whoever lost a role, a certificate or a model does not get it back. One connection to a file at a time.
"""

import os
import sqlite3
from contextlib import closing, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from llmd.daemon import atomic

# who may connect, and use what: these columns are there since the first version that has the table
_IDENTITY = (
    "INSERT INTO principals (name, role, created) SELECT name, role, created FROM newer.principals WHERE true "
    "ON CONFLICT (name) DO UPDATE SET role = excluded.role",
    "INSERT INTO certificates (serial, principal, not_before, not_after, revoked_at, issued) "
    "SELECT serial, principal, not_before, not_after, revoked_at, issued FROM newer.certificates WHERE true "
    "ON CONFLICT (serial) DO UPDATE SET revoked_at = coalesce(revoked_at, excluded.revoked_at)",
    "INSERT INTO policies (version, created, actor, text) SELECT version, created, actor, text FROM newer.policies "
    "WHERE true ON CONFLICT (version) DO UPDATE SET text = excluded.text",
)
# what of the rest is told: a name, and what it is; a model's own form goes with it
_TOLD = {
    "model": "SELECT name, digest FROM {}.models",
    "form": "SELECT model || '@' || type, digest FROM {}.forms WHERE model IN (SELECT name FROM main.models)",
    "deployment of": "SELECT model, json_array(ctx, slots, placement, replicas) FROM {}.deployments",
}


@dataclass(frozen=True, slots=True)
class Restored:
    """An older version's copy was taken. `taken`: when it was made; `lost`: what is not in it, in a line each."""

    found: int
    version: int
    taken: str
    lost: tuple[str, ...]

    def __str__(self) -> str:
        lost = "; ".join(self.lost) or "nothing"
        return (
            f"a newer llmd wrote the state database (version {self.found}): version {self.version} is used, as it was "
            f"on {self.taken}. Lost: {lost}"
        )


def copy(path: Path, version: int) -> Path:
    """Where the tables of that version are kept."""
    return path.with_name(f"{path.name}.v{version}")


def keep(connection: sqlite3.Connection, path: Path, version: int) -> None:
    """Copy an open database that is of `version`; on disk when it returns. Raises OSError, sqlite3.Error."""
    part = _part(copy(path, version))
    with closing(sqlite3.connect(part)) as target:
        connection.backup(target)
        _single(target)
    _put(part, copy(path, version))


def back(path: Path, version: int) -> Restored | None:
    """Put the copy of `version` in the place of a newer file, where there is such a copy; the newer one is kept beside
    it. None: there is nothing to do, or it cannot be done. Raises OSError, sqlite3.Error, and leaves the file then."""
    kept = copy(path, version)
    if not path.exists() or not kept.exists():
        return None
    with closing(sqlite3.connect(path)) as newer:
        found = int(newer.execute("PRAGMA user_version").fetchone()[0])
        if found <= version:
            return None
        _single(newer)
        newer_copy = _part(copy(path, found))
        with closing(sqlite3.connect(newer_copy)) as target:
            newer.backup(target)
    _put(newer_copy, copy(path, found))
    part = _part(path)
    part.write_bytes(kept.read_bytes())
    with closing(sqlite3.connect(part, isolation_level=None)) as older:
        older.execute("ATTACH ? AS newer", (str(copy(path, found)),))
        lost = _join(older)
    _put(part, path)
    taken = datetime.fromtimestamp(kept.stat().st_mtime, UTC)
    return Restored(found, version, f"{taken:%Y-%m-%d %H:%M} UTC", lost)


def _join(older: sqlite3.Connection) -> tuple[str, ...]:
    """Take over who may connect, and tell what else is only in the newer one."""
    lost = []
    try:
        older.execute("BEGIN IMMEDIATE")
        for statement in _IDENTITY:
            older.execute(statement)
        older.execute("COMMIT")
    except sqlite3.Error:
        if older.in_transaction:
            older.execute("ROLLBACK")
        lost.append(
            "clients, certificates, roles and policies since then: revoke what must not be good, it stays on the list"
        )
    for what, query in _TOLD.items():
        try:
            now, then = (dict(older.execute(query.format(name)).fetchall()) for name in ("newer", "main"))
            lost += [f"{what} {name}" for name in sorted(now.keys() - then.keys())]
            lost += [f"the end of {what} {name}" for name in sorted(then.keys() - now.keys())]
            both = sorted(now.keys() & then.keys())
            lost += [f"a change of {what} {name}" for name in both if now[name] != then[name]]
        except sqlite3.Error:
            lost.append(f"each {what} since then")
    return tuple(lost)


def _single(connection: sqlite3.Connection) -> None:
    """One file, without a log beside it."""
    connection.execute("PRAGMA journal_mode = DELETE").fetchall()


def _part(file: Path) -> Path:
    """Where a file is made that is to become `file`; empty, for its owner alone."""
    part = file.with_name(f"{file.name}.part")
    part.unlink(missing_ok=True)
    os.close(os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    return part


def _put(part: Path, file: Path) -> None:
    try:
        fd = os.open(part, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
        part.replace(file)
    except OSError:
        with suppress(OSError):
            part.unlink()
        raise
    atomic.sync_folder(file.parent)
