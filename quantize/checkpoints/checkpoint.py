"""Reads a Hugging Face model folder, as far as it can be judged without the libraries that compute it: `config.json`,
the tokenizer's files, the headers of the safetensors files. It runs no code of the folder and follows no path out.

    python -P -m llmd.quantize.checkpoints.checkpoint FOLDER

prints one JSON line: `{"ok": true, …}`, a Checkpoint, or `{"ok": false, "code": CODE, "message": TEXT}`; and exits with
0. `daemon/models/importing.py` runs it, and the conversion (`converting.py`) reads its folder through it again.

A folder passes, in order: 1. it is a checkpoint of a language model, not an adapter, a pipeline or pickles; 2. every
file that would be read is a plain one in it; 3. its configuration needs no code; 4. its architecture is converted;
5. it has a tokenizer; 6. its weights are whole; 7. they are what the configuration says; 8. they are packed in a way
that is read (`packing.py`).
"""

import difflib
import json
import math
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llmd.daemon.errors import MAX_NAMES, ModelInvalid
from llmd.daemon.machine.telling import verdict
from llmd.quantize.architectures import CHECKPOINTS, OTHERS
from llmd.quantize.checkpoints import packing
from llmd.quantize.checkpoints.safetensors import MAX_TENSORS, Tensor, read_header, shown
from llmd.quantize.header import LFS, LFS_LEFT

MAX_JSON_BYTES = 64 << 20
MAX_FILES = 10_000
MAX_LOOKED_INTO = 100  # folders within one that is no model's
MAX_LAYERS, MAX_WIDTH, MAX_VOCABULARY = 1024, 1 << 20, 1 << 22
CONFIG, INDEX, WEIGHTS = "config.json", "model.safetensors.index.json", "model.safetensors"
# what is read beside the weights, where it is there
SIDE_FILES = (
    "generation_config.json", "tokenizer_config.json", "tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt",
    "added_tokens.json", "special_tokens_map.json", "chat_template.json", "chat_template.jinja", "quantize_config.json",
    "vocab.txt", "preprocessor_config.json", "processor_config.json",
)  # fmt: skip
TEMPLATES, MAX_TEMPLATES = "additional_chat_templates", 100
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")
MAX_SIDE_BYTES = 256 << 20
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")

_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks|block)\.(\d+)\.")
_PART = re.compile(r"model.*\.safetensors")
_BLOB = re.compile(r"\.\./\.\./blobs/[0-9a-f]{40,64}")
_NUMBERED = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.safetensors")
_EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight")
_SUFFIX = re.compile(r"(For(CausalLM|ConditionalGeneration)|LMHeadModel|Model)\w*$")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """`bytes` are read of it, and a GGUF in full precision has about `converted`. `method` is what it was quantized
    with, or ""."""

    architecture: str
    method: str
    bytes: int
    converted: int
    tensors: int


def read(folder: str | os.PathLike[str]) -> Checkpoint:
    """Raises ModelInvalid, with what to do."""
    config, tensors = parts(Path(folder))
    method = _method(config)
    return Checkpoint(
        architecture_of(config), method, sum(t.nbytes for t in tensors.values()), _converted(config, tensors),
        len(tensors),
    )  # fmt: skip


