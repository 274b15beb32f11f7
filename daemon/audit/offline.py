"""Checking an audit log's file without its daemon: a copy, or the live one. It writes nothing beside the file."""

import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from llmd.daemon.audit.chain import (
    COLUMNS,
    PAGE_ROWS,
    Report,
    Row,
    State,
    is_damage,
    primary,
    schema_problem,
    text,
    verify,
)

SNAPSHOT_TRIES = 5
_HELD = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def verify_file(path: Path) -> Report:
    """Check an audit database, with its `-wal` if one lies beside it. Of one that a running daemon holds, a snapshot is
    checked.

    Never raises for what is in the file: `Report.broken` says what was changed or damaged, `Report.error` why it could
    not be checked.
    """
    if not path.is_file():
        return State(str(path)).report(error=f"{path}: no such file")
    try:
        return _check(path, _read_as(path, ""))
    except sqlite3.Error as error:
        if primary(error) not in _HELD:
            return State(str(path)).report(error=f"{path}: cannot be read: {error}{_advice(error)}")
    try:
        with _snapshot(path) as copy:
            return _check(copy, _read_as(path, " as the running daemon has it"))
    except (sqlite3.Error, OSError) as error:
        return State(str(path)).report(error=f"{path}: cannot be read: {error}{_advice(error)}")


def _read_as(path: Path, how: str) -> str:
    wal = path.with_name(path.name + "-wal")
    with_wal = wal.exists() and wal.stat().st_size > 0
    return f"{path}{how}, {'with' if with_wal else 'without'} a -wal"


def _check(path: Path, source: str) -> Report:
    """Raises sqlite3.Error for a file that cannot be opened, or is held."""
    state = State(source)
    with closing(_open(path)) as conn:
        problem = schema_problem(conn)
        if problem is not None:
            return state.report(error=f"{path}: {problem}")
        try:
            cursor = conn.execute(f"SELECT {COLUMNS} FROM audit ORDER BY seq")
            while page := cursor.fetchmany(PAGE_ROWS):
                broken = verify(map(Row._make, page), state)
                if broken is not None:
                    return state.report(broken=broken)
        except sqlite3.Error as error:
            if is_damage(error):
                return state.damaged(error)
            if primary(error) in _HELD:
                raise
            return state.report(error=f"{path}: cannot be read after row {state.seq}: {error}{_advice(error)}")
    return state.report()


@contextmanager
def _snapshot(path: Path) -> Iterator[Path]:
    """A copy of a file that is written to meanwhile: whole, because nothing moved from the -wal into it while it was
    copied. Raises OSError."""
    wal = path.with_name(path.name + "-wal")
    with tempfile.TemporaryDirectory(prefix="llmctl-audit-") as name:
        copy = Path(name) / "audit.db"
        for _ in range(SNAPSHOT_TRIES):
            before = _stamp(path, wal)
            shutil.copyfile(path, copy)
            if wal.exists():
                shutil.copyfile(wal, copy.with_name("audit.db-wal"))
            if _stamp(path, wal) == before:
                yield copy
                return
    raise OSError("it changes faster than it can be copied; run `llmctl audit verify` without a file")


def _stamp(path: Path, wal: Path) -> tuple[int, int, bytes]:
    """It changes with every checkpoint, and not with rows that are only added to the -wal."""
    at = path.stat()
    head = b""
    if wal.exists():
        with wal.open("rb") as file:
            head = file.read(32)
    return at.st_mtime_ns, at.st_size, head


def _open(path: Path) -> sqlite3.Connection:
    wal = path.with_name(path.name + "-wal")
    # With a -wal, SQLite wants to make a -shm beside it. Without one, `immutable` reads in any folder and leaves
    # nothing there; it would not look at a -wal, and rows would be missed.
    immutable = not wal.exists() or wal.stat().st_size == 0
    return _connect(path.absolute().as_uri() + ("?immutable=1&mode=ro" if immutable else "?mode=ro"))


def _connect(uri: str) -> sqlite3.Connection:
    conn = sqlite3.connect(uri, uri=True, isolation_level=None, timeout=1.0)
    try:
        conn.text_factory = text
        conn.execute("PRAGMA trusted_schema=OFF")
        conn.execute("PRAGMA cell_size_check=ON")
        conn.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    except sqlite3.Error:
        conn.close()
        raise
    return conn


def _advice(error: Exception) -> str:
    if primary(error) in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY):
        return " (copy the file and its -wal to a folder that you can write to)"
    return ""
