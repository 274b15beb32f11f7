"""From what was asked of a deployment to a worker's settings."""

import pytest

from llmd.daemon.errors import BadRequest
from llmd.daemon.serving.plan import Placement, Wish, plan


def settings(placement: Placement) -> tuple[tuple[str, ...], str, str, int]:
    s = plan(Wish("m.gguf", 4, 512, 512, 256, 2, placement))
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
        (Placement(("GPU-a", "GPU-a")), "twice"), (Placement(split="layer"), "name them with gpus"),
        (Placement(ubatch=512), "name them with gpus"), (Placement(("GPU-a", "GPU-b"), "none"), "layer or tensor"),
        (Placement(("GPU-a", "GPU-b"), "tensor", "q8_0"), "f16 only"),
    ],
)  # fmt: skip
def test_what_cannot_work_on_any_machine_is_refused(placement: Placement, said: str) -> None:
    with pytest.raises(BadRequest, match=said):
        placement.check()
