"""What a model's memory depends on, taken from its GGUF header: small enough to be kept beside the model.

`shape_of(header)` follows llama.cpp: which tensors lie on a device, how long their rows are padded, what each block
keeps for a token (keys and values) and for a sequence (the state of a recurrent block). Sources: llama.cpp's
llama-hparams.cpp, llama-model.cpp (create_memory, load_tensors) and each architecture's load_arch_hparams.
"""

import dataclasses
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from llmd.quantize.header import TENSOR_TYPES, Array, Header, TensorInfo

MOST = 1 << 50  # of any number in a shape that comes from outside
MAX_LAYERS = 1024
ROW = 512  # CUDA buffers hold a quantized tensor with its last row padded to this many elements,
ALIGNMENT = 128  # and every tensor at a multiple of this many bytes

_BLOCKS = {name: (block, width) for name, block, width in TENSOR_TYPES.values()}
_PLAIN = {"F64", "F32", "F16", "BF16", "I8", "I16", "I32", "I64"}
# an x86 CPU with AVX2 computes with these in another order of its own (ggml's repack.cpp), beside what the file holds
_REPACKED = {"Q4_0", "Q4_K", "Q2_K", "IQ4_NL", "MXFP4"}
_HOST = re.compile(r"(token_embd|position_embd|token_types|per_layer_token_embd|masked_embd\w*)\.")
_RECURRENT = {"mamba", "mamba2", "rwkv6", "rwkv6qwen2", "rwkv7", "arwkv7"}
# their blocks with no key-value heads are recurrent ones; in any other architecture such a block keeps nothing
_BY_HEADS = {
    "jamba", "plamo2", "granitehybrid", "lfm2", "lfm2moe", "nemotron_h", "nemotron_h_moe", "kimi-linear", "kimi-k3",
    "bailingmoe3", "glm5-next",
}  # fmt: skip
_BY_INTERVAL = {"qwen3next": 4, "qwen35": 4, "qwen35moe": 4, "qwen4exp": 4, "minimax-01": 8}
# the sliding window's period where the file names none, and whether the first block of a period is the one without
_PERIODS = {
    "gemma2": (2, False), "gemma3": (6, False), "gemma3n": (5, False), "cohere2": (4, False), "gpt-oss": (2, False),
    "exaone4": (4, False), "exaone-moe": (4, False), "olmo2": (4, False), "llama4": (4, False), "afmoe": (4, False),
    "mellum": (4, False), "plamo3": (8, False), "muse-glimmer": (4, False), "smallthinker": (4, True),
    "laguna": (4, True), "cohere2moe": (4, True),
}  # fmt: skip
# split over devices in tensor mode (llama.cpp's llama_meta_device_get_split_state); all else is on each of them
_SPLIT = re.compile(
    r"(attn_(q|k|v|qkv|output|gate|sinks)|ffn_(up|gate|down|gate_up)(_exps|_shexp)?"
    r"|ssm_(conv1d|out|dt|a|alpha|beta|ba)|output)\.weight"
    r"|attn_(q|k|v|qkv)\.bias|ffn_(up|gate)\.bias|ssm_(dt\.bias|a)$"
)
_NO_TENSOR_SPLIT = {
    "grok", "mpt", "plamo2", "minicpm3", "gemma3n", "mamba", "mamba2", "jamba", "falcon-h1", "olmo2", "olmoe",
    "deepseek2", "deepseek32", "hy-v4", "dots3note", "glm-dsa", "bitnet", "t5", "nemotron_h", "nemotron_h_moe",
    "granitehybrid", "minimax-01", "minimax-m2", "minimax-m3", "mistral4", "kimi-linear", "bailingmoe3", "kimi-k3",
    "glm5-next", "qwen3tts", "qwen4exp",
}  # fmt: skip
# widths of keys that CUDA's flash attention has kernels for, and of the values to each
_FLASH = {40: 40, 64: 64, 72: 72, 80: 80, 96: 96, 112: 112, 128: 128, 192: 128, 256: 256, 320: 256, 512: 512, 576: 512}


@dataclass(frozen=True, slots=True)
class Layer:
    """One block. `k` and `v` are the cache's elements a token, `r` and `s` the state's elements a sequence (4 bytes
    each).

    `q`, `ff`, `expert_ff` are widths of what a pass computes a token. `nbytes` is what lies on a device, `shared` the
    part of it that tensor mode puts on every device.
    """

    k: int = 0
    v: int = 0
    r: int = 0
    s: int = 0
    swa: bool = False
    heads: int = 0
    kv_heads: int = 0
    q: int = 0
    ff: int = 0
    expert_ff: int = 0
    nbytes: int = 0
    shared: int = 0


