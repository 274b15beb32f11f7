"""Small models of each kind of attention, with weights of zeros or random ones."""

import math
from pathlib import Path
from typing import Any

import numpy as np
from gguf_writer import ARR, BOOL, F32, I32, STR, U32, File, tiny

E, HEADS, KV, HEAD, FF, BLOCKS = 256, 4, 2, 64, 512, 6
Keys = dict[str, tuple[int, Any]]
Shapes = dict[str, tuple[int, ...]]


def write(folder: Path, file: File) -> Path:
    path = folder / "model.gguf"
    head = file.head()
    path.write_bytes(head + bytes(-len(head) % 32) + bytes(file.layout()[1]))
    return path


def stored(folder: Path, digest: str, size: int) -> None:
    """A file of zeros that takes no room, as the one that a row of the state database names."""
    path = folder / digest / "model.gguf"
    path.parent.mkdir(parents=True)
    with path.open("wb") as file:
        file.truncate(size)


def model(
    arch: str, keys: Keys, block: Shapes | list[Shapes], *, blocks: int = BLOCKS, output: bool = True, norm: str = ""
) -> File:
    file = tiny()
    tokens = len(file.keys["tokenizer.ggml.tokens"][1][1])
    tokenizer = {k: v for k, v in file.keys.items() if k.startswith("tokenizer.")}
    own: Keys = {
        "block_count": (U32, blocks), "context_length": (U32, 65536), "embedding_length": (U32, E),
        "feed_forward_length": (U32, FF), "attention.head_count": (U32, HEADS), "attention.head_count_kv": (U32, KV),
        "attention.key_length": (U32, HEAD), "attention.value_length": (U32, HEAD),
        "attention.layer_norm_rms_epsilon": (F32, 1e-5), **keys,
    }  # fmt: skip
    file.keys = {"general.architecture": (STR, arch), **{f"{arch}.{k}": v for k, v in own.items()}, **tokenizer}
    rows = block if isinstance(block, list) else [block] * blocks
    shapes = {"token_embd.weight": (E, tokens), norm or "output_norm.weight": (E,)}
    shapes |= {"output.weight": (E, tokens)} if output else {}
    shapes |= {f"blk.{i}.{name}": shape for i, row in enumerate(rows) for name, shape in row.items()}
    file.tensors = {name: (shape, 0) for name, shape in shapes.items()}
    return file


ATTENTION: Shapes = {
    "attn_norm.weight": (E,), "attn_q.weight": (E, HEADS * HEAD), "attn_k.weight": (E, KV * HEAD),
    "attn_v.weight": (E, KV * HEAD), "attn_output.weight": (HEADS * HEAD, E),
}  # fmt: skip
DENSE: Shapes = {
    "ffn_norm.weight": (E,),
    "ffn_gate.weight": (E, FF),
    "ffn_up.weight": (E, FF),
    "ffn_down.weight": (FF, E),
}
NORMS: Shapes = {"attn_q_norm.weight": (HEAD,), "attn_k_norm.weight": (HEAD,)}
EXPERTS: Shapes = {
    "ffn_norm.weight": (E,), "ffn_gate_inp.weight": (E, 8), "ffn_gate_exps.weight": (E, 64, 8),
    "ffn_up_exps.weight": (E, 64, 8),
    "ffn_down_exps.weight": (64, E, 8),
}  # fmt: skip
INNER, STATE = 2 * E, 16
MAMBA: Shapes = {
    "attn_norm.weight": (E,), "ssm_in.weight": (E, 2 * INNER), "ssm_conv1d.weight": (4, INNER),
    "ssm_conv1d.bias": (INNER,),
    "ssm_x.weight": (INNER, 16 + 2 * STATE), "ssm_dt.weight": (16, INNER), "ssm_dt.bias": (INNER,),
    "ssm_a": (STATE, INNER),
    "ssm_d": (INNER,), "ssm_out.weight": (INNER, E),
}  # fmt: skip
SSM: Keys = {
    "ssm.conv_kernel": (U32, 4), "ssm.inner_size": (U32, INNER), "ssm.state_size": (U32, STATE),
    "ssm.time_step_rank": (U32, 16),
}  # fmt: skip
JAMBA = MAMBA | {"ssm_dt_norm.weight": (16,), "ssm_b_norm.weight": (STATE,), "ssm_c_norm.weight": (STATE,)}
MLA: Shapes = {
    "attn_norm.weight": (E,), "attn_q_a.weight": (E, 96), "attn_q_a_norm.weight": (96,),
    "attn_q_b.weight": (96, HEADS * 96),
    "attn_kv_a_mqa.weight": (E, 512 + 64), "attn_kv_a_norm.weight": (512,), "attn_k_b.weight": (32, 512, HEADS),
    "attn_v_b.weight": (512, 64, HEADS), "attn_output.weight": (HEADS * 64, E),
}  # fmt: skip
GEMMA = ATTENTION | DENSE | NORMS | {"post_attention_norm.weight": (E,), "post_ffw_norm.weight": (E,)}
SHORT: Shapes = {
    "attn_norm.weight": (E,), "shortconv.conv.weight": (3, E), "shortconv.in_proj.weight": (E, 3 * E),
    "shortconv.out_proj.weight": (E, E),
}  # fmt: skip


