"""What an admin does, in the log: before it takes effect, and how it ended."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from llmd.daemon.audit.acts import Acts
from llmd.daemon.audit.log import AuditLog
from llmd.daemon.errors import AuditUnavailable, Conflict

KEY = b"k" * 32


@pytest.fixture
async def log(tmp_path: Path) -> AsyncIterator[AuditLog]:
    log = AuditLog(tmp_path / "audit.db", KEY)
    log.open()
    yield log
    log.close()


async def rows(log: AuditLog) -> list[dict[str, Any]]:
    return [row for row in await log.tail(100) if row["kind"] == "admin.deploy"]


async def test_the_row_is_there_before_the_act_and_the_result_after_it(log: AuditLog) -> None:
    async with Acts(log)("admin.deploy", "uid:0", model="m") as result:
        (begun,) = await rows(log)
        assert begun["body"] == {"actor": "uid:0", "model": "m", "result": "begun"}
        result["digest"] = "d"
    before, after = await rows(log)
    assert before == begun and after["request"] == begun["request"] != None  # noqa: E711
    assert after["body"] == {"actor": "uid:0", "model": "m", "digest": "d", "result": "done"}


@pytest.mark.parametrize(
    ("error", "code"),
    [(Conflict("no"), "conflict"), (ZeroDivisionError(), "internal_error"), (asyncio.CancelledError(), "cancelled")],
)
async def test_one_that_fails_says_how_and_not_what_was_said(log: AuditLog, error: BaseException, code: str) -> None:
    with pytest.raises(type(error)):
        async with Acts(log)("admin.deploy", "a", model="m"):
            raise error
    assert (await rows(log))[1]["body"] == {"actor": "a", "model": "m", "result": "failed", "error": code}


async def test_a_start_ends_what_the_run_before_left_open(tmp_path: Path) -> None:
    """Copied while it is open: what a kill would leave."""
    log = AuditLog(tmp_path / "audit.db", KEY)
    log.open()
    async with Acts(log)("admin.deploy", "a", model="first"):
        pass
    async with Acts(log)("admin.deploy", "a", model="m"):
        await log.tail(1)
        for name in ("audit.db", "audit.db-wal"):
            (tmp_path / f"copy-{name}").write_bytes((tmp_path / name).read_bytes())
    log.close()
    (tmp_path / "copy-audit.db-wal").rename(tmp_path / "copy.db-wal")
    (tmp_path / "copy-audit.db").rename(tmp_path / "copy.db")
    again = AuditLog(tmp_path / "copy.db", KEY)
    again.open()
    assert [(entry.kind, entry.request) for entry in again.lost] == [
        ("admin.deploy", (await rows(again))[2]["request"])
    ]
    assert [row["body"]["result"] for row in await rows(again)] == ["begun", "done", "begun", "lost"]
    assert (await rows(again))[3]["body"]["model"] == "m"
    assert (await again.verify()).ok
    again.close()


async def test_without_a_log_only_what_takes_away_is_done(log: AuditLog) -> None:
    write: Callable[..., None] = log._writer._write

    def broken(db: object, entries: object) -> None:
        raise OSError("no")

    done = []
    log._writer._write = broken  # type: ignore[method-assign]
    with pytest.raises(AuditUnavailable):
        async with Acts(log)("admin.deploy", "a"):
            done.append("given")
    async with Acts(log)("admin.deploy", "a", takes_away=True, model="away"):
        done.append("taken")
    async with Acts(log, unlogged=lambda: True)("admin.deploy", "a", model="allowed"):
        done.append("allowed")
    assert done == ["taken", "allowed"]
    log._writer._write = write  # type: ignore[method-assign]
    await log.event_durable("note")
    found = [(row["body"]["model"], row["body"]["result"]) for row in await rows(log)]
    assert found == [("away", "begun"), ("away", "done"), ("allowed", "begun"), ("allowed", "done")], "they waited"


def test_a_log_and_its_key_belong_together(tmp_path: Path) -> None:
    first = AuditLog(tmp_path / "audit.db", KEY)
    first.open()
    first.close()
    with pytest.raises(Conflict, match=r"not the key that it was written with; put back a copy of audit\.key"):
        AuditLog(tmp_path / "audit.db", b"x" * 32).open()
    again = AuditLog(tmp_path / "audit.db", KEY)
    again.open()
    again.close()
