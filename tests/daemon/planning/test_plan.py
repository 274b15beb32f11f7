"""From what was asked of a deployment to a worker's settings."""

from typing import Any

import pytest

from llmd.daemon.engine import renderers
from llmd.daemon.errors import BadRequest, Unavailable
from llmd.daemon.planning.plan import BESIDE, ON_CPU, Placement, Wish, check_memory, plan
from llmd.daemon.wire.control import Llama
from llmd.quantize.shape import Layer, Shape


def settings(placement: Placement) -> tuple[tuple[str, ...], str, str, int]:
    s = plan(Wish("m.gguf", 4, 512, 512, 256, 2, placement))
    assert isinstance(s, Llama)
    assert (s.path, s.slots, s.context, s.chunk, s.threads) == ("m.gguf", 4, 512, 256, 2)
    assert s.batch == max(512, s.ubatch), "a pass fits into a step"
    return s.gpus, s.split, s.kv_type, s.ubatch


@pytest.mark.parametrize(
    ("placement", "wanted"),
    [
        (Placement(), ((), "none", "f16", 0)), (Placement(kv="q8_0"), ((), "none", "q8_0", 0)),
        (Placement(("GPU-a",), ubatch=2048), (("GPU-a",), "none", "f16", 2048)),
        (Placement(("GPU-a", "GPU-b")), (("GPU-a", "GPU-b"), "layer", "f16", 0)),
        (Placement(("GPU-a", "GPU-b"), "tensor"), (("GPU-a", "GPU-b"), "tensor", "f16", 0)),
    ],
)  # fmt: skip
def test_what_was_set_by_hand_is_what_the_worker_gets(
    placement: Placement, wanted: tuple[tuple[str, ...], str, str, int]
) -> None:
    placement.check()
    assert settings(placement) == wanted
    assert Placement.of(placement.to_dict()) == placement, "as it is stored"


@pytest.mark.parametrize(
    ("placement", "said"),
    [
        (Placement(("GPU-a", "GPU-a")), "twice"), (Placement(("GPU-a", "GPU-b"), "none"), "layer or tensor"),
        (Placement(("GPU-a", "GPU-b"), "tensor", "q8_0"), "f16 only"),
    ],
)  # fmt: skip
def test_what_cannot_work_on_any_machine_is_refused(placement: Placement, said: str) -> None:
    with pytest.raises(BadRequest, match=said):
        placement.check()


GIB = 1 << 30
LAYER = Layer(k=1024, v=1024, heads=32, kv_heads=8, q=4096, ff=14336, nbytes=GIB // 8)
SHAPE = Shape(
    "llama", 131072, 128256, 4096, (LAYER,) * 32, 128, 128, host=GIB // 4, file=9 * GIB // 2, repacked=4 * GIB
).to_dict()


def wish(slots: int, context: int, placement: Placement = ON_CPU, shape: dict[str, Any] | None = SHAPE) -> Wish:
    return Wish("m.gguf", slots, context, 512, 256, 2, placement, shape)


def test_a_model_larger_than_the_free_memory_is_refused_with_the_numbers() -> None:
    check_memory(wish(8, 4096), 9 * GIB)  # 4.5 of weights, 4 of keys and values
    with pytest.raises(Unavailable) as refused:
        check_memory(wish(8, 4096), 8 * GIB)
    said = refused.value.message
    assert "weights 4.5 GiB, keys and values 4.0 GiB" in said and "8.0 GiB are free" in said and "--slots" in said
    check_memory(wish(4, 4096), 8 * GIB)
    check_memory(wish(8, 4096, shape=None), 0)


def test_on_a_gpu_the_machines_memory_holds_little() -> None:
    check_memory(wish(8, 4096, Placement(("GPU-a",))), 2 * GIB)
    with pytest.raises(Unavailable, match=r"weights 0\.2"):
        check_memory(wish(8, 4096, Placement(("GPU-a",))), GIB // 4)


def test_a_chat_template_takes_what_it_may_within_its_workers_limit() -> None:
    """They are in one group: over its limit, the kernel ends both."""
    assert BESIDE >= 2 * renderers.MEMORY
