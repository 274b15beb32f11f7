"""Forms of a model, made in a child process: which one, whole or not at all."""

import asyncio
import shutil
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from small_models import ATTENTION, DENSE, model, write

from llmd.daemon.errors import BadRequest, Conflict, LlmdError, ModelInvalid, NoSpace, NotFound
from llmd.daemon.models import making
from llmd.daemon.models.files import ModelStore
from llmd.daemon.models.making import Asked, FormMade, Maker, Making
from llmd.daemon.models.running import lines
from llmd.daemon.state.records import Converted, Info
from llmd.daemon.state.store import StateThread, Store


class Place:
    def __init__(self, folder: Path) -> None:
        self.folder, self.state = folder, StateThread()
        self.store = Store(folder / "state.db")
        self.models = ModelStore(folder / "models", self.store, self.state)
        self.maker = Maker(self.models, self.state, lambda: 2)

    async def job(self, kind: str = "Q4_K_M") -> Making:
        size = next(s for s in await self.maker.sizes("a") if s.type == kind)
        return Making(kind, size.bytes, self.store.model("a").digest)

    async def make(self, asked: Making) -> FormMade:
        self.told: list[tuple[int, int, str]] = []
        return await self.maker.make("a", asked, lambda *told: self.told.append(told))

    def left(self) -> list[str]:
        return sorted(p.name for p in (self.folder / "models").iterdir() if p.name != "staging") + [
            p.name for p in (self.folder / "models" / "staging").iterdir()
        ]


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    file = write(tmp_path, model("llama", {}, {**ATTENTION, **DENSE}, blocks=2))
    place = Place(tmp_path)
    await place.models.import_file(file, "a")
    yield place
    place.state.close()
    place.store.close()


async def test_unpacked_weights_were_quantized_before(place: Place) -> None:
    model = place.store.model("a")
    place.store.set_info("a", model.info.but(converted=Converted("LlamaForCausalLM", "gptq")))
    with pytest.raises(BadRequest, match="quantized already .gptq.: another type made of that loses twice"):
        await place.maker.chosen(place.store.model("a"), Asked(type="Q4_K_M"))
    assert (await place.maker.chosen(place.store.model("a"), Asked(type="Q4_K_M", again=True))).type == "Q4_K_M"


async def test_a_form_stands_beside_what_was_imported(place: Place) -> None:
    done = await place.make(await place.job())
    own = place.store.model("a")
    form = next(f for f in place.store.forms("a") if f.type == "Q4_K_M")
    assert done == FormMade("a@Q4_K_M", form.digest, form.size) and form.size < own.size
    assert form.info.made and form.info.made.of == own.digest and form.info.made.type == "Q4_K_M" and form.info.tried
    assert form.info.file_type == "Q4_K_M" and form.info.shape
    assert place.models.file(form.digest).stat().st_mode & 0o777 == 0o440
    assert place.left() == sorted([own.digest, form.digest])
    assert place.told[-2][0] == place.told[-2][1] and place.told[-1][2] == "checking what was made"
    again = Place(place.folder)
    assert again.left() == place.left(), "a restart keeps it"
    again.state.close()
    again.store.close()


async def test_forms_go_one_by_one_and_with_their_model(place: Place) -> None:
    for kind in ("Q8_0", "Q4_0"):
        await place.make(await place.job(kind))
    own = place.store.model("a").digest
    removed = await place.models.remove_form("a", "Q8_0")
    assert removed.digest not in place.left() and len(place.left()) == 2
    with pytest.raises(NotFound):
        await place.models.remove_form("a", "Q8_0")
    with pytest.raises(Conflict, match="is what was imported"):
        await place.models.remove_form("a", "F32")
    assert own in place.left()
    await place.models.remove("a")
    assert place.left() == []


async def test_a_file_that_two_models_have_stays_for_the_other(place: Place, tmp_path: Path) -> None:
    await place.models.import_file(tmp_path / "model.gguf", "b")
    await place.make(await place.job("Q8_0"))
    await place.models.remove("a")
    assert place.left() == [place.store.model("b").digest]


async def chosen(place: Place, **asked: Any) -> str:
    return (await place.maker.chosen(place.store.model("a"), Asked(**asked))).type


