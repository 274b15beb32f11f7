"""Plans as the GPUs are now: nothing is promised twice, and nothing falls back to the CPU because of a fault."""

import asyncio
from dataclasses import fields, replace
from pathlib import Path

import pytest
from fake_nvml import GIB, DriverNotLoaded, Error, FakeNvml, NoPermission, h200

from llmd.daemon.errors import DoesNotFit, Unavailable
from llmd.daemon.gpus.nvml import Nvml
from llmd.daemon.gpus.watch import Watcher
from llmd.daemon.machine import memory
from llmd.daemon.planning.plan import File, Placement, Wish
from llmd.daemon.planning.planner import IGNORED, Planner
from llmd.daemon.wire.control import Llama
from llmd.quantize.footprint import MIB, Calibration, Measured
from llmd.quantize.shape import Layer, Shape

ONE, TWO = h200(0).uuid, h200(1).uuid
LAYER = Layer(k=1024, v=1024, heads=32, kv_heads=8, q=4096, ff=14336, nbytes=2 * GIB)
# 65 GiB of weights: beside what else it needs, one of them fits on a GPU of 141 GiB, and two do not
SHAPE = Shape("llama", 131072, 128256, 4096, (LAYER,) * 32, 128, 128, host=GIB, output=GIB, file=66 * GIB).to_dict()

