"""The audit log's one writer: a thread that owns the only connection to the file, the chain's head, and what waits.

It takes everything that waits, writes it in one transaction, and wakes the waiters when that is on disk. A failed write
refuses the rows that somebody waits for and keeps the others, in order, until the disk can be written again.
"""

import asyncio
import logging
import os
import queue
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlite_utils import Database

from llmd.daemon import atomic
from llmd.daemon.audit import chain, starts
from llmd.daemon.audit.chain import COLUMNS, GENESIS, Entry, Value
from llmd.daemon.audit.schema import MIGRATIONS
from llmd.daemon.errors import AuditUnavailable, Conflict

MAX_BATCH = 512
MAX_KEPT = 100_000
RETRY_SECONDS = 1.0

INSERT = f"INSERT INTO audit({COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?)"

log = logging.getLogger("llmd.audit")


class NotALog(Exception):
    """A database that is not an audit log, or one of a newer llmd; the message says which."""


@dataclass(frozen=True, slots=True)
class Read:
    sql: str
    arguments: tuple[Value, ...]
    future: "Future[list[tuple[Any, ...]]]"


class Ready:
    """The daemon serves: its start has not failed."""


class Writer:
    """The thread that owns the connection, the chain's head and what is still to be written."""

    def __init__(self, path: Path, stamp: Callable[[], str], key: str) -> None:
        """`key`: what tells one HMAC key from another."""
        self._path = path
        self._stamp, self._key = stamp, key
        self._queue: queue.SimpleQueue[Entry | Read | Ready | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._todo: deque[Entry] = deque()
        self._live: set[str] = set()
        self._start: Entry | None = None  # a row that waits: starts fail again and again
        self._refused = self._dropped = 0
        self.head = (0, GENESIS)
        self.lost: list[Entry] = []
        self.writable = False
        self.last_commit = time.monotonic()

    def open(self) -> None:
        ready: Future[None] = Future()
        with self._lock:
            if self._thread is not None:
                raise RuntimeError("the audit log is open")
            self._queue = queue.SimpleQueue()
            self._thread = threading.Thread(target=self._main, args=(ready,), name="audit", daemon=True)
            self._thread.start()
        try:
            ready.result()
        except Exception as error:
            self.close()
            raise _explain(error) from error

    def put(self, item: "Entry | Read | Ready") -> bool:
        # Under the lock, so that nothing is ever queued behind the None that ends the thread.
        with self._lock:
            if self._thread is not None:
                self._queue.put(item)
            return self._thread is not None

    def close(self) -> None:
        with self._lock:
            thread, self._thread = self._thread, None
            self._queue.put(None)
        if thread is not None:
            thread.join()

    def _main(self, ready: "Future[None]") -> None:
        try:
            db = self._connect()
        except Exception as error:
            ready.set_exception(error)
            return
        ready.set_result(None)
        try:
            while self._turn(db):
                pass
        except Exception as error:
            self._fail(error)
        self.writable = False
        db.close()

    def _fail(self, error: Exception) -> None:
        """What nobody expected ended the thread: nobody may be left waiting for it, and nothing more is taken."""
        log.critical("the audit log's writer failed; nothing is logged until llmd is restarted", exc_info=error)
        with self._lock:
            self._thread = None
        self.writable = False
        left = [*self._todo]
        with suppress(queue.Empty):
            while True:
                item = self._queue.get_nowait()
                if isinstance(item, Read):
                    item.future.set_exception(error)
                elif isinstance(item, Entry):
                    left.append(item)
        _settle(left, error)

    def _turn(self, db: Database) -> bool:
        """One round: 1. take what waits, or wait  2. write it in one transaction  3. read. False once closed."""
        reads: list[Read] = []
        closing = False
        pause = RETRY_SECONDS if not self.writable else 0.0 if self._todo else None
        with suppress(queue.Empty):
            item = self._queue.get(timeout=pause)  # 1
            while item is not None:
                if isinstance(item, Read):
                    reads.append(item)
                elif isinstance(item, Ready):
                    self._begun(db)
                else:
                    self._todo.append(item)
                if self.writable and len(self._todo) >= MAX_BATCH:
                    break
                item = self._queue.get_nowait()
            closing = item is None
        try:
            self._flush(db)  # 2
        except Exception as error:
            for read in reads:
                read.future.set_exception(error)
            raise
        for read in reads:
            _answer(read, db)  # 3
        if closing:
            self._last_words(db)
        return not closing

    def _flush(self, db: Database) -> bool:
        """Write the oldest MAX_BATCH of what waits. A failure fails every waiter and keeps every other row, in
        order."""
        if self._todo:
            self._say_start()
        batch = list(self._todo)[:MAX_BATCH]
        if not batch and self.writable:
            return True
        try:
            self._write(db, batch)
        except Exception as error:  # whatever it was, nobody may be left waiting for this thread
            self._keep(error)
            return False
        for _ in batch:
            self._todo.popleft()
        if not self.writable:
            log.warning("the audit log can be written again; %d kept rows to write", len(self._todo))
            self.writable, self._refused, self._dropped = True, 0, 0
        _settle(batch, None)
        return True

    def _begun(self, db: Database) -> None:
        self._say_start()
        with suppress(sqlite3.Error):  # on a full disk the next start's row waits, no more
            starts.over(db.conn)

    def _say_start(self) -> None:
        if self._start is not None:
            self._todo.appendleft(self._start)
            self._start = None

    def _write(self, db: Database, entries: list[Entry]) -> None:
        """Append in one transaction. The head, and what is known to be on disk, move only after the commit."""
        if self._refused or self._dropped:
            gap = chain.body_text({"refused": self._refused, "dropped": self._dropped})
            entries = [*entries, Entry("interrupted", self._stamp(), None, gap)]
        live = set(self._live)
        rows = chain.link(entries, self.head, live)
        with db.atomic():
            db.conn.executemany(INSERT, rows)
        if rows:
            self.head = (rows[-1].seq, rows[-1].hash)
        self._live, self.last_commit = live, time.monotonic()

    def _keep(self, error: Exception) -> None:
        waiting = [entry for entry in self._todo if entry.waiter is not None]
        kept = [entry for entry in self._todo if entry.waiter is None]
        self._todo = deque(kept[:MAX_KEPT])
        self._dropped += len(kept) - len(self._todo)
        self._refused += len(waiting)
        if self.writable:
            log.error("the audit log cannot be written: %s", error)
        self.writable = False
        _settle(waiting, error)

    def _last_words(self, db: Database) -> None:
        if self._start is not None and not self._todo:
            return
        while self._todo and self._flush(db):
            pass
        self._todo.append(Entry("stop", self._stamp(), None, chain.body_text({"open": len(self._live)})))
        if not self._flush(db):
            log.error(
                "the audit log could not be written at the end: %d rows are lost", len(self._todo) + self._dropped
            )
        self._todo.clear()

    def _connect(self) -> Database:
        os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
        self._path.chmod(0o600)
        conn = sqlite3.connect(self._path, isolation_level=None, timeout=5.0)
        try:
            conn.text_factory = chain.text
            db = Database(conn, execute_plugins=False)
            _prepare(db)
            self.head = db.execute("SELECT seq, hash FROM audit ORDER BY seq DESC LIMIT 1").fetchone() or (0, GENESIS)
            if chain.last_key(conn) not in (None, self._key):
                raise NotALog("audit.key is not the key that it was written with; put back a copy of audit.key")
            self.lost = left = chain.left_open(conn)
            self._live = {entry.request for entry in left if entry.kind == "admit" and entry.request}
            ts = self._stamp()
            failed, again = starts.begin(conn, ts)
            entries = chain.start_entries(left, ts, self._key, failed)
            if again and not left:
                (self._start,) = entries
            else:
                self._write(db, entries)
                starts.written(conn, ts)
            self.writable = True
        except BaseException:
            conn.close()
            raise
        return db


def _prepare(db: Database) -> None:
    """Pragmas and migrations. A file that is refused is not changed."""
    # Nobody else can open the file while we have it: SQLite before 3.51.3 can lose WAL frames between two connections.
    db.execute("PRAGMA locking_mode=EXCLUSIVE").fetchall()
    for pragma in ("foreign_keys=ON", "trusted_schema=OFF", "cell_size_check=ON", "synchronous=FULL"):
        db.execute(f"PRAGMA {pragma}").fetchall()
    empty = db.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0] == 0
    problem = None if empty else chain.schema_problem(db.conn)
    if problem is not None:
        raise NotALog(problem)
    with db.atomic():  # a first start that is cut off leaves an empty file
        MIGRATIONS.apply(db)
    for pragma in ("journal_mode=WAL", "wal_autocheckpoint=1000", "journal_size_limit=67108864"):
        db.execute(f"PRAGMA {pragma}").fetchall()


def _explain(error: Exception) -> Exception:
    """What `open` raises: the admin must act on a Conflict; the disk is at fault in an AuditUnavailable."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
        return Conflict(f"the audit log is damaged ({error}): move it away, or put back a copy")
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return Conflict("the audit log is in use by another process")
    if isinstance(error, NotALog):
        return Conflict(f"the audit log's file cannot be used: {error}")
    if isinstance(error, sqlite3.Error | OSError):
        why = atomic.why(error) if isinstance(error, OSError) else error
        return AuditUnavailable(f"the audit log cannot be opened: {why}")
    return error


def _answer(read: Read, db: Database) -> None:
    if read.future.set_running_or_notify_cancel():
        try:
            read.future.set_result(list(db.execute(read.sql, read.arguments)))
        except Exception as error:  # it belongs to the reader; the writer goes on
            read.future.set_exception(error)


def _settle(entries: Iterable[Entry], error: Exception | None) -> None:
    """Wake the waiters: one call a loop, not one a waiter."""
    loops: dict[asyncio.AbstractEventLoop, list[asyncio.Future[Exception | None]]] = {}
    for entry in entries:
        if entry.waiter is not None:
            loops.setdefault(entry.waiter.get_loop(), []).append(entry.waiter)
    for loop, waiters in loops.items():
        with suppress(RuntimeError):  # that loop is closed: nobody waits any more
            loop.call_soon_threadsafe(_resolve, waiters, error)


def _resolve(waiters: "list[asyncio.Future[Exception | None]]", error: Exception | None) -> None:
    for waiter in waiters:
        if not waiter.done():
            waiter.set_result(error)
