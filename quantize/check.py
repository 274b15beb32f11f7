"""Is this GGUF file a model that can be served? Asked in a child process, because the file may be hostile.

`python -P -m llmd.quantize.check FILE` reads the header with our own reader, holds the model's keys against each other,
and lets llama.cpp load everything but the weights. It prints one JSON line and exits with 0, whatever the verdict:
`{"ok": true, "info": {...}}` or `{"ok": false, "code": CODE, "message": "..."}`.
`daemon/models/checking.py` runs it.
"""

import difflib
import math
import sys
from collections import Counter
from typing import Any

from llmd.daemon.errors import ModelInvalid
from llmd.daemon.machine.telling import verdict
from llmd.quantize import backends
from llmd.quantize.architectures import KNOWN
from llmd.quantize.header import Array, Header, generation_defaults, read_header
from llmd.quantize.shape import shape_of

MAX_BLOCKS = 1024
MAX_CONTEXT = 1 << 27
MAX_EMBEDDING = 1 << 20
MAX_HEADS = 1 << 16
MAX_ANSWER_BYTES = 256 * 1024
MAX_MESSAGE_CHARS = 2000

# what `info` holds; the daemon takes nothing else from a child that may have been taken over by the file
INFO_FIELDS = {
    "architecture": str, "name": str, "parameters": int, "file_type": str, "context_length": int,
    "embedding_length": int,
    "block_count": int, "vocab": int, "chat_template": bool, "size": int, "generation": dict, "shape": dict,
}  # fmt: skip

# general.file_type, as llama.cpp numbers it
_FILE_TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S", 12: "Q3_K_M",
    13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K", 19: "IQ2_XXS", 20: "IQ2_XS",
    21: "Q2_K_S", 22: "IQ3_XS", 23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL", 26: "IQ3_S", 27: "IQ3_M", 28: "IQ2_S",
    29: "IQ2_M",
    30: "IQ4_XS", 31: "IQ1_M", 32: "BF16", 36: "TQ1_0", 37: "TQ2_0", 38: "MXFP4", 39: "NVFP4", 40: "Q1_0", 41: "Q2_0",
}  # fmt: skip


# what a kind of tokenizer cannot do without
_NEEDED = {"gpt2": ("merges",), "llama": ("scores", "token_type"), "t5": ("scores",)}
# types of tensors that hold other things than weights
_NO_WEIGHTS = {"I8", "I16", "I32", "I64", "F64", "Q8_1", "Q8_K"}


# --- the model's keys


def check_model(header: Header) -> None:
    """Raise ModelInvalid when the keys cannot belong to a language model that one file holds."""
    keys = header.metadata
    arch = _architecture(keys)
    if not header.tensors:
        raise ModelInvalid("the file holds no tensors: it is a vocabulary only")
    kind = keys.get("general.type", "model")
    if kind != "model":
        raise ModelInvalid(f"the file is of type {str(kind)[:40]!r}, not a model")
    parts = keys.get("split.count", 0)
    if isinstance(parts, int) and parts > 1:
        raise ModelInvalid(f"this is one of {parts} parts of a model and not named so: NAME-00001-of-{parts:05}.gguf")
    if keys.get(f"{arch}.attention.causal") is False:
        raise ModelInvalid("this is an embedding model: it cannot generate text")
    blocks = _whole(keys, f"{arch}.block_count", 1, MAX_BLOCKS)
    _whole(keys, f"{arch}.context_length", 1, MAX_CONTEXT)
    _whole(keys, f"{arch}.embedding_length", 1, MAX_EMBEDDING)
    # recurrent models write a head count of 0
    recurrent = any(k.startswith((f"{arch}.ssm.", f"{arch}.wkv.")) for k in keys)
    for name in ("head_count", "head_count_kv"):
        _check_heads(keys, f"{arch}.attention.{name}", blocks, least=0 if recurrent else 1)
    _check_floats(keys, arch)
    _check_tokenizer(keys)
    for t in header.tensors:
        if t.type in _NO_WEIGHTS and len(t.shape) > 1 and t.name.endswith(".weight"):
            raise ModelInvalid(f"the tensor {t.name!r} is of type {t.type}, which no weights have")


def _architecture(keys: dict[str, Any]) -> str:
    arch = keys.get("general.architecture")
    if not isinstance(arch, str) or not arch:
        raise ModelInvalid("the key general.architecture is missing: this is not a model")
    if len(arch) > 64 or not arch.isprintable():
        raise ModelInvalid(f"the architecture {arch[:64]!r} is not a name")
    if arch not in KNOWN:
        near = difflib.get_close_matches(arch, KNOWN, 3)
        meant = f" (is it {', '.join(near)}?)" if near else ""
        raise ModelInvalid(f"unknown model architecture: {arch!r}{meant}. Known: {', '.join(sorted(KNOWN))}")
    return arch


def _whole(keys: dict[str, Any], key: str, least: int, most: int) -> int:
    value = keys.get(key)
    if value is None:
        raise ModelInvalid(f"the key {key} is missing")
    if type(value) is not int:
        raise ModelInvalid(f"the key {key} must be a whole number")
    if not least <= value <= most:
        raise ModelInvalid(f"{key} is {value}: {least} to {most} are possible")
    return value