@dataclass(frozen=True, slots=True)
class Shape:
    """A model as far as memory goes; `host`, `output` in bytes: the tensors on the host, and those of the output layer.

    `context` is what it was trained with. `key`, `value` are the widths of one head; with latent attention they are
    those of what is kept, and `mla` is a key's own. `output_shared` is as in Layer. `file` is the weights' size on the
    CPU, where nothing is padded, `repacked` that of the part which it keeps in another order too.
    """

    architecture: str
    context: int
    vocab: int
    embedding: int
    layers: tuple[Layer, ...]
    key: int = 0
    value: int = 0
    window: int = 0
    mla: int = 0
    experts: int = 0
    used: int = 0
    host: int = 0
    output: int = 0
    output_shared: int = 0
    file: int = 0
    repacked: int = 0

    @property
    def flash(self) -> bool:
        """CUDA has a flash attention kernel: without one there is no quantized V and no tensor split."""
        heads = max((layer.heads for layer in self.layers if layer.k), default=0)
        kv = max((layer.kv_heads for layer in self.layers if layer.k), default=0)
        if not heads:
            return True
        ratio = heads // kv if kv else 0
        needs = {192: 8, 320: 32, 512: 2, 576: 2}.get(self.key, 0)  # these are for grouped heads only
        return _FLASH.get(self.key) == self.value and (not needs or (ratio >= 2 and ratio % needs == 0))

    def tensor_split(self, devices: int) -> bool:
        """Its weights can be split over so many devices by rows and columns, each with whole key-value heads."""
        even = all(layer.kv_heads % devices == 0 and layer.heads % devices == 0 for layer in self.layers if layer.k)
        return self.flash and self.architecture not in _NO_TENSOR_SPLIT and even

    def quantized_kv(self) -> bool:
        return self.flash and self.key % 32 == 0 and self.value % 32 == 0

    def to_dict(self) -> dict[str, Any]:
        """For JSON: equal blocks are written once. `order` has one number a block, its place in `layers`."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        unique = list(dict.fromkeys(self.layers))
        at = {layer: i for i, layer in enumerate(unique)}
        values["layers"] = [list(dataclasses.astuple(layer)) for layer in unique]
        return {**values, "order": [at[layer] for layer in self.layers]}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "Shape":
        """The shape that `to_dict` wrote. Raises ValueError for anything else: a hostile file may have had a hand in
        it."""
        fields = {field.name: field.type for field in dataclasses.fields(cls) if field.name != "layers"}
        try:
            values = {name: _checked(kind, data[name]) for name, kind in fields.items()}
            kinds = [field.type for field in dataclasses.fields(Layer)]
            unique = [Layer(*(_checked(kind, v) for kind, v in zip(kinds, row, strict=True))) for row in data["layers"]]
            order = data["order"]
            if not 1 <= len(order) <= MAX_LAYERS or not all(type(i) is int and 0 <= i < len(unique) for i in order):
                raise ValueError("order")
        except (KeyError, TypeError) as e:
            raise ValueError(f"this is not a model's shape: {e!r}") from e
        return cls(layers=tuple(unique[i] for i in order), **values)


def _checked(kind: Any, value: Any) -> Any:
    if type(value) is not kind or (kind is int and not 0 <= value <= MOST) or (kind is str and len(value) > 64):
        raise ValueError(f"this is not a model's shape: {str(value)[:40]!r}")
    return value


class _Keys:
    """The architecture's own keys, each with the type it must have or the default."""

    def __init__(self, header: Header) -> None:
        self.all = header.metadata
        self.arch: str = header.metadata["general.architecture"]
        self.blocks = min(self.whole("block_count", 1), MAX_LAYERS)

    def whole(self, name: str, default: int = 0) -> int:
        value = self.all.get(f"{self.arch}.{name}")
        if isinstance(value, Array):
            value = max((v for v in value.values or () if type(v) is int), default=None)
        return value if type(value) is int and 0 <= value <= 1 << 32 else default

    def each(self, name: str, default: int | None = None) -> tuple[int, ...] | None:
        """One number for each block."""
        value = self.all.get(f"{self.arch}.{name}")
        if isinstance(value, Array):
            values = tuple(int(v) for v in value.values or () if isinstance(v, int) and 0 <= v <= 1 << 32)
            return values[: self.blocks] if len(values) >= self.blocks else None
        if type(value) is int and 0 <= value <= 1 << 32:
            return (value,) * self.blocks
        return None if default is None else (default,) * self.blocks


