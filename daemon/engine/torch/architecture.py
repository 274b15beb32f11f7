"""What a checkpoint's configuration says of the model, and whether this engine computes it. Everything that changes
what is computed is known here or refused by its name, before a weight is read. Without torch."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from llmd.daemon.errors import ModelInvalid
from llmd.quantize.checkpoints.checkpoint import CONFIG, architecture_of
from llmd.quantize.checkpoints.packing import GPTQ, GPTQ_PARTS
from llmd.quantize.checkpoints.safetensors import Tensor, shown

# of each architecture, what its configuration leaves out (transformers' defaults), and what it has
FAMILY: dict[str, dict[str, Any]] = {
    "LlamaForCausalLM": {"max_position_embeddings": 2048},
    "MistralForCausalLM": {"max_position_embeddings": 131072, "sliding_window": 4096, "num_key_value_heads": 8},
    "Qwen2ForCausalLM": {"max_position_embeddings": 32768, "sliding_window": 4096, "qkv_bias": True},
    "Qwen3ForCausalLM": {"max_position_embeddings": 32768, "sliding_window": 4096, "head_dim": 128, "qk_norm": True},
}
INSTEAD = "convert it to GGUF, which llama.cpp's engine serves"
FULL = ("BF16", "F16", "F32")
BITS, GROUPS = (4, 8), (32, 64, 128, -1)
FORMATS = {"gptq": 1, "gptq_v2": 0}  # what a zero is kept less by
# of a model that keeps what can be computed
DERIVED = ".rotary_emb.inv_freq"
MAX_HEAD = 512
# of each way to scale positions, what it must say; and what it may
SCALINGS: dict[str, tuple[str, ...]] = {
    "default": (), "linear": ("factor",), "dynamic": (), "yarn": ("factor",), "longrope": (),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
}  # fmt: skip
SCALES = ("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "factor")
ORIGINAL = "original_max_position_embeddings"
SLIDING, WHOLE = "sliding_attention", "full_attention"


@dataclass(frozen=True, slots=True)
class Rope:
    """How positions are turned. `kind`: default, linear, dynamic, llama3, yarn or longrope; `told`: the configuration's
    own numbers. `original`: the positions that the model was trained with first."""

    kind: str
    base: float
    original: int
    told: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Gptq:
    """Weights of `bits` each, in groups of `group` inputs (-1: all). `less`: what a zero is kept less by (format 1:
    one)."""

    bits: int
    group: int
    less: int

    def groups(self, inputs: int) -> int:
        return 1 if self.group == -1 else inputs // self.group


@dataclass(frozen=True, slots=True)
class Architecture:
    """`windows`: of each layer, how many positions it looks back, itself among them; 0: all. `biases`: the linear
    layers that have one. `context`: positions that the model knows."""

    name: str
    layers: int
    width: int
    heads: int
    kv_heads: int
    head: int
    inner: int
    vocab: int
    context: int
    eps: float
    tied: bool
    rope: Rope
    windows: tuple[int, ...]
    biases: frozenset[str]
    qk_norm: bool
    gptq: Gptq | None

    def linears(self, layer: int) -> Iterator[tuple[str, int, int]]:
        """A layer's: name, outputs, inputs."""
        at, heads, kv = f"model.layers.{layer}.", self.heads * self.head, self.kv_heads * self.head
        yield from ((f"{at}self_attn.{p}_proj", n, self.width) for p, n in (("q", heads), ("k", kv), ("v", kv)))
        yield f"{at}self_attn.o_proj", self.width, heads
        yield from ((f"{at}mlp.{p}_proj", self.inner, self.width) for p in ("gate", "up"))
        yield f"{at}mlp.down_proj", self.width, self.inner

    def norms(self, layer: int) -> Iterator[tuple[str, int]]:
        """A layer's: name, width."""
        at = f"model.layers.{layer}."
        yield f"{at}input_layernorm", self.width
        yield f"{at}post_attention_layernorm", self.width
        if self.qk_norm:
            yield from ((f"{at}self_attn.{p}_norm", self.head) for p in "qk")


