"""`state.db` as a file of SQLite's: opened, brought up to date, and its rows as records. One thread at a time."""

import contextlib
import json
import os
import sqlite3
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from sqlite_utils import Database

from llmd.daemon import atomic
from llmd.daemon.errors import Conflict, NoSpace, Unavailable
from llmd.daemon.state import versions
from llmd.daemon.state.tables import MIGRATIONS, VERSION

# columns that hold JSON
JSON = frozenset({"info", "placement", "evicted", "asked", "result"})
Row = TypeVar("Row")


class StateFile:
    """Made when missing; None keeps it in memory. `restored`: a copy from before a newer llmd was taken. Every method
    raises NoSpace when the disk is full and Unavailable when the file is damaged or cannot be written; the constructor
    also when a newer llmd wrote the file and there is no copy from before."""

    def __init__(self, path: Path | None) -> None:
        self.restored: versions.Restored | None = None
        with explained():
            if path is not None:
                self.restored = versions.back(path, VERSION)
                # SQLite would create it readable for all; its -wal and -shm files take over this mode
                os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
                path.chmod(0o600)
            connection = sqlite3.connect(path or ":memory:", timeout=5.0, check_same_thread=False)
            try:
                self._db = Database(connection, execute_plugins=False, strict=True)
                self._prepare(path)
            except BaseException:
                connection.close()
                raise

    def _prepare(self, path: Path | None) -> None:
        for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON", "trusted_schema = OFF"):
            self._db.execute(f"PRAGMA {pragma}").fetchall()
        verdict = self._db.execute("PRAGMA quick_check(1)").fetchone()[0]
        if verdict != "ok":
            raise Unavailable("the state database is damaged: restore it from a backup")
        version = self._db.execute("PRAGMA user_version").fetchone()[0]
        if not 0 <= version <= VERSION:
            raise Unavailable(
                f"a newer llmd wrote the state database (version {version}, known {VERSION}), and there is no copy "
                "from before: upgrade llmd"
            )
        if path and 0 < version < VERSION:
            versions.keep(self._db.conn, path, version)
        try:
            with self._db.atomic():
                MIGRATIONS.apply(self._db)
        except Exception as e:
            if not version:
                raise
            raise Unavailable(
                f"the state database could not be brought from version {version} to {VERSION} ({e}): it is as it was, "
                "install the earlier llmd again"
            ) from e

    def close(self) -> None:
        self._db.close()

    @contextlib.contextmanager
    def atomic(self, conflict: str = "") -> Iterator[None]:
        """All of the block or nothing. With `conflict`, a broken constraint is a Conflict with these words."""
        with explained(conflict), self._db.atomic():
            yield

    def all(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        with explained():
            return list(self._db.execute(query, values))

    def rows(self, kind: type[Row], query: str, *values: Any) -> list[Row]:
        """Each as that record."""
        with explained():
            found = self._db.execute(query, values)
            names = [column[0] for column in found.description]
            rows: list[dict[str, Any]] = [dict(zip(names, row, strict=True)) for row in found]
        for row in rows:
            for column in JSON & row.keys():
                row[column] = unpacked(row[column])
        with _undamaged():
            return [msgspec.convert(row, kind) for row in rows]

    def insert(self, table: str, row: Any, taken: str) -> None:
        """A record. Raises Conflict with these words where a constraint is broken."""
        values = {f.name: getattr(row, f.name) for f in fields(row)}
        with self.atomic(taken):
            self._db.table(table).insert({k: packed(v) if k in JSON else v for k, v in values.items()})

    def write(self, statement: str, *values: Any) -> int:
        """How many rows changed."""
        with self.atomic():
            return int(self._db.execute(statement, values).rowcount)

    def add(self, statement: str, *values: Any) -> int:
        """The number of the row that an INSERT made."""
        with self.atomic():
            return int(self._db.execute(statement, values).lastrowid or 0)


def packed(value: object) -> str:
    return msgspec.json.encode(value).decode()


def unpacked(text: str) -> dict[str, Any]:
    with _undamaged():
        return dict(json.loads(text))


@contextlib.contextmanager
def _undamaged() -> Iterator[None]:
    try:
        yield
    except (ValueError, TypeError) as e:
        raise Unavailable("the state database is damaged: restore it from a backup") from e


@contextlib.contextmanager
def explained(conflict: str = "") -> Iterator[None]:
    """SQLite's errors as ours. With `conflict`, a broken constraint is a Conflict with these words."""
    try:
        yield
    except sqlite3.IntegrityError as e:
        if not conflict:
            raise
        raise Conflict(conflict) from e
    except sqlite3.Error as e:
        code = getattr(e, "sqlite_errorcode", 0) & 0xFF
        if code == sqlite3.SQLITE_FULL:
            raise NoSpace("the disk with the state database is full") from e
        if code in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
            raise Unavailable("the state database is damaged: restore it from a backup") from e
        raise Unavailable(f"the state database cannot be used: {e}") from e
    except OSError as e:
        raise Unavailable(f"the state database cannot be opened: {atomic.why(e)}") from e
