"""The audit log: what is promised to a caller, what a change of the file looks like, and what happens when the disk or
the process dies."""

import asyncio
import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlite_utils import Database, Migrations

from llmd.daemon.admin import clients
from llmd.daemon.audit import schema, writer
from llmd.daemon.audit.chain import (
    COLUMNS,
    GENESIS,
    KINDS,
    PAGE_ROWS,
    RESERVED_KINDS,
    SCHEMA_VERSION,
    Entry,
    Report,
    Row,
    State,
    body_text,
    link,
    row_hash,
    text,
    timestamp,
    verify,
)  # fmt: skip
from llmd.daemon.audit.log import AuditLog
from llmd.daemon.audit.offline import verify_file
from llmd.daemon.errors import AuditUnavailable, Conflict

KEY = b"k" * 32
NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "audit.db"


@pytest.fixture
def log(path: Path) -> Iterator[AuditLog]:
    log = AuditLog(path, KEY)
    log.open()
    yield log
    log.close()


@pytest.fixture
def written(path: Path) -> Path:
    """A closed log: start, then admit and finish of r0 to r4 (rows 2 to 11), then stop (row 12)."""
    fill(path, [f"r{i}" for i in range(5)])
    return path


def fill(path: Path, requests: list[str]) -> None:
    log = AuditLog(path, KEY)
    log.open()

    async def work() -> None:
        for request in requests:
            await log.admit(request, principal="alice")
            log.finish(request, "ok")

    asyncio.run(work())
    log.close()


def rows_of(path: Path) -> list[Row]:
    with closing(sqlite3.connect(path)) as conn:
        conn.text_factory = text
        return [Row._make(row) for row in conn.execute(f"SELECT {COLUMNS} FROM audit ORDER BY seq")]


def change(path: Path, *statements: str) -> Report:
    with closing(sqlite3.connect(path, isolation_level=None)) as conn:
        for statement in statements:
            conn.execute(statement)
    return verify_file(path)


def child(script: str, *arguments: str) -> "subprocess.Popen[str]":
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return subprocess.Popen([sys.executable, "-c", script, *arguments], env=env, stdout=subprocess.PIPE, text=True)


def run_child(script: str, *arguments: str) -> str:
    with child(script, *arguments) as process:
        output, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    return output


# what a caller is promised


async def test_a_request_leaves_an_admit_and_a_finish(log: AuditLog) -> None:
    await log.admit("r1", principal="alice", model="m", prompt_bytes=12, prompt_mac=log.prompt_mac(b"hello"))
    log.finish("r1", "length", completion_tokens=3, queue_ms=0.5, error=None)
    start, admit, finish = await log.tail(10)
    assert (start["seq"], start["kind"], start["prev"]) == (1, "start", GENESIS.hex())
    assert (admit["kind"], admit["request"], admit["body"]["prompt_bytes"]) == ("admit", "r1", 12)
    assert finish["body"] == {
        "outcome": "length", "completion_tokens": 3, "queue_ms": 0.5, "error": None, "principal": "alice", "model": "m"
    }  # fmt: skip
    assert finish["prev"] == admit["hash"]
    report = await log.verify()
    assert (report.ok, report.rows, report.first, report.last, report.open) == (True, 3, 1, 3, 0)
    assert report.head == finish["hash"]


async def test_a_request_finishes_exactly_once(log: AuditLog) -> None:
    await log.admit("r1")
    log.finish("r1", "cancelled")
    log.finish("r1", "ok")
    with pytest.raises(ValueError, match="was not admitted"):
        log.finish("r2", "ok")
    with pytest.raises(ValueError, match="before"):
        await log.admit("r1")
    assert [row["body"]["outcome"] for row in (await log.query(kind="finish")).to_dict()["rows"]] == ["cancelled"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), [1], {"a": 1}, b"x"])
async def test_values_that_json_cannot_hold_are_refused(log: AuditLog, value: Any) -> None:
    with pytest.raises(ValueError):
        await log.admit("r1", params=value)
    await log.admit("r1")
    with pytest.raises(ValueError):
        log.finish("r1", "ok", error=value)
    log.finish("r1", "ok")


