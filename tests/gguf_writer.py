"""GGUF files for tests: a small valid model, and ways to break it."""

import math
import struct
from dataclasses import dataclass, field
from typing import Any

from llmd.quantize import header

U8, U16, U32, I32, F32, BOOL, STR, ARR, U64, I64, F64 = 0, 2, 4, 5, 6, 7, 8, 9, 10, 11, 12
CODES = {U8: "B", U16: "H", U32: "I", I32: "i", F32: "f", BOOL: "?", U64: "Q", I64: "q", F64: "d"}


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def value(kind: int, content: Any) -> bytes:
    """A metadata value with its type in front; an array is (element kind, list)."""
    head = struct.pack("<i", kind)
    if kind == STR:
        return head + text(content)
    if kind == ARR:
        inner, items = content
        return head + struct.pack("<iQ", inner, len(items)) + b"".join(value(inner, item)[4:] for item in items)
    return head + struct.pack("<" + CODES[kind], content)


@dataclass
class File:
    """A GGUF file to be broken: keys are (kind, content), tensors (shape, type); `offsets` replaces right ones."""

    keys: dict[str, tuple[int, Any]] = field(default_factory=dict)
    tensors: dict[str, tuple[tuple[int, ...], int]] = field(default_factory=dict)
    magic: bytes = b"GGUF"
    version: int = 3
    n_keys: int | None = None
    n_tensors: int | None = None
    alignment: int = 32
    offsets: dict[str, int] = field(default_factory=dict)
    more_keys: bytes = b""
    more_tensors: bytes = b""
    cut: int = 0

    def layout(self) -> tuple[dict[str, int], int]:
        at, offsets = 0, {}
        for name, (shape, kind) in self.tensors.items():
            _, block, width = header.TENSOR_TYPES.get(kind, ("", 1, 4))
            offsets[name] = at
            at += -(-(math.prod(shape) // block * width) // self.alignment) * self.alignment
        return offsets, at

    def head(self) -> bytes:
        offsets, _ = self.layout()
        offsets |= self.offsets
        keys = b"".join(text(k) + value(*v) for k, v in self.keys.items())
        tensors = b"".join(
            text(name) + struct.pack(f"<I{len(shape)}qiQ", len(shape), *shape, kind, offsets[name])
            for name, (shape, kind) in self.tensors.items()
        )
        n_tensors = len(self.tensors) if self.n_tensors is None else self.n_tensors
        n_keys = len(self.keys) if self.n_keys is None else self.n_keys
        return (
            self.magic
            + struct.pack("<Iqq", self.version, n_tensors, n_keys)
            + keys
            + self.more_keys
            + tensors
            + self.more_tensors
        )

    def bytes(self) -> bytes:
        head = self.head()
        head += bytes(-len(head) % max(1, min(self.alignment, 4096)))
        whole = head + bytes(min(self.layout()[1], 1 << 22))
        return whole[: len(whole) - self.cut]


def tiny(seed: int = 0) -> File:
    """A llama model with one block, which llama.cpp takes; the seed changes its bytes and nothing else."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), "a"]
    n = len(tokens)
    keys: dict[str, tuple[int, Any]] = {
        "general.architecture": (STR, "llama"), "general.name": (STR, f"tiny {seed}"), "general.file_type": (U32, 0),
        "llama.block_count": (U32, 1), "llama.context_length": (U32, 64), "llama.embedding_length": (U32, 32),
        "llama.feed_forward_length": (U32, 64), "llama.attention.head_count": (U32, 2),
        "llama.attention.layer_norm_rms_epsilon": (F32, 1e-5), "llama.rope.freq_base": (F32, 10000.0),
        "tokenizer.ggml.model": (STR, "llama"), "tokenizer.ggml.tokens": (ARR, (STR, tokens)),
        "tokenizer.ggml.scores": (ARR, (F32, [0.0] * n)),
        "tokenizer.ggml.token_type": (ARR, (I32, [2, 3, 3, *[6] * 256, 1])),
    }  # fmt: skip
    square, wide = (32, 32), (32, 64)
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (32, n), "output_norm.weight": (32,), "blk.0.attn_norm.weight": (32,),
        "blk.0.attn_q.weight": square, "blk.0.attn_k.weight": square, "blk.0.attn_v.weight": square,
        "blk.0.attn_output.weight": square, "blk.0.ffn_norm.weight": (32,), "blk.0.ffn_gate.weight": wide,
        "blk.0.ffn_up.weight": wide, "blk.0.ffn_down.weight": (64, 32),
    }  # fmt: skip
    return File(keys, {name: (shape, 0) for name, shape in shapes.items()})


def tiny_bytes(seed: int = 0) -> bytes:
    return tiny(seed).bytes()
