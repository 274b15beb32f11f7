"""The model files: content-addressed, imported by copy, never changed afterwards.

    models/<sha256>/model.gguf    0440; a name in `state.db` points at the digest
    models/staging/<random>/      an import or a removal under way; emptied at start-up

A model in parts (NAME-00001-of-00003.gguf and those beside it) is joined on its way in: steps 5 and 6 are of the whole.

An import, in order: 1. the file can be read, and looks like GGUF; 2. the name is valid; 3. the name is free, or the
file has its digest, and what is stored under it is still that; 4. the disk has room; 5. copied and hashed; 6. the copy
is checked in a child process (never the original, which could change between check and use), and tried in another;
7. on disk; 8. in its place, with its row.
"""

import contextlib
import logging
import os
import secrets
import shutil
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from llmd.daemon.atomic import sync_folder
from llmd.daemon.errors import BadRequest, Conflict, LlmdError, NoSpace, NotFound, Unavailable
from llmd.daemon.machine.children import Limits
from llmd.daemon.machine.seats import Seats
from llmd.daemon.models import copying
from llmd.daemon.models.checking import check, trial
from llmd.daemon.models.copying import FILE, UNSETTLED, Progress, Whole, in_thread, on_loop, writing
from llmd.daemon.models.names import checked, name_of
from llmd.daemon.models.running import lines
from llmd.daemon.state.damage import damage, repair
from llmd.daemon.state.records import Converted, Form, Info, Model, Proof
from llmd.daemon.state.store import StateThread, Store
from llmd.quantize.quantizing import PART, parts

log = logging.getLogger("llmd.models")

SPARE_BYTES = 64 << 20  # what an import leaves free, for the databases beside it
QUANTIZING = "llmd.quantize.quantizing"
T = TypeVar("T")


