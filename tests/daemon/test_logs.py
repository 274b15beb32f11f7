"""Lines to a reader that stops reading."""

import fcntl
import logging
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from real_daemon import Llmd

from llmd.daemon.logs import OF_CLIENTS, RECORDS_A_WINDOW, LogHandler, Rarely, Writer

SIZE = 4096


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """A small one: reader, writer."""
    ends = os.pipe()
    fcntl.fcntl(ends[1], fcntl.F_SETPIPE_SZ, SIZE)
    yield ends
    os.close(ends[0])


def read(fd: int, ending: bytes) -> bytes:
    data = b""
    while not data.endswith(ending):
        data += os.read(fd, SIZE)
    return data


def test_lines_come_in_order(pipe: tuple[int, int]) -> None:
    writer = Writer(pipe[1])
    for i in range(5000):
        writer.line(f"line {i}")
    assert read(pipe[0], b"line 4999\n") == b"".join(b"line %d\n" % i for i in range(5000))


def test_a_reader_that_stops_blocks_nobody_and_is_told_what_it_missed(pipe: tuple[int, int]) -> None:
    writer = Writer(pipe[1], most=10)
    for i in range(1000):
        writer.line(f"{i:0100}")  # would block for ever
    lines = read(pipe[0], b"nobody read them\n").splitlines()
    lost = int(lines[-1].split()[0])
    assert [int(line) for line in lines[:-1]] == list(range(1000 - lost)) and lost > 900
    writer.line("again")
    assert read(pipe[0], b"again\n") == b"again\n"


def test_a_reader_that_is_gone_is_no_failure(pipe: tuple[int, int]) -> None:
    reader, write = os.pipe()
    os.close(reader)
    writer = Writer(write, most=10)
    for i in range(100):
        writer.line(str(i))
        time.sleep(0.001)
    writer.flush(5)
    assert not writer._lines


def test_records_of_any_text_are_lines(pipe: tuple[int, int]) -> None:
    handler = LogHandler(Writer(pipe[1]))
    handler.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
    handler.handle(logging.LogRecord("a", logging.INFO, "", 0, "half \ud800", (), None))
    assert read(pipe[0], b"\n") == b"INFO half \\ud800\n"


def test_the_daemon_serves_while_nobody_reads_its_log(tmp_path: Path) -> None:
    """Its standard error is a pipe that is full."""
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, SIZE)
    command = [str(Path(sys.executable).parent / "llmd"), "serve", "--state-dir", str(tmp_path / "second")]
    with subprocess.Popen([*command, "--listen", "127.0.0.1:0"], stderr=writer, text=True) as daemon:
        os.close(writer)
        second = Llmd(tmp_path / "second", daemon, 0, "")
        for _ in range(200):
            if (second.state / "admin.sock").exists():
                break
            time.sleep(0.05)
        for _ in range(100):
            daemon.send_signal(signal.SIGHUP)  # a line each
            time.sleep(0.01)
        assert second.llmctl("status")["models"] == []
        daemon.terminate()
        assert daemon.wait(20) == 0
        os.close(reader)


def test_what_clients_cause_is_written_a_few_times_a_minute_and_counted() -> None:
    now = [0.0]
    rarely = Rarely(lambda: now[0])

    def told(text: str, *values: object) -> str:
        record = logging.LogRecord("llmd.http", logging.WARNING, "", 0, text, values, None)
        return record.getMessage() if rarely.filter(record) else ""

    first = [told("no HTTP from %s", i) for i in range(1000)]
    assert [text for text in first if text] == [f"no HTTP from {i}" for i in range(RECORDS_A_WINDOW)]
    assert told("another kind") == "another kind"
    now[0] += 60
    assert told("no HTTP from %s", "him") == f"no HTTP from him (and {1000 - RECORDS_A_WINDOW} more before it)"
    assert told("no HTTP from %s", "her") == "no HTTP from her"


def test_the_loggers_that_are_bounded_are_there() -> None:
    """What writes of clients under another name would write without bound."""
    root = Path(__file__).parents[2]
    written = "".join(file.read_text() for file in root.glob("api/http/*.py"))
    written += "".join(file.read_text() for file in (root / "daemon" / "serving").glob("books.py"))
    named = set(re.findall(r'getLogger\("([a-z.]+)"\)', written))
    assert named and named == set(OF_CLIENTS) - {"uvicorn.error"}
