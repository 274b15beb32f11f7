"""What a checkpoint's own model says first: the logits of a short text, computed by transformers in float32 on the CPU,
a layer at a time, so that a model of any size takes the memory of one layer. A conversion is held against them
(`proof.py`).

It runs in the interpreter of the package `llmd-torch`, behind `converting.py`.
"""

import copy
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from accelerate import init_empty_weights
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    convert_and_load_state_dict_in_model,
    rename_source_key,
)
from transformers.modeling_utils import LoadStateDictConfig

from llmd.quantize.checkpoints import checkpoint, packing
from llmd.quantize.checkpoints.safetensors import Tensor

# prose, numbers, code, a name with marks and what is not Latin: what tokenizers treat differently
TEXT = (
    "The harbour opened in 1874 with 12 berths; by 1903 there were 257.\n\n"
    "def area(r):\n    return 3.14159 * r ** 2  # don't round\n\nZoë asked: “Где порт?” 港はどこですか。"
)
MAX_TOKENS = 96
DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip


class Unproven(Exception):
    """The original cannot be computed here; the message says why."""


def write_logits(folder: Path, out: Path, tell: Callable[[dict[str, Any]], None]) -> None:
    """An .npz file with `text` (UTF-8), `ids` and `logits` [tokens, vocabulary]. Raises Unproven."""
    config, tensors = checkpoint.parts(folder)
    tell({"log": "computing the original's first logits"})
    try:
        ids = tokens(folder)
        logits = first_logits(folder, config, tensors, ids)
    except (Unproven, MemoryError, OSError):
        raise
    except Exception as e:  # transformers' own, of any kind
        raise Unproven(f"transformers does not run it: {str(e).replace(str(folder), 'the folder')[:200]}") from e
    np.savez(out, text=np.frombuffer(TEXT.encode(), np.uint8), ids=np.array(ids, np.int32), logits=logits)


def tokens(folder: Path) -> list[int]:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    return [int(token) for token in tokenizer(TEXT)["input_ids"]][:MAX_TOKENS]


def first_logits(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor], ids: list[int]) -> Any:
    """float32 [tokens, vocabulary]. Raises Unproven."""
    kind = getattr(transformers, checkpoint.architecture_of(config), None)
    if kind is None:
        raise Unproven(f"transformers {transformers.__version__} does not have {checkpoint.architecture_of(config)}")
    settings = transformers.AutoConfig.from_pretrained(folder)
    for part in {id(c): c for c in (settings, settings.get_text_config())}.values():
        if hasattr(part, "quantization_config"):
            del part.quantization_config
        part.dtype = torch.float32
    with init_empty_weights():
        model = kind(settings)
    model.eval()
    _Streamed(model, _sources(config, tensors))
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
    return logits.to(torch.float32).numpy()


# --- where the weights come from


class _Source:
    """A tensor that is read when it is asked for, as transformers asks safetensors' slices."""

    def __init__(self, read: Callable[[], torch.Tensor]) -> None:
        self._read = read

    def __getitem__(self, _: Any) -> torch.Tensor:
        return self._read()


def _loaded(tensor: Tensor) -> torch.Tensor:
    data = np.fromfile(tensor.file, np.uint8, tensor.nbytes, offset=tensor.begin)
    return torch.from_numpy(data).view(DTYPES[tensor.type]).reshape(tensor.shape)


def _sources(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, _Source]:
    """Every weight by its name in the checkpoint, unpacked where it is packed. Raises Unproven."""
    text = checkpoint.text_part(config)
    told = text.get("quantization_config") or {}
    method = told.get("quant_method", "")
    if method not in ("", packing.GPTQ):
        raise Unproven(f"weights that are packed as {method} are not unpacked here")
    if odd := {t.type for t in tensors.values()} - DTYPES.keys():
        raise Unproven(f"weights of the type {', '.join(sorted(odd))} are not read here")
    old = told.get("checkpoint_format", "gptq") == "gptq"
    found: dict[str, _Source] = {}
    for name, tensor in tensors.items():
        base, _, part = name.rpartition(".")
        if method and part == "qweight":
            own = {p: tensors[f"{base}.{p}"] for p in packing.GPTQ_PARTS}
            found[f"{base}.weight"] = _Source(partial(_unpacked, own, told["bits"], old))
        elif not (method and part in packing.GPTQ_PARTS):
            found[name] = _Source(partial(_loaded, tensor))
    return found


