"""The model files: imports that succeed, are refused, cancelled, killed, or meet a full disk; nothing half done
stays."""

import asyncio
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from gguf_writer import tiny_bytes as tiny

from llmd.daemon.errors import (
    BadRequest,
    Conflict,
    LlmdError,
    ModelInvalid,
    ModelNotFound,
    NoSpace,
    NotFound,
    Unavailable,
)
from llmd.daemon.models import copying, files
from llmd.daemon.models.files import ModelStore
from llmd.daemon.state.store import StateThread, Store


class Place(NamedTuple):
    folder: Path
    store: Store
    models: ModelStore

    def left(self) -> list[str]:
        """Every file below the folder."""
        return sorted(str(p.relative_to(self.folder)) for p in self.folder.rglob("*") if p.name != "staging")

    def restart(self) -> "Place":
        return self._replace(models=ModelStore(self.folder, self.store, StateThread()))


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    store = Store(tmp_path / "state.db")
    yield Place(tmp_path / "models", store, ModelStore(tmp_path / "models", store, StateThread()))
    store.close()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    made = tmp_path / "Tiny Model.Q4.gguf"
    made.write_bytes(tiny(0))
    return made


# --- what works


async def test_import(place: Place, file: Path) -> None:
    seen: list[tuple[int, int]] = []
    model = await place.models.import_file(file, progress=lambda done, total: seen.append((done, total)))
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert (model.name, model.digest, model.size) == ("tiny-model.q4", digest, file.stat().st_size)
    assert model.source == str(file) and model.info.parameters > 0
    path = place.models.path(model.name)
    assert path.read_bytes() == file.read_bytes() and path.stat().st_mode & 0o777 == 0o440
    assert place.left() == [digest, f"{digest}/model.gguf"]
    assert place.models.list() == [model] == [place.models.show(model.name)]
    assert seen[-1] == (model.size, model.size)
    assert await place.models.verify(place.models.own_form(model.name))


