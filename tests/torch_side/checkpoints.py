"""Makes Hugging Face folders: a real one of SmolLM2, tiny random ones of several kinds. Converts each, and computes
what the proof of a conversion is held against, with faults planted too. Tests run it in the interpreter of `make
setup-torch`.

    python -P checkpoints.py PACKAGE SMOLLM2.gguf OUT
"""

import functools
import io
import json
import os
import shutil
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

PACKAGE, MODEL, OUT = (Path(a) for a in sys.argv[1:4])
package = types.ModuleType("llmd")
package.__path__ = [str(PACKAGE)]
sys.modules["llmd"] = package

from llmd.quantize.checkpoints import checkpoint, converting  # noqa: E402,I001  it sets what torch must find set

import gguf  # noqa: E402
import numpy as np  # noqa: E402
import sentencepiece  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

from llmd.quantize.checkpoints import original  # noqa: E402

# transformers reads a GGUF file with it again and again, and sixteen rows at a time is slow
gguf.GGUFReader = functools.cache(gguf.GGUFReader)
gguf.get_tensor_name_map = functools.cache(gguf.get_tensor_name_map)
gguf.quants._apply_over_grouped_rows = lambda f, arr, otype, oshape: f(arr.reshape(-1, arr.shape[-1])).reshape(oshape)

WIDE = {
    "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 64, "max_position_embeddings": 2048, "initializer_range": 0.05,
}  # fmt: skip
DIGITS = [
    {"type": "Digits", "individual_digits": True},
    {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
]


def smollm2(folder: Path) -> None:
    """The real model. transformers loses the pre-tokenizer on its way from GGUF."""
    given = {"gguf_file": MODEL.name}
    config = transformers.GgufConfig(dequantize=True)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        MODEL.parent, dtype=torch.bfloat16, quantization_config=config, **given
    )
    model.generation_config.temperature, model.generation_config.top_p = 0.25, 0.5
    model.generation_config.do_sample = True
    model.generation_config.eos_token_id = [2, 0]
    model.save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(MODEL.parent, **given).save_pretrained(folder)
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text("{{ tools }}{{ messages }}")
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": DIGITS}
    path.write_text(json.dumps(tokenizer))


