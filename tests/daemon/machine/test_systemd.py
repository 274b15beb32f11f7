"""What systemd is told, and what its journal gets. Its bindings are scripted: the package's test has the real ones."""

import asyncio
import grp
import json
import logging
import os
import socket
import sys
import time
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from llmd.daemon import logs
from llmd.daemon.audit.log import AuditLog
from llmd.daemon.machine import process, systemd
from llmd.daemon.tasks import Tasks


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What sd_notify was given."""
    told: list[str] = []
    daemon: Any = ModuleType("systemd.daemon")

    def notify(text: str) -> bool:
        told.append(text)
        return True

    daemon.notify = notify
    monkeypatch.setitem(sys.modules, "systemd", ModuleType("systemd"))
    monkeypatch.setitem(sys.modules, "systemd.daemon", daemon)
    monkeypatch.setenv("NOTIFY_SOCKET", "/run/systemd/notify")
    return told


def test_nobody_listens(told: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET")
    assert not systemd.notify(READY=1) and told == []


def test_the_sockets_that_systemd_listens_on(told: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    given = socket.create_server(("127.0.0.1", 0))
    address = given.getsockname()
    bindings: Any = sys.modules["systemd.daemon"]
    bindings.listen_fds = lambda: [given.detach()]
    monkeypatch.setenv("LISTEN_PID", "1")
    assert systemd.sockets() == [], "they are another process's"
    monkeypatch.setenv("LISTEN_PID", str(os.getpid()))
    (taken,) = systemd.sockets()
    assert taken.getsockname() == address
    taken.close()


def test_without_bindings_nothing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "systemd", None)
    monkeypatch.setenv("NOTIFY_SOCKET", "/run/systemd/notify")
    assert not systemd.notify(READY=1)


@pytest.mark.parametrize(
    ("given", "seconds"),
    [({}, 0.0), ({"WATCHDOG_USEC": "30000000"}, 30.0), ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, 0.0)],
)
def test_the_deadline(given: dict[str, str], seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WATCHDOG_USEC", "WATCHDOG_PID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert systemd.deadline() == seconds


async def test_the_watchdog_is_fed_while_every_part_lives(told: list[str], caplog: pytest.LogCaptureFixture) -> None:
    dead = ""

    async def ask() -> str:
        if dead == "silent":
            await asyncio.sleep(3600)
        return dead

    watchdog = systemd.Watchdog(ask, lambda: "ready: m")
    await watchdog.tell(1.0)
    dead = "the audit log's writer"
    await watchdog.tell(1.0)
    await watchdog.tell(1.0)
    dead = "silent"
    await watchdog.tell(0.01)
    dead = ""
    await watchdog.tell(1.0)
    assert told == [
        "WATCHDOG=1\nSTATUS=ready: m", *["STATUS=failing: the audit log's writer"] * 2,
        "STATUS=failing: a part that does not answer", "WATCHDOG=1\nSTATUS=ready: m",
    ]  # fmt: skip
    assert caplog.text.count("systemd is not told any more that llmd lives") == 2


async def test_a_watchdog_that_stood_still_itself_reads_the_answer_first(
    told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(systemd, "LATE_SECONDS", 0.1)
    asked: list[None] = []

    async def ask() -> str:
        asked.append(None)
        if len(asked) == 1:
            asyncio.get_running_loop().call_soon(time.sleep, 0.3)
            await asyncio.sleep(0.2)
        return ""

    await systemd.Watchdog(ask, lambda: "ready: m").tell(0.05)
    assert len(asked) == 2 and told == ["WATCHDOG=1\nSTATUS=ready: m"]


async def test_a_vital_task_that_fails_is_dead_and_others_only_failed() -> None:
    async def fails() -> None:
        raise RuntimeError

    async def ends() -> None:
        pass

    tasks = Tasks()
    for name, work, vital in (("vital", fails, True), ("other", fails, False), ("ended", ends, True)):
        await asyncio.gather(tasks.start(name, work, vital=vital))
    assert tasks.failed == {"vital", "other"} and tasks.dead == {"vital"}


async def test_the_audit_logs_writer_answers_until_it_has_ended(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    audit = AuditLog(tmp_path / "audit.db", b"k" * 32)
    audit.open()
    assert await audit.answers()

    def breaks(*_: object) -> bool:
        raise RuntimeError

    monkeypatch.setattr(audit._writer, "_flush", breaks)
    assert not await audit.answers()
    assert not await audit.answers(), "it has ended"
    audit.close()


def test_the_admin_socket_is_given_to_a_group_that_this_process_is_in(monkeypatch: pytest.MonkeyPatch) -> None:
    groups = {"llmd-admin": SimpleNamespace(gr_gid=4711)}
    monkeypatch.setattr(grp, "getgrnam", groups.__getitem__)
    monkeypatch.setattr(os, "getgroups", lambda: [1, 4711])
    assert process.admins() == 4711
    monkeypatch.setattr(os, "getgroups", lambda: [1])
    assert process.admins() == -1
    groups.clear()
    assert process.admins() == -1


# --- the journal


@pytest.fixture
def sent() -> list[dict[str, str]]:
    return []


@pytest.fixture
def journal(sent: list[dict[str, str]]) -> logs.Journal:
    return logs.Journal(lambda text, **fields: sent.append({"MESSAGE": text, **fields}))


@pytest.fixture
def logger(journal: logs.Journal) -> Iterator[logging.Logger]:
    logger, handler = logging.getLogger("llmd.test.journal"), logs.LogHandler(journal)
    logger.addHandler(handler)
    yield logger
    logger.removeHandler(handler)


def test_a_record_has_fields_of_what_it_is_about(
    logger: logging.Logger, journal: logs.Journal, sent: list[dict[str, str]]
) -> None:
    about = {"principal": "alice", "model": "8b", "request_id": "req-1"}
    logger.warning("a request to %s ended", "8b", extra=about)
    logger.error("two\nlines")
    journal.flush(5.0)
    first, second = sent
    assert first == {
        "MESSAGE": "a request to 8b ended", "PRIORITY": "4", "LOGGER": "llmd.test.journal", "PRINCIPAL": "alice",
        "MODEL": "8b", "REQUEST_ID": "req-1", "SYSLOG_IDENTIFIER": "llmd",
    }  # fmt: skip
    assert second["MESSAGE"] == "two\nlines" and second["PRIORITY"] == "3" and "MODEL" not in second


def test_a_journal_that_does_not_take_lines_holds_up_nobody() -> None:
    sent: list[str] = []
    ends = os.pipe()

    def send(text: str, **_: str) -> None:
        if not sent:
            os.read(ends[0], 1)
        sent.append(text)

    journal = logs.Journal(send, most=10)
    for i in range(100):
        journal.line(str(i))
    os.write(ends[1], b"x")
    journal.flush(5.0)
    journal.line("again")
    journal.flush(5.0)
    for end in ends:
        os.close(end)
    lost = [text for text in sent if "lines were lost" in text]
    assert sent[0] == "0" and sent[-1] == "again" and len(lost) == 1
    assert int(lost[0].split()[0]) == 100 - (len(sent) - 2)


def test_a_journal_that_is_away_for_a_moment_gets_the_next_lines() -> None:
    sent: list[str] = []
    away = True

    def send(text: str, **_: str) -> None:
        if away:
            raise ConnectionRefusedError
        sent.append(text)

    journal = logs.Journal(send)
    journal.line("lost")
    until = time.monotonic() + 5.0
    while not journal._lost and time.monotonic() < until:
        time.sleep(0.01)
    away = False
    journal.line("there")
    journal.flush(5.0)
    assert "there" in sent and any("1 lines were lost" in text for text in sent)


def test_standard_error_that_leads_to_the_journal_is_one(told: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[dict[str, Any]] = []
    module: Any = ModuleType("systemd.journal")
    module.send = lambda text, **fields: sent.append({"MESSAGE": text, **fields})
    monkeypatch.setitem(sys.modules, "systemd.journal", module)
    there = os.fstat(2)
    monkeypatch.setenv("JOURNAL_STREAM", f"{there.st_dev}:{there.st_ino}")
    monkeypatch.setattr(logging.root, "handlers", [])
    writer = logs.start()
    logging.getLogger("llmd").info("it serves")
    writer.flush(5.0)
    assert [json.dumps(one["MESSAGE"]) for one in sent] == ['"it serves"']
    monkeypatch.setenv("JOURNAL_STREAM", "1:2")
    monkeypatch.setattr(logging.root, "handlers", [])
    assert type(logs.start()) is logs.Writer
