"""What an audit database holds: its schema, its rows, and the hash chain over them; how a chain is checked.

    hash = SHA-256(0x00 || seq, 8 bytes big-endian || prev || canonical JSON of {"body", "kind", "request", "ts"})

`prev` is the hash of the row before, and 32 zero bytes for row 1. `body` enters as the stored text, not as parsed JSON,
so that a change of one space is a change. What a chain alone cannot show: rows cut off its end, or a whole log written
anew by somebody who can write the file. Only a head kept outside the machine shows that.

Standard library only, no threads and no clock: `log.py` has those.
"""

import asyncio
import hashlib
import json
import sqlite3
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple

SCHEMA_VERSION = 4  # PRAGMA user_version of a log that this llmd reads; `schema.py` has the tables
GENESIS = bytes(32)
PAGE_ROWS = 2000
COLUMNS = "seq, ts, kind, request, body, prev, hash"
OUTCOMES = frozenset({"ok", "stop", "length", "cancelled", "error", "lost"})
RESERVED_KINDS = frozenset({"admit", "finish", "start", "stop", "interrupted"})
# every kind of row, for whoever asks for one; a test holds it against what is written
KINDS = RESERVED_KINDS | {
    "refused", "reload", "admin.client_issue", "admin.client_revoke", "admin.client_role", "admin.deploy",
    "admin.evict", "admin.form_remove", "admin.gpu_ignore", "admin.gpu_use", "admin.job_cancel", "admin.model_import",
    "admin.model_quantize", "admin.model_remove", "admin.model_rename", "admin.model_syntax", "admin.policy",
    "admin.undeploy", "audit.on_failure", "gpu.fault", "job.ended", "model.quarantined", "model.ready", "pki.damaged",
    "pki.reconciled", "pki.renewed", "state.completed", "state.restored", "worker.lost",
}  # fmt: skip
Value = str | int | float | bool | None

_encode: Callable[[Any], str] = json.JSONEncoder(
    sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False
).encode


class Row(NamedTuple):
    """One stored row, in the order of `COLUMNS`."""

    seq: int
    ts: str
    kind: str
    request: str | None
    body: str
    prev: bytes
    hash: bytes

    def to_dict(self) -> dict[str, Any]:
        """For people and exports: `body` parsed (as text where it is damaged), hashes in hex."""
        return {**self._asdict(), "body": parsed(self.body), "prev": self.prev.hex(), "hash": self.hash.hex()}


@dataclass(frozen=True, slots=True)
class Found:
    """Rows that were asked for, oldest first. `older`: more match before them; `after`: the row that the next ones come
    after, None where there are none."""

    rows: list[Row]
    older: bool
    after: int | None

    def to_dict(self) -> dict[str, Any]:
        return {"rows": [row.to_dict() for row in self.rows], "older": self.older, "after": self.after}


@dataclass(frozen=True, slots=True)
class Entry:
    """A row to be: all but its place in the chain. `waiter`, if any, is told of None once it is on disk, or of the
    error."""

    kind: str
    ts: str
    request: str | None
    body: str
    waiter: "asyncio.Future[Exception | None] | None" = None


@dataclass(frozen=True)
class Break:
    """The first row that does not fit. `reason` is one of malformed, gap, order, prev, hash, admit, finish,
    head, damaged."""

    seq: int
    reason: str
    detail: str


@dataclass(frozen=True)
class Report:
    """What a check found. `rows` counts the good rows, up to `last`; `head` is the last good row's hash in hex;
    `earliest` and `latest` are the first and the last of their times. `source`: what was read.

    `open` counts requests admitted and not finished: normal in a copy of a running daemon's log. `error` says, in words
    for a person, why it could not be checked (further); `broken` where the chain breaks.
    """

    rows: int
    first: int | None
    last: int | None
    head: str
    open: int
    earliest: str
    latest: str
    source: str
    broken: Break | None = None
    error: str | None = None

    @property
    def ok(self) -> bool:
        return self.verdict == "holds"

    @property
    def verdict(self) -> str:
        """holds, broken or unchecked."""
        return "broken" if self.broken else "unchecked" if self.error else "holds"

    def to_dict(self) -> dict[str, Any]:
        return {"ok": self.ok, "verdict": self.verdict, **asdict(self)}


@dataclass
class State:
    """How far a check has come; `verify` moves it. `source`: what is read."""

    source: str = ""
    seq: int = 0
    head: bytes = GENESIS
    rows: int = 0
    open: set[str] = field(default_factory=set)
    earliest: str = ""
    latest: str = ""

    def report(self, broken: Break | None = None, error: str | None = None) -> Report:
        first, last = (self.seq - self.rows + 1, self.seq) if self.rows else (None, None)
        times = self.earliest, self.latest
        return Report(self.rows, first, last, self.head.hex(), len(self.open), *times, self.source, broken, error)

    def damaged(self, error: Exception) -> Report:
        """Of a file that SQLite cannot read on."""
        detail = f"the file is damaged after row {self.seq}: {error}"
        return self.report(Break(self.seq + 1, "damaged", detail))