def _unpacked(parts: Mapping[str, Tensor], bits: int, old: bool) -> torch.Tensor:
    """[out, in]: scale · (q - zero) of each weight's group. `old`: format 1 keeps each zero less one.
    (Frantar et al. 2022, and GPTQModel's qlinear for the packing: lowest bits first.)"""
    words, zeros, scales, groups = (_loaded(parts[p]) for p in packing.GPTQ_PARTS)
    steps = torch.arange(0, 32, bits, dtype=torch.int32)
    most = (1 << bits) - 1
    q = ((words[:, None, :] >> steps[None, :, None]) & most).reshape(-1, words.shape[1])
    z = ((zeros[:, :, None] >> steps[None, None, :]) & most).reshape(zeros.shape[0], -1) + (1 if old else 0)
    at = groups.long()
    return (scales.float()[at] * (q - z[at]).float()).T.contiguous()


# --- a layer at a time


class _Streamed:
    """Hooks that give each part of a model its weights before it computes, and take them away behind it. A part is a
    layer of the longest list of layers, or a module outside it that has weights of its own."""

    def __init__(self, model: Any, sources: Mapping[str, _Source]) -> None:
        self._model, self._modules = model, dict(model.named_modules())
        self._mapping = get_model_conversion_mapping(model)
        lists = [(name, m) for name, m in self._modules.items() if isinstance(m, torch.nn.ModuleList)]
        layers = max(lists, key=lambda one: sum(p.numel() for p in one[1].parameters()), default=("", []))[0]
        self._layers = layers + "."
        parts: dict[str, dict[str, _Source]] = {}
        for name, source in sources.items():
            for target in self._targets(name):
                parts.setdefault(self._part(target), {})[name] = source
        for part, own in parts.items():
            if part in self._modules:
                self._modules[part].register_forward_pre_hook(partial(self._give, own))
                self._modules[part].register_forward_hook(lambda module, *_: self._take(module))
        self._tie(parts)

    def _targets(self, name: str) -> list[str]:
        renamings = [one for one in self._mapping if isinstance(one, WeightRenaming)]
        converters = [one for one in self._mapping if isinstance(one, WeightConverter)]
        target, _ = rename_source_key(
            name, renamings, converters, self._model.base_model_prefix, self._model.state_dict()
        )
        return [target]

    def _part(self, target: str) -> str:
        if target.startswith(self._layers):
            return self._layers + target.removeprefix(self._layers).partition(".")[0]
        return target.rpartition(".")[0]

    def _tie(self, parts: Mapping[str, dict[str, _Source]]) -> None:
        """The output of many models is the embedding, under another name that the checkpoint does not have."""
        inner, outer = self._model.get_input_embeddings(), self._model.get_output_embeddings()
        names = {id(module): name for name, module in self._modules.items()}
        if outer is None or names[id(outer)] in parts:
            return
        (source,) = parts[names[id(inner)]].values()

        def give(*_: Any) -> None:
            outer.weight = torch.nn.Parameter(source[...].float(), requires_grad=False)

        outer.register_forward_pre_hook(give)
        outer.register_forward_hook(lambda module, *_: self._take(module))

    def _give(self, own: Mapping[str, _Source], *_: Any) -> None:
        config = LoadStateDictConfig(dtype=torch.float32, weight_mapping=copy.deepcopy(self._mapping))
        info, _ = convert_and_load_state_dict_in_model(self._model, dict(own), config)
        if info.mismatched_keys or info.conversion_errors:
            raise Unproven("its weights do not have the shapes that transformers expects")

    def _take(self, module: torch.nn.Module) -> None:
        for one in module.modules():
            for name, weight in list(one.named_parameters(recurse=False)):
                setattr(one, name, torch.nn.Parameter(weight.to("meta"), requires_grad=False))
