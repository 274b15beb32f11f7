"""What a configuration says of a model, and what the torch engine refuses by its name."""

import math
from collections.abc import Mapping
from typing import Any

import pytest

from llmd.daemon.engine.torch import architecture
from llmd.daemon.engine.torch.architecture import Architecture
from llmd.daemon.errors import ModelInvalid
from llmd.quantize.checkpoints.safetensors import WIDTHS, Tensor

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 1000, "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5, "rope_theta": 500000.0,
}  # fmt: skip
PACKED: dict[str, Any] = {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": True, "sym": True}


def tensor(name: str, kind: str, shape: tuple[int, ...]) -> Tensor:
    return Tensor(name, kind, shape, 0, math.prod(shape) * WIDTHS[kind], "model.safetensors")


def of(config: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors that belong to a configuration."""
    a = architecture.described(config)
    names = {f"{name}.qweight" for at in range(a.layers) for name, _, _ in a.linears(at)} if a.gptq else set()
    known = dict.fromkeys(names, tensor("", "I32", ()))
    return {name: tensor(name, types[0], shape) for name, types, shape in architecture.wanted(a, known)}


def read(changed: Mapping[str, Any], tensors: Mapping[str, Tensor] | None = None) -> Architecture:
    config = {**CONFIG, **changed}
    return architecture.read(config, of(config) if tensors is None else tensors)


def test_a_llama_is_what_its_configuration_says() -> None:
    a = read({})
    assert (a.layers, a.width, a.heads, a.kv_heads, a.head, a.inner, a.vocab) == (2, 256, 4, 2, 64, 512, 1000)
    assert (a.context, a.eps, a.tied, a.qk_norm, a.gptq) == (4096, 1e-5, False, False, None)
    assert (a.windows, a.biases) == ((0, 0), frozenset())
    assert (a.rope.kind, a.rope.base, a.rope.original) == ("default", 500000.0, 4096)
    assert read({"num_key_value_heads": None}).kv_heads == 4


def test_what_a_configuration_leaves_out_is_its_familys() -> None:
    assert read({"architectures": ["MistralForCausalLM"]}).windows == (4096, 4096)
    assert read({"architectures": ["MistralForCausalLM"], "sliding_window": None}).windows == (0, 0)
    qwen2 = {"architectures": ["Qwen2ForCausalLM"]}
    assert read(qwen2).biases == {"q_proj", "k_proj", "v_proj"} and read(qwen2).windows == (0, 0)
    window = {"use_sliding_window": True, "sliding_window": 512, "max_window_layers": 1}
    assert read({**qwen2, **window}).windows == (0, 512)
    kinds = {"layer_types": ["sliding_attention", "full_attention"]}
    assert read({**qwen2, **window, **kinds}).windows == (512, 0)
    qwen3 = read({"architectures": ["Qwen3ForCausalLM"]})
    assert qwen3.qk_norm and qwen3.head == 128
    assert read({"attention_bias": True}).biases == {"q_proj", "k_proj", "v_proj", "o_proj"}


def test_packed_weights_may_have_biases_and_layers_that_are_not_packed() -> None:
    a = read({"quantization_config": PACKED})
    assert (a.gptq.bits, a.gptq.group, a.gptq.less) == (4, 128, 1) if a.gptq else False
    config = {**CONFIG, "quantization_config": {**PACKED, "checkpoint_format": "gptq_v2", "group_size": -1}}
    tensors = of(config)
    base = "model.layers.0.self_attn.q_proj"
    tensors[f"{base}.bias"] = tensor(f"{base}.bias", "F16", (256,))
    for part in ("qweight", "qzeros", "scales", "g_idx"):
        del tensors[f"model.layers.1.mlp.up_proj.{part}"]
    tensors["model.layers.1.mlp.up_proj.weight"] = tensor("", "BF16", (512, 256))
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = tensor("", "F32", (32,))
    found = architecture.read(config, tensors).gptq
    assert found and found.less == 0 and found.groups(256) == 1


REFUSED: dict[str, dict[str, Any]] = {
    "does not serve 'Gemma3ForCausalLM', but Llama, Mistral, Qwen2, Qwen3": {"architectures": ["Gemma3ForCausalLM"]},
    "does not serve ''": {"architectures": None},
    "hidden_act of 'gelu'": {"hidden_act": "gelu"},
    "partial_rotary_factor of '0.5'": {"partial_rotary_factor": 0.5},
    "heads of which a part is turned": {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.25}},
    "scaled by 'mrope'": {"rope_scaling": {"type": "mrope", "mrope_section": [1, 2]}},
    "turned differently in each kind": {"rope_parameters": {"full_attention": {"rope_theta": 1e4}}},
    "factor takes a number above 0": {"rope_scaling": {"type": "linear", "factor": -2}},
    "low_freq_factor takes": {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}},
    "are the same": {"rope_scaling": {"rope_type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 4}},
    "long_factor takes 32 numbers": {"rope_scaling": {"rope_type": "longrope", "long_factor": [1.0] * 31}},
    "short_factor takes 32": {"rope_scaling": {"rope_type": "longrope", "long_factor": [1.0] * 32}},
    "rope_parameters is not an object": {"rope_parameters": [1]},
    "rope_theta takes a number above 0": {"rope_theta": "big"},
    "original_max_position_embeddings takes": {
        "rope_scaling": {"rope_type": "yarn", "factor": 4, "original_max_position_embeddings": 0}
    },
    "rope_theta and original_max_position_embeddings are above 1": {"rope_theta": 1.0},
    "attention_factor takes a number": {"rope_scaling": {"rope_type": "yarn", "factor": 4, "attention_factor": ""}},
    "max_window_layers takes": {
        "architectures": ["Qwen2ForCausalLM"], "use_sliding_window": True, "max_window_layers": "all"
    },
    "num_hidden_layers takes a whole number of 1 to 1024": {"num_hidden_layers": 0},
    "hidden_size takes": {"hidden_size": 2.5},
    "cannot share 3": {"num_key_value_heads": 3},
    "num_key_value_heads takes a whole number of 1 to 4": {"num_key_value_heads": 8},
    "head_dim takes": {"head_dim": True},
    "rms_norm_eps takes": {"rms_norm_eps": math.nan},
    "sliding_window takes": {"architectures": ["MistralForCausalLM"], "sliding_window": 0},
    "layers of other kinds": {
        "architectures": ["Qwen2ForCausalLM"], "use_sliding_window": True, "layer_types": ["chunked_attention"] * 2
    },
    "packed as 'awq'": {"quantization_config": {**PACKED, "quant_method": "awq"}},
    "packed as 'fp8'": {"quantization_config": {"quant_method": "fp8"}},
    "bits of '7' is not computed, but 4, 8": {"quantization_config": {**PACKED, "bits": 7}},
    "bits of '2'": {"quantization_config": {**PACKED, "bits": 2}},
    "bits of 'True'": {"quantization_config": {**PACKED, "bits": True}},
    "group_size of '0' is not computed, but 32, 64, 128, -1": {"quantization_config": {**PACKED, "group_size": 0}},
    "group_size of '-2'": {"quantization_config": {**PACKED, "group_size": -2}},
    "format 'marlin' is not read": {"quantization_config": {**PACKED, "checkpoint_format": "marlin"}},
    "each in its own way": {"quantization_config": {**PACKED, "dynamic": {"-:lm_head": {}}}},
}  # fmt: skip


@pytest.mark.parametrize("said", REFUSED)
def test_everything_else_is_refused_by_name(said: str) -> None:
    config = {**CONFIG, **REFUSED[said]}
    with pytest.raises(ModelInvalid) as e:
        architecture.read(config, of(CONFIG))
    assert said in e.value.message


def test_tensors_that_do_not_fit_are_refused() -> None:
    good = of(CONFIG)
    name = "model.layers.1.mlp.down_proj.weight"
    wrong = {
        "is missing": {k: v for k, v in good.items() if k != name},
        f"wants '{name}' to be [256, 512], and it is [512, 256]": {**good, name: tensor(name, "BF16", (512, 256))},
        "has the type I8, and BF16 or F16 or F32 is read": {**good, name: tensor(name, "I8", (256, 512))},
        "has no tensor 'model.layers.0.mlp.experts'": {**good, "model.layers.0.mlp.experts": tensor("", "F16", (2, 2))},
        "has no tensor 'model.layers.1.self_attn.q_proj.bias'": {
            **good, "model.layers.1.self_attn.q_proj.bias": tensor("", "F16", (256,))
        },
        "has no tensor 'model.layers.2.": {**good, "model.layers.2.input_layernorm.weight": tensor("", "F16", (256,))},
    }  # fmt: skip
    for said, tensors in wrong.items():
        with pytest.raises(ModelInvalid) as e:
            read({}, tensors)
        assert said in e.value.message
    assert read({"tie_word_embeddings": True}, good).tied  # the head's own copy is not looked at
    with pytest.raises(ModelInvalid, match=r"'model\.layers\.0\.self_attn\.q_proj\.bias' is missing"):
        read({"attention_bias": True}, good)


def test_packed_tensors_that_do_not_fit_are_refused() -> None:
    config = {**CONFIG, "quantization_config": PACKED}
    base = "model.layers.0.mlp.up_proj."
    for part, shape in (("qweight", (256, 512)), ("qzeros", (2, 512)), ("scales", (3, 512)), ("g_idx", (512,))):
        kind = "F16" if part == "scales" else "I32"
        with pytest.raises(ModelInvalid, match="do not belong together"):
            architecture.read(config, {**of(config), base + part: tensor("", kind, shape)})
    with pytest.raises(ModelInvalid, match="has the type F16, and I32 is read"):
        architecture.read(config, {**of(config), f"{base}g_idx": tensor("", "F16", (256,))})
    odd = {**config, "hidden_size": 192, "head_dim": 64}
    with pytest.raises(ModelInvalid, match="192 inputs are no whole groups of 128"):
        of(odd)
