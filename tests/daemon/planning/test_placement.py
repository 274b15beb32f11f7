"""Where models go: the rules one by one, the refusals, and all of it against brute force on random machines."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

import pytest

from llmd.daemon.errors import BadRequest, DoesNotFit, from_wire
from llmd.daemon.gpus.links import Link
from llmd.daemon.planning.placement import Asked, Device, Form, Placed, explained, place, rungs
from llmd.quantize.footprint import Calibration, Layout, Load, Measured
from llmd.quantize.shape import Layer, Shape

GIB = 1 << 30
CALIBRATION = Calibration((Measured(600 << 20),))
NVLINK, PCIE = Link("nvlink", "NV18", 28), Link("pcie", "SYS", 1)
# blocks, embedding, ff, heads, kv heads, head width
SIZES = {"1b": (16, 2048, 8192, 32, 8, 64), "8b": (32, 4096, 14336, 32, 8, 128), "70b": (80, 8192, 28672, 64, 8, 128)}


def form(size: str, bits: float = 4.9, name: str = "", **changes: Any) -> Form:
    blocks, embedding, ff, heads, kv_heads, key = SIZES[size]
    elements = 2 * embedding * key * (heads + kv_heads) + 3 * embedding * ff
    layer = Layer(
        k=kv_heads * key, v=kv_heads * key, heads=heads, kv_heads=kv_heads, q=heads * key, ff=ff,
        nbytes=int(elements * bits / 8), shared=8 * embedding,
    )  # fmt: skip
    ends = int(128256 * embedding * bits / 8)
    shape = Shape(
        "llama", 131072, 128256, embedding, (layer,) * blocks, key, key, host=ends, output=ends,
        file=int(elements * blocks * bits / 8) + 2 * ends,
    )  # fmt: skip
    return Form(name or f"{size}-{bits:g}", replace(shape, **changes), shape.file)


def gpus(*free: float, total: float = 80, **changes: Any) -> list[Device]:
    return [
        Device(f"GPU-{i}", f"gpu {i}", int(f * GIB), int(max(total, f) * GIB), (9, 0), **changes)
        for i, f in enumerate(free)
    ]


def linked(devices: Sequence[Device], *groups: tuple[int, ...]) -> dict[frozenset[str], Link]:
    """NVLink within the groups, PCIe between all others."""
    return {
        frozenset((devices[a].uuid, devices[b].uuid)): NVLINK if any({a, b} <= set(g) for g in groups) else PCIE
        for a, b in combinations(range(len(devices)), 2)
    }


def put(
    forms: Form | list[Form], devices: list[Device], asked: Asked | None = None, *groups: tuple[int, ...]
) -> Placed:
    given = forms if isinstance(forms, list) else [forms]
    return place(given, devices, linked(devices, *groups), asked or Asked(4096, 8), CALIBRATION)


def where(placed: Placed) -> list[str]:
    return [device.uuid for device in placed.devices]


# --- the rules


def test_of_the_gpus_that_hold_it_the_one_with_the_least_left() -> None:
    placed = put(form("8b"), gpus(75, 12, 40, 9))
    assert where(placed) == ["GPU-1"] and placed.layout.split == "none"
    assert (placed.layout.context, placed.layout.slots, placed.layout.kv_type) == (4096, 8, "f16")


def test_the_largest_form_that_fits_anywhere_and_then_the_fewest_gpus() -> None:
    forms = [form("8b", 4.9), form("8b", 16), form("8b", 8.5)]
    assert put(forms, gpus(75)).form == "8b-16"
    assert put(forms, gpus(15, 15)).form == "8b-16", "on two GPUs rather than smaller"
    assert put(forms, gpus(15)).form == "8b-8.5"


def test_nvlink_before_pcie_and_tensor_over_it() -> None:
    devices = gpus(30, 30, 31, 31)
    assert where(put(form("70b"), devices, None, (2, 3))) == ["GPU-2", "GPU-3"]
    assert put(form("70b"), devices, None, (2, 3)).layout.split == "tensor"
    assert where(put(form("70b"), devices)) == ["GPU-0", "GPU-1"]
    assert put(form("70b"), devices).layout.split == "layer"


def test_what_cannot_be_split_by_tensors_is_split_by_layers() -> None:
    devices = gpus(30, 30)
    assert put(form("70b", architecture="deepseek2"), devices, None, (0, 1)).layout.split == "layer"
    assert put(form("70b"), devices, Asked(4096, 8, kv="q8_0"), (0, 1)).layout.split == "layer"


def test_first_slots_give_way_then_the_type_then_the_context() -> None:
    assert list(rungs(Asked(8192, 4))) == [
        (8192, 4, "f16"), (8192, 2, "f16"), (8192, 1, "f16"), (8192, 1, "q8_0"), (4096, 1, "q8_0"), (2048, 1, "q8_0"),
    ]  # fmt: skip
    assert list(rungs(Asked(8192, 4, keep_slots=True, kv="f16"))) == [
        (8192, 4, "f16"), (4096, 4, "f16"), (2048, 4, "f16"),
    ]  # fmt: skip
    assert list(rungs(Asked(1024, 1, kv="q8_0"))) == [(1024, 1, "q8_0")]
    placed = put(form("8b"), gpus(9))
    assert placed.layout.slots < 8 and placed.layout.context == 4096
    assert [step.taken for step in placed.steps][-1] and not any(step.taken for step in placed.steps[:-1])
    assert "lacks" in placed.steps[0].why


def test_mig_instances_work_alone_and_a_unified_memory_keeps_more_free() -> None:
    with pytest.raises(DoesNotFit):
        put(form("70b"), gpus(30, 30, mig=True), None, (0, 1))
    assert where(put(form("1b"), gpus(20, 20, mig=True))) == ["GPU-0"]
    assert gpus(50, total=128, unified=True)[0].room < gpus(50, total=128)[0].room


def test_what_was_asked_for_is_kept() -> None:
    devices = gpus(75, 75)
    asked = Asked(4096, 8, gpus=("GPU-1", "GPU-0"), split="layer", ubatch=512)
    placed = put(form("1b"), devices, asked, (0, 1))
    assert where(placed) == ["GPU-1", "GPU-0"] and placed.layout.split == "layer" and placed.layout.ubatch == 512
    assert put(form("1b"), devices, Asked(4096, 8, split="tensor"), (0, 1)).layout.split == "tensor"
    with pytest.raises(BadRequest, match="GPU-9"):
        put(form("1b"), devices, Asked(4096, 8, gpus=("GPU-9",)))


# --- refusals


def test_a_refusal_has_the_numbers_and_what_would_fit() -> None:
    with pytest.raises(DoesNotFit) as refused:
        put(form("8b"), gpus(20), Asked(32768, 32, keep_context=True, keep_slots=True, kv="f16"))
    said = refused.value.message
    assert "8b-4.9 with 32 slots of 32768 tokens, f16 needs" in said and "are missing" in said
    assert "--slots 2" in said and "gpu 0 with nothing else on it" not in said
    assert isinstance(from_wire(refused.value.code, said), DoesNotFit)
    for asked in (Asked(4096, 8), Asked(4096, 8, keep_slots=True)):
        with pytest.raises(DoesNotFit, match="one more gpu 0 with nothing else on it"):
            put(form("70b"), gpus(4), asked)
    with pytest.raises(DoesNotFit, match="excludes itself"):
        put(form("1b"), gpus(75), Asked(4096, 8, split="tensor"))


# --- against brute force


def every(
    forms: list[Form], devices: list[Device], links: dict[frozenset[str], Link], asked: Asked
) -> Iterator[tuple[Any, ...]]:
    loads = {one.name: Load(one.shape) for one in forms}
    for step, (context, slots, kv) in enumerate(rungs(asked)):
        for one in forms:
            for ubatch in (2048, 512):
                for count in range(1, len(devices) + 1):
                    for group in combinations(devices, count):
                        rank = min(
                            (links[frozenset((a.uuid, b.uuid))].rank for a, b in combinations(group, 2)), default=0
                        )
                        for at, split in enumerate(("none",) if count == 1 else ("tensor", "layer")):
                            if split == "tensor" and (kv != "f16" or rank < 11 or not one.shape.tensor_split(count)):
                                continue
                            shares = tuple(d.free >> 26 or 1 for d in group) if split == "layer" else (1,) * count
                            layout = Layout(context, slots, kv, ubatch, 2048, split, shares)  # type: ignore[arg-type]
                            needs = loads[one.name].need(layout, (600 << 20,) * count)
                            left = [d.room - n.total for d, n in zip(group, needs, strict=True)]
                            if min(left) >= 0:
                                names = tuple(d.uuid for d in group)
                                # of one set the first split that holds it counts
                                yield step, -one.size, -ubatch, count, -rank, at, sum(left), names, layout, one.name


def first_splits(found: Iterator[tuple[Any, ...]]) -> Iterator[tuple[Any, ...]]:
    seen = set()
    for one in found:
        key = (*one[:5], one[7])
        if key not in seen:
            seen.add(key)
            yield (*one[:5], *one[6:8], one[8], one[9])


@pytest.mark.parametrize("seed", range(20))
def test_the_choice_is_that_of_brute_force(seed: int) -> None:
    rng = random.Random(seed)
    kinds = [form("1b"), form("8b"), form("8b", 8.5), form("8b", 16), form("70b")]
    for _ in range(50):
        count = rng.randrange(1, 5)
        devices = gpus(*(rng.uniform(2, 80) for _ in range(count)))
        links = linked(devices, tuple(i for i in range(count) if rng.random() < 0.6))
        forms = rng.sample(kinds, rng.randrange(1, 4))
        asked = Asked(rng.choice([2048, 4096, 16384]), rng.choice([1, 4, 16]), rng.random() < 0.3, rng.random() < 0.3)
        expected = min(first_splits(every(forms, devices, links, asked)), key=lambda one: one[:7], default=None)
        try:
            placed = place(forms, devices, links, asked, CALIBRATION)
        except DoesNotFit:
            assert expected is None
            continue
        assert expected is not None
        assert (placed.form, tuple(where(placed)), placed.layout) == (expected[8], expected[6], expected[7])
        assert all(n.total <= d.room for d, n in zip(placed.devices, placed.needs, strict=True))


def test_what_more_memory_would_change() -> None:
    tight = gpus(8)
    told = explained([form("8b")], tight, {}, Asked(4096, 8), CALIBRATION)
    assert told.layout.slots < 8 and told == replace(put(form("8b"), tight), buys=told.buys)
    one_gib, one_gpu = told.buys
    assert one_gib.startswith("one GiB more on each GPU: 8b-4.9 with ") and "on one GPU" in one_gib
    assert one_gpu.startswith("one more gpu 0: 8b-4.9 with 8 slots of 4096 tokens, f16")
    assert explained([form("8b")], gpus(60), {}, Asked(4096, 8), CALIBRATION).buys == ()
    # one more is no larger than those that are there: what does not fit on one of them does not fit on it
    need = put(form("8b"), gpus(60)).needs[0].total
    almost = [replace(d, free=need - 1, total=need - 1 + (512 << 20)) for d in gpus(60)]
    assert not any("8 slots of 4096 tokens, f16 on one GPU" in buy and buy.startswith("one more")
                   for buy in explained([form("8b")], almost, {}, Asked(4096, 8), CALIBRATION).buys)  # fmt: skip
    two = gpus(40, 40)
    (fewer,) = explained([form("70b")], two, linked(two, (0, 1)), Asked(2048, 1, True, True), CALIBRATION).buys
    assert fewer == "one more gpu 0: 70b-4.9 with 1 slots of 2048 tokens, f16 on one GPU"