async def test_names_are_checked(log: AuditLog) -> None:
    for request in ("", "a\n", "é", "x" * 129):
        with pytest.raises(ValueError):
            await log.admit(request)
    for kind in ("admit", "interrupted", "", "a b", "1"):
        with pytest.raises(ValueError):
            log.event(kind)
    with pytest.raises(ValueError):
        log.finish("r1", "fine")
    with pytest.raises(ValueError):
        AuditLog(Path("x"), b"short")


async def test_an_admit_cancelled_in_its_wait_is_finished(log: AuditLog) -> None:
    task = asyncio.create_task(log.admit("r1"))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    log.finish("r1", "cancelled")  # a caller's `finally` does no harm
    assert [row.kind for row in (await log.query(request="r1")).rows] == ["admit", "finish"]
    assert (await log.verify()).ok


async def test_many_admits_share_commits(log: AuditLog) -> None:
    async def request(i: int) -> None:
        await log.admit(f"r{i}")
        log.finish(f"r{i}", "ok")

    turns: list[int] = []
    write = log._writer._write
    log._writer._write = lambda db, entries: (turns.append(len(entries)), write(db, entries))[1]  # type: ignore[method-assign, func-returns-value]
    await asyncio.gather(*(request(i) for i in range(200)))
    report = await log.verify()
    assert (report.ok, report.rows, report.open) == (True, 401, 0)
    assert sum(turns) == 400 and len(turns) < 100


async def test_query_filters(path: Path) -> None:
    times = iter(NOON + timedelta(seconds=i) for i in range(100))
    log = AuditLog(path, KEY, now=lambda: next(times))
    log.open()
    for request, principal, outcome in (("a", "alice", "ok"), ("b", "bob", "error"), ("c", "alice", "error")):
        await log.admit(request, principal=principal, model="m")
        log.finish(request, outcome)
    await log.event_durable("client.issue", uid=0)

    async def found(**filters: Any) -> list[tuple[str, str | None]]:
        return [(row.kind, row.request) for row in (await log.query(**filters)).rows]

    assert await found(principal="bob") == [("admit", "b"), ("finish", "b")]
    assert await found(principal="alice", outcome="error") == [("finish", "c")]
    assert await found(model="m", limit=1) == [("finish", "c")]
    assert await found(kind="client.issue") == [("client.issue", None)]
    assert await found(since=NOON + timedelta(seconds=1), until=NOON + timedelta(seconds=3)) == [
        ("admit", "a"),
        ("finish", "a"),
    ]
    assert await found(request="nobody") == []
    with pytest.raises(ValueError):
        await log.query(since=datetime(2026, 1, 1))
    assert [row["seq"] for row in await log.tail(2)] == [7, 8]
    assert [row["seq"] for row in await log.tail(2, after_seq=3)] == [4, 5]
    log.close()