def _check_heads(keys: dict[str, Any], key: str, blocks: int, least: int) -> None:
    """A number, or one for each block: then 0 stands for a block without attention, as hybrid models have them."""
    value = keys.get(key)
    if isinstance(value, Array):
        counts = value.values or ()
        whole = all(type(v) is int and 0 <= v <= MAX_HEADS for v in counts)
        if value.count < blocks or not whole or max(counts, default=0) < least:
            raise ModelInvalid(f"{key} must hold a number of heads for each of the {blocks} blocks")
    elif value is not None:
        _whole(keys, key, least, MAX_HEADS)


def _check_floats(keys: dict[str, Any], arch: str) -> None:
    for key, value in keys.items():
        if not key.startswith(f"{arch}.") or not (".rope." in key or key.endswith("epsilon")):
            continue
        numbers = value.values or () if isinstance(value, Array) else (value,)
        if any(isinstance(v, float) and not math.isfinite(v) for v in numbers):
            raise ModelInvalid(f"{key} is not a finite number")
        if key.endswith((".freq_base", ".freq_base_swa")) and isinstance(value, float) and value <= 0:
            raise ModelInvalid(f"{key} is {value}: it must be more than 0")


def _check_tokenizer(keys: dict[str, Any]) -> None:
    tokens = keys.get("tokenizer.ggml.tokens")
    if not isinstance(keys.get("tokenizer.ggml.model"), str) or tokens is None:
        raise ModelInvalid("the file holds no tokenizer: convert the model again with its tokenizer files beside it")
    if not isinstance(tokens, Array) or tokens.kind != "string" or not tokens.count:
        raise ModelInvalid("tokenizer.ggml.tokens must be an array of at least one text")
    kind = keys["tokenizer.ggml.model"]
    for name in _NEEDED.get(kind, ()):
        if f"tokenizer.ggml.{name}" not in keys:
            raise ModelInvalid(f"the tokenizer is of kind {kind!r} and tokenizer.ggml.{name} is missing")
    for name in ("bos", "eos", "eot", "eom"):
        token = keys.get(f"tokenizer.ggml.{name}_token_id")
        if token is not None and (type(token) is not int or not 0 <= token < tokens.count):
            raise ModelInvalid(f"tokenizer.ggml.{name}_token_id is not one of the {tokens.count} tokens")
    for name in ("scores", "token_type"):
        other = keys.get(f"tokenizer.ggml.{name}")
        if other is not None and (not isinstance(other, Array) or other.count != tokens.count):
            raise ModelInvalid(f"tokenizer.ggml.{name} does not have one entry for each token")


def describe(header: Header) -> dict[str, Any]:
    """What is worth knowing of a checked model, INFO_FIELDS: `size` in bytes, `parameters` are the tensors'
    elements."""
    keys = header.metadata
    arch = keys["general.architecture"]
    bytes_by_type = Counter[str]()
    for t in header.tensors:
        bytes_by_type[t.type] += t.nbytes
    file_type = keys.get("general.file_type")
    name = keys.get("general.name")
    return {
        "architecture": arch,
        "name": name[:200] if isinstance(name, str) else "",
        "parameters": sum(math.prod(t.shape) for t in header.tensors),
        "file_type": _FILE_TYPES.get(file_type if type(file_type) is int else -1) or bytes_by_type.most_common(1)[0][0],
        "context_length": keys[f"{arch}.context_length"],
        "embedding_length": keys[f"{arch}.embedding_length"],
        "block_count": keys[f"{arch}.block_count"],
        "vocab": keys["tokenizer.ggml.tokens"].count,
        "chat_template": isinstance(keys.get("tokenizer.chat_template"), str),
        "size": header.file_size,
        "generation": generation_defaults(keys.get),
        "shape": shape_of(header).to_dict(),
    }


# --- the child


def _checked(path: str) -> dict[str, Any]:
    header = read_header(path)
    check_model(header)
    _let_llama_try(path)
    return {"info": describe(header)}


def _let_llama_try(path: str) -> None:
    """Load all but the weights: architecture, hyperparameters, vocabulary and the shape of each tensor that it
    needs."""
    lib = backends.engine()

    lines: list[str] = []

    def log(level: int, text: bytes, _user: Any) -> None:
        if level == 4:  # GGML_LOG_LEVEL_ERROR
            lines.append(text.decode(errors="replace").strip())

    callback = lib.llama_log_callback(log)
    lib.llama_log_set(callback, None)
    backends.load(gpus=False)
    lib.llama_backend_init()
    params = lib.llama_model_default_params()
    params.no_alloc = True
    params.n_gpu_layers = 0
    params.load_mode = lib.LLAMA_LOAD_MODE_NONE  # llama.cpp asserts that no_alloc goes without mmap
    if not lib.llama_model_load_from_file(path.encode(), params):
        raise ModelInvalid(f"llama.cpp cannot load this model: {_reason(lines, path)}")


def _reason(lines: list[str], path: str) -> str:
    """The line that names the cause. The last one is only `failed to load model`."""
    causes = [line for line in lines if "error loading model" in line] or lines or ["it gives no reason"]
    text = causes[-1].replace(path, "the file").replace("\n", " ")
    return text.removeprefix("llama_model_load: ").removeprefix("error loading model: ")


if __name__ == "__main__":
    verdict(lambda _: _checked(sys.argv[1]), "check this file")