SMALL = Shape("llama", 131072, 128256, 4096, (replace(LAYER, nbytes=GIB // 32),) * 32, 128, 128, file=GIB).to_dict()


def wish(slots: int = 8, placement: Placement = Placement(), **changes: object) -> Wish:  # noqa: B008
    made = Wish("m.gguf", slots, 4096, 512, 256, 2, placement, SHAPE, 66 * GIB)
    return replace(made, **changes)  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def roomy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available", lambda: 100 * GIB)


def planner(tmp_path: Path, fake: FakeNvml, *, cuda: bool = True) -> Planner:
    return Planner(Watcher(Nvml(fake, fake.root(tmp_path / "root"))), cuda=cuda)


async def test_without_a_gpu_the_cpu_and_what_is_for_gpus_is_refused(tmp_path: Path) -> None:
    made = planner(tmp_path, FakeNvml())
    assert (await made.settings(("m", 1), wish())).gpus == ()
    assert (await made.explain("m", wish()))["steps"][0]["why"] == "the NVIDIA driver runs but finds no GPU"
    for placement in (Placement(("GPU-a",)), Placement(split="layer"), Placement(ubatch=512)):
        with pytest.raises(DoesNotFit, match="are for GPUs: the NVIDIA driver runs but finds no GPU"):
            await made.settings(("m", 1), wish(placement=placement))
    with pytest.raises(Unavailable, match=r"100\.0 GiB are free"):
        await made.settings(("m", 1), wish(256))


async def test_an_engine_without_cuda_computes_on_the_cpu_and_says_so(tmp_path: Path) -> None:
    made = planner(tmp_path, FakeNvml(h200(0)), cuda=False)
    assert (await made.settings(("m", 1), wish())).gpus == ()
    assert "llmd-cuda" in (await made.explain("m", wish()))["steps"][0]["why"]
    with pytest.raises(DoesNotFit, match="llmd-cuda"):
        await made.settings(("m", 1), wish(placement=Placement((ONE,))))


async def test_what_is_chosen_is_what_the_worker_gets(tmp_path: Path) -> None:
    fake = FakeNvml(h200(0), h200(1))
    fake.hold(ONE, 1, 60 * GIB)
    settings = await planner(tmp_path, fake).settings(("m", 1), wish())
    assert isinstance(settings, Llama)
    assert (settings.gpus, settings.split, settings.kv_type) == ((ONE,), "none", "f16")
    assert (settings.context, settings.slots, settings.ubatch, settings.batch) == (4096, 8, 2048, 2048)


async def test_two_loads_at_once_never_count_on_the_same_memory(tmp_path: Path) -> None:
    made = planner(tmp_path, FakeNvml(h200(0), h200(1)))
    whole = wish(placement=Placement(split="none", kv="f16"), keep_slots=True, keep_context=True)
    found = await asyncio.gather(made.settings(("a", 1), whole), made.settings(("b", 1), whole))
    assert sorted(settings.gpus[0] for settings in found) == [ONE, TWO]
    with pytest.raises(DoesNotFit, match="are missing"):
        await made.settings(("c", 1), whole)
    made.ended(("a", 1))
    assert (await made.settings(("c", 1), whole)).gpus == found[0].gpus


async def test_a_lease_counts_until_nvml_sees_the_replica(tmp_path: Path) -> None:
    fake = FakeNvml(h200(0))
    made = planner(tmp_path, fake)
    await made.settings(("m", 1), wish())
    (before,) = (await made.explain("other", wish()))["devices"]
    fake.hold(ONE, 7, 70 * GIB)
    made.ready(("m", 1))
    (after,) = (await made.explain("other", wish()))["devices"]
    assert before["free"] < 141 * GIB - 66 * GIB and after["free"] == 141 * GIB - GIB // 2 - 70 * GIB
    made.ended(("m", 1))
    fake.release(7)
    (gone,) = (await made.explain("other", wish()))["devices"]
    assert gone["free"] == 141 * GIB - GIB // 2


async def test_copies_lie_on_different_gpus_and_a_successor_beside_what_it_replaces(tmp_path: Path) -> None:
    made = planner(tmp_path, FakeNvml(h200(0), h200(1)))
    small = wish(1, keep_slots=True, shape=SMALL)
    first, second = await made.settings(("m", 1), small), await made.settings(("m", 2), small)
    assert {first.gpus, second.gpus} == {(ONE,), (TWO,)} and first.context == second.context
    with pytest.raises(DoesNotFit, match="a copy lies on every GPU"):
        await made.settings(("m", 3), small)
    assert (await made.settings(("m", 3), replace(small, slots=2))).gpus in {(ONE,), (TWO,)}
    await made.check("m", small, {}, 2)
    with pytest.raises(DoesNotFit, match="no place for replica 3 of 3: a copy lies on every GPU"):
        await made.check("m", small, {}, 3)


async def test_one_more_copy_where_a_gpu_holds_it_whole(tmp_path: Path) -> None:
    fake = FakeNvml(h200(0), h200(1), h200(2))
    fake.hold(h200(2).uuid, 1, 100 * GIB)
    made = planner(tmp_path, fake)
    assert not await made.another("m", wish())
    await made.settings(("m", 1), wish())
    assert await made.another("m", wish())
    await made.settings(("m", 2), wish())
    assert not await made.another("m", wish()), "the third GPU has no room"


async def test_a_lease_is_what_nvml_measures_and_the_next_plan_knows_it(tmp_path: Path) -> None:
    fake = FakeNvml(h200(0), h200(1))
    kept: list[Measured] = []
    watcher = Watcher(Nvml(fake, fake.root(tmp_path / "root")))
    made = Planner(watcher, build="7", keep=kept.append)
    asked = wish(digest="d" * 64)
    (planned,) = (await made.explain("m", asked))["devices"]
    await made.settings(("m", 1), asked)
    made.started(("m", 1), lambda: 4711)
    held = planned["need"]["total"] + 300 * MIB
    fake.hold(ONE, 4711, held)
    fake.hold(ONE, 1, GIB)
    made.ready(("m", 1))
    await made.measure(("m", 1))
    (again,) = (await made.explain("m", asked))["devices"]
    assert again["free"] == 141 * GIB - GIB // 2 - GIB, "what it holds is what it gives back"
    assert again["need"]["total"] == held
    (measured,) = kept
    assert measured.model == "d" * 64 and measured.layout == "8 x 4096, f16, 2048" and measured.build == "7"
    known = Calibration().add(Measured(**{f.name: getattr(measured, f.name) for f in fields(measured)}))
    (after,) = (await Planner(watcher, calibration=known).explain("m", asked))["devices"]
    assert after["need"]["total"] == held
    (another,) = (await made.explain("n", wish(digest="e" * 64)))["devices"]
    assert another["need"]["total"] == held, "and what is likely of another model"


async def test_what_the_driver_does_not_tell_or_nobody_can_hold_is_not_learned(tmp_path: Path) -> None:
    fake = FakeNvml(h200(0))
    kept: list[Measured] = []
    made = Planner(Watcher(Nvml(fake, fake.root(tmp_path / "root"))), keep=kept.append)
    asked = wish(digest="d" * 64)
    await made.settings(("m", 1), asked)
    made.started(("m", 1), lambda: 4711)
    (planned,) = (await made.explain("m", asked))["devices"]
    await made.measure(("m", 1))
    fake.hold(ONE, 4711, None)
    await made.measure(("m", 1))
    fake.release(4711)
    fake.hold(ONE, 4711, 120 * GIB)
    await made.measure(("m", 1))
    await made.measure(("m", 2))
    fake.release(4711)
    made.ended(("m", 1))
    assert kept == [] and (await made.explain("n", asked))["devices"][0]["need"] == planned["need"]


async def test_what_a_process_that_loads_has_already_is_not_counted_twice(tmp_path: Path) -> None:
    fake = FakeNvml(h200(0))
    made = planner(tmp_path, fake)
    await made.settings(("m", 1), wish())
    made.started(("m", 1), lambda: 7)
    (before,) = (await made.explain("n", wish(1, shape=SMALL)))["devices"]
    fake.hold(ONE, 7, 30 * GIB)
    (during,) = (await made.explain("n", wish(1, shape=SMALL)))["devices"]
    assert during["free"] == before["free"]


async def test_the_largest_form_that_fits_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake, kept = FakeNvml(h200(0)), list[Measured]()
    made = Planner(Watcher(Nvml(fake, fake.root(tmp_path / "root"))), keep=kept.append)
    small = File("m@Q4_K_M", "small.gguf", 2 * GIB, "4" * 64, SMALL)
    several = wish(form="m@BF16", digest="b" * 64, others=(small,))
    assert (await made.settings(("m", 1), several)).path == "m.gguf"
    made.ended(("m", 1))
    fake.hold(ONE, 1, 100 * GIB)
    assert (await made.explain("m", several))["form"] == "m@Q4_K_M"
    assert (await made.settings(("m", 1), several)).path == "small.gguf"
    made.started(("m", 1), lambda: 7)
    fake.hold(ONE, 7, 8 * GIB)
    await made.measure(("m", 1))
    assert [one.model for one in kept] == ["4" * 64]
    cpu = Planner()
    assert (await cpu.explain("m", several))["form"] == "m@BF16"
    monkeypatch.setattr(memory, "available", lambda: 20 * GIB)
    assert (await cpu.settings(("m", 1), several)).path == "small.gguf"
    monkeypatch.setattr(memory, "available", lambda: 0)
    with pytest.raises(Unavailable, match=r"weights 1\.0 GiB"):
        await cpu.check("m", several, {})


@pytest.mark.parametrize("held", [110, 68])
async def test_what_a_driver_gives_back_late_is_waited_for(tmp_path: Path, held: int) -> None:
    """Whether the model would not fit without it, or would with less than was asked for."""
    fake = FakeNvml(h200(0))
    made = planner(tmp_path, fake)
    await made.settings(("old", 1), wish())
    fake.hold(ONE, 7, held * GIB)
    made.ready(("old", 1))
    made.ended(("old", 1))
    planning = asyncio.create_task(made.settings(("m", 1), wish(16)))
    await asyncio.sleep(0.3)
    assert not planning.done()
    fake.release(7)
    assert (await planning).slots == 16
    (device,) = (await made.explain("other", wish(1, shape=SMALL)))["devices"]
    assert device["free"] > 141 * GIB - 76 * GIB, "one lease, however often it was planned"


async def test_what_gets_less_beside_what_serves_than_in_its_place_has_no_room_beside_it(tmp_path: Path) -> None:
    fake = FakeNvml(h200(0))
    made = planner(tmp_path, fake)
    await made.settings(("m", 1), wish(8))
    fake.hold(ONE, 7, 71 * GIB)
    made.ready(("m", 1))
    assert (await made.settings(("m", 2), wish(4))).slots == 4
    made.ended(("m", 2))
    assert (await made.settings(("m", 2), wish(4), beside=True)).slots == 4
    made.ended(("m", 2))
    assert (await made.settings(("m", 2), wish(64))).slots < 64
    made.ended(("m", 2))
    with pytest.raises(DoesNotFit, match="beside what serves there is only room for"):
        await made.settings(("m", 2), wish(64), beside=True)


async def test_a_plan_that_is_less_than_asked_says_so_and_is_better_once_there_is_room(tmp_path: Path) -> None:
    fake = FakeNvml(h200(0))
    fake.hold(ONE, 1, 68 * GIB)
    made = planner(tmp_path, fake)
    asked = wish(16)
    settings = await made.settings(("m", 1), asked)
    assert settings.slots < 16
    fake.hold(ONE, 7, 68 * GIB)
    made.ready(("m", 1))
    assert made.note(("m", 1)).startswith("smaller than asked (16 slots of 4096 tokens, f16): the GPUs had no room")
    assert not await made.better("m", asked)
    fake.release(1)
    assert await made.better("m", asked)
    made.ended(("m", 1))
    fake.release(7)
    await made.settings(("m", 1), asked)
    assert made.note(("m", 1)) == "" and not await made.better("m", asked)


async def test_what_replaces_a_replica_may_count_on_its_memory(tmp_path: Path) -> None:
    fake = FakeNvml(h200(0))
    made = planner(tmp_path, fake)
    await made.settings(("m", 1), wish(16))
    fake.hold(ONE, 7, 76 * GIB)
    made.ready(("m", 1))
    await made.check("m", wish(32, keep_slots=True), {"m": wish(16)})
    with pytest.raises(DoesNotFit):
        await made.check("other", wish(32, keep_slots=True), {})
    with pytest.raises(DoesNotFit):
        await made.check("m", wish(256, keep_slots=True, keep_context=True), {"m": wish(16)})


async def test_a_fault_never_moves_a_model_to_the_cpu(tmp_path: Path) -> None:
    fake = FakeNvml(h200(0))
    watcher = Watcher(Nvml(fake, fake.root(tmp_path / "root")))
    watcher.refresh()
    made = Planner(watcher)
    fake.emit(ONE, "xid", 48)
    watcher.step()
    with pytest.raises(DoesNotFit, match="no GPU can be used"):
        await made.settings(("m", 1), wish())
    fake.lose(ONE)
    with pytest.raises(DoesNotFit, match="no GPU can be used"):
        await made.settings(("m", 1), wish())


async def test_an_ignored_gpu_takes_no_model_and_where_all_are_the_cpu_computes(tmp_path: Path) -> None:
    fake = FakeNvml(h200(0), h200(1))
    watcher = Watcher(Nvml(fake, fake.root(tmp_path / "root")))
    watcher.refresh()
    made = Planner(watcher)
    watcher.ignore(frozenset({ONE}))
    assert (await made.settings(("m", 1), wish())).gpus == (TWO,)
    pinned = wish(placement=Placement(gpus=(ONE,)))
    with pytest.raises(DoesNotFit, match=f"GPU {ONE}: an administrator keeps it out"):
        await made.settings(("n", 1), pinned)
    fake.emit(TWO, "xid", 48)
    watcher.step()
    with pytest.raises(DoesNotFit, match="no GPU can be used"):  # a fault is still no reason for the CPU
        await made.settings(("n", 1), wish())
    watcher.ignore(frozenset({ONE, TWO}))
    assert (await made.settings(("n", 1), wish())).gpus == ()
    told = (await made.explain("n", wish()))["steps"]
    assert told == [{"what": "the CPU", "taken": True, "why": f"every GPU is ignored: {IGNORED}"}]
    with pytest.raises(DoesNotFit, match="are for GPUs: every GPU is ignored"):
        await made.settings(("n", 1), pinned)


async def test_a_gpu_that_is_ignored_while_a_plan_is_made_gets_no_process(tmp_path: Path) -> None:
    fake = FakeNvml(h200(0), h200(1))
    watcher = Watcher(Nvml(fake, fake.root(tmp_path / "root")))
    watcher.refresh()
    made = Planner(watcher)
    assert (await made.settings(("m", 1), wish())).gpus == (ONE,)
    watcher.ignore(frozenset({ONE}))
    with pytest.raises(Unavailable, match=f"GPU {ONE} cannot be used any more"):
        made.started(("m", 1), lambda: 7)


@pytest.mark.parametrize(("error", "reason"), [(DriverNotLoaded, "not loaded"), (NoPermission, "may not open")])
async def test_a_driver_that_does_not_answer_yet_is_waited_for(tmp_path: Path, error: Error, reason: str) -> None:
    fake = FakeNvml.without_driver(error)
    fake.gpus.append(h200(0))
    made = planner(tmp_path, fake)
    with pytest.raises(DoesNotFit, match=reason):
        await made.settings(("m", 1), wish())
    fake.absent = None
    assert (await made.settings(("m", 1), wish())).gpus == (ONE,)


async def test_without_a_driver_there_is_no_gpu(tmp_path: Path) -> None:
    assert (await planner(tmp_path, FakeNvml.without_driver()).settings(("m", 1), wish())).gpus == ()


async def test_a_model_of_which_nothing_is_known_is_not_guessed_at(tmp_path: Path) -> None:
    with pytest.raises(DoesNotFit, match="import it again"):
        await planner(tmp_path, FakeNvml(h200(0))).settings(("m", 1), wish(shape=None))
