"""Starts that fail: systemd tries again every two seconds, and two rows each would bury what the log is for. The first
of an hour has its `start` and `stop`; the next ones are counted, until one serves or the hour is over.

A start has not failed once `over` is called. Until then `starting` has one row: when the last `start` row was written,
and how many starts since then have none.
"""

import sqlite3
from datetime import datetime

SECONDS = 3600.0
TABLE = "CREATE TABLE IF NOT EXISTS starting(since TEXT NOT NULL, unwritten INTEGER NOT NULL) STRICT"


def begin(conn: sqlite3.Connection, ts: str) -> tuple[int, bool]:
    """A run begins at `ts`: how many starts before it failed and have no rows, and whether its own row is to wait until
    it has something to say."""
    since, unwritten = conn.execute("SELECT since, unwritten FROM starting").fetchone() or ("", 0)
    again = bool(since) and 0 <= _seconds(since, ts) < SECONDS
    if again:
        conn.execute("UPDATE starting SET unwritten = unwritten + 1")
    return unwritten, again


def written(conn: sqlite3.Connection, ts: str) -> None:
    """The run's `start` row is, and it does not serve yet."""
    over(conn)
    conn.execute("INSERT INTO starting VALUES (?, 0)", (ts,))


def over(conn: sqlite3.Connection) -> None:
    """The run serves."""
    conn.execute("DELETE FROM starting")


def _seconds(since: str, ts: str) -> float:
    try:
        return (datetime.fromisoformat(ts) - datetime.fromisoformat(since)).total_seconds()
    except ValueError:
        return SECONDS