def shape_of(header: Header) -> Shape:
    """The shape of a model whose header has been checked (`quantize/check.py`)."""
    keys = _Keys(header)
    by_layer, rest = _sorted(header.tensors, keys.blocks)
    embedding = keys.whole("embedding_length")
    heads = keys.each("attention.head_count", 0) or (0,) * keys.blocks
    width = embedding // heads[0] if heads[0] else 0
    mla = keys.whole("attention.key_length_mla") if keys.whole("attention.value_length_mla") else 0
    key = keys.whole("attention.key_length", width)
    value = keys.whole("attention.kv_lora_rank", key) if mla else keys.whole("attention.value_length", width)
    host, output = _ends(rest)
    tokens = header.metadata["tokenizer.ggml.tokens"].count
    embd = next((t for t in rest if t.name == "token_embd.weight"), None)
    return Shape(
        architecture=keys.arch, context=keys.whole("context_length"), embedding=embedding,
        vocab=embd.shape[1] if embd and len(embd.shape) == 2 else tokens,
        layers=_layers(keys, by_layer, key, value, mla), key=key, value=value, mla=mla,
        window=keys.whole("attention.sliding_window"), experts=keys.whole("expert_count"),
        used=keys.whole("expert_used_count"),
        host=sum(t.nbytes for t in host), output=sum(map(padded, output)),
        output_shared=sum(padded(t) for t in output if not t.name.startswith("output.weight")),
        file=sum(t.nbytes for t in header.tensors),
        repacked=sum(t.nbytes for t in header.tensors if _repacked(t)),
    )  # fmt: skip


def _sorted(tensors: Iterable[TensorInfo], blocks: int) -> tuple[list[list[TensorInfo]], list[TensorInfo]]:
    by_layer: list[list[TensorInfo]] = [[] for _ in range(blocks)]
    rest = []
    for tensor in tensors:
        found = re.match(r"blk\.(\d{1,4})\.", tensor.name)
        if found and int(found[1]) < blocks:
            by_layer[int(found[1])].append(tensor)
        else:
            rest.append(tensor)
    return by_layer, rest


def _ends(rest: list[TensorInfo]) -> tuple[list[TensorInfo], list[TensorInfo]]:
    """Tensors of no block: those that stay on the host, and those that lie with the output layer.

    Without an output matrix of its own the model uses its embedding as one: then that lies on both.
    """
    host = [t for t in rest if _HOST.match(t.name)]
    output = [t for t in rest if not _HOST.match(t.name)]
    if not any(t.name == "output.weight" for t in output):
        output += [dataclasses.replace(t, name="output.weight") for t in host if t.name == "token_embd.weight"]
    return host, output


def _repacked(tensor: TensorInfo) -> bool:
    return (
        tensor.type in _REPACKED and len(tensor.shape) > 1 and not tensor.shape[1] % 8 and not _HOST.match(tensor.name)
    )