def pieces(folder: Path, order: Any, kind: str) -> int:
    """A SentencePiece tokenizer, trained here; its size."""
    text = "\n".join(path.read_text() for path in sorted((PACKAGE / "docs").glob("*.md")))
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text.splitlines()), model_writer=model, vocab_size=1024, byte_fallback=True,
        model_type="bpe", split_digits=True, normalization_rule_name="identity", remove_extra_whitespaces=False,
        minloglevel=2, num_threads=2, **order,
    )  # fmt: skip
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    names = {"tokenizer_class": kind, "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    if kind == "GemmaTokenizer":
        names |= {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"}
    config = {**names, "add_bos_token": True, "add_eos_token": False, "legacy": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return 1024


LLAMA = {"unk_id": 0, "bos_id": 1, "eos_id": 2, "pad_id": -1}
GEMMA = {
    "pad_id": 0,
    "eos_id": 1,
    "bos_id": 2,
    "unk_id": 3,
    "pad_piece": "<pad>",
    "eos_piece": "<eos>",
    "bos_piece": "<bos>",
}


def save(folder: Path, config: Any, dtype: torch.dtype = torch.bfloat16, **sharded: Any) -> None:
    torch.manual_seed(1)
    model = transformers.AutoModelForCausalLM.from_config(config)
    model.to(dtype).save_pretrained(folder, **sharded)


def borrow_tokenizer(folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(OUT / "smollm2" / name, folder / name)


def old_keys(folder: Path, config: Any) -> None:
    """Its configuration as older versions of transformers wrote it, and the converter looks for it."""
    save(folder, config)
    borrow_tokenizer(folder)
    written = json.loads((folder / "config.json").read_text())
    rope = written.pop("rope_parameters")
    written |= {"rotary_pct": rope["partial_rotary_factor"], "rotary_emb_base": rope["rope_theta"]}
    (folder / "config.json").write_text(json.dumps(written))


def gptq(folder: Path) -> None:
    """The Llama with SmolLM2's tokenizer, its linear weights packed in 4 bits, groups of 32 (GPTQModel's format 1)."""
    shutil.copytree(OUT / "llama-bpe", folder)
    weights: dict[str, torch.Tensor] = load_file(folder / "model.safetensors")
    packed: dict[str, torch.Tensor] = {}
    for name, weight in weights.items():
        if name.endswith("_proj.weight"):
            packed |= {f"{name.removesuffix('weight')}{part}": t for part, t in pack(weight.float()).items()}
        else:
            packed[name] = weight
    save_file(packed, folder / "model.safetensors", {"format": "pt"})
    base = "model.layers.1.mlp.up_proj."
    np.savez(OUT / "packed.npz", **{part: packed[base + part].numpy() for part in ("qweight", "scales")})
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "gptq",
        "bits": 4,
        "group_size": 32,
        "desc_act": False,
        "sym": True,
    }
    (folder / "config.json").write_text(json.dumps(config))


def older(made: Path, folder: Path) -> None:
    """As auto-gptq wrote them: the parameters stand beside the configuration, which does not speak of them."""
    shutil.copytree(made, folder)
    config = json.loads((folder / "config.json").read_text())
    told = config.pop("quantization_config")
    del told["quant_method"]
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "quantize_config.json").write_text(json.dumps({**told, "damp_percent": 0.01, "true_sequential": True}))


def pack(weight: torch.Tensor) -> dict[str, torch.Tensor]:
    rows = weight.T.reshape(-1, 32, weight.shape[0])  # [groups, 32, out]
    scales = rows.abs().amax(1) / 7
    q = (torch.round(rows / scales[:, None]) + 8).clamp(0, 15).to(torch.int32).reshape(-1, weight.shape[0])
    words = torch.zeros(q.shape[0] // 8, q.shape[1], dtype=torch.int32)
    for at in range(8):
        words |= q[at::8] << (4 * at)
    zeros = torch.full((scales.shape[0], scales.shape[1] // 8), 0x77777777, dtype=torch.int32)
    groups = torch.arange(q.shape[0], dtype=torch.int32) // 32
    return {"qweight": words, "qzeros": zeros, "scales": scales.half(), "g_idx": groups}


def make_all() -> None:
    smollm2(OUT / "smollm2")
    bpe = {**WIDE, "vocab_size": 49152, "bos_token_id": 1, "eos_token_id": 2}
    with_bpe = {
        "llama-bpe": transformers.LlamaConfig(**bpe), "qwen3": transformers.Qwen3Config(**bpe),
        "moe": transformers.Qwen3MoeConfig(
            **bpe, num_experts=8, num_experts_per_tok=2, moe_intermediate_size=128, norm_topk_prob=True
        ),
    }  # fmt: skip
    for name, config in with_bpe.items():
        save(OUT / name, config, **({"max_shard_size": "16MB"} if name == "qwen3" else {}))
        borrow_tokenizer(OUT / name)
    old_keys(
        OUT / "gptneox", transformers.GPTNeoXConfig(**{k: v for k, v in bpe.items() if k != "num_key_value_heads"})
    )
    gptq(OUT / "gptq")
    older(OUT / "gptq", OUT / "gptq-older")
    for name, kind, order, tokenizer in (
        ("llama-spm", transformers.LlamaConfig, LLAMA, "LlamaTokenizer"),
        ("mistral-spm", transformers.MistralConfig, LLAMA, "LlamaTokenizer"),
        ("gemma3-spm", transformers.Gemma3TextConfig, GEMMA, "GemmaTokenizer"),
    ):
        (OUT / name).mkdir()
        size = pieces(OUT / name, order, tokenizer)
        ids = {"bos_token_id": order["bos_id"], "eos_token_id": order["eos_id"]}
        own = {"query_pre_attn_scalar": WIDE["head_dim"]} if kind is transformers.Gemma3TextConfig else {}
        config = kind(**WIDE, **own, **ids, vocab_size=size)
        save(OUT / name, config, torch.float32 if name == "mistral-spm" else torch.bfloat16)
    # llama.cpp takes this number to be the head's width, as it is in every Gemma 3 but the largest
    shutil.copytree(OUT / "gemma3-spm", OUT / "gemma3-odd")
    config = json.loads((OUT / "gemma3-odd" / "config.json").read_text())
    (OUT / "gemma3-odd" / "config.json").write_text(json.dumps({**config, "query_pre_attn_scalar": 256}))


BASE = {"rope_theta": 100000.0}  # SmolLM2's


# --- what is wrong on purpose: the original is computed so, and a right file is held against it

Load = Callable[[Any], torch.Tensor]


def faults(heads: int) -> Iterator[tuple[str, dict[str, Any], Load]]:
    real = original._loaded

    def permuted(tensor: Any) -> torch.Tensor:
        x = real(tensor)
        if tensor.name.endswith("layers.5.self_attn.q_proj.weight"):
            x = x.reshape(heads, 2, x.shape[0] // heads // 2, -1).transpose(1, 2).reshape(x.shape)
        return x

    def zeroed(tensor: Any) -> torch.Tensor:
        return real(tensor) * (0 if tensor.name.endswith("layers.3.mlp.down_proj.weight") else 1)

    yield "one layer's heads in another order", {}, permuted
    yield "one layer's weights missing", {}, zeroed
    yield (
        "positions' base as it is by default",
        {"rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"}},
        real,
    )
    yield "positions scaled by two", {"rope_parameters": {**BASE, "rope_type": "linear", "factor": 2.0}}, real
    yield "a layer too few", {"num_hidden_layers": 29}, real


def write_faults(folder: Path) -> None:
    config, tensors = checkpoint.parts(folder)
    ids, real = original.tokens(folder), original._loaded
    for at, (name, changed, load) in enumerate(faults(config["num_attention_heads"])):
        other = OUT / "faults" / str(at)
        other.mkdir(parents=True)
        (other / "config.json").write_text(json.dumps({**config, **changed}))
        setattr(original, "_loaded", load)  # noqa: B010
        logits = original.first_logits(other, {**config, **changed}, tensors, ids)
        setattr(original, "_loaded", real)  # noqa: B010
        text = np.frombuffer(original.TEXT.encode(), np.uint8)
        np.savez(other / "logits.npz", text=text, ids=np.array(ids, np.int32), logits=logits)
        (other / "name").write_text(name)


def convert_all() -> None:
    said: list[dict[str, Any]] = []
    for folder in sorted(path for path in OUT.iterdir() if (path / "config.json").exists()):
        model = converting.described(folder, OUT / f"{folder.name}.gguf", said.append)
        converting.convert(model, said.append)
        original.write_logits(folder, OUT / f"{folder.name}.npz", said.append)


if __name__ == "__main__":
    os.makedirs(OUT, exist_ok=True)
    make_all()
    convert_all()
    write_faults(OUT / "smollm2")
