"""A file is copied, hashed and given to the disk at once, and not copied where two files can share bytes."""

import asyncio
import errno
import fcntl
import hashlib
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmd.daemon.errors import BadRequest, NoSpace, Unavailable
from llmd.daemon.models import copying
from llmd.daemon.models.copying import FILE, Stopped, copy, digest, reading

SIZE = 10 * (1 << 16) + 123


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copying, "CHUNK_BYTES", 1 << 16)
    monkeypatch.setattr(copying, "TAKEN_BYTES", 1 << 16)


@pytest.fixture
def data() -> bytes:
    return os.urandom(SIZE)


@pytest.fixture
def source(tmp_path: Path, data: bytes) -> int:
    (tmp_path / "source").write_bytes(data)
    return os.open(tmp_path / "source", os.O_RDONLY)


def no_sharing(out: int, request: int, fd: int) -> None:
    raise OSError(errno.EOPNOTSUPP, "no")


def copied(tmp_path: Path, fd: int, size: int = SIZE, report: copying.Progress = lambda done, total: None) -> str:
    return copy(fd, tmp_path / "stage", size, threading.Event(), report)


def test_a_copy_is_the_file_and_its_digest(
    tmp_path: Path, source: int, data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fcntl, "ioctl", no_sharing)
    seen: list[int] = []
    assert copied(tmp_path, source, report=lambda done, total: seen.append(done)) == hashlib.sha256(data).hexdigest()
    assert (tmp_path / "stage" / FILE).read_bytes() == data
    assert seen == [*range(1 << 16, SIZE, 1 << 16), SIZE]


def test_reading_hashing_writing_and_the_disk_have_threads_of_their_own(
    tmp_path: Path, source: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fcntl, "ioctl", no_sharing)
    at: dict[str, set[int]] = {}

    def noted(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: object) -> Any:
            at.setdefault(name, set()).add(threading.get_ident())
            return real(*args)

        return call

    for name in ("preadv", "write", "fdatasync"):
        monkeypatch.setattr(os, name, noted(name, getattr(os, name)))
    copied(tmp_path, source)
    assert at.keys() == {"preadv", "write", "fdatasync"}
    assert threading.get_ident() not in at["preadv"] | at["write"] | at["fdatasync"], "this one hashes"
    assert not at["fdatasync"] & at["write"], "what is written does not wait for the disk"


def test_the_next_chunk_is_read_while_one_is_used(source: int, monkeypatch: pytest.MonkeyPatch) -> None:
    reads, used, told = [0], [0], threading.Condition()
    real = os.preadv

    def counted(*args: object) -> int:
        count = real(*args)  # type: ignore[arg-type]
        with told:
            reads[0] += 1
            told.notify()
        return count

    monkeypatch.setattr(os, "preadv", counted)

    def use(chunk: memoryview) -> None:
        used[0] += 1
        with told:
            assert told.wait_for(lambda: reads[0] > min(used[0], 10), 20), "the next one is read once this one is used"

    copying._chunks(source, SIZE, threading.Event(), None, use)
    assert used == reads == [11]


def test_where_two_files_can_share_bytes_none_are_written(
    tmp_path: Path, source: int, data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def share(out: int, request: int, fd: int) -> None:
        assert request == 0x40049409 and fd == source
        os.pwrite(out, data, 0)

    monkeypatch.setattr(fcntl, "ioctl", share)
    monkeypatch.setattr(os, "write", lambda *_: pytest.fail("it was copied"))
    assert copied(tmp_path, source) == hashlib.sha256(data).hexdigest()


def test_the_digest_is_of_what_is_stored(tmp_path: Path, source: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not of what it was made of, which may change meanwhile."""
    monkeypatch.setattr(fcntl, "ioctl", lambda out, request, fd: os.pwrite(out, b"x" * SIZE, 0))
    assert copied(tmp_path, source) == hashlib.sha256(b"x" * SIZE).hexdigest()


@pytest.mark.parametrize(
    ("function", "code", "kind"),
    [("write", errno.ENOSPC, NoSpace), ("fdatasync", errno.ENOSPC, NoSpace), ("fdatasync", errno.EIO, Unavailable),
     ("preadv", errno.EIO, BadRequest)],
)  # fmt: skip
@pytest.mark.parametrize("late", [False, True])
def test_no_error_is_lost(
    tmp_path: Path,
    source: int,
    monkeypatch: pytest.MonkeyPatch,
    function: str,
    code: int,
    kind: type[Exception],
    late: bool,
) -> None:
    monkeypatch.setattr(fcntl, "ioctl", no_sharing)
    real, calls = getattr(os, function), [0]
    last = threading.Event()

    def fail(*args: object) -> object:
        calls[0] += 1
        if late and function == "fdatasync":
            last.wait(20)  # the disk says so when everything is written
        elif late and calls[0] < 5:
            return real(*args)
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, function, fail)
    with pytest.raises(kind):
        copied(tmp_path, source, report=lambda done, total: last.set() if done == total else None)


def test_a_file_that_becomes_shorter(tmp_path: Path, source: int) -> None:
    with pytest.raises(BadRequest, match="became shorter"):
        digest(source, SIZE + 1, threading.Event(), None)
    assert digest(source, 0, threading.Event(), None) == hashlib.sha256(b"").hexdigest()


def test_it_stops_between_two_chunks(source: int) -> None:
    stop = threading.Event()
    seen: list[int] = []

    def report(done: int, total: int) -> None:
        seen.append(done)
        stop.set()

    with pytest.raises(Stopped):
        digest(source, SIZE, stop, report)
    assert seen == [1 << 16]


async def test_a_staged_file_is_read_while_something_else_is_done_with_it(tmp_path: Path, data: bytes) -> None:
    (tmp_path / FILE).write_bytes(data)
    async with reading(tmp_path) as whole:
        assert await whole == (hashlib.sha256(data).hexdigest(), SIZE)


async def test_who_does_not_wait_for_it_leaves_no_thread(tmp_path: Path, data: bytes) -> None:
    (tmp_path / FILE).write_bytes(data)
    with pytest.raises(ZeroDivisionError):
        async with reading(tmp_path, background=True):
            await asyncio.sleep(0)
            raise ZeroDivisionError
    assert not [t for t in threading.enumerate() if t.name.startswith("copying")]
    async with reading(tmp_path / "nowhere") as whole:
        with pytest.raises(Unavailable):
            await whole