async def test_what_a_query_leaves_out_is_told_and_read_next(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmd.daemon.audit.log.PAGE_ROWS", 4)
    log = AuditLog(path, KEY)
    log.open()  # row 1
    for number in range(2, 32):
        await log.event_durable("reload" if number % 3 == 0 else "refused", number=number)
    thirds = list(range(3, 32, 3))

    async def found(**asked: Any) -> tuple[list[int], bool, int | None]:
        page = await log.query(kind="reload", **asked)
        return [row.seq for row in page.rows], page.older, page.after

    assert await found(limit=3) == (thirds[-3:], True, None)
    assert await found(limit=10) == (thirds[:4], False, thirds[3])
    assert await found(limit=9) == (thirds[1:5], True, thirds[4])
    assert await found(limit=2, after=0) == (thirds[:2], False, thirds[1])
    assert await found(limit=2, after=thirds[-2]) == (thirds[-1:], False, None)
    assert await found(limit=2, after=99) == ([], False, None)
    every: list[int] = []
    after: int | None = 0
    while after is not None:
        await log.event_durable("refused")  # the log goes on meanwhile
        page, _, after = await found(limit=None, after=after)
        assert 1 <= len(page) <= 4
        every += page
    assert every == thirds
    log.close()


async def test_a_long_log_is_read_a_page_at_a_time_and_written_in_between(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = AuditLog(path, KEY)
    log.open()
    log.close()
    moment, body = "2026-01-02T12:00:00.000000Z", '{"model":"m","principal":"p"}'
    with closing(sqlite3.connect(path)) as other:  # no chain, which a query does not mind
        rows = ((seq, moment, "reload", None, body, bytes(32), bytes(32)) for seq in range(3, 40_001))
        other.executemany(f"INSERT INTO audit({COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
        other.commit()
    log = AuditLog(path, KEY)
    log.open()
    sizes: list[int] = []
    read = log._read

    async def counted(sql: str, *arguments: Any) -> list[tuple[Any, ...]]:
        sizes.append(len(got := await read(sql, *arguments)))
        return got

    monkeypatch.setattr(log, "_read", counted)
    rare, written = asyncio.create_task(log.query(model="nobody", after=0)), 0
    while not rare.done():
        await log.event_durable("refused")
        written += 1
    assert rare.result().rows == [] and max(sizes) == 0 and len(sizes) > 20 and written > 5
    newest = await log.query(limit=30_000, kind="reload")
    assert newest.older and newest.rows[0].seq == 10_001 and newest.after == 10_000 + PAGE_ROWS
    assert max(sizes) <= PAGE_ROWS + 1
    log.close()


def test_every_kind_of_row_that_is_written_can_be_asked_for() -> None:
    written = {clients.ISSUE, clients.REVOKE, *RESERVED_KINDS}
    root = Path(__file__).parents[3]
    for file in (*root.glob("daemon/**/*.py"), *root.glob("api/**/*.py")):
        calls = r'\b(?:event|event_durable|acts|_audit)\(\s*"([a-z_.]+)"'
        written.update(re.findall(calls, file.read_text()))
    assert written == KINDS


def test_timestamps_sort_as_text() -> None:
    assert timestamp(NOON) == "2026-01-02T12:00:00.000000Z"


# a run after a run


async def test_a_restart_closes_open_requests_as_lost(path: Path) -> None:
    first = AuditLog(path, KEY)
    first.open()
    first.ready()
    await first.admit("r1", principal="alice", address="10.0.0.1")
    await first.admit("r2", principal="bob")
    first.finish("r2", "ok")
    first.close()
    assert verify_file(path).open == 1
    for _ in range(2):
        again = AuditLog(path, KEY)
        again.open()
        again.ready()
        (lost,) = (await again.query(outcome="lost")).to_dict()["rows"]
        assert lost["body"] == {"outcome": "lost", "reason": "daemon_restart", "principal": "alice"}
        assert (await again.verify()).open == 0
        again.close()
    assert [row.kind for row in rows_of(path)][-4:] == ["finish", "stop", "start", "stop"]
    assert verify_file(path).ok


async def test_a_closed_log_refuses(path: Path) -> None:
    log = AuditLog(path, KEY)
    with pytest.raises(AuditUnavailable):
        await log.admit("r1")
    log.open()
    await log.admit("r1")
    assert log.writable and log.last_commit_age < 5
    log.close()
    log.close()
    assert not log.writable
    log.finish("r1", "ok")  # too late, and no reason to fail the caller: the next start says `lost`
    with pytest.raises(AuditUnavailable):
        await log.tail(1)


def test_the_file_is_private_and_held(path: Path, log: AuditLog) -> None:
    assert {p.name: p.stat().st_mode & 0o777 for p in path.parent.iterdir()} == {
        "audit.db": 0o600,
        "audit.db-wal": 0o600,
    }
    with pytest.raises(sqlite3.OperationalError, match="locked"), closing(sqlite3.connect(path, timeout=0)) as other:
        other.execute("SELECT count(*) FROM audit")
    copy = path.parent / "copy.db"
    shutil.copy(path, copy)
    shutil.copy(f"{path}-wal", f"{copy}-wal")
    assert (verify_file(copy).ok, verify_file(copy).rows) == (True, 1)


def test_a_second_daemon_is_refused(path: Path, log: AuditLog) -> None:
    script = """
import sys; from pathlib import Path
from llmd.daemon.audit.log import AuditLog; from llmd.daemon.errors import Conflict
import llmd.daemon.audit.log as audit, sqlite3
connect = sqlite3.connect
audit.sqlite3.connect = lambda *a, **k: connect(*a, **{**k, "timeout": 0.1})
try: AuditLog(Path(sys.argv[1]), b"k" * 32).open()
except Conflict as error: print(error)
"""
    assert "in use" in run_child(script, str(path))


def newer(file: Path, *changes: str) -> None:
    with closing(sqlite3.connect(file)) as conn, conn:
        for change in (*changes, f"PRAGMA user_version={SCHEMA_VERSION + 1}"):
            conn.execute(change)


def test_a_newer_schema_that_asks_for_more_is_refused(written: Path) -> None:
    newer(written, "ALTER TABLE audit RENAME COLUMN body TO text")
    before = written.read_bytes()
    with pytest.raises(Conflict, match="newer llmd"):
        AuditLog(written, KEY).open()
    assert written.read_bytes() == before
    assert "newer llmd" in str(verify_file(written).error)


def test_a_newer_log_that_has_added_is_gone_on_with(written: Path) -> None:
    """Nobody replaces an audit log: after an upgrade that was taken back, the older llmd writes on."""
    rows = verify_file(written).rows
    newer(written, "ALTER TABLE audit ADD COLUMN node TEXT", "CREATE INDEX audit_node ON audit(node)")
    log = AuditLog(written, KEY)
    log.open()
    log.event("note")
    log.close()
    report = verify_file(written)
    assert report.ok and report.rows == rows + 3, "start, note, stop"


def test_migrations_of_the_log_only_add(tmp_path: Path) -> None:
    """After each of them, what the first version writes is taken."""
    db = Database(tmp_path / "audit.db")
    for last in range(1, len(schema.MIGRATIONS._migrations) + 1):
        some = Migrations("audit")
        for one in schema.MIGRATIONS._migrations[:last]:
            some(name=one.name)(one.fn)
        some.apply(db)
        with db.conn:
            db.execute(writer.INSERT, (last, "t", "note", None, "{}", b"", b""))
        assert db.execute("PRAGMA user_version").fetchone()[0] == last
    assert last == SCHEMA_VERSION


async def test_a_writer_that_fails_leaves_nobody_waiting(log: AuditLog, monkeypatch: pytest.MonkeyPatch) -> None:
    """What nobody expected, in the thread that everybody waits for."""

    def fails(_: object, __: object) -> bool:
        raise ZeroDivisionError

    await log.admit("req-1", model="m")
    monkeypatch.setattr(writer.Writer, "_turn", fails)
    async with asyncio.timeout(5):
        with suppress(AuditUnavailable):
            await log.admit("req-2", model="m")  # the last turn that works may take it still
        with pytest.raises(AuditUnavailable):
            await log.admit("req-3", model="m")
        with pytest.raises(AuditUnavailable):
            await log.tail(1)
    assert not log.writable


def test_a_file_from_before_migrations_had_names_is_taken_over(written: Path) -> None:
    with closing(sqlite3.connect(written)) as conn:
        conn.execute("DROP TABLE _sqlite_migrations")
    before = verify_file(written)
    log = AuditLog(written, KEY)
    log.open()
    log.ready()
    log.close()
    after = verify_file(written)
    assert before.ok and after.ok and after.rows == before.rows + 2, "a start row and a stop row"


def test_another_database_is_refused(path: Path) -> None:
    with closing(sqlite3.connect(path)) as conn:
        conn.execute("CREATE TABLE something(x)")
    with pytest.raises(Conflict, match="no audit log"):
        AuditLog(path, KEY).open()


async def test_a_log_that_did_not_open_can_be_opened_later(path: Path) -> None:
    path.write_bytes(b"garbage" * 1000)
    log = AuditLog(path, KEY)
    with pytest.raises(Conflict, match="damaged"):
        log.open()
    path.unlink()
    log.open()
    await log.admit("r1")
    log.close()
    assert verify_file(path).ok


# what was changed in the file is found


@pytest.mark.parametrize(
    ("statements", "seq", "reason"),
    [
        (["""UPDATE audit SET body = '{"principal":"mallory"}' WHERE seq = 4"""], 4, "hash"),
        (["""UPDATE audit SET body = '{"principal": "alice"}' WHERE seq = 4"""], 4, "hash"),
        (["UPDATE audit SET ts = '2020-01-01T00:00:00.000000Z' WHERE seq = 5"], 5, "hash"),
        (["UPDATE audit SET kind = 'event' WHERE seq = 6"], 6, "hash"),
        (["UPDATE audit SET request = 'r9' WHERE seq = 7"], 7, "hash"),
        (["UPDATE audit SET request = NULL WHERE seq = 7"], 7, "hash"),
        (["UPDATE audit SET hash = zeroblob(32) WHERE seq = 8"], 8, "hash"),
        (["UPDATE audit SET hash = x'00' WHERE seq = 8"], 8, "malformed"),
        (["UPDATE audit SET prev = zeroblob(32) WHERE seq = 8"], 8, "prev"),
        (["DELETE FROM audit WHERE seq = 6"], 7, "gap"),
        (["DELETE FROM audit WHERE seq BETWEEN 3 AND 9"], 10, "gap"),
        (["DELETE FROM audit WHERE seq = 1"], 2, "gap"),
        (["DELETE FROM audit WHERE seq = 6", "UPDATE audit SET seq = seq - 1 WHERE seq > 6"], 6, "prev"),
        (["INSERT INTO audit SELECT 0, ts, kind, request, body, prev, hash FROM audit WHERE seq = 1"], 0, "order"),
        (["INSERT INTO audit SELECT 13, ts, kind, request, body, prev, hash FROM audit WHERE seq = 12"], 13, "prev"),
        (["UPDATE audit SET seq = 100 WHERE seq = 4", "UPDATE audit SET seq = 4 WHERE seq = 6",
          "UPDATE audit SET seq = 6 WHERE seq = 100"], 4, "prev"),
    ],
)  # fmt: skip
def test_a_change_is_found_where_it_is(written: Path, statements: list[str], seq: int, reason: str) -> None:
    assert verify_file(written).ok
    report = change(written, *statements)
    assert report.broken is not None and not report.ok
    assert (report.broken.seq, report.broken.reason) == (seq, reason)
    assert report.rows == (seq - 1 if reason not in ("gap", "order") else report.rows)


def test_a_row_made_to_fit_breaks_the_next_one(written: Path) -> None:
    row = rows_of(written)[3]
    forged = row_hash(row.seq, row.prev, row.kind, row.ts, row.request, "{}")
    report = change(written, f"UPDATE audit SET body = '{{}}', hash = x'{forged.hex()}' WHERE seq = 4")
    assert report.broken is not None and (report.broken.seq, report.broken.reason) == (5, "prev")


def test_a_cut_off_end_is_not_found_without_a_witness(written: Path) -> None:
    whole = verify_file(written)
    report = change(written, "DELETE FROM audit WHERE seq > 9")
    assert report.ok and report.head != whole.head  # only the head noted elsewhere tells


async def test_the_daemon_is_a_witness_of_its_own_end(log: AuditLog) -> None:
    await log.admit("r1")
    log._writer.head = (3, b"x" * 32)
    report = await log.verify()
    assert report.broken is not None and (report.broken.seq, report.broken.reason) == (3, "head")


@pytest.mark.parametrize(
    ("kinds", "seq", "reason"),
    [("afa", None, None), ("aa", 2, "admit"), ("aff", 3, "finish"), ("f", 1, "finish")],
)  # fmt: skip
def test_admits_and_finishes_pair(kinds: str, seq: int | None, reason: str | None) -> None:
    """Rows in a sound chain that no AuditLog writes."""
    rows: list[Row] = []
    head = (0, GENESIS)
    for kind in kinds:
        (row,) = link([Entry({"a": "admit", "f": "finish"}[kind], "t", "r", "{}")], head, {"r"})
        rows, head = [*rows, row], (row.seq, row.hash)
    broken = verify(rows, State())
    assert (broken and broken.seq, broken and broken.reason) == (seq, reason)


def test_a_finish_whose_admit_was_given_up_makes_no_row() -> None:
    live: set[str] = set()
    entries = [Entry("finish", "t", "gone", "{}"), Entry("admit", "t", "r", "{}")]
    assert [(row.seq, row.kind) for row in link(entries, (0, GENESIS), live)] == [(1, "admit")]
    assert live == {"r"}


@pytest.mark.parametrize("content", [b"", b"garbage" * 1000, b"SQLite format 3\x00" + b"\xff" * 5000, b"x"])
def test_a_damaged_file_is_reported_plainly(path: Path, content: bytes) -> None:
    assert "no such file" in str(verify_file(path).error)
    path.write_bytes(content)
    report = verify_file(path)
    assert report.error is not None and report.rows == 0 and report.to_dict()["ok"] is False


def test_damaged_pages_are_reported_plainly(path: Path) -> None:
    fill(path, [f"r{i}" for i in range(100)])
    whole = path.read_bytes()
    assert len(whole) > 8 * 4096
    for page in range(len(whole) // 4096):
        path.write_bytes(whole[: page * 4096] + b"\xa5" * 4096 + whole[(page + 1) * 4096 :])
        report = verify_file(path)
        assert not report.ok or report.rows == 202  # the page was the index, which says nothing of its own
    path.write_bytes(whole[: len(whole) // 2])
    assert not verify_file(path).ok


def test_a_view_in_the_tables_place_is_refused(written: Path) -> None:
    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i AS seq FROM n"
    report = change(written, "DROP TABLE audit", f"CREATE VIEW audit AS {endless}")
    assert report.error is not None and "no audit log" in report.error


def test_a_copy_in_a_folder_without_write_permission_is_checked(written: Path) -> None:
    script = """
import os, sys; from pathlib import Path; from llmd.daemon.audit.offline import verify_file
if os.geteuid() == 0: os.setuid(65534)
print(verify_file(Path(sys.argv[1])))
"""
    folder = Path(tempfile.mkdtemp())
    try:
        copy = Path(shutil.copy(written, folder))
        copy.chmod(0o444)
        folder.chmod(0o555)
        assert "rows=12, first=1, last=12" in run_child(script, str(copy))
    finally:
        folder.chmod(0o755)
        shutil.rmtree(folder)


OPERATIONS = st.lists(st.tuples(st.sampled_from(["admit", "finish", "event"]), st.integers(0, 5)), max_size=25)


async def _replay(path: Path, operations: list[tuple[str, int]]) -> Report:
    log = AuditLog(path, KEY)
    log.open()
    seen: set[str] = set()
    for kind, number in operations:
        request = f"r{number}"
        if kind == "event":
            log.event("policy.set", number=number)
        elif kind == "finish" and request in seen:
            log.finish(request, "ok")
        elif kind == "admit" and request not in seen:
            await log.admit(request, principal="é\u2028")
            seen.add(request)
    report = await log.verify()
    log.close()
    return report


@settings(max_examples=25, deadline=None)
@given(OPERATIONS, st.data())
def test_every_sequence_verifies_and_every_flipped_bit_is_found(
    operations: list[tuple[str, int]], data: st.DataObject
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        assert asyncio.run(_replay(Path(folder) / "audit.db", operations)).ok
        assert verify_file(Path(folder) / "audit.db").ok
        rows = rows_of(Path(folder) / "audit.db")
    at = data.draw(st.integers(0, len(rows) - 1))
    column = data.draw(st.sampled_from(["body", "hash", "prev"]))
    stored = getattr(rows[at], column)
    raw = bytearray(stored.encode() if isinstance(stored, str) else stored)
    bit = data.draw(st.integers(0, len(raw) * 8 - 1))
    raw[bit // 8] ^= 1 << bit % 8
    flipped: dict[str, Any] = {column: text(bytes(raw)) if column == "body" else bytes(raw)}
    rows[at] = rows[at]._replace(**flipped)
    broken = verify(rows, State())
    assert broken is not None and broken.seq == at + 1


def test_a_body_says_what_it_was_given() -> None:
    assert body_text({"b": 1, "a": "é\ud800", "c": None}) == '{"a":"\\u00e9\\ud800","b":1,"c":null}'


# the process or the disk dies

KILLED = """
import asyncio, os, sys; from pathlib import Path; from llmd.daemon.audit.log import AuditLog
async def requests(worker):
    for i in range(100000):
        name = f"{sys.argv[2]}-{worker}-{i}"
        await log.admit(name, principal="alice")
        os.write(1, (name + "\\n").encode())
        if i % 2: log.finish(name, "ok")
async def main(): await asyncio.gather(*(requests(worker) for worker in range(8)))
log = AuditLog(Path(sys.argv[1]), b"k" * 32); log.open(); asyncio.run(main())
"""


def test_what_was_admitted_survives_kill_9(path: Path) -> None:
    for turn in range(4):
        with child(KILLED, str(path), str(turn)) as process:
            assert process.stdout is not None
            told = [process.stdout.readline().strip() for _ in range(200 + 37 * turn)]
            process.kill()
            told += [line.strip() for line in process.stdout if line.endswith("\n")]
        log = AuditLog(path, KEY)
        log.open()
        log.close()
        rows = rows_of(path)
        assert set(told) <= {row.request for row in rows if row.kind == "admit"}
        report = verify_file(path)
        assert report.ok and report.open == 0


FULL_DISK = """
import asyncio, resource, sys, time; from pathlib import Path
from llmd.daemon.audit.log import AuditLog; from llmd.daemon.errors import AuditUnavailable
async def main():
    path = Path(sys.argv[1]); log = AuditLog(path, b"k" * 32); log.open()
    for i in range(40): await log.admit(f"a{i}", principal="alice")
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (Path(f"{path}-wal").stat().st_size + 100, hard))
    for i in range(20): log.finish(f"a{i}", "ok")
    log.event("policy.set", key="x")
    refused = 0
    for i in range(5):
        try: await log.admit(f"b{i}")
        except AuditUnavailable as error: refused += 1; assert error.__cause__ is not None
    assert refused == 5 and not log.writable and (await log.verify()).ok
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    if sys.argv[2] == "idle":
        for _ in range(40):
            if log.writable: break
            await asyncio.sleep(0.1)
    await log.admit("b0")
    assert log.writable
    for i in range(20, 40): log.finish(f"a{i}", "ok")
    log.finish("b0", "ok")
    report = await log.verify(); assert report.ok and report.open == 0, report
    (gap,) = (await log.query(kind="interrupted")).to_dict()["rows"]
    assert gap["body"] == {"refused": 5, "dropped": 0}, gap
    log.close()
asyncio.run(main())
"""


@pytest.mark.parametrize("recovery", ["idle", "at once"])
def test_a_full_disk_refuses_admits_and_keeps_finishes(path: Path, recovery: str) -> None:
    run_child(FULL_DISK, str(path), recovery)
    rows = rows_of(path)
    assert sorted(r.request or "" for r in rows if r.kind == "finish") == sorted([*(f"a{i}" for i in range(40)), "b0"])
    assert sum(row.kind == "policy.set" for row in rows) == 1
    assert verify_file(path).ok


async def test_what_memory_cannot_keep_is_counted(log: AuditLog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmd.daemon.audit.writer.MAX_KEPT", 3)
    write: Callable[..., None] = log._writer._write

    def broken(db: object, entries: object) -> None:
        raise OSError("no")

    log._writer._write = broken  # type: ignore[method-assign]
    with pytest.raises(AuditUnavailable):
        await log.event_durable("first")
    for i in range(5):
        log.event("note", i=i)
    await log.tail(1)
    log._writer._write = write  # type: ignore[method-assign]
    await log.event_durable("last")
    rows = await log.tail(5)
    assert [row["body"]["i"] for row in rows if row["kind"] == "note"] == [0, 1, 2]
    (gap,) = (await log.query(kind="interrupted")).to_dict()["rows"]
    assert gap["body"] == {"refused": 1, "dropped": 2}


async def test_what_was_done_to_clients_and_the_policy_is_found_without_a_scan(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "audit.db", KEY)
    log.open()
    kinds = {0: "admin.client_role", 5: "admin.policy"}
    for n in range(50):
        log.event(kinds.get(n % 10, "other"), n=n, result="failed" if n == 45 else "done")
    assert [json.loads(row.body)["n"] for row in log.of_clients()] == [0, 10, 20, 30, 40]
    last = log.of_policy()
    assert last and json.loads(last.body)["n"] == 35, "of those that were done"
    await asyncio.to_thread(log.close)
    with closing(sqlite3.connect(tmp_path / "audit.db")) as db:
        for of, index in ((schema.OF_CLIENTS, "audit_clients"), (schema.OF_POLICY, "audit_policy")):
            plan = db.execute(f"EXPLAIN QUERY PLAN SELECT body FROM audit WHERE {of} ORDER BY seq").fetchall()
            assert [row[3] for row in plan] == [f"SCAN audit USING INDEX {index}"]