class ModelStore:
    """The models in `folder`, which is made if missing; what a killed daemon left half done is removed.

    One ModelStore a folder. What is not async is for the state thread. `seats`: where what checks and tries a file has
    a seat. Raises Unavailable when the folder cannot be used.
    """

    def __init__(self, folder: Path, store: Store, state: StateThread, seats: Seats | None = None) -> None:
        self.seats = seats
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
        known = self._store.files()
        for mark in self._folder.glob(f"*/{UNSETTLED}"):
            if mark.parent.name in known:
                mark.unlink()
            else:
                shutil.rmtree(mark.parent)
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

    def form(self, name: str, kind: str) -> Form:
        """The one of this type. Raises ModelNotFound, NotFound."""
        forms = self._store.forms(name)
        for form in forms:
            if form.type.upper() == kind.upper():
                return form
        raise NotFound.among(f"form of {name}", (form.type for form in forms), param="form")

    def own_form(self, name: str) -> Form:
        """The one that was imported. Raises ModelNotFound."""
        digest = self._store.model(name).digest
        return next(form for form in self._store.forms(name) if form.digest == digest)

    def file(self, digest: str) -> Path:
        return self._path(digest)

    def inode(self, digest: str) -> int | None:
        """Of a stored file, which another one may have replaced by now; None where there is none."""
        try:
            return self._path(digest).stat().st_ino
        except OSError:
            return None

    def damage(self, form: Form) -> tuple[str, str]:
        """What is wrong with its file that can be seen without reading it, and what to do; "": nothing."""
        why = damage(self._path(form.digest), form.size)
        return why, self.repair(form) if why else ""

    def repair(self, form: Form) -> str:
        """What to do about a file that is not what was put there."""
        return repair(form.name, imported=self._store.model(form.model).digest == form.digest)

    def damages(self) -> Sequence[tuple[Form, str, str]]:
        """The forms whose files are damaged, as `damage` sees it."""
        every = [form for model in self._store.models() for form in self._store.forms(model.name)]
        return [(form, why, fix) for form in every for why, fix in [self.damage(form)] if why]

    async def verify(self, form: Form) -> bool:
        """Whether the file still has its digest. Reads all of it."""
        return await self._intact(form.digest, form.size, None)

    async def _intact(self, digest: str, size: int, report: Progress | None) -> bool:
        stop = threading.Event()

        def work() -> bool:
            try:
                with self._path(digest).open("rb") as file:
                    return copying.digest(file.fileno(), size, stop, report) == digest
            except (OSError, BadRequest):
                return False

        return not damage(self._path(digest), size) and await in_thread(work, stop)

    # --- changing

    async def import_file(self, path: str | Path, name: str | None = None, progress: Progress | None = None) -> Model:
        """Copy a GGUF file in and give it a name (default: from its file name). `progress(done, total)`, in bytes, is
        called on the loop. Importing the same file under the same name again changes nothing.

        Raises NotFound, BadRequest (not a readable file, a bad name), ModelInvalid (damaged or not supported), Conflict
        (the name belongs to another file), NoSpace, Unavailable. Whatever happens, cancelling too, nothing half done
        stays.
        """
        report = on_loop(progress)
        stop = threading.Event()
        # 1
        source, fd = await in_thread(lambda: copying.opened(Path(path)), stop, undo=lambda found: os.close(found[1]))
        try:
            whole = PART.sub(r"\1.gguf", str(path))
            name = await name_of(Path(whole), source) if name is None else checked(name)  # 2
            if len(found := parts(str(source))) > 1:
                return await self._join(found, name, report)
            before = os.fstat(fd)
            if same := await self._same(name, fd, before.st_size, report, stop):  # 3
                return same
            return await self._copy_in(fd, before, name, str(source), report)
        finally:
            os.close(fd)

    async def rename(self, name: str, new: str) -> Model:
        """Raises ModelNotFound, BadRequest, Conflict when the new name is taken."""
        return await self._state.run(lambda: self._store.rename_model(name, checked(new)))

    async def remove(self, name: str) -> Model:
        """Remove a name with its forms, and each file that no other name has. Raises ModelNotFound, Conflict while it
        is deployed."""

        def work() -> tuple[Model, Sequence[Path]]:
            model = self._store.model(name)
            own = [f.digest for f in self._store.forms(name)]
            gone = [d for d in own if {other.model for other in self._store.with_file(d)} == {name}]
            return model, self._take_out(gone, lambda: self._store.remove_model(name))

        model, away = await self._state.run(work)
        await _delete(away)
        return model

    async def remove_form(self, name: str, kind: str) -> Form:
        """Remove one that was made, and its file when nothing else is it. Raises ModelNotFound, NotFound, and Conflict
        for the form that was imported."""

        def work() -> tuple[Form, Sequence[Path]]:
            only = [
                f.digest
                for f in self._store.forms(name)
                if f.type == kind and len(self._store.with_file(f.digest)) == 1
            ]
            removed: list[Form] = []
            away = self._take_out(only, lambda: removed.append(self._store.remove_form(name, kind)))
            return removed[0], away

        form, away = await self._state.run(work)
        await _delete(away)
        return form

    def _take_out(self, digests: Sequence[str], forget: Callable[[], object]) -> Sequence[Path]:
        """`forget` removes rows; the files that nothing is then are where the answer says."""
        folders = [folder for d in digests if (folder := self._path(d).parent).exists()]
        away = []
        with writing():
            for folder in folders:
                (folder / UNSETTLED).touch()
            try:
                forget()
            except LlmdError:
                for folder in folders:
                    (folder / UNSETTLED).unlink()
                raise
            for folder in folders:
                away.append(self._staging / secrets.token_hex(8))
                folder.rename(away[-1])
        return away

    # --- what is made of a model

    @contextlib.asynccontextmanager
    async def stage(self, size: int) -> AsyncIterator[tuple[Path, Progress]]:
        """A folder for a file of so many bytes, and what is called as they are written; what was not put in its place
        is gone behind the block. Raises NoSpace, Unavailable."""
        stage = self._staging / secrets.token_hex(8)
        self.make_room(size)
        self._owed[stage] = size

        def count(done: int, total: int) -> None:
            self._owed[stage] = total - done

        try:
            yield stage, count
        finally:
            del self._owed[stage]
            await in_thread(lambda: shutil.rmtree(stage, ignore_errors=True))

    async def add_form(self, stage: Path, whole: Whole, model: Model, kind: str, info: Info) -> Form:
        """The staged file is that form of the model. `whole`: its digest and size (`copying.reading`). Raises
        ModelNotFound where that is gone, Conflict where it is another one by now or has such a form."""
        digest, size = await whole
        await in_thread(lambda: copying.seal(stage))
        form = Form(model.name, kind, digest, size, info)

        def write() -> Form:
            if self._store.model(model.name).digest != model.digest:
                raise Conflict(f"{model.name} is another model by now")
            self._store.add_form(form)
            return form

        intact = await self._intact(digest, size, None)
        return await self._state.run(lambda: self._install(stage, digest, write, intact))

    async def take_in(
        self, stage: Path, whole: Whole, name: str, source: str, proof: Proof, converted: Converted, *, tried: bool
    ) -> Model:
        """The staged file, which was converted from `source`, is a model of that name. `tried`: it has computed
        already. Raises ModelInvalid, Conflict where the name is taken."""
        found = await self._checked(stage, background=True, tried=tried)
        info = found.but(proof=proof, converted=converted)
        return await self._keep(stage, Model(name, *await whole, source, 0.0, info))

    # --- an import's steps

    async def _same(self, name: str, fd: int, size: int, report: Progress, stop: threading.Event) -> Model | None:
        """The model that has this name already, when it is this file; None when there is work to do. Raises
        Conflict."""
        held = await self._state.run(lambda: self._held(name))
        if held is None:
            return None
        if held.size != size or await in_thread(lambda: copying.digest(fd, size, stop, report), stop) != held.digest:
            raise _taken(name)
        # one that is damaged or missing here comes back by importing it again
        return held if await self._intact(held.digest, size, report) else None

    async def _copy_in(self, fd: int, before: os.stat_result, name: str, source: str, report: Progress) -> Model:
        size, stop = before.st_size, threading.Event()
        async with self.stage(size) as (stage, count):  # 4

            def said(done: int, total: int) -> None:
                count(done, total)
                report(done, total)

            def copy() -> str:
                digest = copying.copy(fd, stage, size, stop, said)
                after = os.fstat(fd)
                if (after.st_size, after.st_mtime_ns) != (size, before.st_mtime_ns):
                    raise BadRequest(
                        "the file changed while it was copied: import it again when it is complete", param="path"
                    )
                return digest

            digest = await in_thread(copy, stop)  # 5
            info = await self._checked(stage)  # 6
            return await self._keep(stage, Model(name, digest, size, source, 0.0, info))

    async def _join(self, found: Sequence[str], name: str, report: Progress) -> Model:
        """The parts as one file, under that name."""
        sizes = [os.stat(part).st_size for part in found if os.path.exists(part)]
        async with self.stage(sum(sizes)) as (stage, count):
            await in_thread(lambda: copying.begin(stage))
            limits, out = Limits(reads=tuple(found), writes=(os.fspath(stage),)), os.fspath(stage / FILE)
            async for line in lines("joining the parts", QUANTIZING, "join", found[0], out, limits=limits):
                if "total" in line:
                    count(int(line["done"]), int(line["total"]))
                    report(int(line["done"]), int(line["total"]))
            async with copying.reading(stage) as whole:
                info = await self._checked(stage)
                return await self._keep(stage, Model(name, *await whole, found[0], 0.0, info))

    async def _checked(self, stage: Path, *, background: bool = False, tried: bool = False) -> Info:
        """What the staged file is. Raises ModelInvalid."""
        file, given = stage / FILE, dict[str, Any](background=background, seats=self.seats)
        return (await check(file, **given)).but(**await trial(file, file.stat().st_size, tried=tried, **given))

    async def _keep(self, stage: Path, model: Model) -> Model:
        """Put the staged file in its place with its row."""
        await in_thread(lambda: copying.seal(stage))  # 7

        def write() -> Model:
            held = self._held(model.name)  # another import may have been faster
            if held is not None and held.digest != model.digest:
                raise _taken(model.name)
            return held or self._store.add_model(model.name, model.digest, model.size, model.source, model.info)

        intact = await self._intact(model.digest, model.size, None)
        return await self._state.run(lambda: self._install(stage, model.digest, write, intact))  # 8

    def free(self) -> int:
        """Bytes that a new file may have, beside what others have still to write."""
        return shutil.disk_usage(self._folder).free - sum(self._owed.values()) - SPARE_BYTES

    def make_room(self, size: int) -> None:
        """Raises NoSpace where the disk has none for a file of so many bytes."""
        free = self.free() + SPARE_BYTES
        if size + SPARE_BYTES > free:
            raise NoSpace(
                f"the file needs {shown(size)} and {shown(SPARE_BYTES)} to spare, the disk has {shown(max(free, 0))} "
                "free: "
                "remove a model or enlarge the disk"
            )

    def _install(self, stage: Path, digest: str, write: Callable[[], T], intact: bool) -> T:
        """Put the staged file in its place and write its row. One that is there already gives way, unless it is
        `intact`; whoever has it open keeps it."""
        target = self._path(digest).parent
        with writing():
            new = not (target / FILE).exists()
            if new:
                shutil.rmtree(target, ignore_errors=True)
                stage.rename(target)
                sync_folder(self._folder)
            elif not intact:
                (stage / FILE).replace(target / FILE)
                sync_folder(target)
            try:
                made = write()
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


async def _delete(folders: Sequence[Path]) -> None:
    for folder in folders:
        await in_thread(lambda gone=folder: shutil.rmtree(gone, ignore_errors=True))  # type: ignore[misc]


# --- words


def _taken(name: str) -> Conflict:
    return Conflict(
        f"the name {name} belongs to another file: choose another with --name, or remove that model first", param="name"
    )


def shown(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
