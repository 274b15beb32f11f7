"""Predicted memory against llama.cpp's own account, for models of every kind of attention."""

import ctypes
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import llama_cpp.llama_cpp as lib
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import files, write

from llmd.quantize import compute
from llmd.quantize.check import check_model
from llmd.quantize.footprint import KEPT_MEASUREMENTS, MIB, Calibration, Layout, Load, Measured, need, places
from llmd.quantize.header import read_header
from llmd.quantize.shape import Layer, Shape, shape_of

TYPES = {"f16": lib.GGML_TYPE_F16, "q8_0": lib.GGML_TYPE_Q8_0, "q4_0": lib.GGML_TYPE_Q4_0}
LINE = re.compile(r"\S+\s+(model|KV|RS|compute|output) buffer size =\s+([\d.]+) MiB")


@pytest.fixture(scope="module", params=files())
def kind(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, Shape]:
    path = write(tmp_path_factory.mktemp("models"), files()[request.param])
    header = read_header(path)
    check_model(header)
    return request.param, path, shape_of(header)


# --- llama.cpp's account


@contextmanager
def heard() -> Iterator[list[str]]:
    lines: list[str] = []
    callback = lib.llama_log_callback(lambda _level, text, _user: lines.append(text.decode(errors="replace")))
    lib.llama_log_set(callback, None)
    try:
        yield lines
    finally:
        lib.llama_log_set(lib.llama_log_callback(), None)


def account(path: Path, layout: Layout) -> dict[str, float]:
    """Its buffers in MiB, with a context as the engine makes it on the CPU."""
    found: dict[str, float] = {}
    lib.llama_backend_init()
    with heard() as lines:
        params = lib.llama_model_default_params()
        params.n_gpu_layers = 0
        loaded = lib.llama_model_load_from_file(str(path).encode(), params)
        assert loaded, lines[-3:]
        context = lib.llama_context_default_params()
        context.n_ctx, context.n_seq_max = layout.context * layout.slots, layout.slots
        context.n_batch = layout.batch + 128 + layout.slots
        context.n_ubatch = min(context.n_batch, layout.ubatch)
        context.type_k = context.type_v = TYPES[layout.kv_type]
        context.kv_unified, context.swa_full = False, True
        context.n_outputs_max = layout.slots
        context.flash_attn_type = lib.LLAMA_FLASH_ATTN_TYPE_AUTO
        made = lib.llama_init_from_model(loaded, context)
        assert made, lines[-3:]
        lib.llama_free(ctypes.cast(made, ctypes.c_void_p))
        lib.llama_model_free(loaded)
    for part, size in LINE.findall("".join(lines)):
        found[part] = float(size) + (found.get(part, 0.0) if part == "KV" else 0.0)
    return found


SIZES = [
    (2048, 4, "f16", 512), (1024, 8, "f16", 256), (4096, 1, "f16", 512), (600, 3, "f16", 512), (2048, 4, "q8_0", 512),
    (512, 32, "f16", 512),
]  # fmt: skip
UNQUANTIZED = {"mamba", "jamba", "lfm2", "deepseek2"}  # no quantized keys and values for these
LAYOUTS = [Layout(context, slots, kind, ubatch, 512, shares=()) for context, slots, kind, ubatch in SIZES]


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda la: f"{la.context}x{la.slots}-{la.kv_type}-{la.ubatch}")
def test_the_parts_are_llama_cpps(kind: tuple[str, Path, Shape], layout: Layout) -> None:
    name, path, shape = kind
    if layout.kv_type != "f16" and name in UNQUANTIZED:
        layout = replace(layout, kv_type="f16")
    told, ours = account(path, layout), Load(shape).host(layout)
    assert abs(ours.weights / MIB - told["model"]) < 0.02
    assert abs(ours.kv / MIB - told.get("KV", 0) - told.get("RS", 0)) < 0.02
    computing = ours.compute / MIB - told["output"]
    if name in UNQUANTIZED:  # latent and recurrent blocks are followed roughly
        assert 0.95 < computing / told["compute"] < 1.15
    else:
        assert abs(computing - told["compute"]) < (0.2 if layout.kv_type != "f16" else 0.03)


# --- devices


def shape(blocks: int = 8, **changes: Any) -> Shape:
    layer = Layer(k=1024, v=1024, heads=32, kv_heads=8, q=4096, ff=14336, nbytes=100 * MIB, shared=MIB)
    given: dict[str, Any] = {
        "architecture": "llama", "context": 131072, "vocab": 128256, "embedding": 4096, "layers": (layer,) * blocks,
        "key": 128,
        "value": 128, "host": 300 * MIB, "output": 400 * MIB, "output_shared": MIB, "file": 1500 * MIB,
    }  # fmt: skip
    return Shape(**{**given, **changes})


def test_keys_and_values() -> None:
    one = need(shape(), Layout(4096, 8))[0]
    assert one.kv == 8 * 4096 * 8 * 2048 * 2
    assert need(shape(), Layout(4096, 8, "q8_0"))[0].kv == 8 * 4096 * 8 * 2048 * 34 // 32
    assert need(shape(), Layout(4000, 8))[0].kv == one.kv - 8 * (4096 - 4096) * 2048 * 2  # rounded up to 256


