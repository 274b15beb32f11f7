"""The steps of copying a model's file in, each for a thread of its own."""

import asyncio
import contextlib
import errno
import fcntl
import hashlib
import os
import stat
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeAlias, TypeVar

from llmd.daemon.atomic import sync_folder
from llmd.daemon.errors import BadRequest, LlmdError, NoSpace, NotFound, Unavailable, cut
from llmd.quantize.header import HEAD_BYTES, refuse_foreign

CHUNK_BYTES = 8 << 20
TAKEN_BYTES = 64 << 20  # written before the disk is asked to take it
FICLONE = 0x40049409  # ioctl_ficlone(2): one file's bytes shared with another one, on btrfs, XFS, ZFS
FILE = "model.gguf"
# in a digest's folder while its row may not be there: the folder goes at start-up if it is not. Without this mark a
# folder stays although no row names it: a lost or restored state.db must not delete the models
UNSETTLED = ".unsettled"

Progress = Callable[[int, int], None]
Whole: TypeAlias = Awaitable[tuple[str, int]]
T = TypeVar("T")


def opened(path: Path) -> tuple[Path, int]:
    """The file that `path` leads to, and a descriptor that reads it: what is checked next is what is copied later."""
    shown = cut(str(path))
    try:
        source = path.resolve(strict=True)
        # a FIFO would block the open without O_NONBLOCK; a regular file ignores it
        fd = os.open(source, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError) as e:
        raise NotFound(f"there is no file {shown}, or llmd may not look into its folder", param="path") from e
    except PermissionError as e:
        raise BadRequest(
            f"llmd may not read {shown}: let its user read the file and enter its folders", param="path"
        ) from e
    except (OSError, RuntimeError, ValueError) as e:  # a loop of links, a NUL in the path, a socket, an I/O error
        raise BadRequest(f"{shown!r} cannot be opened: {getattr(e, 'strerror', None) or e}", param="path") from e
    try:
        mode = os.fstat(fd).st_mode
        if not stat.S_ISREG(mode):
            kind = "a folder" if stat.S_ISDIR(mode) else "not a regular file"
            raise BadRequest(f"{shown} is {kind}: name one GGUF file", param="path")
        refuse_foreign(source.name, os.pread(fd, HEAD_BYTES, 0))
        return source, fd
    except OSError as e:
        os.close(fd)
        raise BadRequest(f"{shown} cannot be read: {e.strerror}", param="path") from e
    except LlmdError:
        os.close(fd)
        raise


class Stopped(Exception):
    """The import was cancelled; its thread ends."""


def _chunks(
    fd: int, size: int, stop: threading.Event, report: Progress | None, *uses: Callable[[memoryview], None]
) -> None:
    """Hand `size` bytes of a file to each of `uses`, a chunk at a time: all have it at once, while the next one is
    read. A file that grows meanwhile is read no further."""
    now, then = (memoryview(bytearray(min(CHUNK_BYTES, max(size, 1)))) for _ in range(2))
    first, *others = uses
    done = 0
    # threads of this one's priority
    with ThreadPoolExecutor(1 + len(others), thread_name_prefix="copying") as beside:
        coming = beside.submit(_read, fd, now[:size], 0)
        while done < size:
            if stop.is_set():
                raise Stopped
            chunk = now[: coming.result()]
            done += len(chunk)
            coming = beside.submit(_read, fd, then[: size - done], done)
            using = [beside.submit(use, chunk) for use in others]
            first(chunk)
            for used in using:
                used.result()
            now, then = then, now
            if report:
                report(done, size)


def _read(fd: int, buffer: memoryview, at: int) -> int:
    """How many bytes came; none are wanted at a file's end."""
    try:
        count = os.preadv(fd, [buffer], at) if buffer else 0
    except OSError as e:
        raise BadRequest(f"reading the file failed at byte {at}: {e.strerror}", param="path") from e
    if buffer and not count:
        raise BadRequest("the file became shorter while it was read: import it again when it is complete", param="path")
    return count


def digest(fd: int, size: int, stop: threading.Event, report: Progress | None) -> str:
    sha = hashlib.sha256()
    _chunks(fd, size, stop, report, sha.update)
    return sha.hexdigest()


def begin(stage: Path) -> None:
    """A folder for a file that is being written."""
    with writing():
        stage.mkdir(0o750)
        (stage / UNSETTLED).touch()


@contextlib.asynccontextmanager
async def reading(stage: Path, *, background: bool = False) -> AsyncIterator[Whole]:
    """What gives the digest and the size of a staged file, which is read while the block does something else with it.
    `background`: the thread that reads it waits for everybody else."""
    whole = asyncio.create_task(_whole(stage, background=background))
    try:
        yield whole
    finally:
        whole.cancel()
        with contextlib.suppress(asyncio.CancelledError, LlmdError):
            await whole


async def _whole(stage: Path, *, background: bool) -> tuple[str, int]:
    stop = threading.Event()

    def work() -> tuple[str, int]:
        with writing(), (stage / FILE).open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            return digest(file.fileno(), size, stop, None), size

    if not background:
        return await in_thread(work, stop)
    idle = ThreadPoolExecutor(1, initializer=os.sched_setscheduler, initargs=(0, os.SCHED_IDLE, os.sched_param(0)))
    try:
        return await in_thread(work, stop, executor=idle)
    finally:
        idle.shutdown(wait=False)


def copy(fd: int, stage: Path, size: int, stop: threading.Event, report: Progress) -> str:
    """A file's digest: as bytes that two files share, where the file system can, else hashed while they are written and
    while the disk takes what was."""
    begin(stage)
    with writing(), (stage / FILE).open("x+b", buffering=0) as out:
        if _shared(fd, out.fileno()):
            return digest(out.fileno(), size, stop, report)
        sha = hashlib.sha256()
        with _Written(out.fileno()) as written:
            _chunks(fd, size, stop, report, sha.update, written.add)
    return sha.hexdigest()


def _shared(fd: int, out: int) -> bool:
    """Whether `out` now has the other file's bytes without a copy of them; what is written to either is its own."""
    try:
        fcntl.ioctl(out, FICLONE, fd)
    except OSError:  # another file system, or one that cannot
        return False
    return True


class _Written:
    """A file that is written: the disk begins to take it before it is whole, so that its end is no long wait."""

    def __init__(self, fd: int) -> None:
        self._fd, self._more = fd, 0
        self._beside = ThreadPoolExecutor(1, thread_name_prefix="copying")
        self._taking: Future[None] | None = None

    def __enter__(self) -> "_Written":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._beside.shutdown()
        if self._taking and kind is None:
            self._taking.result()

    def add(self, data: memoryview) -> None:
        self._more += len(data)
        while data:
            data = data[os.write(self._fd, data) :]
        if self._more < TAKEN_BYTES or (self._taking and not self._taking.done()):
            return
        if self._taking:
            self._taking.result()
        self._more, self._taking = 0, self._beside.submit(os.fdatasync, self._fd)


def seal(stage: Path) -> None:
    with writing():
        with (stage / FILE).open("rb") as file:
            os.fchmod(file.fileno(), 0o440)
            os.fsync(file.fileno())
        sync_folder(stage)


@contextlib.contextmanager
def writing() -> Iterator[None]:
    """Errors of our own folder, as ours."""
    try:
        yield
    except OSError as e:
        if e.errno in (errno.ENOSPC, errno.EDQUOT):
            raise NoSpace("the disk became full while the model was copied: remove a model or enlarge the disk") from e
        raise Unavailable(f"the model folder cannot be written: {e.strerror}") from e


async def in_thread(
    work: Callable[[], T],
    stop: threading.Event | None = None,
    undo: Callable[[T], None] | None = None,
    executor: ThreadPoolExecutor | None = None,
) -> T:
    """Run `work` in a thread, of `executor` where one is given. A cancelled call sets `stop`, waits for the thread's
    end, and hands its result to `undo`."""
    future = asyncio.get_running_loop().run_in_executor(executor, work)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        if stop:
            stop.set()
        while not future.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([future])
        if future.exception() is None and undo:
            undo(future.result())
        raise


def on_loop(progress: Progress | None) -> Progress:
    loop = asyncio.get_running_loop()

    def report(done: int, total: int) -> None:
        if progress:
            loop.call_soon_threadsafe(progress, done, total)

    return report