def canonical(value: Any) -> str:
    """JSON in its one form: sorted keys, no spaces, ASCII. Raises ValueError for NaN and infinities."""
    return _encode(value)


def body_text(fields: Mapping[str, Value]) -> str:
    """A row's body. Raises ValueError for a value that is not a str, int, finite float, bool or None."""
    for name, value in fields.items():
        if not (value is None or isinstance(value, str | int | float)):
            raise ValueError(f"audit field {name!r} must be a str, int, float, bool or None")
    return canonical(fields)


def parsed(body: str) -> dict[str, Any]:
    """The fields of a stored body; a damaged one comes as {"damaged": its text}."""
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError):
        fields = None
    return fields if isinstance(fields, dict) else {"damaged": body}


def checked_request(request: str) -> str:
    """The id itself. Raises ValueError unless it is 1 to 128 printable ASCII characters."""
    if not (0 < len(request) <= 128 and request.isascii() and request.isprintable()):
        raise ValueError("a request id is 1 to 128 printable ASCII characters")
    return request


def checked_event(kind: str) -> str:
    """The kind itself. Raises ValueError for one of ours, and unless it is ASCII words joined by dots."""
    if kind in RESERVED_KINDS or not (kind.isascii() and kind.replace(".", "_").isidentifier()):
        raise ValueError(f"{kind!r} cannot be the kind of an event")
    return kind


def timestamp(moment: datetime) -> str:
    """UTC, ISO 8601 with microseconds and a Z: one width, so that text sorts as time. Raises ValueError without a
    zone."""
    if moment.tzinfo is None:
        raise ValueError("a time needs a zone")
    return moment.astimezone(UTC).isoformat(timespec="microseconds").removesuffix("+00:00") + "Z"


def row_hash(seq: int, prev: bytes, kind: str, ts: str, request: str | None, body: str) -> bytes:
    """The 32 bytes that row `seq` must carry, with `prev` the hash of row `seq - 1`."""
    says = canonical({"body": body, "kind": kind, "request": request, "ts": ts})
    return hashlib.sha256(b"\x00" + seq.to_bytes(8, "big") + prev + says.encode("ascii")).digest()


def link(entries: Iterable[Entry], head: tuple[int, bytes], live: set[str]) -> list[Row]:
    """The rows that follow `head`, (seq, hash), in order. `live`, the requests admitted and not finished, is brought up
    to date.

    A finish of a request that is not live makes no row: its admit was given up because it could not be written.
    """
    seq, prev = head
    rows: list[Row] = []
    for entry in entries:
        if entry.kind == "admit":
            live.add(str(entry.request))
        elif entry.kind == "finish":
            if entry.request not in live:
                continue
            live.remove(entry.request)
        seq += 1
        digest = row_hash(seq, prev, entry.kind, entry.ts, entry.request, entry.body)
        rows.append(Row(seq, entry.ts, entry.kind, entry.request, entry.body, prev, digest))
        prev = digest
    return rows


def text(stored: bytes) -> str:
    """The `text_factory` of every connection that checks: bytes that are not UTF-8 become a wrong hash, not an
    exception."""
    return stored.decode("utf-8", "surrogateescape")


def verify(rows: Iterable[Row], state: State) -> Break | None:
    """Check `rows`, in the order of `seq`, as what follows `state`; feed a long log page by page.

    Returns the first break, with `state` left at the last good row, or None with `state` moved past `rows`.
    """
    for row in rows:
        broken = _check(row, state)
        if broken is not None:
            return broken
        state.seq, state.head, state.rows = row.seq, row.hash, state.rows + 1
        state.earliest, state.latest = min(state.earliest or row.ts, row.ts), max(state.latest, row.ts)
        if row.kind == "admit":
            state.open.add(str(row.request))
        elif row.kind == "finish":
            state.open.discard(str(row.request))
    return None


def _check(row: Row, state: State) -> Break | None:
    """1. types  2. seq  3. link to the row before  4. own hash  5. one admit, then one finish, a request."""
    expected = state.seq + 1
    if not _well_formed(row):  # 1
        return Break(
            row.seq if isinstance(row.seq, int) else expected, "malformed", "a column has the wrong type or size"
        )
    if row.seq > expected:  # 2
        return Break(row.seq, "gap", f"row {row.seq} follows row {state.seq}: {row.seq - expected} rows are missing")
    if row.seq < expected:
        return Break(row.seq, "order", f"row {row.seq} comes where row {expected} is due")
    if row.prev != state.head:  # 3
        return Break(row.seq, "prev", "its link does not match the row before it: one of the two was changed")
    if row.hash != row_hash(row.seq, row.prev, row.kind, row.ts, row.request, row.body):  # 4
        return Break(row.seq, "hash", "its contents do not match its hash: the row was changed")
    if row.kind == "admit" and str(row.request) in state.open:  # 5
        return Break(row.seq, "admit", f"request {row.request!r} is admitted a second time")
    if row.kind == "finish" and str(row.request) not in state.open:
        return Break(row.seq, "finish", f"request {row.request!r} finishes without an open admit, or a second time")
    return None