def parts(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The configuration, and every tensor by its name. Raises ModelInvalid, with what to do."""
    names = _names(folder)
    _check_links(folder, names)
    _check_kind(folder, names)
    for name in (CONFIG, INDEX, *SIDE_FILES):
        if name in names:
            _check_file(folder, name, MAX_SIDE_BYTES)
    _check_templates(folder)
    config = document(folder, CONFIG)
    for name in (CONFIG, "tokenizer_config.json"):
        if name in names and "auto_map" in document(folder, name):
            raise ModelInvalid(
                f"{name} asks for code from the folder (auto_map), which is never run: "
                "import a GGUF file of this model, or a checkpoint that needs no code of its own"
            )
    _check_architecture(config)
    if not any(name in names for name in TOKENIZERS):
        raise ModelInvalid("the folder has no tokenizer (tokenizer.json or tokenizer.model): copy all of the model")
    for name in names.intersection(TOKENIZERS):
        if name.endswith(".json"):
            document(folder, name, MAX_SIDE_BYTES)
    packing.check_method(_method(config))
    tensors = _weights(folder, names)
    if not _method(config):
        beside = document(folder, packing.BESIDE) if packing.BESIDE in names else None
        config = packing.completed(config, tensors, beside)
    _check_fit(config, tensors)
    if _method(config) == packing.GPTQ:
        packing.check_gptq(_quantization(config), tensors)
    return config, tensors


# --- 1. and 2.: the folder


def _names(folder: Path) -> set[str]:
    try:
        found = set()
        with os.scandir(folder) as entries:
            for entry in entries:
                found.add(entry.name)
                if len(found) > MAX_FILES:
                    raise ModelInvalid(f"the folder has more than {MAX_FILES} files: it is not a model's")
    except OSError as e:
        raise ModelInvalid(f"the folder cannot be read: {e.strerror}") from e
    return found


def blobs(folder: Path) -> Path | None:
    """Where the cache of Hugging Face has what the links of `models--NAME/snapshots/REVISION` lead to; None: this is no
    such folder."""
    top = folder.parent.parent
    found = top / "blobs"
    cached = folder.parent.name == "snapshots" and top.name.startswith("models--")
    return found if cached and found.is_dir() and not found.is_symlink() else None


def _check_links(folder: Path, names: set[str]) -> None:
    """Whatever a library may open by its name lies in the folder, or in the cache that it is a part of. Raises
    ModelInvalid."""
    cache = blobs(folder)
    for name in sorted(name for name in names if (folder / name).is_symlink()):
        to = os.readlink(folder / name)
        if cache and _BLOB.fullmatch(to):
            _check_blob(cache / os.path.basename(to), name)
        elif (folder / name).resolve().parent != folder.resolve():
            raise ModelInvalid(
                f"{shown(name)} is a link out of the folder: copy the model with what its links lead to (cp -rL)"
            )


def _check_templates(folder: Path) -> None:
    """The chat templates that have files of their own. Raises ModelInvalid."""
    cache, within = blobs(folder), folder / TEMPLATES
    found = sorted(within.glob("*.jinja"))
    if len(found) > MAX_TEMPLATES:  # the converter would read them all
        raise ModelInvalid(f"{TEMPLATES} has more than {MAX_TEMPLATES} chat templates: it is damaged or hostile")
    for file in found:
        to = os.readlink(file) if file.is_symlink() else ""
        if to and not (cache and _BLOB.fullmatch(to.removeprefix("../"))):
            raise ModelInvalid(f"{shown(file.name)} is a link: copy the model with what its links lead to (cp -rL)")
        if to and cache:
            _check_blob(cache / os.path.basename(to), file.name)
        _check_file(within, file.name, MAX_SIDE_BYTES)


def _check_blob(file: Path, name: str) -> None:
    if file.is_symlink() or not file.is_file():
        raise ModelInvalid(f"{shown(name)} leads to a file that the cache does not have: download the model again")


def _inside(folder: Path, names: set[str]) -> str:
    """The one folder within it that holds a model; "" where there is none, or several. The cache of Hugging Face has
    them in `snapshots/`."""
    tops = [name for name in sorted(names) if name != "snapshots"][:MAX_LOOKED_INTO]
    below = sorted(f"snapshots/{one.name}" for one in (folder / "snapshots").glob("*"))[:MAX_LOOKED_INTO]
    found = [name for name in (*tops, *below) if (folder / name / CONFIG).is_file()]
    return found[0] if len(found) == 1 else ""


def _check_kind(folder: Path, names: set[str]) -> None:
    ggufs = sorted(name for name in names if name.lower().endswith(".gguf"))
    weights = any(name.endswith(".safetensors") for name in names)
    if "adapter_config.json" in names:
        raise ModelInvalid("this is an adapter (LoRA), not a model: merge it into its base model, and import that")
    if "model_index.json" in names:
        raise ModelInvalid("this is a diffusion pipeline, which makes images: llmd serves models that generate text")
    if "modules.json" in names and "config_sentence_transformers.json" in names:
        raise ModelInvalid(f"this is {OTHERS['BertModel']}")
    if CONFIG not in names:
        if inside := _inside(folder, names):
            raise ModelInvalid(f"the model is in a folder within this one: name that, as in …/{shown(inside)[1:-1]}")
        if ggufs:
            raise ModelInvalid(f"the folder holds GGUF files: name one of them, as in …/{ggufs[0]}")
        if "params.json" in names:
            raise ModelInvalid("this is a model in its maker's own format (params.json): take its Hugging Face form")
        raise ModelInvalid("the folder has no config.json: it is not a Hugging Face model, or not all of one")
    if not weights and any(name.lower().endswith(PICKLES) for name in names):
        raise ModelInvalid(
            "its weights are pickles (.bin, .pt), which could run code, and are never opened: take the model's "
            "safetensors files, or convert it on a machine that may run it "
            "(transformers: AutoModelForCausalLM.from_pretrained(…).save_pretrained(…))"
        )
    if not weights:
        raise ModelInvalid("the folder has no weights (*.safetensors): copy all of the model")


def _check_file(folder: Path, name: str, most: int) -> None:
    """A plain file of this folder. Raises ModelInvalid."""
    if name != os.path.basename(name) or name in ("", ".", ".."):
        raise ModelInvalid(f"the model names the file {shown(name)}, which is not in its folder")
    path = folder / name
    if not path.is_file():
        raise ModelInvalid(f"{name} is missing or is not a plain file: copy all of the model")
    if path.stat().st_size > most:
        raise ModelInvalid(f"{name} has more than {most >> 20} MiB: it is damaged or hostile")
    with path.open("rb") as file:
        if file.read(len(LFS)) == LFS:
            raise ModelInvalid(f"{shown(name)} is {LFS_LEFT}")


def document(folder: Path, name: str, most: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """A JSON object. Raises ModelInvalid."""
    try:
        if (folder / name).stat().st_size > most:
            raise ModelInvalid(f"{name} has more than {most >> 20} MiB: it is damaged or hostile")
        found = json.loads((folder / name).read_bytes())
    except (ValueError, RecursionError) as e:
        raise ModelInvalid(f"{name} is damaged: it is not JSON") from e
    except OSError as e:
        raise ModelInvalid(f"{name} cannot be read: {e.strerror}") from e
    if not isinstance(found, dict):
        raise ModelInvalid(f"{name} is damaged: it is not an object")
    return found


# --- 3. to 5.: the configuration


def architecture_of(config: Mapping[str, Any]) -> str:
    named = config.get("architectures")
    return named[0] if isinstance(named, list) and named and isinstance(named[0], str) else ""


def text_part(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Of a model that takes pictures too, the part that is about text."""
    for name in ("text_config", "llm_config", "language_config"):
        if isinstance(config.get(name), dict):
            return {**config, **config[name]}
    return config


def _check_architecture(config: Mapping[str, Any]) -> None:
    name = architecture_of(config)
    if not name:
        raise ModelInvalid("config.json names no architecture (architectures): it is not a model's")
    if name in OTHERS:
        raise ModelInvalid(f"{name} is {OTHERS[name]}")
    if name not in CHECKPOINTS:
        near = difflib.get_close_matches(name, CHECKPOINTS, 3)
        meant = f" (is it {', '.join(near)}?)" if near else ""
        known = ", ".join(sorted({_SUFFIX.sub("", known) for known in CHECKPOINTS}))
        raise ModelInvalid(f"unknown model architecture: {shown(name)}{meant}. Known: {known}")


def _quantization(config: Mapping[str, Any]) -> Mapping[str, Any]:
    found = text_part(config).get("quantization_config") or {}
    if not isinstance(found, dict):
        raise ModelInvalid("config.json is damaged: quantization_config is not an object")
    return found


def _method(config: Mapping[str, Any]) -> str:
    return str(_quantization(config).get("quant_method", ""))


# --- 6. and 7.: the weights


def _check_numbered(files: Sequence[str]) -> None:
    """Raises ModelInvalid where one of `model-00001-of-00003.safetensors` and those beside it is not there."""
    found = [match for name in files if (match := _NUMBERED.fullmatch(name))]
    for base, count in sorted({(match[1], match[3]) for match in found}):
        there = {int(match[2]) for match in found if (match[1], match[3]) == (base, count)}
        missing = [at for at in range(1, min(int(count), MAX_FILES) + 1) if at not in there]
        if missing:
            numbers = ", ".join(str(at) for at in missing[:MAX_NAMES])
            one = len(missing) == 1
            lacks = f"{'part' if one else 'parts'} {numbers} of {int(count)} {'is' if one else 'are'} missing"
            file = shown(f"{base}-{missing[0]:05}-of-{count}.safetensors")
            raise ModelInvalid(f"the weights' {lacks}, as in {file}: copy all of the model")


def _weights(folder: Path, names: set[str]) -> dict[str, Tensor]:
    index: dict[str, Any] = {}
    files = sorted(name for name in names if _PART.fullmatch(name))
    if INDEX in names:
        index = document(folder, INDEX).get("weight_map") or {}
        if not isinstance(index, dict) or not all(isinstance(value, str) for value in index.values()):
            raise ModelInvalid(f"{INDEX} is damaged: it does not say which file holds which tensor")
        files = sorted(set(index.values()))
    else:
        _check_numbered(files)
    if not files:
        raise ModelInvalid(f"the folder has no {WEIGHTS}: copy all of the model")
    found: dict[str, Tensor] = {}
    for name in files:
        _check_file(folder, name, 1 << 62)
        for tensor in read_header(folder / name):
            if tensor.name in found:
                raise ModelInvalid(f"two files hold the tensor {shown(tensor.name)}: the folder has two models in it")
            found[tensor.name] = tensor
        if len(found) > MAX_TENSORS:
            raise ModelInvalid(f"the model has more than {MAX_TENSORS:,} tensors: it is damaged or hostile")
    if index and found.keys() != index.keys():
        missing = sorted(index.keys() - found.keys())
        what = f"{shown(missing[0])} is missing" if missing else f"{INDEX} does not name all tensors"
        raise ModelInvalid(f"the files do not hold what {INDEX} says: {what}. Copy all of the model")
    return found


def _whole(config: Mapping[str, Any], names: tuple[str, ...], most: int) -> int | None:
    """The first of these keys that is there."""
    for name in names:
        value = config.get(name)
        if value is not None:
            if type(value) is not int or not 1 <= value <= most:
                raise ModelInvalid(f"{CONFIG} is damaged: {name} takes a whole number of 1 to {most}")
            return value
    return None


def _check_fit(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    text = text_part(config)
    layers = _whole(text, ("num_hidden_layers", "n_layer", "n_layers", "num_layers"), MAX_LAYERS)
    width = _whole(text, ("hidden_size", "n_embd", "d_model", "dim"), MAX_WIDTH)
    words = _whole(text, ("vocab_size",), MAX_VOCABULARY)
    there = {int(found[1]) for name in tensors if (found := _LAYER.search(name))}
    if layers and there and not set(range(layers)) <= there:
        raise ModelInvalid(f"{CONFIG} says {layers} layers, and the weights have {len(there)}: they are of two models")
    for name, tensor in tensors.items():
        if name.endswith(_EMBEDDINGS) and len(tensor.shape) == 2 and "vision" not in name and width and words:
            # more rows than words: what is made of it would be refused once it is whole
            if tensor.shape != (words, width):
                raise ModelInvalid(
                    f"{CONFIG} says {words} tokens of {width} numbers, and {shown(name)} has {tensor.shape[0]} of "
                    f"{tensor.shape[1]}: they are of two models"
                )
            return


def _converted(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> int:
    """About: 16 bits a weight, 32 for what has one dimension."""
    told = _quantization(config).get("bits")
    bits = told if type(told) is int and 1 <= told <= 8 else 4
    count = 0
    for name, tensor in tensors.items():
        if name.endswith((".g_idx", ".qzeros")) or (name.endswith(".scales") and _method(config) == packing.GPTQ):
            continue
        packed = tensor.type in ("I32", "U8") and len(tensor.shape) > 1
        numbers = tensor.nbytes * 8 // bits if packed else math.prod(tensor.shape)
        count += numbers * (4 if len(tensor.shape) < 2 else 2)
    return count


# --- the child


if __name__ == "__main__":
    verdict(lambda _: {"checkpoint": asdict(read(sys.argv[1]))}, "read this folder")