def read(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Architecture:
    """Raises ModelInvalid, with what to do."""
    found = described(config)
    _check_tensors(found, tensors)
    return found


def described(config: Mapping[str, Any]) -> Architecture:
    """By the configuration alone. Raises ModelInvalid."""
    name = architecture_of(config)
    if name not in FAMILY:
        known = ", ".join(one.removesuffix("ForCausalLM") for one in FAMILY)
        raise ModelInvalid(f"the torch engine does not serve {shown(name)}, but {known}: {INSTEAD}")
    told = {**FAMILY[name], **{k: v for k, v in config.items() if v is not None or k == "sliding_window"}}
    for key, computed in (("hidden_act", "silu"), ("partial_rotary_factor", 1)):
        if told.get(key, computed) != computed:
            raise ModelInvalid(f"{key} of {shown(str(told[key]))} is not computed by the torch engine: {INSTEAD}")
    layers, heads = _count(told, "num_hidden_layers", 1024), _count(told, "num_attention_heads", 1 << 12)
    width, context = _count(told, "hidden_size", 1 << 20), _count(told, "max_position_embeddings", 1 << 30)
    kv_heads = _count(told, "num_key_value_heads", heads, heads)
    head = _count(told, "head_dim", MAX_HEAD, width // heads)
    if heads % kv_heads or head % 2:
        raise ModelInvalid(
            f"{CONFIG} is damaged: {heads} heads of {head} numbers cannot share {kv_heads} of keys and values"
        )
    biases = {p for p in "qkv" if told.get("qkv_bias") or told.get("attention_bias")}
    biases |= {"o"} if told.get("attention_bias") else set()
    biases |= {"gate", "up", "down"} if told.get("mlp_bias") else set()
    return Architecture(
        name, layers, width, heads, kv_heads, head, _count(told, "intermediate_size", 1 << 22),
        _count(told, "vocab_size", 1 << 22), context, _number(told, "rms_norm_eps", 1e-6),
        bool(told.get("tie_word_embeddings")), _rope(told, context, head), _windows(name, told, layers),
        frozenset(f"{bias}_proj" for bias in biases), bool(told.get("qk_norm")), _gptq(told),
    )  # fmt: skip


def _count(told: Mapping[str, Any], key: str, most: int, default: int | None = None) -> int:
    value = told.get(key, default)
    if type(value) is not int or not 1 <= value <= most:
        raise ModelInvalid(f"{CONFIG} is damaged: {key} takes a whole number of 1 to {most}")
    return value


def _number(told: Mapping[str, Any], key: str, default: float | None = None) -> float:
    value = told.get(key, default)
    if type(value) not in (int, float) or not 0 < value < 1e12:
        raise ModelInvalid(f"{CONFIG} is damaged: {key} takes a number above 0")
    return float(value)


# --- positions


def _rope(told: Mapping[str, Any], context: int, head: int) -> Rope:
    """Newer configurations have all of it in `rope_parameters`, older ones in `rope_theta` and `rope_scaling`."""
    own = told.get("rope_parameters") or told.get("rope_scaling") or {}
    if not isinstance(own, dict):
        raise ModelInvalid(f"{CONFIG} is damaged: rope_parameters is not an object")
    if any(isinstance(value, dict) for value in own.values()):
        raise ModelInvalid(f"positions that are turned differently in each kind of layer are not computed: {INSTEAD}")
    kind = str(own.get("rope_type", own.get("type", "default")))
    _check_scaling(kind, own, head)
    numbers = {"rope_theta": told.get("rope_theta", 10000.0), ORIGINAL: context, **own}
    if kind in ("llama3", "yarn", "longrope") and ORIGINAL in told:
        numbers[ORIGINAL] = told[ORIGINAL]
    base, original = _number(numbers, "rope_theta"), _count(numbers, ORIGINAL, 1 << 30)
    if base <= 1 or original <= 1:
        raise ModelInvalid(f"{CONFIG} is damaged: rope_theta and {ORIGINAL} are above 1")
    return Rope(kind, base, original, own)


def _check_scaling(kind: str, own: Mapping[str, Any], head: int) -> None:
    if kind not in SCALINGS:
        raise ModelInvalid(f"positions scaled by {shown(kind)} are not computed by the torch engine: {INSTEAD}")
    if own.get("partial_rotary_factor", 1) != 1:
        raise ModelInvalid(f"heads of which a part is turned are not computed by the torch engine: {INSTEAD}")
    for key in (*SCALINGS[kind], *(key for key in SCALES if own.get(key) not in (None, 0))):
        _number(own, key)
    if kind == "llama3" and own["low_freq_factor"] == own["high_freq_factor"]:
        raise ModelInvalid(f"{CONFIG} is damaged: low_freq_factor and high_freq_factor are the same")
    for key in ("long_factor", "short_factor") if kind == "longrope" else ():
        _check_factors(own.get(key), key, head)


def _check_factors(factors: Any, key: str, head: int) -> None:
    if not isinstance(factors, list) or len(factors) != head // 2:
        raise ModelInvalid(f"{CONFIG} is damaged: {key} takes {head // 2} numbers")
    for factor in factors:
        _number({key: factor}, key)


def _windows(name: str, told: Mapping[str, Any], layers: int) -> tuple[int, ...]:
    if name == "LlamaForCausalLM":
        return (0,) * layers
    if name != "MistralForCausalLM" and not told.get("use_sliding_window"):
        return (0,) * layers
    if told["sliding_window"] is None:
        return (0,) * layers
    window = _count(told, "sliding_window", 1 << 30)
    if name == "MistralForCausalLM":
        return (window,) * layers
    first = told.get("max_window_layers", 28)
    if type(first) is not int:
        raise ModelInvalid(f"{CONFIG} is damaged: max_window_layers takes a whole number")
    kinds = told.get("layer_types") or [SLIDING if at >= first else WHOLE for at in range(layers)]
    if not isinstance(kinds, list) or len(kinds) != layers or not all(k in (SLIDING, WHOLE) for k in kinds):
        raise ModelInvalid(f"layers of other kinds than {SLIDING} and {WHOLE} are not computed: {INSTEAD}")
    return tuple(window if kind == SLIDING else 0 for kind in kinds)


# --- weights


def _gptq(told: Mapping[str, Any]) -> Gptq | None:
    own = told.get("quantization_config") or {}
    method = own.get("quant_method", "")
    if not method:
        return None
    if method != GPTQ:
        raise ModelInvalid(
            f"weights that are packed as {shown(str(method))} are not read by the torch engine: {INSTEAD}"
        )
    bits, group = (_one_of(own, key, known) for key, known in (("bits", BITS), ("group_size", GROUPS)))
    form = own.get("checkpoint_format", "gptq")
    if form not in FORMATS:
        raise ModelInvalid(f"GPTQ in the format {shown(str(form))} is not read, but {', '.join(FORMATS)}: {INSTEAD}")
    if own.get("dynamic"):
        raise ModelInvalid(f"GPTQ with layers that are packed each in its own way (dynamic) is not read: {INSTEAD}")
    return Gptq(bits, group, FORMATS[form])


def _one_of(own: Mapping[str, Any], key: str, known: Collection[int]) -> int:
    value = own.get(key)
    if type(value) is not int or value not in known:
        said = ", ".join(map(str, known))
        raise ModelInvalid(f"GPTQ with {key} of {shown(str(value))} is not computed, but {said}: {INSTEAD}")
    return value


def wanted(a: Architecture, tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, tuple[str, ...], tuple[int, ...]]]:
    """What a model like this consists of: name, types and shape."""
    yield "model.embed_tokens.weight", FULL, (a.vocab, a.width)
    yield "model.norm.weight", FULL, (a.width,)
    linears = [] if a.tied else [("lm_head", a.vocab, a.width)]
    for layer in range(a.layers):
        linears += a.linears(layer)
        for name, size in a.norms(layer):
            yield f"{name}.weight", FULL, (size,)
    for name, outputs, inputs in linears:
        packed = a.gptq if f"{name}.qweight" in tensors else None
        if packed and (inputs % (32 // packed.bits) or outputs % (32 // packed.bits) or inputs % abs(packed.group)):
            raise ModelInvalid(f"{shown(name)}: {inputs} inputs are no whole groups of {packed.group}: {INSTEAD}")
        if packed:
            words, groups = 32 // packed.bits, packed.groups(inputs)
            shapes = ((inputs // words, outputs), (groups, outputs // words), (groups, outputs), (inputs,))
            for part, shape in zip(GPTQ_PARTS, shapes, strict=True):
                yield f"{name}.{part}", FULL if part == "scales" else ("I32",), shape
        else:
            yield f"{name}.weight", FULL, (outputs, inputs)
        # who packs weights adds a bias of zeros to layers that have none
        if name.rpartition(".")[2] in a.biases or (packed and f"{name}.bias" in tensors):
            yield f"{name}.bias", FULL, (outputs,)


def _check_tensors(a: Architecture, tensors: Mapping[str, Tensor]) -> None:
    known = set()
    for name, types, shape in wanted(a, tensors):
        known.add(name)
        tensor = tensors.get(name)
        if tensor is None:
            raise ModelInvalid(f"the tensor {shown(name)} is missing: copy all of the model")
        if tensor.shape != shape:
            raise ModelInvalid(
                f"{CONFIG} wants {shown(name)} to be {list(shape)}, and it is {list(tensor.shape)}: they do not belong "
                "together"
            )
        if tensor.type not in types:
            raise ModelInvalid(f"{shown(name)} has the type {tensor.type}, and {' or '.join(types)} is read: {INSTEAD}")
    if a.tied:
        known.add("lm_head.weight")
    for name in sorted(tensors.keys() - known):
        if not name.endswith(DERIVED):
            raise ModelInvalid(f"{a.name} has no tensor {shown(name)}, so this is more than such a model: {INSTEAD}")
