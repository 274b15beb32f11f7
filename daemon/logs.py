"""What the daemon writes to standard error and output. Whoever reads them may stop reading: a full pipe blocks the
thread that writes, and nobody else.
"""

import logging
import os
import threading
from collections import deque

# lines that wait for a reader; older ones are kept, newer ones are counted
MAX_LINES = 10_000


class Writer:
    """Lines to a descriptor, in a thread of its own. Any thread may call `line`; it never waits."""

    def __init__(self, fd: int, most: int = MAX_LINES) -> None:
        self._fd, self._most = fd, most
        self._lines: deque[bytes] = deque()
        self._lost = 0
        self._changed = threading.Condition()
        self._idle = True
        threading.Thread(target=self._write_all, name=f"write {fd}", daemon=True).start()

    def line(self, text: str) -> None:
        """One that finds no room is counted: how many they were is written when there is room again."""
        with self._changed:
            if len(self._lines) >= self._most:
                self._lost += 1
                return
            if self._lost:
                self._lines.append(b"%d lines were lost here: nobody read them\n" % self._lost)
                self._lost = 0
            self._lines.append(text.encode(errors="backslashreplace") + b"\n")
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
                    data = data[os.write(self._fd, data) :]
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
        return b"%d lines were lost here: nobody read them\n" % lost


class LogHandler(logging.Handler):
    """Records through a Writer."""

    def __init__(self, writer: Writer) -> None:
        super().__init__()
        self._writer = writer

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._writer.line(self.format(record))
        except Exception:
            self.handleError(record)


def start(fd: int = 2) -> Writer:
    """All logging of this process to `fd`."""
    writer = Writer(fd)
    handler = LogHandler(writer)
    handler.setFormatter(logging.Formatter("%(asctime)s %(name)s %(levelname)s: %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    logging.getLogger("asyncio").setLevel(logging.WARNING)
    return writer