def _well_formed(row: Row) -> bool:
    return (
        isinstance(row.seq, int)
        and all(isinstance(value, str) for value in (row.ts, row.kind, row.body))
        and (row.request is None or isinstance(row.request, str))
        and all(isinstance(value, bytes) and len(value) == 32 for value in (row.prev, row.hash))
    )


def carried(fields: Mapping[str, Any]) -> dict[str, Value]:
    """What a finish row says of its admit again, so that a query for a principal or a model finds both."""
    return {name: fields[name] for name in ("principal", "model") if name in fields}


def matching(fields: Mapping[str, Value]) -> tuple[str, list[Value]]:
    """A WHERE clause, and its arguments, for the rows in a range of `seq` that have each of `fields` that is not None.

    Names are since and until (timestamps, the second one exclusive), kind, request, or those of fields in the body.
    """
    columns = {"since": "ts >= ?", "until": "ts < ?", "kind": "kind = ?", "request": "request = ?"}
    used = {name: value for name, value in fields.items() if value is not None}
    # CASE: a row that somebody damaged must not fail the whole query.
    in_body = "CASE WHEN json_valid(body) THEN json_extract(body, '$.{}') END = ?"
    clauses = ["seq > ? AND seq <= ?", *(columns.get(name) or in_body.format(name) for name in used)]
    return " AND ".join(clauses), list(used.values())


def left_open(conn: sqlite3.Connection) -> list[Entry]:
    """What the last run began and did not end: the `admit` rows of requests, the first rows of acts."""
    since = conn.execute("SELECT coalesce(max(seq), 0) FROM audit WHERE kind = 'start'").fetchone()[0]
    left: dict[str, Entry] = {}
    sql = "SELECT ts, kind, request, body FROM audit WHERE seq > ? AND request IS NOT NULL ORDER BY seq"
    for ts, kind, request, body in conn.execute(sql, [since]):
        if left.pop(str(request), None) is None and kind != "finish":
            left[str(request)] = Entry(kind, ts, str(request), body)
    return list(left.values())


def start_entries(left: Iterable[Entry], ts: str, key: str, failed: int = 0) -> list[Entry]:
    """A run's `start` row, and the end of each request and act that the run before left open: lost. `key`: what tells
    one HMAC key from another; `failed`: how many starts before failed and have no rows."""
    entries = [_lost(entry, ts) for entry in left]
    said: dict[str, Value] = {"lost": len(entries), "key": key, **({"failed": failed} if failed else {})}
    return [Entry("start", ts, None, body_text(said)), *entries]


def _lost(begun: Entry, ts: str) -> Entry:
    said = parsed(begun.body)
    if begun.kind == "admit":
        fields = {"outcome": "lost", "reason": "daemon_restart", **carried(said)}
        return Entry("finish", ts, begun.request, body_text(fields))
    return Entry(begun.kind, ts, begun.request, body_text({**said, "result": "lost"}))


def last_key(conn: sqlite3.Connection) -> str | None:
    """The `key` of the last start; None where there is none."""
    row = conn.execute("SELECT body FROM audit WHERE kind = 'start' ORDER BY seq DESC LIMIT 1").fetchone()
    return parsed(row[0]).get("key") if row else None


def schema_problem(conn: sqlite3.Connection) -> str | None:
    """Why this database is not an audit log that can be read, in words for a person; None where it is one."""
    version = conn.execute("PRAGMA user_version").fetchone()[0]
    found = conn.execute("SELECT type, sql FROM sqlite_schema WHERE name = 'audit'").fetchone()
    # A view or a virtual table of that name could run without end, or show rows that are not stored.
    if version == 0 or found is None or found[0] != "table" or not str(found[1]).upper().startswith("CREATE TABLE"):
        return "holds no audit log"
    if version > SCHEMA_VERSION and not _continues(conn):
        return f"written by a newer llmd (schema {version}, this one knows {SCHEMA_VERSION}): use that version"
    return None


def _continues(conn: sqlite3.Connection) -> bool:
    """Whether a newer llmd's log takes this one's rows: it has added to the table, and nothing that must be given."""
    columns = {
        name: must and default is None for _, name, _, must, default, _ in conn.execute("PRAGMA table_info(audit)")
    }
    own = COLUMNS.split(", ")
    return columns.keys() >= set(own) and not any(must for name, must in columns.items() if name not in own)


def is_damage(error: BaseException | None) -> bool:
    """Whether SQLite says that the file is not as it was written, and not only that it cannot be read now."""
    return isinstance(error, sqlite3.Error) and primary(error) == sqlite3.SQLITE_CORRUPT


def primary(error: BaseException) -> int:
    """SQLite's result code without its details; 0 for another error."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF
