"""The model files: content-addressed, imported by copy, never changed afterwards.

    models/<sha256>/model.gguf    0440; a name in `state.db` points at the digest
    models/staging/<random>/      an import or a removal under way; emptied at start-up

An import, in order: 1. the file can be read, and looks like GGUF; 2. the name is valid; 3. the name is free, or the
file has its digest; 4. the disk has room; 5. copied and hashed; 6. the copy is checked in a child process (never the
original, which could change between check and use), and tried in another; 7. on disk; 8. in its place, with its row.
"""

import asyncio
import contextlib
import errno
import hashlib
import logging
import os
import secrets
import shutil
import stat
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from llmd.daemon.errors import BadRequest, Conflict, LlmdError, NoSpace, NotFound, Unavailable
from llmd.daemon.files import sync_folder
from llmd.daemon.models.checking import check, trial
from llmd.daemon.models.names import checked, name_of
from llmd.daemon.store import Form, Model, StateThread, Store
from llmd.quantize.header import refuse_foreign

log = logging.getLogger("llmd.models")

CHUNK_BYTES = 8 << 20
SPARE_BYTES = 64 << 20  # what an import leaves free, for the databases beside it
FILE = "model.gguf"
# in a digest's folder while its row may not be there: the folder goes at start-up if it is not. Without this mark a
# folder stays although no row names it: a lost or restored state.db must not delete the models
UNSETTLED = ".unsettled"

Progress = Callable[[int, int], None]
T = TypeVar("T")


class ModelStore:
    """The models in `folder`, which is made if missing; what a killed daemon left half done is removed.

    One ModelStore a folder. What is not async is for the state thread. Raises Unavailable when the folder cannot be
    used.
    """

    def __init__(self, folder: Path, store: Store, state: StateThread) -> None:
        self._folder, self._store, self._state = folder, store, state
        self._staging = folder / "staging"
        self._owed: dict[Path, int] = {}  # bytes that each running import has still to write
        try:
            shutil.rmtree(self._staging, ignore_errors=True)
            self._staging.mkdir(0o700, parents=True, exist_ok=True)
            self._settle()
        except OSError as e:
            raise Unavailable(f"the model folder cannot be used: {e.strerror}") from e

    def _settle(self) -> None:
        for mark in self._folder.glob(f"*/{UNSETTLED}"):
            if self._store.models(mark.parent.name):
                mark.unlink()
            else:
                shutil.rmtree(mark.parent)
        known = {m.digest for m in self._store.models()}
        for folder in self._folder.iterdir():
            if folder != self._staging and folder.name not in known:
                log.warning("no model has the file %s; it is kept", folder.name)

    # --- reading

    def list(self) -> list[Model]:
        return self._store.models()

    def show(self, name: str) -> Model:
        """Raises ModelNotFound."""
        return self._store.model(name)

    def path(self, name: str) -> Path:
        """The file as it was imported. Raises ModelNotFound."""
        return self._path(self._store.model(name).digest)

    def forms(self, name: str) -> Sequence[Form]:
        """What may be loaded for a model. Raises ModelNotFound."""
        return self._store.forms(name)

    def file(self, digest: str) -> Path:
        return self._path(digest)

    async def verify(self, name: str) -> bool:
        """Whether the file still has its digest. Reads all of it. Raises ModelNotFound."""
        model = await self._state.run(lambda: self._store.model(name))
        stop = threading.Event()

        def work() -> bool:
            try:
                with self._path(model.digest).open("rb") as file:
                    return _digest(file.fileno(), model.size, stop, None) == model.digest
            except (OSError, BadRequest):
                return False

        return await _in_thread(work, stop)

    # --- changing

    async def import_file(self, path: str | Path, name: str | None = None, progress: Progress | None = None) -> Model:
        """Copy a GGUF file in and give it a name (default: from its file name). `progress(done, total)`, in bytes, is
        called on the loop. Importing the same file under the same name again changes nothing.

        Raises NotFound, BadRequest (not a readable file, a bad name), ModelInvalid (damaged or not supported), Conflict
        (the name belongs to another file), NoSpace, Unavailable. Whatever happens, cancelling too, nothing half done
        stays.
        """
        report = _on_loop(progress)
        stop = threading.Event()
        source, fd = await _in_thread(lambda: _open(Path(path)), stop, undo=lambda opened: os.close(opened[1]))
        try:
            name = await name_of(Path(path), source) if name is None else checked(name)
            before = os.fstat(fd)
            if same := await self._same(name, fd, before.st_size, report, stop):
                return same
            return await self._copy_in(fd, before, name, str(source), report)
        finally:
            os.close(fd)

    async def rename(self, name: str, new: str) -> Model:
        """Raises ModelNotFound, BadRequest, Conflict when the new name is taken."""
        return await self._state.run(lambda: self._store.rename_model(name, checked(new)))

    async def remove(self, name: str) -> Model:
        """Remove a name, and its file when no other name has it. Raises ModelNotFound, Conflict while it is
        deployed."""
        model, away = await self._state.run(lambda: self._take_out(name))
        if away:
            await _in_thread(lambda: shutil.rmtree(away, ignore_errors=True))
        return model

    def _take_out(self, name: str) -> tuple[Model, Path | None]:
        """Remove a name's row; with the last name of a file, the file's folder is where the second value says."""
        model = self._store.model(name)
        folder = self._path(model.digest).parent
        last = len(self._store.models(model.digest)) == 1 and folder.exists()
        if not last:
            return self._store.remove_model(name), None
        with _writing():
            (folder / UNSETTLED).touch()
            try:
                self._store.remove_model(name)
            except LlmdError:
                (folder / UNSETTLED).unlink()
                raise
            away = self._staging / secrets.token_hex(8)
            folder.rename(away)
        return model, away

    # --- an import's steps

    async def _same(self, name: str, fd: int, size: int, report: Progress, stop: threading.Event) -> Model | None:
        """The model that has this name already, when it is this file; None when there is work to do. Raises
        Conflict."""
        held = await self._state.run(lambda: self._held(name))
        if held is None:
            return None
        if held.size != size or await _in_thread(lambda: _digest(fd, size, stop, report), stop) != held.digest:
            raise _taken(name)
        # a file that is gone from the folder comes back by importing it again
        return held if self._path(held.digest).exists() else None

    async def _copy_in(self, fd: int, before: os.stat_result, name: str, source: str, report: Progress) -> Model:
        stage = self._staging / secrets.token_hex(8)
        size = before.st_size
        self._make_room(size)
        self._owed[stage] = size
        stop = threading.Event()

        def count(done: int, total: int) -> None:
            self._owed[stage] = total - done
            report(done, total)

        def copy() -> str:
            os.lseek(fd, 0, os.SEEK_SET)
            digest = _copy(fd, stage, size, stop, count)
            after = os.fstat(fd)
            if (after.st_size, after.st_mtime_ns) != (size, before.st_mtime_ns):
                raise BadRequest(
                    "the file changed while it was copied: import it again when it is complete", param="path"
                )
            return digest

        try:
            digest = await _in_thread(copy, stop)
            info = await check(stage / FILE)
            info |= await trial(stage / FILE, size)
            await _in_thread(lambda: _seal(stage), stop)
            model = Model(name, digest, size, source, 0.0, info)
            return await self._state.run(lambda: self._install(stage, digest, model))
        finally:
            del self._owed[stage]
            await _in_thread(lambda: shutil.rmtree(stage, ignore_errors=True))

    def _make_room(self, size: int) -> None:
        free = shutil.disk_usage(self._folder).free - sum(self._owed.values())
        if size + SPARE_BYTES > free:
            raise NoSpace(
                f"the file needs {_size(size)} and {_size(SPARE_BYTES)} to spare, the disk has {_size(max(free, 0))} "
                "free: "
                "remove a model or enlarge the disk"
            )

    def _install(self, stage: Path, digest: str, model: Model) -> Model:
        """Put the staged file in its place and write its row."""
        held = self._held(model.name)  # another import may have been faster
        if held is not None and held.digest != digest:
            raise _taken(model.name)
        target = self._path(digest).parent
        with _writing():
            new = not (target / FILE).exists()
            if new:
                shutil.rmtree(target, ignore_errors=True)
                stage.rename(target)
                sync_folder(self._folder)
            try:
                made = held or self._store.add_model(model.name, digest, model.size, model.source, model.info)
            except LlmdError:
                if new:
                    target.rename(stage)
                raise
            (target / UNSETTLED).unlink(missing_ok=True)
        return made

    def _held(self, name: str) -> Model | None:
        return {m.name: m for m in self._store.models()}.get(name)

    def _path(self, digest: str) -> Path:
        return self._folder / digest / FILE


# --- steps that run in a thread


def _open(path: Path) -> tuple[Path, int]:
    """The file that `path` leads to, and a descriptor that reads it: what is checked next is what is copied later."""
    shown = str(path)
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
        refuse_foreign(source.name, os.pread(fd, 16, 0))
        return source, fd
    except OSError as e:
        os.close(fd)
        raise BadRequest(f"{shown} cannot be read: {e.strerror}", param="path") from e
    except LlmdError:
        os.close(fd)
        raise


class _Stopped(Exception):
    """The import was cancelled; its thread ends."""


def _chunks(
    fd: int, size: int, stop: threading.Event, report: Progress | None, use: Callable[[memoryview], None]
) -> None:
    """Hand `size` bytes of a file to `use`, a chunk at a time. A file that grows meanwhile is read no further."""
    buffer = memoryview(bytearray(min(CHUNK_BYTES, max(size, 1))))
    done = 0
    while done < size:
        if stop.is_set():
            raise _Stopped
        try:
            count = os.readv(fd, [buffer[: size - done]])
        except OSError as e:
            raise BadRequest(f"reading the file failed at byte {done}: {e.strerror}", param="path") from e
        if not count:
            raise BadRequest(
                "the file became shorter while it was read: import it again when it is complete", param="path"
            )
        use(buffer[:count])
        done += count
        if report:
            report(done, size)


def _digest(fd: int, size: int, stop: threading.Event, report: Progress | None) -> str:
    sha = hashlib.sha256()
    _chunks(fd, size, stop, report, sha.update)
    return sha.hexdigest()


def _copy(fd: int, stage: Path, size: int, stop: threading.Event, report: Progress) -> str:
    sha = hashlib.sha256()
    with _writing():
        stage.mkdir(0o750)
        (stage / UNSETTLED).touch()
        with (stage / FILE).open("xb", buffering=0) as out:

            def use(data: memoryview) -> None:
                sha.update(data)
                while data:
                    data = data[out.write(data) :]

            _chunks(fd, size, stop, report, use)
    return sha.hexdigest()


def _seal(stage: Path) -> None:
    with _writing():
        with (stage / FILE).open("rb") as file:
            os.fchmod(file.fileno(), 0o440)
            os.fsync(file.fileno())
        sync_folder(stage)


@contextlib.contextmanager
def _writing() -> Iterator[None]:
    """Errors of our own folder, as ours."""
    try:
        yield
    except OSError as e:
        if e.errno in (errno.ENOSPC, errno.EDQUOT):
            raise NoSpace("the disk became full while the model was copied: remove a model or enlarge the disk") from e
        raise Unavailable(f"the model folder cannot be written: {e.strerror}") from e


async def _in_thread(
    work: Callable[[], T], stop: threading.Event | None = None, undo: Callable[[T], None] | None = None
) -> T:
    """Run `work` in a thread. A cancelled call sets `stop`, waits for the thread's end, and hands its result to
    `undo`."""
    future = asyncio.get_running_loop().run_in_executor(None, work)
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


def _on_loop(progress: Progress | None) -> Progress:
    loop = asyncio.get_running_loop()

    def report(done: int, total: int) -> None:
        if progress:
            loop.call_soon_threadsafe(progress, done, total)

    return report


# --- words


def _taken(name: str) -> Conflict:
    return Conflict(
        f"the name {name} belongs to another file: choose another with --name, or remove that model first", param="name"
    )


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