def files() -> dict[str, File]:
    full = {"attention.key_length": (U32, HEAD)}
    some = [0, 0, KV, 0, 0, KV]
    return {
        "llama": model("llama", full | {"rope.dimension_count": (U32, HEAD)}, ATTENTION | DENSE),
        "tied": model("llama", full | {"rope.dimension_count": (U32, HEAD)}, ATTENTION | DENSE, output=False),
        "gemma3": model("gemma3", {"attention.sliding_window": (U32, 512)}, GEMMA),
        "gemma3 pattern": model(
            "gemma3",
            {"attention.sliding_window": (U32, 512),
            "attention.sliding_window_pattern": (ARR, (BOOL, [1, 0, 1, 1, 0, 1]))},
            GEMMA,
        ),
        "qwen3moe": model(
            "qwen3moe",
            {"expert_count": (U32, 8), "expert_used_count": (U32, 2), "expert_feed_forward_length": (U32, 64)},
            ATTENTION | NORMS | EXPERTS,
        ),
        "deepseek2": model(
            "deepseek2",
            {
                "attention.head_count_kv": (U32, 1), "attention.key_length": (U32, 576),
                "attention.value_length": (U32, 512),
                "attention.key_length_mla": (U32, 96), "attention.value_length_mla": (U32, 64),
                "attention.kv_lora_rank": (U32, 512), "attention.q_lora_rank": (U32, 96),
                "rope.dimension_count": (U32, 64),
                "leading_dense_block_count": (U32, BLOCKS),
                "expert_feed_forward_length": (U32, 64), "expert_shared_count": (U32, 1), "expert_count": (U32, 8),
                "expert_used_count": (U32, 2),
            },
            MLA | DENSE,
        ),
        "mamba": model("mamba", SSM | {"attention.head_count": (U32, 0), "attention.head_count_kv": (U32, 0)}, MAMBA),
        "jamba": model(
            "jamba",
            SSM | {"attention.head_count_kv": (ARR, (I32, some))},
            [(ATTENTION if n else JAMBA) | DENSE for n in some],
        ),
        "lfm2": model(
            "lfm2",
            {"shortconv.l_cache": (U32, 3), "attention.head_count_kv": (ARR, (I32, some))},
            [(ATTENTION | NORMS if n else SHORT) | DENSE for n in some],
            norm="token_embd_norm.weight",
        ),
    }  # fmt: skip


def one_block() -> File:
    """The smallest that says something: most of what a request costs is not its."""
    return model("llama", {"rope.dimension_count": (U32, HEAD)}, ATTENTION | DENSE, blocks=1)


def random_weights(folder: Path, arch: str, seed: int = 1, file: File | None = None) -> Path:
    """`file`, or one of `files()`, with weights that say something, in full precision."""
    file = file or files()[arch]
    head = file.head()
    offsets, size = file.layout()
    dice, data = np.random.default_rng(seed), np.zeros(size // 4, np.float32)
    for name, (shape, _) in file.tensors.items():
        values = dice.standard_normal(math.prod(shape), np.float32) / 10
        data[offsets[name] // 4 :][: len(values)] = 1 + values if "norm" in name else values
    path = folder / f"{arch}.gguf"
    path.write_bytes(head + bytes(-len(head) % 32) + data.tobytes())
    return path
