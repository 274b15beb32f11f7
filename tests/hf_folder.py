"""Small Hugging Face folders, written byte by byte: what a test changes in one is all that is wrong with it."""

import json
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "intermediate_size": 128,
    "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": 32,
    "max_position_embeddings": 128, "rms_norm_eps": 1e-5, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
WIDTH = {"F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "U32": 4, "U8": 1, "F8_E4M3": 1}
Shapes = dict[str, tuple[str, tuple[int, ...]]]


def llama_shapes(blocks: int = 2, width: int = 64, inner: int = 128, words: int = 32) -> Shapes:
    shapes: Shapes = {"model.embed_tokens.weight": ("F16", (words, width)), "model.norm.weight": ("F16", (width,))}
    for at in range(blocks):
        layer = f"model.layers.{at}."
        shapes |= {f"{layer}self_attn.{n}_proj.weight": ("F16", (width, width)) for n in "qkvo"}
        shapes |= {f"{layer}mlp.{n}_proj.weight": ("F16", (inner, width)) for n in ("gate", "up")}
        shapes[f"{layer}mlp.down_proj.weight"] = ("F16", (width, inner))
        shapes |= {f"{layer}{n}_layernorm.weight": ("F16", (width,)) for n in ("input", "post_attention")}
    return shapes


def size(kind: str, shape: tuple[int, ...]) -> int:
    count = WIDTH[kind]
    for n in shape:
        count *= n
    return count


def entries(shapes: Shapes) -> dict[str, Any]:
    """The header of a file that holds these."""
    at, made = 0, {}
    for name, (kind, shape) in shapes.items():
        made[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [at, at + size(kind, shape)]}
        at += size(kind, shape)
    return made


def packed(header: Any, data: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def file_of(shapes: Shapes) -> bytes:
    return packed(entries(shapes), bytes(sum(size(kind, shape) for kind, shape in shapes.values())))


@dataclass
class Folder:
    """Written by `write`; `files` come beside the configuration, the tokenizer and the weights, or instead."""

    config: dict[str, Any] = field(default_factory=lambda: dict(LLAMA))
    shapes: Shapes = field(default_factory=llama_shapes)
    files: dict[str, bytes | None] = field(default_factory=dict)

    def write(self, folder: Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        made: dict[str, bytes | None] = {
            "config.json": json.dumps(self.config).encode(), "tokenizer.json": b"{}", "tokenizer_config.json": b"{}",
            "model.safetensors": file_of(self.shapes), **self.files,
        }  # fmt: skip
        for name, data in made.items():
            if data is not None:
                (folder / name).write_bytes(data)
        return folder


def cached(folder: Path) -> Path:
    """A model's folder as the cache of Hugging Face has it, beside the other one, which it was."""
    found = folder.parent / f"models--some--{folder.name}" / "snapshots" / ("5f" * 20)
    blobs = found.parents[1] / "blobs"
    found.mkdir(parents=True)
    blobs.mkdir()
    for at, file in enumerate(sorted(folder.iterdir())):
        name = f"{at:0{64 if file.suffix == '.safetensors' else 40}x}"
        file.rename(blobs / name)
        (found / file.name).symlink_to(f"../../blobs/{name}")
    folder.rmdir()
    return found
