"""kill -9 under load, of a worker and of the daemon: each request ends once, and nothing is left behind."""

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil
import pytest

from llmd.daemon.audit.log import AuditLog
from llmd.daemon.audit.offline import verify_file
from llmd.daemon.errors import LlmdError
from llmd.daemon.identity.principal import Principal
from llmd.daemon.metrics import Metrics
from llmd.daemon.planning.plan import Wish
from llmd.daemon.replicas import lifecycle
from llmd.daemon.replicas.pool import Pool
from llmd.daemon.serving import poison
from llmd.daemon.serving.answer import Serving
from llmd.daemon.serving.ask import Ask
from llmd.daemon.tasks import Tasks
from llmd.daemon.wire.events import Failed, Finished
from llmd.daemon.wire.work import Generate, RawText, SamplingWish

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

WORKER_KILLS = 50
DAEMON_KILLS = 20
ALICE = Principal("alice", "infer", "1f", "127.0.0.1")
WISH = Wish("", 8, 256, 64, 32, 1, engine="fake", fake={"text": "one two", "step_seconds": 0.002})


async def load(serving: Serving, stop: asyncio.Event) -> Counter[str]:
    """Requests one after the other until `stop`; how each ended, as its client saw it."""
    ends: Counter[str] = Counter()
    while not stop.is_set():
        try:
            async with serving.open(
                ALICE, Ask("/load", "m", Generate((RawText("hello"),), SamplingWish(50)))
            ) as answer:
                events = [event async for some in answer for event in some]
            assert sum(isinstance(e, Finished | Failed) for e in events) == 1 and isinstance(
                events[-1], Finished | Failed
            )
            ends["failed" if isinstance(events[-1], Failed) else "finished"] += 1
        except LlmdError:
            ends["refused"] += 1
            await asyncio.sleep(0.01)
    return ends


def rows(path: Path) -> Counter[str]:
    """How often each request was admitted and finished, as a count of `admits/finishes`."""
    with closing(sqlite3.connect(path)) as db:
        found = db.execute(
            "SELECT sum(kind = 'admit'), sum(kind = 'finish') FROM audit WHERE request IS NOT NULL GROUP BY request"
        )
        return Counter(f"{admits}/{finishes}" for admits, finishes in found)


def refused(path: Path) -> int:
    """How many were refused before the model was asked: a row each, or counted in one."""
    with closing(sqlite3.connect(path)) as db:
        found = db.execute("SELECT sum(coalesce(body ->> 'more', 1)) FROM audit WHERE kind = 'refused'").fetchone()
        return int(found[0] or 0)


async def test_a_worker_that_is_killed_again_and_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lifecycle, "MAX_CRASHES", WORKER_KILLS + 1)
    monkeypatch.setattr(poison, "CRASHES", WORKER_KILLS + 1)
    audit, metrics, tasks = AuditLog(tmp_path / "audit.db", bytes(32)), Metrics(), Tasks()
    audit.open()
    pool = Pool(metrics, tasks, pause=(0.01, 0.01))
    serving = Serving(pool, lambda: 100, audit, metrics, tasks)
    deployment, stop = pool.deploy("m", "d" * 64, WISH), asyncio.Event()
    clients = [asyncio.create_task(load(serving, stop)) for _ in range(16)]
    pids = []
    for _ in range(WORKER_KILLS):
        async with asyncio.timeout(20):
            while not deployment.ready:
                await deployment.changed.wait()
        worker, _ = pool.serves("m")
        await asyncio.sleep(0.1)
        pids.append(worker.pid)
        os.kill(worker.pid, signal.SIGKILL)
        async with asyncio.timeout(5):
            while deployment.ready:
                await asyncio.sleep(0.001)
    async with asyncio.timeout(20):
        while not deployment.ready:
            await deployment.changed.wait()
    await asyncio.sleep(0.3)
    stop.set()
    ends = sum(await asyncio.gather(*clients), Counter[str]())
    await pool.close(5)
    serving.books.refusals.flush(all_=True)
    audit.close()
    assert deployment.restarts == WORKER_KILLS and not tasks.failed
    assert ends["finished"] > 16 and ends["failed"] > WORKER_KILLS
    assert not any(psutil.pid_exists(pid) for pid in pids)
    report = verify_file(tmp_path / "audit.db")
    assert report.ok and report.open == 0
    admitted = rows(tmp_path / "audit.db")
    assert set(admitted) == {"1/1"}
    assert sum(admitted.values()) + refused(tmp_path / "audit.db") == sum(ends.values())


DAEMON = """
import asyncio, sys
from pathlib import Path
sys.path.insert(0, {folder!r})
from test_kills import AuditLog, Metrics, Pool, Serving, Tasks, WISH, load

async def main():
    audit, metrics, tasks = AuditLog(Path(sys.argv[1]), bytes(32)), Metrics(), Tasks()
    audit.open()
    pool = Pool(metrics, tasks)
    deployment = pool.deploy("m", "d" * 64, WISH)
    while not deployment.ready:
        await deployment.changed.wait()
    print(deployment.worker.pid, flush=True)
    serving = Serving(pool, lambda: 100, audit, metrics, tasks)
    await asyncio.gather(*(load(serving, asyncio.Event()) for _ in range(16)))

asyncio.run(main())
"""


def test_a_daemon_that_is_killed_again_and_again(tmp_path: Path) -> None:
    path = tmp_path / "audit.db"
    script = DAEMON.format(folder=str(Path(__file__).parent))
    workers = []
    for _ in range(DAEMON_KILLS):
        daemon = subprocess.Popen([sys.executable, "-P", "-c", script, str(path)], stdout=subprocess.PIPE, text=True)
        assert daemon.stdout is not None
        workers.append(int(daemon.stdout.readline()))
        time.sleep(0.4)
        daemon.kill()
        daemon.wait()
        daemon.stdout.close()
    deadline = time.monotonic() + 5
    while any(_runs(pid) for pid in workers):
        assert time.monotonic() < deadline, "a worker outlived its daemon"
        time.sleep(0.02)
    last = AuditLog(path, bytes(32))
    last.open()  # closes what the last daemon left open
    last.close()
    report = verify_file(path)
    assert report.ok and report.open == 0
    assert set(rows(path)) == {"1/1"} and sum(rows(path).values()) > 16 * DAEMON_KILLS


def _runs(pid: int) -> Any:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
