"""What the daemon writes to standard error and output, or to systemd's journal. Whoever reads them may stop reading: a
full pipe blocks the thread that writes, and nobody else.

A record's `extra` says what it is about (`principal`, `model`, `request_id`): fields of its own in the journal.
"""

import json
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable

from llmd.daemon.machine import systemd

# lines that wait for a reader; older ones are kept, newer ones are counted
MAX_LINES = 10_000
FORMAT = "%(asctime)s %(name)s %(levelname)s: %(message)s"
LOST = "%d lines were lost here: nobody read them"
# what a record may be about
ABOUT = ("principal", "model", "request_id")
# what clients can cause, by its logger; of each kind of record, its text before the values and what was raised, so many
# a window
OF_CLIENTS = ("uvicorn.error", "llmd.api", "llmd.http", "llmd.requests", "llmd.stream")
WINDOW_SECONDS = 60.0
RECORDS_A_WINDOW = 10
# syslog's numbers
PRIORITIES = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}


class Writer:
    """Lines to a descriptor, in a thread of its own. Any thread may call `line`; it never waits."""

    def __init__(self, fd: int, most: int = MAX_LINES) -> None:
        self._write: Callable[[bytes], int] = lambda data: os.write(fd, data)
        self._begin(f"write {fd}", most)

    def _begin(self, name: str, most: int) -> None:
        self._most = most
        self._lines: deque[bytes] = deque()
        self._lost = 0
        self._changed = threading.Condition()
        self._idle = True
        threading.Thread(target=self._write_all, name=name, daemon=True).start()

    def line(self, text: str) -> None:
        """One that finds no room is counted: how many they were is written when there is room again."""
        self._put(self._encoded(text))

    def record(self, _: logging.LogRecord, text: str) -> None:
        """A record, formatted."""
        self.line(text)

    def _encoded(self, text: str) -> bytes:
        return text.encode(errors="backslashreplace") + b"\n"

    def _put(self, data: bytes) -> None:
        with self._changed:
            if len(self._lines) >= self._most:
                self._lost += 1
                return
            if self._lost:
                self._lines.append(self._encoded(LOST % self._lost))
                self._lost = 0
            self._lines.append(data)
            self._changed.notify_all()

    def flush(self, seconds: float) -> None:
        """Wait until all is written, for so long at most."""
        with self._changed:
            self._changed.wait_for(lambda: self._idle and not self._lines, seconds)

    def _write_all(self) -> None:
        while True:
            with self._changed:
                self._idle = True
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._lines or self._lost)
                self._idle = False
                data = self._taken()
            try:
                while data:
                    data = data[self._write(data) :]
            except OSError:  # the reader is gone for good
                with self._changed:
                    self._most, self._idle = 0, True
                    self._lines.clear()
                    self._changed.notify_all()
                return

    def _taken(self) -> bytes:
        """The next line, and when none follows what was lost after it."""
        if self._lines:
            return self._lines.popleft()
        lost, self._lost = self._lost, 0
        return self._encoded(LOST % lost)


class Journal(Writer):
    """Records with their fields to systemd's journal; `send` is `systemd.journal.send`."""

    def __init__(self, send: Callable[..., object], most: int = MAX_LINES) -> None:
        self._send = send
        self._write = self._tell
        self._begin("journal", most)

    def record(self, record: logging.LogRecord, text: str) -> None:
        fields = {"PRIORITY": str(PRIORITIES.get(record.levelno, 6)), "LOGGER": record.name}
        about = {name.upper(): str(value) for name in ABOUT if (value := getattr(record, name, None))}
        self._put(json.dumps({"MESSAGE": text, **fields, **about}).encode())

    def _encoded(self, text: str) -> bytes:
        return json.dumps({"MESSAGE": text, "PRIORITY": "4"}).encode()

    def _tell(self, data: bytes) -> int:
        fields = json.loads(data)
        try:
            self._send(fields.pop("MESSAGE"), SYSLOG_IDENTIFIER="llmd", **fields)
        except OSError:  # it is being started again, say: the next line may find it there
            with self._changed:
                self._lost += 1
        return len(data)


class LogHandler(logging.Handler):
    """Records through a Writer."""

    def __init__(self, writer: Writer) -> None:
        super().__init__()
        self._writer = writer

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._writer.record(record, self.format(record))
        except Exception:
            self.handleError(record)


class Rarely(logging.Filter):
    """Bounds what clients can have written: a kind's first records of a window, then none; the first one after it says
    how many there were. Any thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._lock = threading.Lock()
        self._seen: dict[tuple[str, ...], tuple[float, int]] = {}  # kinds stand in the code: there are few

    def filter(self, record: logging.LogRecord) -> bool:
        raised = record.exc_info[0] if record.exc_info else None
        key, now = (record.name, str(record.msg), raised.__name__ if raised else ""), self._clock()
        with self._lock:
            began, count = self._seen.get(key, (now, 0))
            left_out = 0
            if now - began >= WINDOW_SECONDS:
                left_out, began, count = max(0, count - RECORDS_A_WINDOW), now, 0
            self._seen[key] = (began, count + 1)
        if left_out:
            record.msg, record.args = "%s (and %d more before it)", (record.getMessage(), left_out)
        return count < RECORDS_A_WINDOW


def _is_journal(fd: int) -> bool:
    """Whether systemd connected it with its journal."""
    try:
        there = os.fstat(fd)
    except OSError:  # there is no standard error
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{there.st_dev}:{there.st_ino}"


def start(fd: int = 2) -> Writer:
    """All logging of this process to `fd`, or to the journal that it leads to."""
    journal = systemd.bindings("journal") if _is_journal(fd) else None
    writer = Journal(journal.send) if journal else Writer(fd)
    handler = LogHandler(writer)
    # the journal has a time and a level of its own
    handler.setFormatter(logging.Formatter("%(message)s" if journal else FORMAT))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    logging.getLogger("asyncio").setLevel(logging.WARNING)
    rarely = Rarely()
    for name in OF_CLIENTS:
        logging.getLogger(name).addFilter(rarely)
    return writer
