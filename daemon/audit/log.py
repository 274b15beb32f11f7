"""The tamper-evident audit log: an `admit` row before a model is asked, one `finish` row whatever happens then.

`AuditLog` is what the daemon calls, from its event loop or from any thread. Behind it one writer thread owns the only
connection to the file: it takes everything that waits, writes it in one transaction, and wakes the waiters when that is
on disk. `chain.py` says what a row's hash covers and what a hash chain cannot show.

Kinds: `admit`, `finish`, `start`, `stop`, `interrupted` (the disk failed: refused requests, dropped rows), and events'
names.
"""

import asyncio
import hmac
import logging
import sqlite3
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from llmd.daemon.audit import chain
from llmd.daemon.audit.chain import COLUMNS, PAGE_ROWS, Break, Entry, Found, Report, Row, State, Value
from llmd.daemon.audit.schema import OF_CLIENTS, OF_POLICY
from llmd.daemon.audit.writer import Read, Ready, Writer
from llmd.daemon.errors import AuditUnavailable

MAX_REMEMBERED = 4096

log = logging.getLogger("llmd.audit")


class AuditLog:
    """The log at `path`, created with mode 0600. `key` (32 bytes) makes prompt hashes useless to whoever lacks it."""

    def __init__(self, path: Path, key: bytes, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        if len(key) < 32:
            raise ValueError("the audit key must have 32 bytes or more")
        self._key = key
        self._stamp: Callable[[], str] = lambda: chain.timestamp(now())
        self._writer = Writer(path, self._stamp, self.prompt_mac(b"llmd audit key")[:16])
        self._lock = threading.Lock()
        self._open: dict[str, dict[str, Value]] = {}
        self._finished: OrderedDict[str, None] = OrderedDict()

    def open(self) -> None:
        """Start the writer; returns when an earlier run's open requests are closed as `lost` and the `start` row is on
        disk, or counted where starts fail again and again (`ready`).

        Raises Conflict where the file is from a newer llmd, is not an audit log, is damaged or is in use, and
        AuditUnavailable where it cannot be written. The daemon must not start then.
        """
        self._writer.open()

    def ready(self) -> None:
        """The daemon serves: this start has not failed. Of those that fail within an hour only the first has rows;
        where the last one failed, this one's `start` row waits for this, or for another row (`starts.py`)."""
        self._writer.put(Ready())

    def close(self) -> None:
        """Write what is queued and a `stop` row, and join the thread. What cannot be written is logged as lost."""
        self._writer.close()

    async def admit(self, request_id: str, **fields: Value) -> None:
        """Returns once the `admit` row is on disk; call it before the `try` whose `finally` calls `finish`.

        Raises AuditUnavailable when it cannot be written (the request then counts as never admitted), ValueError for an
        id in use. A caller cancelled in here need not call `finish`: the row, if it was written, gets a `cancelled`
        one.
        """
        entry = self._entry("admit", chain.checked_request(request_id), fields)
        with self._lock:
            if request_id in self._open or request_id in self._finished:
                raise ValueError(f"request {request_id!r} was admitted before")
            self._open[request_id] = chain.carried(fields)
        try:
            await self._durable(entry)
        except asyncio.CancelledError:
            self.finish(request_id, "cancelled")
            raise
        except AuditUnavailable:
            with self._lock:
                self._open.pop(request_id, None)
            raise

    def finish(self, request_id: str, outcome: str, **fields: Value) -> None:
        """Queue the request's one `finish` row; never waits, and a second call does nothing. From any thread.

        The row also says the admit's `principal` and `model`. Raises ValueError for an outcome not in chain.OUTCOMES,
        and for a request that was not admitted.
        """
        if outcome not in chain.OUTCOMES:
            raise ValueError(f"unknown outcome {outcome!r}")
        chain.body_text(fields)
        with self._lock:
            if request_id in self._finished:
                return
            if request_id not in self._open:
                raise ValueError(f"request {request_id!r} was not admitted")
            carried = self._open.pop(request_id)
            self._finished[request_id] = None
            if len(self._finished) > MAX_REMEMBERED:
                self._finished.popitem(last=False)
        self._queue(self._entry("finish", request_id, {**fields, **carried, "outcome": outcome}))

    def event(self, kind: str, *, request: str | None = None, **fields: Value) -> None:
        """Queue a row of an admin's or the daemon's own action; never waits. From any thread."""
        self._queue(self._entry(chain.checked_event(kind), request, fields))

    async def event_durable(self, kind: str, *, request: str | None = None, **fields: Value) -> None:
        """As `event`, but returns once the row is on disk, and raises AuditUnavailable when it cannot be written."""
        await self._durable(self._entry(chain.checked_event(kind), request, fields))

    def prompt_mac(self, data: bytes) -> str:
        """HMAC-SHA256 in hex. Keyed, because a plain hash of a short prompt is found by trying prompts."""
        return hmac.digest(self._key, data, "sha256").hex()

    @property
    def lost(self) -> list[Entry]:
        """What the run before this one began and did not end: the first rows of its requests and acts."""
        return self._writer.lost

    @property
    def writable(self) -> bool:
        """Whether the last write worked. False before `open` and after `close`."""
        return self._writer.writable

    @property
    def last_commit_age(self) -> float:
        """Seconds since the last commit; an idle daemon's grows without anything being wrong."""
        return time.monotonic() - self._writer.last_commit

    async def answers(self) -> bool:
        """Whether its writer still works, be it that the disk does not take what it writes."""
        try:
            await self._rows("SELECT 0 WHERE 0")
        except AuditUnavailable as error:
            return isinstance(error.__cause__, sqlite3.Error)
        except Exception:  # what ended the writer is told to whoever waited for it
            return False
        return True

    def of_clients(self) -> list[Entry]:
        """What was done to clients, oldest first. It waits for the writer: for a start. Raises AuditUnavailable."""
        return self._at_once(f"SELECT {COLUMNS} FROM audit WHERE {OF_CLIENTS} ORDER BY seq")

    def of_policy(self) -> Entry | None:
        """The last change of the policy that was done, in the same way."""
        done = f'{OF_POLICY} AND body LIKE \'%"result":"done"%\''
        return next(iter(self._at_once(f"SELECT {COLUMNS} FROM audit WHERE {done} ORDER BY seq DESC LIMIT 1")), None)

    def _at_once(self, sql: str) -> list[Entry]:
        future: Future[list[tuple[Any, ...]]] = Future()
        if not self._writer.put(Read(sql, (), future)):
            raise AuditUnavailable("the audit log is closed")
        try:
            return [Entry(row.kind, row.ts, row.request, row.body) for row in map(Row._make, future.result())]
        except sqlite3.Error as error:
            raise AuditUnavailable(f"the audit log cannot be read: {error}") from error

    async def tail(self, n: int, after_seq: int | None = None) -> list[dict[str, Any]]:
        """The last `n` rows, or the first `n` after `after_seq`, oldest first; at most PAGE_ROWS."""
        where, order = ("? IS NULL", "DESC") if after_seq is None else ("seq > ?", "ASC")
        sql = f"SELECT {COLUMNS} FROM audit WHERE {where} ORDER BY seq {order} LIMIT ?"
        rows = await self._rows(sql, after_seq, max(0, min(n, PAGE_ROWS)))
        return [row.to_dict() for row in sorted(rows)]

    async def query(
        self,
        *,
        principal: str | None = None,
        model: str | None = None,
        outcome: str | None = None,
        kind: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        request: str | None = None,
        after: int | None = None,
        limit: int | None = 100,
    ) -> Found:
        """Of the rows that match everything given the newest `limit` (None: all), or the first ones after the row
        `after`; `since <= ts < until`. At most PAGE_ROWS of them: `Found.after` gets the next ones.

        It reads the log in pages, so that writes go on in between. Raises ValueError for a time without a zone.
        """
        times = {"since": chain.timestamp(since) if since else None, "until": chain.timestamp(until) if until else None}
        names = {"principal": principal, "model": model, "outcome": outcome, "kind": kind, "request": request}
        where, arguments = chain.matching({**times, **names})
        top, _ = await self._head()
        older = False
        if after is None:
            after, older = (0, False) if limit is None else await self._before_newest(limit, where, arguments, top)
        sql = f"SELECT {COLUMNS} FROM audit WHERE {where} ORDER BY seq LIMIT ?"
        most = PAGE_ROWS if limit is None else min(limit, PAGE_ROWS)
        found: list[Row] = []
        while after < top and len(found) <= most:
            found += await self._rows(sql, after, after + PAGE_ROWS, *arguments, most + 1 - len(found))
            after += PAGE_ROWS
        return Found(found[:most], older, found[most - 1].seq if len(found) > most else None)

    async def _before_newest(self, count: int, where: str, arguments: Sequence[Value], top: int) -> tuple[int, bool]:
        """The row that the newest `count` matching ones come after, and whether older ones match too."""
        sql = f"SELECT seq FROM audit WHERE {where} ORDER BY seq DESC LIMIT ?"
        while top > 0:
            seqs = [seq for (seq,) in await self._read(sql, top - PAGE_ROWS, top, *arguments, count + 1)]
            if len(seqs) > count:
                return seqs[count], True
            count -= len(seqs)
            top -= PAGE_ROWS
        return 0, False

    async def verify(self) -> Report:
        """Check the chain up to the head of this moment. The daemon knows that head, so a cut-off end is found too.
        Raises AuditUnavailable after `close`."""
        last, head = await self._head()
        sql = f"SELECT {COLUMNS} FROM audit WHERE seq > ? AND seq <= ? ORDER BY seq LIMIT ?"
        state = State("the running daemon's log")
        try:
            while state.seq < last and (page := await self._rows(sql, state.seq, last, PAGE_ROWS)):
                broken = await asyncio.to_thread(chain.verify, page, state)
                if broken is not None:
                    return state.report(broken)
        except AuditUnavailable as error:
            cause = error.__cause__
            if isinstance(cause, sqlite3.Error) and chain.is_damage(cause):
                return state.damaged(cause)
            return state.report(error=f"after row {state.seq}: {error.message}")
        if (state.seq, state.head) != (last, head):
            return state.report(Break(state.seq + 1, "head", f"the daemon wrote up to row {last}; the end was changed"))
        return state.report()

    def _entry(self, kind: str, request: str | None, fields: dict[str, Value]) -> Entry:
        return Entry(kind, self._stamp(), request, chain.body_text(fields))

    def _queue(self, entry: Entry) -> None:
        if not self._writer.put(entry):
            log.error("the audit log is closed: a %s row of request %s is lost", entry.kind, entry.request)

    async def _durable(self, entry: Entry) -> None:
        waiter: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()
        if not self._writer.put(Entry(entry.kind, entry.ts, entry.request, entry.body, waiter)):
            raise AuditUnavailable("the audit log is closed")
        if (error := await waiter) is not None:
            raise AuditUnavailable("the audit log cannot be written: nothing was started") from error

    async def _rows(self, sql: str, *arguments: Value) -> list[Row]:
        return [Row._make(row) for row in await self._read(sql, *arguments)]

    async def _read(self, sql: str, *arguments: Value) -> list[tuple[Any, ...]]:
        future: Future[list[tuple[Any, ...]]] = Future()
        if not self._writer.put(Read(sql, arguments, future)):
            raise AuditUnavailable("the audit log is closed")
        try:
            return await asyncio.wrap_future(future)
        except sqlite3.Error as error:
            raise AuditUnavailable(f"the audit log cannot be read: {error}") from error

    async def _head(self) -> tuple[int, bytes]:
        await self._rows("SELECT 0 WHERE 0")  # behind all that was queued before
        return self._writer.head
