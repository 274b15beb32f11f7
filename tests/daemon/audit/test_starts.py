"""A daemon that cannot start is tried again every two seconds: its log is not buried under that."""

import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from llmd.daemon.audit.log import AuditLog
from llmd.daemon.audit.offline import verify_file

KEY = b"k" * 32
NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)
Run = Callable[..., AuditLog]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A start so many seconds after noon."""

    def begin(seconds: float) -> AuditLog:
        log = AuditLog(tmp_path / "audit.db", KEY, lambda: NOON + timedelta(seconds=seconds))
        log.open()
        return log

    return begin


def rows(folder: Path) -> list[tuple[str, str]]:
    with closing(sqlite3.connect(folder / "audit.db")) as conn:
        return [(kind, ts[11:19]) for kind, ts in conn.execute("SELECT kind, ts FROM audit ORDER BY seq")]


def bodies(folder: Path, kind: str) -> list[str]:
    with closing(sqlite3.connect(folder / "audit.db")) as conn:
        return [row[0] for row in conn.execute("SELECT body FROM audit WHERE kind = ? ORDER BY seq", (kind,))]


def test_the_first_of_an_hour_is_written_and_the_next_ones_are_counted(run: Run, tmp_path: Path) -> None:
    for seconds in range(0, 3600, 60):
        run(seconds).close()
    assert rows(tmp_path) == [("start", "12:00:00"), ("stop", "12:00:00")]
    run(3600).close()
    assert rows(tmp_path)[2:] == [("start", "13:00:00"), ("stop", "13:00:00")]
    assert '"failed":59' in bodies(tmp_path, "start")[1]
    run(3602).close()
    serves = run(3604)
    serves.ready()
    serves.close()
    assert rows(tmp_path)[4:] == [("start", "13:00:04"), ("stop", "13:00:04")]
    assert '"failed":1' in bodies(tmp_path, "start")[2]
    assert verify_file(tmp_path / "audit.db").ok


def test_who_served_before_has_rows_whatever_comes_next(run: Run, tmp_path: Path) -> None:
    for seconds in (0, 2, 4):
        serves = run(seconds)
        serves.ready()
        serves.close()
    assert [kind for kind, _ in rows(tmp_path)] == ["start", "stop"] * 3
    assert not any("failed" in body for body in bodies(tmp_path, "start"))


async def test_a_start_that_has_something_to_say_is_written_before_it(run: Run, tmp_path: Path) -> None:
    run(0).close()
    log = run(2)
    assert [row["kind"] for row in await log.tail(9)] == ["start", "stop"] and log.writable
    log.event("pki.reconciled", what="x")
    assert [row["kind"] for row in await log.tail(9)][2:] == ["start", "pki.reconciled"]
    log.ready()
    log.close()
    assert [kind for kind, _ in rows(tmp_path)][2:] == ["start", "pki.reconciled", "stop"]
    assert "failed" not in bodies(tmp_path, "start")[1]


async def test_what_was_left_open_is_closed_by_a_start_that_fails_too(run: Run, tmp_path: Path) -> None:
    log = run(0)
    log.ready()
    await log.admit("r1", principal="alice")
    log.close()
    run(2).close()
    assert [kind for kind, _ in rows(tmp_path)][3:] == ["start", "finish", "stop"]
    run(4).close()
    assert len(rows(tmp_path)) == 6 and verify_file(tmp_path / "audit.db").open == 0


def test_one_that_is_killed_before_it_serves_has_failed_too(run: Run, tmp_path: Path) -> None:
    code = (
        f"from llmd.daemon.audit.log import AuditLog; import os, pathlib; AuditLog(pathlib.Path('audit.db'), {KEY!r})"
    )
    for _ in range(3):
        killed = subprocess.run([sys.executable, "-c", f"{code}.open(); os._exit(9)"], cwd=tmp_path, check=False)
        assert killed.returncode == 9
    assert [kind for kind, _ in rows(tmp_path)] == ["start"]
    log = AuditLog(tmp_path / "audit.db", KEY)
    log.open()
    log.ready()
    log.close()
    assert '"failed":2' in bodies(tmp_path, "start")[1]


def test_a_clock_that_was_set_back_hides_nothing(run: Run, tmp_path: Path) -> None:
    run(100).close()
    run(0).close()
    assert rows(tmp_path)[2:] == [("start", "12:00:00"), ("stop", "12:00:00")]