async def test_the_real_model(place: Place, model_file: Path) -> None:
    seen: list[int] = []
    model = await place.models.import_file(model_file, "smol", lambda done, _: seen.append(done))
    assert model.info.architecture == "llama" and place.models.path("smol").stat().st_size == model.size
    assert seen == sorted(seen) and len(seen) == -(-model.size // copying.CHUNK_BYTES)


async def test_again_changes_nothing(place: Place, file: Path) -> None:
    first = await place.models.import_file(file, "a")
    inode = place.models.path("a").stat().st_ino
    assert await place.models.import_file(file, "a") == first
    assert place.models.path("a").stat().st_ino == inode


async def test_two_names_share_a_file(place: Place, file: Path) -> None:
    a, b = await place.models.import_file(file, "a"), await place.models.import_file(file, "b")
    assert a.digest == b.digest and len(place.left()) == 2
    await place.models.remove("a")
    assert place.models.path("b").exists() and len(place.left()) == 2
    await place.models.remove("b")
    assert place.left() == [] and place.models.list() == []
    for call in (place.models.show, place.models.path, place.models.own_form):
        with pytest.raises(ModelNotFound):
            call("b")
    with pytest.raises(ModelNotFound):
        await place.models.remove("b")


async def test_a_name_of_another_file(place: Place, file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.gguf"
    await place.models.import_file(file, "a")
    for content in (tiny(1), tiny(0) + b"longer"):  # of the same size, and not
        other.write_bytes(content)
        with pytest.raises(Conflict, match="belongs to another file"):
            await place.models.import_file(other, "a")
    assert len(place.left()) == 2


async def test_two_at_once(place: Place, file: Path) -> None:
    made = await asyncio.gather(*(place.models.import_file(file, name) for name in ("a", "b", "a")))
    assert len({m.digest for m in made}) == 1 and [m.name for m in place.models.list()] == ["a", "b"]
    assert len(place.left()) == 2


async def test_two_files_race_for_a_name(place: Place, file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.gguf"
    other.write_bytes(tiny(1))
    done = await asyncio.gather(*(place.models.import_file(f, "a") for f in (file, other)), return_exceptions=True)
    assert sorted(type(d).__name__ for d in done) == ["Conflict", "Model"]
    assert len(place.left()) == 2 and place.left()[0] == place.models.show("a").digest


def harm(path: Path, how: str) -> None:
    if how == "gone":
        path.unlink()
    elif how == "without its folder":
        shutil.rmtree(path.parent)
    elif how == "cut off":
        os.truncate(path, path.stat().st_size // 2)
    else:
        path.chmod(0o600)
        with path.open("r+b") as out:
            out.seek(-1, os.SEEK_END)
            out.write(b"\x01")


@pytest.mark.parametrize("how", ["gone", "without its folder", "cut off", "a byte changed"])
@pytest.mark.parametrize("again_as", ["a", "b"])
async def test_what_is_damaged_is_found_and_comes_back_by_importing_it_again(
    place: Place, file: Path, how: str, again_as: str
) -> None:
    await place.models.import_file(file, "a")
    form, path = place.models.own_form("a"), place.models.path("a")
    with path.open("rb") as reader:  # as a worker has it
        harm(path, how)
        assert not await place.models.verify(form)
        why, fix = place.models.damage(form)
        assert bool(why) == (how != "a byte changed") == bool(place.models.damages())
        assert "llmctl model import FILE --name a" in place.models.repair(form) and fix in (
            "",
            place.models.repair(form),
        )
        await place.models.import_file(file, again_as)
        assert len(reader.read()) > 0
    assert path.read_bytes() == file.read_bytes() and path.stat().st_mode & 0o777 == 0o440
    assert await place.models.verify(form) and place.models.damages() == []
    assert place.left() == [form.digest, f"{form.digest}/model.gguf"]


async def test_another_file_does_not_repair_one(place: Place, file: Path, tmp_path: Path) -> None:
    await place.models.import_file(file, "a")
    harm(place.models.path("a"), "gone")
    other = tmp_path / "other.gguf"
    other.write_bytes(tiny(1))
    with pytest.raises(Conflict, match="belongs to another file"):
        await place.models.import_file(other, "a")
    assert not place.models.path("a").exists()


async def test_a_deployed_model_stays(place: Place, file: Path) -> None:
    await place.models.import_file(file, "a")
    place.store.set_deployment("a")
    with pytest.raises(Conflict, match="undeploy"):
        await place.models.remove("a")
    assert place.restart().models.path("a").exists() and len(place.left()) == 2


# --- what is refused


@pytest.mark.parametrize("name", ["", "A", "-a", ".a", "a/b", "../a", "a b", "ä", "a" * 65, "a\n", "a\0"])
async def test_bad_names(place: Place, file: Path, name: str) -> None:
    with pytest.raises(BadRequest, match="a model's name") as caught:
        await place.models.import_file(file, name)
    assert caught.value.param == "name"


@pytest.mark.parametrize(
    ("stem", "name"),
    [("Llama-3 (8B)", "llama-3-8b"), ("..x", "x"), ("A.B_c-4", "a.b_c-4"), ("model.v2", "model.v2")],
)
async def test_names_from_file_names(place: Place, tmp_path: Path, stem: str, name: str) -> None:
    file = tmp_path / f"{stem}.gguf"
    file.write_bytes(tiny(0))
    assert (await place.models.import_file(file)).name == name


@pytest.mark.parametrize(
    ("stem", "proposal"),
    [
        ("Ünï1", "uni1"), ("öö", "oo"), ("模型", "my-model"), ("n" * 99, "n" * 64), ("...", "my-model"),
        ("5c" * 32, "tiny-0"), ("sha256-" + "0" * 64, "tiny-0"),
    ],
)  # fmt: skip
async def test_a_name_that_loses_letters_or_is_a_hash_is_refused_with_a_proposal(
    place: Place, tmp_path: Path, stem: str, proposal: str
) -> None:
    file = tmp_path / f"{stem}.gguf"
    file.write_bytes(tiny(0))
    with pytest.raises(BadRequest, match=f"--name {proposal}$") as refused:
        await place.models.import_file(file)
    assert refused.value.param == "name" and not place.models.list()


async def test_a_model_is_renamed(place: Place, file: Path, tmp_path: Path) -> None:
    await place.models.import_file(file, "old")
    assert (await place.models.rename("old", "new")).name == "new"
    assert [m.name for m in place.models.list()] == ["new"] and place.models.path("new").exists()
    (tmp_path / "other.gguf").write_bytes(tiny(1))
    await place.models.import_file(tmp_path / "other.gguf", "other")
    for new, error in (("other", Conflict), ("A b", BadRequest), ("", BadRequest)):
        with pytest.raises(error):
            await place.models.rename("new", new)
    with pytest.raises(ModelNotFound):
        await place.models.rename("old", "x")


async def test_what_is_not_a_file(place: Place, file: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.gguf")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "dangling").symlink_to(tmp_path / "missing")
    for given, error, says in (
        (tmp_path / "missing.gguf", NotFound, "there is no file .*missing.gguf"),
        (file / "below", NotFound, "there is no file"),
        (tmp_path / "dangling", NotFound, "there is no file"),
        (tmp_path, BadRequest, "is a folder"),
        (tmp_path / "fifo.gguf", BadRequest, "not a regular file"),
        (Path("/dev/zero"), BadRequest, "not a regular file"),
        (tmp_path / "loop", BadRequest, "cannot be opened"),
        ("a\0b", BadRequest, "cannot be opened"),
    ):
        with pytest.raises(error, match=says):
            await asyncio.wait_for(place.models.import_file(given, "a"), 5)
    assert place.left() == []


@pytest.mark.skipif(os.geteuid() != 0, reason="root becomes someone else to be refused")
async def test_a_file_that_may_not_be_read(place: Place, file: Path, tmp_path: Path) -> None:
    file.chmod(0)

    def open_as_nobody() -> None:
        os.seteuid(65534)
        try:
            copying.opened(file)
        finally:
            os.seteuid(0)

    for folder in (tmp_path, *tmp_path.parents):
        if not folder.stat().st_mode & 1:
            folder.chmod(folder.stat().st_mode | 0o011)
    with pytest.raises(BadRequest, match="let its user read the file"):
        open_as_nobody()


async def test_a_link_is_followed(place: Place, file: Path, tmp_path: Path) -> None:
    (tmp_path / "link.gguf").symlink_to(file)
    model = await place.models.import_file(tmp_path / "link.gguf")
    assert model.source == str(file) and not place.models.path(model.name).is_symlink()
    assert model.name == "link"


async def test_a_cache_that_names_files_by_their_hash_is_imported_through_its_links(
    place: Place, tmp_path: Path
) -> None:
    (tmp_path / ("5c" * 32)).write_bytes(tiny(0))
    (tmp_path / "Tiny-Q4.gguf").symlink_to(tmp_path / ("5c" * 32))
    assert (await place.models.import_file(tmp_path / "Tiny-Q4.gguf")).name == "tiny-q4"


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("x.gguf", tiny(0)[:-9000], "truncated: [0-9]+ bytes expected"),
        ("x.gguf", tiny(0).replace(b"blk.0.attn_q", b"blk.0.attn_x"), "llama.cpp cannot load this model: .*attn_q"),
        ("x.gguf", b"", "empty"),
        ("x.gguf", b"hello", "not a GGUF file"),
        ("pytorch_model.bin", tiny(0), "PyTorch checkpoint"),
        ("x.gguf", b"\x80\x04pickled", "PyTorch checkpoint"),
        ("model.safetensors", b"{}", "safetensors"),
    ],
)
async def test_damaged_files_leave_nothing(place: Place, tmp_path: Path, name: str, content: bytes, says: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelInvalid, match=says) as caught:
        await place.models.import_file(tmp_path / name, "a")
    assert "staging" not in caught.value.message
    assert place.left() == [] and place.models.list() == []


async def test_a_file_that_changes_meanwhile(place: Place, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = copying.copy

    def grow(*args: object) -> str:
        with file.open("ab") as out:
            out.write(b"more")
        return real(*args)  # type: ignore[arg-type]

    def shrink(*args: object) -> str:
        os.truncate(file, 1000)
        return real(*args)  # type: ignore[arg-type]

    for change, says in ((grow, "changed while it was copied"), (shrink, "became shorter")):
        monkeypatch.setattr(copying, "copy", change)
        with pytest.raises(BadRequest, match=says):
            await place.models.import_file(file, "a")
    assert place.left() == []


# --- no space


async def test_no_space_is_said_before_copying(place: Place, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9 - 10**6, 10**6))
    monkeypatch.setattr(copying, "copy", lambda *_: pytest.fail("it copied"))
    with pytest.raises(NoSpace, match="67 MB to spare, the disk has 1 MB free"):
        await place.models.import_file(file, "a")
    assert place.left() == []


async def test_running_imports_count(place: Place, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Room for one of two."""
    free = file.stat().st_size * 3 // 2 + files.SPARE_BYTES
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(free, 0, free))
    monkeypatch.setattr(copying, "copy", lambda *a, real=copying.copy: (threading.Event().wait(0.3), real(*a))[1])
    done = await asyncio.gather(*(place.models.import_file(file, n) for n in ("a", "b")), return_exceptions=True)
    assert sorted(type(d).__name__ for d in done) == ["Model", "NoSpace"]
    assert (await place.models.import_file(file, "c")).name == "c", "what a finished import owed is forgotten"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    where = tmp_path / "small"
    where.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "none", str(where)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("needs the right to mount")
    yield where
    subprocess.run(["umount", str(where)], check=True)


async def test_a_disk_that_becomes_full(
    small_disk: Path, tmp_path: Path, model_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**12, 0, 10**12))
    store = Store(None)
    place = Place(small_disk / "models", store, ModelStore(small_disk / "models", store, StateThread()))
    with pytest.raises(NoSpace, match="became full"):
        await place.models.import_file(model_file)
    assert place.left() == [] and store.models() == []
    file = tmp_path / "x.gguf"
    file.write_bytes(tiny(0))
    await place.models.import_file(file, "a")
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    file.write_bytes(tiny(1))
    for coroutine in (place.models.import_file(file, "b"), place.models.remove("a")):
        with pytest.raises(Unavailable, match="cannot be written: Read-only"):
            await coroutine
    assert place.models.path("a").exists() and [m.name for m in place.models.list()] == ["a"]
    store.close()


# --- cancelled and killed


@pytest.mark.parametrize("moment", ["open", "copy", "check", "seal"])
async def test_cancelled(place: Place, file: Path, monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    reached, loop = asyncio.Event(), asyncio.get_running_loop()
    before = len(os.listdir("/proc/self/fd"))

    def slowly(real: Callable[..., object]) -> Callable[..., object]:
        def step(*args: object) -> object:
            loop.call_soon_threadsafe(reached.set)
            threading.Event().wait(0.2)
            return real(*args)

        return step

    async def check(_: Path, **__: object) -> None:
        reached.set()
        await asyncio.sleep(60)

    if moment == "check":
        monkeypatch.setattr(files, "check", check)
    else:
        name = {"open": "opened"}.get(moment, moment)
        monkeypatch.setattr(copying, name, slowly(getattr(copying, name)))
    task = asyncio.create_task(place.models.import_file(file, "a"))
    await asyncio.wait_for(reached.wait(), 10)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, 60)
    assert place.left() == [] and list((place.folder / "staging").iterdir()) == [] and place.models.list() == []
    assert len(os.listdir("/proc/self/fd")) == before
    monkeypatch.undo()
    await place.models.import_file(file, "a")


async def test_cancelled_in_the_middle_of_a_copy(
    place: Place, model_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copying, "CHUNK_BYTES", 1 << 18)
    seen: list[int] = []

    def progress(done: int, total: int) -> None:
        seen.append(done)
        if done > total // 8:
            task.cancel()

    task = asyncio.create_task(place.models.import_file(model_file, "a", progress))
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, 20)
    assert max(seen) < model_file.stat().st_size, "the thread stopped, it did not copy to the end"
    assert place.left() == [] and place.models._owed == {}


KILLED = """
import asyncio, os, signal, sys
from pathlib import Path
from llmd.daemon.models import copying, files
from llmd.daemon.state.store import StateThread, Store

folder, file, moment = Path(sys.argv[1]), sys.argv[2], sys.argv[3]

def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

store = Store(folder / "state.db")
made = files.ModelStore(folder / "models", store, StateThread())
if moment == "copy":
    copying._chunks = lambda fd, size, stop, report, *uses, real=copying._chunks: real(fd, size, stop, die, *uses)
elif moment == "remove":
    asyncio.run(made.import_file(file, "a"))
    files.shutil.rmtree = die
    asyncio.run(made.remove("a"))
else:
    target = {"check": (files, "check"), "seal": (copying, "seal"), "row": (store, "add_model")}[moment]
    setattr(*target, die)
asyncio.run(made.import_file(file, "a"))
"""


@pytest.mark.parametrize("moment", ["copy", "check", "seal", "row", "remove"])
async def test_killed(place: Place, file: Path, moment: str) -> None:
    run = await asyncio.create_subprocess_exec(
        sys.executable, "-P", "-c", KILLED, str(place.folder.parent), str(file), moment
    )  # fmt: skip
    assert await run.wait() == -signal.SIGKILL
    assert len([p for p in place.folder.rglob("*") if p.is_file()]) >= 1, "it was killed in the middle"
    place = place.restart()
    assert place.left() == [] and place.models.list() == []
    await place.models.import_file(file, "a")


async def test_killed_between_row_and_mark(place: Place, file: Path) -> None:
    model = await place.models.import_file(file, "a")
    mark = place.models.path("a").parent / copying.UNSETTLED
    mark.touch()
    place = place.restart()
    assert place.models.show("a") == model and place.models.path("a").exists() and not mark.exists()


async def test_a_lost_database_does_not_cost_the_files(place: Place, file: Path, tmp_path: Path) -> None:
    path = (await place.models.import_file(file, "a"), place.models.path("a"))[1]
    empty = Store(None)
    again = ModelStore(place.folder, empty, StateThread())
    assert path.exists() and again.list() == []
    inode = path.stat().st_ino
    await again.import_file(file, "b")
    assert again.path("b") == path and path.stat().st_ino == inode
    empty.close()


async def test_a_row_that_cannot_be_written(place: Place, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise NoSpace("the disk with the state database is full")

    monkeypatch.setattr(place.store, "add_model", fail)
    with pytest.raises(LlmdError, match="state database"):
        await place.models.import_file(file, "a")
    assert place.left() == []


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "models").write_text("a file")
    with pytest.raises(Unavailable, match="cannot be used"):
        ModelStore(tmp_path / "models", Store(None), StateThread())


def test_the_daemon_does_not_load_llama() -> None:
    code = "import sys, llmd.daemon.models; sys.exit('llama_cpp' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-P", "-c", code], check=False).returncode == 0
