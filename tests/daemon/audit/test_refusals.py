"""Who was refused, in the log, and how much of the disk that may take."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from llmd.daemon.audit import refusals as module
from llmd.daemon.audit.log import AuditLog
from llmd.daemon.audit.refusals import Refusals
from llmd.daemon.errors import BadRequest, BodyTooLarge, CertificateRevoked, LlmdError, QueueFull


@pytest.fixture
async def log(tmp_path: Path) -> AsyncIterator[AuditLog]:
    log = AuditLog(tmp_path / "audit.db", b"k" * 32)
    log.open()
    yield log
    log.close()


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def note(refusals: Refusals, error: LlmdError, name: str = "alice", times: int = 1) -> None:
    for _ in range(times):
        refusals.note(error, name, "10.0.0.1", serial="ab", route="POST /tokenize")


async def rows(log: AuditLog) -> list[dict[str, Any]]:
    return [row["body"] for row in await log.tail(2000) if row["kind"] == "refused"]


async def test_a_row_says_who_where_and_why_and_nothing_of_what_was_sent(log: AuditLog) -> None:
    note(Refusals(log), BadRequest("the prompt 'secret' is wrong"))
    (row,) = await rows(log)
    assert row == {"principal": "alice", "serial": "ab", "address": "10.0.0.1", "route": "POST /tokenize",
                   "reason": "invalid_request", "status": 400}  # fmt: skip


async def test_ten_a_minute_for_each_client_and_reason_and_the_rest_counted(log: AuditLog) -> None:
    clock = Clock()
    refusals = Refusals(log, clock)
    note(refusals, CertificateRevoked("x"), times=1000)
    note(refusals, BodyTooLarge("x"), times=3)
    note(refusals, CertificateRevoked("x"), "bob", times=10)
    found = await rows(log)
    assert len(found) == 23 and not any("more" in row for row in found)
    refusals.flush()
    assert len(await rows(log)) == 23, "the minute is not over"
    clock.now += 60
    note(refusals, CertificateRevoked("x"))
    refusals.flush()
    assert (await rows(log))[23:] == [
        {"principal": "alice", "reason": "certificate_revoked", "more": 990},
        {"principal": "alice", "serial": "ab", "address": "10.0.0.1", "route": "POST /tokenize",
         "reason": "certificate_revoked", "status": 403},
    ]  # fmt: skip
    note(refusals, CertificateRevoked("x"), times=14)
    refusals.flush(all_=True)
    assert (await rows(log))[-1]["more"] == 5


async def test_a_row_names_the_model_and_what_is_counted_some_of_them(log: AuditLog) -> None:
    refusals = Refusals(log)
    for _ in range(10):
        refusals.note(QueueFull("x"), "alice", "10.0.0.1", model="m")
    for i in range(1000):
        refusals.note(QueueFull("x"), "alice", "10.0.0.1", model=f"m{i % 20}")
    refusals.flush(all_=True)
    found = await rows(log)
    assert [row["model"] for row in found[:10]] == ["m"] * 10
    assert found[10:] == [
        {"principal": "alice", "reason": "queue_full", "more": 1000, "model": "m0, m1, m2, m3, m4, m5, m6, m7, …"}
    ]


async def test_memory_and_rows_are_bounded_whatever_names_come(log: AuditLog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_WINDOWS", 5)
    clock = Clock()
    refusals = Refusals(log, clock)
    for i in range(100):
        note(refusals, BadRequest("x"), f"client-{i}")
    assert len(refusals._windows) == 6 and len(await rows(log)) == 15
    clock.now += 61
    note(refusals, BadRequest("x"), "late")
    assert len(refusals._windows) == 1
    assert {"principal": "", "reason": "", "more": 85} in await rows(log)
