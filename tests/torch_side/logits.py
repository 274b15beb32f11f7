"""What the torch engine computes is what transformers computes, in float32: of every architecture and variant."""

import json
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from llmd.daemon.engine.torch import weights
from llmd.daemon.engine.torch.ops import Reference, Rows, Span
from llmd.daemon.engine.torch.transformer import Model
from llmd.daemon.errors import ModelInvalid

SMALL: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 320, "max_position_embeddings": 512, "initializer_range": 0.2,
}  # fmt: skip
LLAMA, MISTRAL, QWEN2, QWEN3 = (
    transformers.LlamaConfig, transformers.MistralConfig, transformers.Qwen2Config, transformers.Qwen3Config,
)  # fmt: skip
PAIRS = 8  # of a head of 16


def rope(kind: str, **told: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, **told}}


LONG = {
    "short_factor": [1.0 + 0.1 * i for i in range(PAIRS)], "long_factor": [1.5 + i for i in range(PAIRS)],
    "original_max_position_embeddings": 128,
}  # fmt: skip
VARIANTS: dict[str, tuple[Any, dict[str, Any]]] = {
    "llama": (LLAMA, {}),
    "llama, a head for each": (LLAMA, {"num_key_value_heads": 4}),
    "llama, one head for all": (LLAMA, {"num_key_value_heads": 1}),
    "llama, wide heads": (LLAMA, {"head_dim": 32}),
    "llama, tied": (LLAMA, {"tie_word_embeddings": True}),
    "llama, biases": (LLAMA, {"attention_bias": True, "mlp_bias": True}),
    "llama, base": (LLAMA, rope("default", rope_theta=500000.0)),
    "llama, linear": (LLAMA, rope("linear", factor=4.0)),
    "llama, dynamic": (LLAMA, rope("dynamic", factor=2.0)),
    "llama 3": (LLAMA, rope("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64)),  # noqa: E501
    "llama, yarn": (LLAMA, rope("yarn", factor=4.0, original_max_position_embeddings=128)),
    "qwen2, yarn that is not cut": (QWEN2, rope("yarn", factor=4.0, original_max_position_embeddings=128, truncate=False, beta_fast=16.0)),  # noqa: E501
    "llama, yarn with scales": (LLAMA, rope("yarn", factor=8.0, original_max_position_embeddings=64, mscale=0.7, mscale_all_dim=0.9)),  # noqa: E501
    "llama, yarn with a factor": (LLAMA, rope("yarn", factor=8.0, original_max_position_embeddings=64, attention_factor=0.9)),  # noqa: E501
    "llama, longrope": (LLAMA, rope("longrope", **LONG)),
    "llama, longrope with a factor": (LLAMA, rope("longrope", factor=4.0, attention_factor=1.1, **LONG)),
    "mistral": (MISTRAL, {"sliding_window": None}),
    "mistral, window": (MISTRAL, {"sliding_window": 21}),
    "mistral, window of a page": (MISTRAL, {"sliding_window": 64}),
    "qwen2": (QWEN2, {}),
    "qwen2, tied": (QWEN2, {"tie_word_embeddings": True}),
    "qwen2, windows": (QWEN2, {"use_sliding_window": True, "sliding_window": 30, "max_window_layers": 1}),
    "qwen3": (QWEN3, {"head_dim": 16}),
    "qwen3, wide heads and biases": (QWEN3, {"head_dim": 32, "attention_bias": True}),
    "qwen3, windows": (QWEN3, {"head_dim": 16, "use_sliding_window": True, "sliding_window": 30, "max_window_layers": 2}),  # noqa: E501
}  # fmt: skip


def made(folder: Path, kind: Any, own: dict[str, Any], dtype: torch.dtype = torch.float32) -> Any:
    """A model with random weights, biases and norms too, in its folder."""
    torch.manual_seed(3)
    config = kind(**{**SMALL, **own})
    config._attn_implementation = "eager"
    model = transformers.AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.data += 0.3 * torch.randn_like(parameter)
        parameter.data = parameter.data.to(dtype)  # not the frequencies, which no checkpoint has
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_text("{}")
    return model.float().eval()


class Computed:
    """A folder's model over pages that lie anywhere, for one sequence."""

    def __init__(self, folder: Path, context: int, size: int = 64) -> None:
        a, tensors = weights.folder(str(folder))
        count = -(-context // size)
        self.size, self.table = size, random.Random(1).sample(range(count + 3), count)
        ops = Reference(torch.device("cpu"), torch.float32)
        self.model = Model(ops, a, tensors, context=context, pages=count + 3, size=size)

    def logits(self, ids: Sequence[int], cuts: Sequence[int]) -> torch.Tensor:
        """Of every token, computed in pieces that begin at `cuts`."""
        out = []
        for start, end in zip(cuts, [*cuts[1:], len(ids)], strict=True):
            at = range(start, end)
            span = Span(0, len(at), end, torch.tensor(self.table))
            pages, places = [self.table[i // self.size] for i in at], [i % self.size for i in at]
            own, positions = torch.tensor(ids[start:end]), torch.tensor(list(at))
            rows = Rows(own, positions, [span], torch.tensor(pages), torch.tensor(places))
            out.append(self.model.logits(rows, torch.arange(len(at))))
        return torch.cat(out)


def tokens(count: int) -> list[int]:
    dice = random.Random(count)
    return [dice.randrange(320) for _ in range(count)]


CUTS = {"whole": [0], "pieces": [0, 64, 128], "odd pieces": [0, 3, 70], "tokens": [0, 64, *range(65, 150)]}


@pytest.mark.parametrize("name", VARIANTS)
def test_it_computes_what_transformers_does(name: str, tmp_path: Path) -> None:
    original = made(tmp_path, *VARIANTS[name])
    ids = tokens(150)
    with torch.inference_mode():
        expected = original(torch.tensor([ids])).logits[0]
    assert expected.std() > 0.5  # it says something
    with torch.inference_mode():
        for cuts in CUTS.values():
            found = Computed(tmp_path, 192).logits(ids, cuts)
            assert (found - expected).abs().max() <= 1e-4, cuts[:3]


def test_a_short_context_of_longrope_has_its_own_factors(tmp_path: Path) -> None:
    original = made(tmp_path, *VARIANTS["llama, longrope"])
    ids = tokens(100)
    with torch.inference_mode():
        expected = original(torch.tensor([ids])).logits[0]
        assert (Computed(tmp_path, 128).logits(ids, [0]) - expected).abs().max() <= 1e-4
        assert (Computed(tmp_path, 192).logits(ids, [0]) - expected).abs().max() > 1e-2


@pytest.mark.parametrize("name", ["llama, linear", "llama, yarn", "llama 3", "qwen2, tied", "mistral, window"])
def test_older_configurations_say_it_elsewhere(name: str, tmp_path: Path) -> None:
    original = made(tmp_path, *VARIANTS[name])
    config = json.loads((tmp_path / "config.json").read_text())
    told = config.pop("rope_parameters")
    config["rope_theta"] = told.pop("rope_theta")
    kind = told.pop("rope_type")
    config["rope_scaling"] = None if kind == "default" else {"type": kind, **told}
    (tmp_path / "config.json").write_text(json.dumps(config))
    ids = tokens(100)
    with torch.inference_mode():
        expected = original(torch.tensor([ids])).logits[0]
        assert (Computed(tmp_path, 128).logits(ids, [0]) - expected).abs().max() <= 1e-4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_weights_of_two_bytes_are_the_same_numbers(dtype: torch.dtype, tmp_path: Path) -> None:
    original = made(tmp_path, LLAMA, {}, dtype)
    ids = tokens(100)
    with torch.inference_mode():
        expected = original(torch.tensor([ids])).logits[0]
        assert (Computed(tmp_path, 128).logits(ids, [0]) - expected).abs().max() <= 1e-4


# --- GPTQ


def pack(weight: torch.Tensor, bits: int, group: int, order: bool, symmetric: bool, less: int) -> dict[str, Any]:
    """A weight [out, in] as GPTQ's tensors, and `dense`: what they stand for. A weight at a time, by its definition."""
    outputs, inputs = weight.shape
    size = inputs if group == -1 else group
    groups = torch.arange(inputs) // size
    if order:
        groups = groups[torch.randperm(inputs)]
    most = (1 << bits) - 1
    words, count = 32 // bits, int(groups.max()) + 1
    scales, zeros = torch.zeros(count, outputs), torch.zeros(count, outputs, dtype=torch.int64)
    for g in range(count):
        own = weight[:, groups == g]
        low, high = own.amin(1).clamp(max=0), own.amax(1).clamp(min=0)
        if symmetric:
            high = torch.maximum(-low, high)
            low = -high
        scales[g] = ((high - low) / most).clamp(min=1e-6).half().float()
        zeros[g] = torch.round(-low / scales[g]) if not symmetric else torch.full((outputs,), (most + 1) // 2)
        zeros[g] = zeros[g].clamp(less, most)
    q = (torch.round(weight.T / scales[groups]) + zeros[groups]).clamp(0, most).long()
    dense = (scales[groups] * (q - zeros[groups])).T

    def packed(values: torch.Tensor) -> torch.Tensor:
        """[n, m] to [n / words, m]."""
        out = torch.zeros(values.shape[0] // words, values.shape[1], dtype=torch.int64)
        for at in range(words):
            out |= values[at::words] << (bits * at)
        return torch.where(out >= 1 << 31, out - (1 << 32), out).int()

    return {
        "qweight": packed(q), "qzeros": packed((zeros - less).T.contiguous()).T.contiguous(), "scales": scales.half(),
        "g_idx": groups.int(), "dense": dense,
    }  # fmt: skip


FORMATS = {1: "gptq", 0: "gptq_v2"}


def gptq_folder(folder: Path, bits: int, group: int, order: bool, symmetric: bool, less: int) -> Any:
    """The Llama with its linear layers packed, and transformers' with what they stand for."""
    torch.manual_seed(5)
    wide = {"hidden_size": 128, "intermediate_size": 256, "head_dim": 32}
    original = made(folder, LLAMA, wide)
    found: dict[str, torch.Tensor] = {}
    dense: dict[str, torch.Tensor] = {}
    for name, weight in load_file(folder / "model.safetensors").items():
        if not name.endswith("_proj.weight"):
            found[name] = weight
            continue
        base = name.removesuffix("weight")
        parts = pack(weight, bits, group, order, symmetric, less)
        dense[name] = parts.pop("dense")
        found |= {base + part: tensor.contiguous() for part, tensor in parts.items()}
        if "q_proj" in base:  # as auto-gptq adds them
            found[f"{base}bias"] = torch.zeros(weight.shape[0])
    save_file(found, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "gptq", "bits": bits, "group_size": group, "desc_act": order, "sym": symmetric,
        "checkpoint_format": FORMATS[less],
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    original.load_state_dict(dense, strict=False)
    return original


@pytest.mark.parametrize("less", [1, 0])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("order", [False, True])
@pytest.mark.parametrize("group", [32, 64, 128, -1])
@pytest.mark.parametrize("bits", [4, 8])
def test_packed_weights_are_what_they_stand_for(bits: int, group: int, order: bool, symmetric: bool, less: int) -> None:
    torch.manual_seed(1)
    weight = torch.randn(96, 256)
    parts = pack(weight, bits, group, order, symmetric, less)
    dense = parts.pop("dense")
    assert (dense - weight).abs().mean() < (0.35 if bits == 4 else 0.03)
    packed = weights.Packed(parts["qweight"], parts["qzeros"], parts["scales"], parts["g_idx"], bits, less)
    assert (packed.unpacked() - dense).abs().max() <= 1e-5
    ops = Reference(torch.device("cpu"), torch.float32)
    x, bias = torch.randn(5, 256), torch.randn(96)
    found = ops.linear_int4(x, ops.int4(packed), bias)
    assert (found - (x.double() @ dense.double().T + bias)).abs().max() <= 1e-4


@pytest.mark.parametrize(
    ("bits", "group", "order", "symmetric", "less"),
    [(4, 32, False, True, 1), (4, 128, True, False, 1), (8, -1, False, True, 0), (4, 64, True, True, 0)],
)
def test_a_packed_model_computes_what_its_weights_stand_for(
    tmp_path: Path, bits: int, group: int, order: bool, symmetric: bool, less: int
) -> None:
    original = gptq_folder(tmp_path, bits, group, order, symmetric, less)
    ids = tokens(100)
    with torch.inference_mode():
        expected = original(torch.tensor([ids])).logits[0]
        assert (Computed(tmp_path, 128).logits(ids, [0, 64]) - expected).abs().max() <= 1e-4
    assert weights.judged(str(tmp_path))["architecture"] == "LlamaForCausalLM"


# --- what is refused by its numbers


def changed(folder: Path, name: str, change: Any) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors[name])
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_none_are_refused(wrong: float, tmp_path: Path) -> None:
    made(tmp_path, LLAMA, {})
    assert weights.judged(str(tmp_path))
    changed(tmp_path, "model.layers.1.mlp.up_proj.weight", lambda t: t[7].fill_(wrong))
    with pytest.raises(ModelInvalid, match=r"'model\.layers\.1\.mlp\.up_proj\.weight' holds numbers that are none"):
        weights.judged(str(tmp_path))


@pytest.mark.parametrize("wrong", [-1, 4, 1 << 30])
def test_groups_that_there_are_not_are_refused(wrong: int, tmp_path: Path) -> None:
    gptq_folder(tmp_path, 4, 32, False, True, 1)
    changed(tmp_path, "model.layers.0.self_attn.q_proj.g_idx", lambda t: t[3].fill_(wrong))
    with pytest.raises(ModelInvalid, match="names a group that is not among its 4"):
        weights.judged(str(tmp_path))