def padded(tensor: TensorInfo) -> int:
    """The bytes that a tensor takes in a CUDA buffer."""
    nbytes, rest = tensor.nbytes, tensor.shape[0] % ROW
    if rest and tensor.type not in _PLAIN:
        block, width = _BLOCKS[tensor.type]
        nbytes += -(-(ROW - rest) // block) * width
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


def _layers(keys: _Keys, by_layer: list[list[TensorInfo]], key: int, value: int, mla: int) -> tuple[Layer, ...]:
    heads = keys.each("attention.head_count", 0) or (0,) * keys.blocks
    kv = keys.each("attention.head_count_kv") or heads
    ff = keys.each("feed_forward_length", 0) or (0,) * keys.blocks
    swa, recurrent, attends = _windows(keys), _recurrent(keys, kv, ff), _attending(keys)
    key_swa, value_swa = keys.whole("attention.key_length_swa", key), keys.whole("attention.value_length_swa", value)
    r, s = _state(keys, heads[0])
    found = []
    same: dict[Layer, Layer] = {}  # equal blocks are one object
    for i, tensors in enumerate(by_layer):
        trunk = i < keys.blocks - keys.whole("nextn_predict_layers")  # llama.cpp does not load the blocks after it
        k_width, v_width = (key_swa, value_swa) if swa[i] else (key, value)
        keeps = trunk and attends[i] and (not recurrent[i] or keys.arch == "falcon-h1") and keys.arch not in _RECURRENT
        if keys.arch.startswith("nemotron_h") and ff[i]:
            keeps = False
        state = trunk and recurrent[i]
        widths = {t.name.split(".", 2)[2]: t.shape[1] for t in tensors if len(t.shape) > 1}
        layer = Layer(
            k=k_width * kv[i] if keeps else 0, v=v_width * kv[i] if keeps and not mla else 0,
            r=r if state else 0, s=s if state else 0, swa=swa[i], heads=heads[i], kv_heads=kv[i],
            q=max(k_width * heads[i], widths.get("attn_q.weight", 0)) if keeps else 0,
            ff=ff[i] or widths["ffn_up.weight"] if "ffn_up.weight" in widths else 0,
            expert_ff=widths.get("ffn_up_exps.weight", widths.get("ffn_gate_up_exps.weight", 0)),
            nbytes=sum(map(padded, tensors)) if trunk else 0,
            shared=sum(padded(t) for t in tensors if not _SPLIT.search(t.name)) if trunk else 0,
        )  # fmt: skip
        found.append(same.setdefault(layer, layer))
    return tuple(found)


def _windows(keys: _Keys) -> list[bool]:
    """Which blocks see a sliding window only."""
    name = f"{keys.arch}.attention.sliding_window_pattern"
    if isinstance(keys.all.get(name), Array):
        return [bool(v) for v in keys.each("attention.sliding_window_pattern") or (0,) * keys.blocks]
    period, dense_first = _PERIODS.get(keys.arch, (0, False))
    optional = keys.arch not in ("gemma2", "gemma3n", "cohere2", "gpt-oss", "llama4", "exaone4", "exaone-moe")
    window = keys.whole("attention.sliding_window", 0 if optional else 1)
    if not period or not window or (keys.arch == "exaone4" and keys.blocks != 64):
        return [False] * keys.blocks
    period = keys.whole("attention.sliding_window_pattern", period) or 1
    last = 0 if dense_first else period - 1
    return [i % period != last for i in range(keys.blocks)]


def _recurrent(keys: _Keys, kv: tuple[int, ...], ff: tuple[int, ...]) -> list[bool]:
    given = keys.each("attention.recurrent_layers")
    if keys.arch in _RECURRENT or keys.arch == "falcon-h1":
        return [True] * keys.blocks
    if keys.arch in _BY_INTERVAL:
        interval = keys.whole("full_attention_interval", _BY_INTERVAL[keys.arch]) or 1
        return [bool(v) for v in given] if given else [(i + 1) % interval != 0 for i in range(keys.blocks)]
    if keys.arch in _BY_HEADS:
        dense = keys.arch.startswith("nemotron_h")
        return [n == 0 and not (dense and ff[i]) for i, n in enumerate(kv)]
    return [False] * keys.blocks


def _attending(keys: _Keys) -> list[bool]:
    """Which blocks keep keys and values of their own: Gemma's last ones use those of earlier blocks."""
    own = 20 if keys.arch == "gemma3n" else keys.blocks
    if keys.arch == "gemma4":
        own -= keys.whole("attention.shared_kv_layers")
    return [i < own for i in range(keys.blocks)]


def _state(keys: _Keys, heads: int) -> tuple[int, int]:
    """Elements of the convolution's and of the recurrence's state of one sequence in one block."""
    embedding, inner = keys.whole("embedding_length"), keys.whole("ssm.inner_size")
    kernel, size = keys.whole("ssm.conv_kernel"), keys.whole("ssm.state_size")
    if head := keys.whole("wkv.head_size"):
        return keys.whole("token_shift_count", 2) * embedding, embedding * head
    if cache := keys.whole("shortconv.l_cache"):
        return embedding * (cache - 1), size * inner
    if head := keys.whole("kda.head_dim"):
        return 3 * (kernel - 1 if kernel else 3) * heads * head, head * head * heads
    return max(kernel - 1, 0) * (inner + 2 * keys.whole("ssm.group_count") * size), size * inner