async def test_the_largest_within_a_size(place: Place) -> None:
    sizes = {s.type: s for s in await place.maker.sizes("a")}
    assert await chosen(place, type="q5_k_m") == "Q5_K_M"
    assert await chosen(place, budget=sizes["Q5_K_M"].bytes) == "Q5_K_M"
    assert await chosen(place, budget=sizes["Q5_K_M"].bytes - 1) == "Q5_K_S"
    assert await chosen(place, bits=4.8) == "Q4_K_S" and await chosen(place, bits=16.5) == "F16"
    little: list[dict[str, Any]] = [{"budget": 1000}, {"bits": 1.0}]
    for asked in little:
        with pytest.raises(BadRequest, match="the smallest type is Q2_K"):
            await chosen(place, **asked)
    wrong: list[dict[str, Any]] = [{}, {"type": "Q8_0", "bits": 4.0}]
    for asked in wrong:
        with pytest.raises(BadRequest, match="give one of"):
            await chosen(place, **asked)
    with pytest.raises(BadRequest, match="there is no type 'Q9'"):
        await chosen(place, type="Q9")
    with pytest.raises(Conflict, match="has the form F32 already"):
        await chosen(place, type="F32")
    await place.make(await place.job("Q8_0"))
    with pytest.raises(Conflict, match="has the form Q8_0 already"):
        await chosen(place, type="Q8_0")


async def test_what_is_quantized_already_says_what_it_costs(place: Place, model_file: Path) -> None:
    await place.models.import_file(model_file, "q")
    with pytest.raises(BadRequest, match=r"quantized already \(Q4_1\): .*loses twice.*--requantize"):
        await place.maker.chosen(place.store.model("q"), Asked("Q3_K_M"))
    assert (await place.maker.chosen(place.store.model("q"), Asked("Q3_K_M", again=True))).fallbacks


def child_of_this() -> psutil.Process | None:
    found = [
        p for p in psutil.Process().children() if "llmd.quantize.quantizing" in p.cmdline() and "make" in p.cmdline()
    ]
    return found[0] if found else None


async def test_a_killed_child_and_a_cancelled_job_leave_nothing(place: Place) -> None:
    before = place.left()
    for end in ("kill", "cancel"):
        task = asyncio.create_task(place.make(await place.job("IQ4_XS")))
        async with asyncio.timeout(20):
            while not (child := child_of_this()):
                await asyncio.sleep(0.001)
        if end == "kill":
            child.send_signal(signal.SIGKILL)
            with pytest.raises(ModelInvalid, match="SIGKILL"):
                await task
        else:
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert place.left() == before and child_of_this() is None and place.models._owed == {}


async def test_no_room(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    job = await place.job()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9 - 10**6, 10**6))
    with pytest.raises(NoSpace, match="the disk has 1 MB free"):
        await place.make(job)


async def test_a_source_that_is_damaged_or_another_by_now(place: Place) -> None:
    job = await place.job()
    path = place.models.path("a")
    path.chmod(0o640)
    with path.open("r+b") as file:
        file.truncate(10_000)
    with pytest.raises(LlmdError, match="truncated"):
        await place.make(job)
    place.store.remove_model("a")
    place.store.add_model("a", "e" * 64, 1, "x", Info(file_type="F32"))
    with pytest.raises(Conflict, match="another model by now"):
        await place.make(job)
    assert not list((place.folder / "models" / "staging").iterdir())


async def test_what_a_child_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model of many blocks has long lines; and a file may have taken the child over."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    async def said(code: str) -> list[dict[str, Any]]:
        (tmp_path / "program.py").write_text(code)
        return [line async for line in lines("this", "program")]

    long = "print('{\"size\": \"' + 'x' * 500_000 + '\"}'); print('{\"ok\": true}')"
    assert [len(line.get("size", "")) for line in await said(long)] == [500_000, 0]
    too_long, no_object, aborts = "print('x' * 2_000_000)", "print('[1]')", "import os; os.abort()"
    for wrong in (too_long, no_object, "print('{}')", "", "print('{\"ok\": 1}')", aborts):
        with pytest.raises(ModelInvalid, match="this (ended without a verdict|crashed)"):
            await said(wrong)


@pytest.mark.parametrize("size", [["Q8_0"], 5, ["Q8_0", "much", 8.5, 0, {}], ["Q8_0", 1, 8.5, 0, {"layers": 7}]])
async def test_sizes_that_cannot_be(place: Place, monkeypatch: pytest.MonkeyPatch, size: Any) -> None:
    async def told(*_: object) -> AsyncIterator[dict[str, Any]]:
        yield {"size": size}
        yield {"ok": True}

    monkeypatch.setattr(making, "lines", told)
    with pytest.raises(ModelInvalid, match="ended without a verdict"):
        await place.maker.sizes("a")