def test_quantized_keys_and_values_are_copied_for_attention() -> None:
    plain, copied = (need(shape(), Layout(65536, 4, kind))[0] for kind in ("f16", "q8_0"))
    assert copied.compute > plain.compute
    assert copied.compute >= 2 * 65536 * 4 * 2048  # the keys and values of one block as f16


def test_layers_are_given_out_as_llama_cpp_does() -> None:
    assert places(80, (1, 1)) == [(0, 41), (41, 81)]
    assert places(80, (3, 1)) == [(0, 61), (61, 81)]
    assert places(3, (1, 1, 1, 1)) == [(0, 1), (1, 2), (2, 3), (3, 4)]


def test_layer_split_shares_the_model_and_multiplies_inputs() -> None:
    whole = need(shape(), Layout(4096, 8))[0]
    parts = need(shape(), Layout(4096, 8, split="layer", shares=(1, 1)))
    assert sum(part.weights for part in parts) == whole.weights
    assert sum(part.kv for part in parts) == whole.kv
    assert parts[0].compute >= compute.COPIES * 2 * 4096 * 2048  # the masks
    assert parts[1].compute >= parts[0].compute  # the logits


def test_tensor_split_reserves_the_whole_pass_on_each() -> None:
    whole = need(shape(), Layout(4096, 8))[0]
    parts = need(shape(), Layout(4096, 8, split="tensor", shares=(1, 1)))
    assert parts[0] == parts[1] and parts[0].compute == whole.compute
    assert whole.weights < 2 * parts[0].weights <= whole.weights + 2 * (8 + 2) * MIB + 4 * MIB
    assert 2 * parts[0].kv == whole.kv


def test_without_flash_attention_scores_take_their_place() -> None:
    odd = shape(key=100, value=100)
    assert not odd.flash and not odd.quantized_kv() and not odd.tensor_split(2)
    assert need(odd, Layout(8192, 1))[0].compute > 4 * 32 * 8192 * 2048


@given(
    context=st.sampled_from([512, 4096, 32768]), slots=st.sampled_from([1, 8, 64]),
    ubatch=st.sampled_from([128, 512, 2048]),
    kind=st.sampled_from(["f16", "q8_0"]), split=st.sampled_from(["none", "layer", "tensor"]),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_more_of_anything_never_needs_less(context: int, slots: int, ubatch: int, kind: str, split: Any) -> None:
    shares = (1,) if split == "none" else (1, 1)
    load = Load(shape())

    def total(*sizes: int) -> int:
        return load.need(Layout(sizes[0], sizes[1], kind, sizes[2], split=split, shares=shares), (0,) * len(shares))[
            0
        ].total

    base = total(context, slots, ubatch)
    assert total(2 * context, slots, ubatch) >= base
    assert total(context, 2 * slots, ubatch) >= base
    assert total(context, slots, 2 * ubatch) >= base


# --- calibration


def test_the_nearest_conditions_count_then_the_largest() -> None:
    calibration = (
        Calibration()
        .add(Measured(500, (9, 0), 13, 1))
        .add(Measured(700, (9, 0), 13, 2, "tensor"))
        .add(Measured(400, (8, 0), 12, 1))
        .add(Measured(510, (9, 0), 13, 1))
    )
    assert calibration.overhead((9, 0), 13, 1) == 510
    assert calibration.overhead((9, 0), 13, 4, "tensor") == 700
    assert calibration.overhead((9, 0), 12, 1) == 510
    assert calibration.overhead((8, 0), 12, 1) == 400
    assert Calibration.from_list(calibration.to_list()) == calibration
    own = calibration.add(Measured(450, (9, 0), 13, 1, model="a", layout="8 x 4096"))
    own = own.add(Measured(470, (9, 0), 13, 1, model="a", layout="1 x 4096"))
    own = own.add(Measured(430, (9, 0), 13, 1, model="b", layout="8 x 4096"))
    assert own.overhead((9, 0), 13, 1, model="a", layout="8 x 4096") == 450
    assert own.overhead((9, 0), 13, 1, model="a", layout="2 x 4096") == 470
    assert own.overhead((9, 0), 13, 1, model="c", layout="8 x 4096") == 470, "of other models the largest"
    for n in range(KEPT_MEASUREMENTS + 5):
        own = own.add(Measured(n, (9, 0), 13, 1, model=str(n)))
    assert len([one for one in own.measured if one.model]) == KEPT_MEASUREMENTS
    assert own.overhead((8, 0), 12, 1) == 400, "what came with the engine stays"


@pytest.mark.parametrize("data", [[], [{}], [{"overhead": "1"}], [{"overhead": 1, "x": 2}], ["x"], {"a": 1}])
def test_what_is_no_calibration_is_refused(data: Any) -> None:
    with pytest.raises(ValueError):
        Calibration.from_list(data)
