"""What a header says about memory: tensors, attention of each kind, and a shape's way through JSON."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from gguf_writer import ARR, BOOL, I32, U32, File
from small_models import files, write

from llmd.quantize.header import TensorInfo, read_header
from llmd.quantize.shape import MAX_LAYERS, Layer, Shape, padded, shape_of


def read(tmp_path: Path, file: File) -> Shape:
    return shape_of(read_header(write(tmp_path, file)))


@pytest.mark.parametrize("name", files())
def test_a_shape_survives_json(tmp_path: Path, name: str) -> None:
    shape = read(tmp_path, files()[name])
    assert Shape.from_dict(json.loads(json.dumps(shape.to_dict()))) == shape


def test_grouped_heads(tmp_path: Path) -> None:
    shape = read(tmp_path, files()["llama"])
    assert {(la.k, la.v, la.r, la.s, la.swa) for la in shape.layers} == {(128, 128, 0, 0, False)}
    assert len(shape.layers) == 6 and shape.key == shape.value == 64 and shape.flash


def test_sliding_windows(tmp_path: Path) -> None:
    assert [la.swa for la in read(tmp_path, files()["gemma3"]).layers] == [True] * 5 + [False]
    assert [la.swa for la in read(tmp_path, files()["gemma3 pattern"]).layers] == [True, False, True, True, False, True]
    file = files()["gemma3"]
    file.keys["gemma3.attention.sliding_window_pattern"] = (U32, 3)
    assert [la.swa for la in read(tmp_path, file).layers] == [True, True, False] * 2
    del file.keys["gemma3.attention.sliding_window"]
    assert not any(la.swa for la in read(tmp_path, file).layers)


def test_latent_attention_keeps_one_vector(tmp_path: Path) -> None:
    shape = read(tmp_path, files()["deepseek2"])
    assert {(la.k, la.v) for la in shape.layers} == {(576, 0)} and shape.mla == 96
    assert not shape.tensor_split(2)


def test_recurrent_state(tmp_path: Path) -> None:
    mamba = read(tmp_path, files()["mamba"])
    assert {(la.k, la.v, la.r, la.s) for la in mamba.layers} == {(0, 0, 3 * 512, 16 * 512)}
    jamba = read(tmp_path, files()["jamba"])
    assert [la.k for la in jamba.layers] == [0, 0, 128, 0, 0, 128]
    assert [la.r for la in jamba.layers] == [1536, 1536, 0, 1536, 1536, 0]
    lfm2 = read(tmp_path, files()["lfm2"])
    assert [(la.k, la.r) for la in lfm2.layers] == [(0, 512), (0, 512), (128, 0)] * 2


def test_blocks_for_prediction_are_not_loaded(tmp_path: Path) -> None:
    file = files()["llama"]
    file.keys["llama.nextn_predict_layers"] = (U32, 1)
    last = read(tmp_path, file).layers[-1]
    assert (last.k, last.nbytes) == (0, 0)


def test_a_tied_output_lies_on_both(tmp_path: Path) -> None:
    tied, own = read(tmp_path, files()["tied"]), read(tmp_path, files()["llama"])
    assert tied.output == own.output and tied.host == own.host
    assert own.file - tied.file == own.host


def test_experts_have_a_width_of_their_own(tmp_path: Path) -> None:
    shape = read(tmp_path, files()["qwen3moe"])
    assert (shape.experts, shape.used, shape.layers[0].expert_ff) == (8, 2, 64)


@pytest.mark.parametrize(
    ("kind", "row", "nbytes", "size"),
    [
        ("F32", 100, 400, 512),
        ("F16", 64, 128, 128),
        ("Q8_0", 576, 612, 1152),
        ("Q4_K", 256, 144, 384),
        ("Q4_K", 512, 288, 384),
    ],
)
def test_rows_are_padded(kind: str, row: int, nbytes: int, size: int) -> None:
    assert padded(TensorInfo("t", (row,), kind, 0, nbytes)) == size


def test_a_split_over_devices_needs_whole_heads(tmp_path: Path) -> None:
    shape = read(tmp_path, files()["llama"])
    assert shape.tensor_split(2) and not shape.tensor_split(4)
    assert not dataclasses.replace(shape, architecture="mamba").tensor_split(2)


GOOD = Shape("llama", 64, 260, 32, (Layer(),)).to_dict()


@pytest.mark.parametrize(
    "change",
    [
        {"vocab": "260"}, {"vocab": -1}, {"vocab": 1 << 60}, {"vocab": True}, {"vocab": 1.5},
        {"architecture": "x" * 65},
        {"layers": [[0]]}, {"layers": 3}, {"order": [1]}, {"order": [-1]}, {"order": []},
        {"order": [0] * (MAX_LAYERS + 1)},
        {"order": None}, {"layers": [[0, 0, 0, 0, 1, *[0] * 7]]},
    ],
    ids=str,
)  # fmt: skip
def test_what_is_no_shape_is_refused(change: dict[str, Any]) -> None:
    assert Shape.from_dict(GOOD).vocab == 260
    with pytest.raises(ValueError):
        Shape.from_dict(GOOD | change)
    with pytest.raises(ValueError):
        Shape.from_dict({name: value for name, value in GOOD.items() if name not in change})


def test_odd_keys_do_no_harm(tmp_path: Path) -> None:
    """Keys that the checker does not look at are taken only where they are what they should be."""
    file = files()["gemma3"]
    file.keys |= {
        "gemma3.attention.sliding_window_pattern": (ARR, (BOOL, [1])), "gemma3.ssm.inner_size": (ARR, (I32, [-3])),
        "gemma3.nextn_predict_layers": (I32, -1),
    }  # fmt: skip
    assert len(read(tmp_path, file).layers) == 6
