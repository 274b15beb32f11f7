"""Hugging Face folders, judged before any library sees them."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hf_folder import LLAMA, Folder, Shapes, cached, file_of, llama_shapes
from torch_folders import needs_torch

from llmd.daemon.errors import ModelInvalid
from llmd.daemon.models.names import name_of_folder
from llmd.quantize.architectures import CHECKPOINTS, OTHERS
from llmd.quantize.checkpoints.checkpoint import blobs, parts, read

ROOT = Path(__file__).parents[3]


def config(**changes: Any) -> Folder:
    return Folder(config={**LLAMA, **changes})


def files(**named: bytes | None) -> Folder:
    return Folder(files={name.replace("__", "."): data for name, data in named.items()})


def test_a_folder_that_is_one(tmp_path: Path) -> None:
    found = read(Folder().write(tmp_path / "model"))
    weights = sum(2 * a * b for _, (a, b) in ((k, s) for k, s in llama_shapes().values() if len(s) == 2))
    assert (found.architecture, found.method, found.tensors) == ("LlamaForCausalLM", "", 20)
    assert found.bytes == weights + 5 * 64 * 2
    assert found.converted == weights + 5 * 64 * 4  # norms become float32


def test_in_several_files(tmp_path: Path) -> None:
    shapes = llama_shapes()
    halves = [dict(list(shapes.items())[:9]), dict(list(shapes.items())[9:])]
    names = [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    index = {name: file for half, file in zip(halves, names, strict=True) for name in half}
    folder = Folder(files={
        "model.safetensors": None, "model.safetensors.index.json": json.dumps({"weight_map": index}).encode(),
        **{name: file_of(half) for half, name in zip(halves, names, strict=True)},
    })  # fmt: skip
    assert read(folder.write(tmp_path / "a")).tensors == 20
    (tmp_path / "a" / names[1]).unlink()
    with pytest.raises(ModelInvalid, match=f"{names[1]} is missing.*copy all of the model"):
        read(tmp_path / "a")


def test_a_part_that_is_missing_is_named_without_an_index(tmp_path: Path) -> None:
    shapes = list(llama_shapes().items())
    parts = [dict(shapes[at::4]) for at in range(4)]
    names = [f"model-0000{n}-of-00004.safetensors" for n in (1, 2, 3, 4)]
    every = {name: file_of(part) for name, part in zip(names, parts, strict=True)}
    folder = Folder(files={"model.safetensors": None, **every}).write(tmp_path / "a")
    assert read(folder).tensors == 20
    (folder / names[1]).unlink()
    with pytest.raises(ModelInvalid, match=f"part 2 of 4 is missing, as in '{names[1]}': copy all of the model"):
        read(folder)
    (folder / names[2]).unlink()
    with pytest.raises(ModelInvalid, match=f"parts 2, 3 of 4 are missing, as in '{names[1]}'"):
        read(folder)


@pytest.mark.parametrize("inside", ["Some-Model", "snapshots/5f5f"])
def test_the_folder_around_a_model_names_the_models(tmp_path: Path, inside: str) -> None:
    Folder().write(tmp_path / inside)
    (tmp_path / "refs").mkdir()
    with pytest.raises(ModelInvalid, match=f"within this one: name that, as in …/{inside}$"):
        read(tmp_path)
    Folder().write(tmp_path / "Another-Model")
    with pytest.raises(ModelInvalid, match="has no config.json"):
        read(tmp_path)


@pytest.mark.parametrize(
    "name",
    ["model.safetensors", "config.json", "tokenizer.json", "generation_config.json", "model.safetensors.index.json"],
)
def test_what_git_lfs_did_not_fetch_is_named(tmp_path: Path, name: str) -> None:
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"5c" * 32 + b"\nsize 54545512\n"
    with pytest.raises(
        ModelInvalid, match=f"'{name}' is what Git LFS leaves in place of a file: fetch the file itself"
    ):
        read(Folder(files={name: pointer}).write(tmp_path))


NOT_A_MODEL: dict[str, Folder] = {
    "an adapter .LoRA., not a model: merge it": files(adapter_config__json=b"{}"),
    "a diffusion pipeline, which makes images": files(model_index__json=b"{}"),
    "embeddings are not served yet": files(modules__json=b"[]", config_sentence_transformers__json=b"{}"),
    "name one of them, as in …/m.gguf": files(config__json=None, m__gguf=b"GGUF"),
    "take its Hugging Face form": files(config__json=None, params__json=b"{}"),
    "no config.json": files(config__json=None),
    "pickles .*never opened: take the model's safetensors": files(model__safetensors=None, pytorch__bin=b"\x80\x02"),
    "has no weights": files(model__safetensors=None),
    "has no tokenizer": files(tokenizer__json=None),
    "config.json is damaged: it is not JSON": files(config__json=b"{"),
    "tokenizer.json is damaged: it is not JSON": files(tokenizer__json=b""),
    "vocab.json is damaged: it is not JSON": files(vocab__json=b"{", tokenizer__json=None),
    "config.json is damaged: it is not an object": files(config__json=b"[]"),
    "config.json is damaged: it is not JSON|more than": files(config__json=b"[" * 100_000),
    "config.json has more than 64 MiB": files(config__json=b" " * (65 << 20)),
    "config.json asks for code from the folder .auto_map.": config(auto_map={"AutoModel": "modeling.py"}),
    "tokenizer_config.json asks for code": files(tokenizer_config__json=b'{"auto_map": {}}'),
    "names no architecture": config(architectures=[]),
    "BertModel is an embedding model": config(architectures=["BertModel"]),
    "Qwen3Model is an embedding model": config(architectures=["Qwen3Model"]),
    "T5ForConditionalGeneration is an encoder": config(architectures=["T5ForConditionalGeneration"]),
    "is it LlamaForCausalLM.*Known: Afmoe, Apertus": config(architectures=["LamaForCausalLM"]),
    "unknown model architecture": config(architectures=["x" * 5000]),
    "quantized with 'awq', which is not read": config(quantization_config={"quant_method": "awq"}),
    "quantization_config is not an object": config(quantization_config=[1]),
    "num_hidden_layers takes a whole number": config(num_hidden_layers=1 << 40),
    "hidden_size takes a whole number": config(hidden_size=-1),
    "vocab_size takes a whole number": config(vocab_size="32"),
    "says 5 layers, and the weights have 2": config(num_hidden_layers=5),
    "says 32 tokens of 32 numbers": config(hidden_size=32),
    "says 64 tokens of 64 numbers": config(vocab_size=64),
}  # fmt: skip


@pytest.mark.parametrize(("words", "folder"), NOT_A_MODEL.items())
def test_what_is_none_is_refused_by_name(tmp_path: Path, words: str, folder: Folder) -> None:
    with pytest.raises(ModelInvalid, match=words) as refused:
        read(folder.write(tmp_path / "model"))
    assert str(tmp_path) not in refused.value.message


def link_out(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder.parent / "elsewhere")
    (folder / "model.safetensors").symlink_to(folder.parent / "elsewhere")


def link_config(folder: Path) -> None:
    (folder / "config.json").rename(folder.parent / "elsewhere")
    (folder / "config.json").symlink_to("../elsewhere")


def link_another(folder: Path) -> None:
    (folder / "README.md").symlink_to("/etc/passwd")


def index(to: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": to}}))

    return write


def a_pipe(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    import os

    os.mkfifo(folder / "tokenizer.json")


PLACES = [
    ("a link out of the folder.*cp -rL", link_out), ("a link out of the folder.*cp -rL", link_config),
    ("'README.md' is a link out of the folder", link_another),
    ("which is not in its folder", index("../../etc/passwd")), ("which is not in its folder", index("/etc/passwd")),
    ("which is not in its folder", index("..")), ("is missing or is not a plain file", index("nothing.safetensors")),
    ("is missing or is not a plain file", a_pipe), ("do not hold what", index("model.safetensors")),
]  # fmt: skip


@pytest.mark.parametrize(("words", "change"), PLACES)
def test_nothing_outside_the_folder_is_read(tmp_path: Path, words: str, change: Callable[[Path], None]) -> None:
    folder = Folder().write(tmp_path / "model")
    change(folder)
    with pytest.raises(ModelInvalid, match=words):
        read(folder)


def test_a_model_in_the_cache_of_hugging_face(tmp_path: Path) -> None:
    folder = cached(Folder().write(tmp_path / "Model"))
    assert read(folder) == read(Folder().write(tmp_path / "plain"))
    assert blobs(folder) == tmp_path / "models--some--Model" / "blobs" and blobs(tmp_path / "plain") is None
    assert name_of_folder(folder) == "model"


def _another(folder: Path) -> None:
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to("../../../blobs/" + "0" * 40)


def _by_name(folder: Path) -> None:
    (folder.parents[1] / "blobs" / "config").write_text("{}")
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to("../../blobs/config")


def _onward(folder: Path) -> None:
    blob = folder / os.readlink(folder / "config.json")
    blob.unlink()
    blob.symlink_to("/etc/passwd")


def _gone(folder: Path) -> None:
    (folder / os.readlink(folder / "config.json")).unlink()


def _elsewhere(folder: Path) -> None:
    (folder.parents[1] / "blobs").rename(folder.parents[2] / "elsewhere")
    (folder.parents[1] / "blobs").symlink_to("../elsewhere")


def _no_cache(folder: Path) -> None:
    folder.parents[1].rename(folder.parents[2] / "Model")


OUT, NOT_THERE = "is a link out of the folder", "leads to a file that the cache does not have"


def test_chat_templates_of_their_own_are_files_of_the_model(tmp_path: Path) -> None:
    folder = Folder().write(tmp_path / "Model")
    template = folder / "additional_chat_templates" / "tool_use.jinja"
    template.parent.mkdir()
    template.write_text("{{ tools }}")
    assert read(folder).tensors == 20
    template.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ModelInvalid, match="'tool_use.jinja' is what Git LFS leaves"):
        read(folder)
    template.unlink()
    template.symlink_to("/etc/passwd")
    with pytest.raises(ModelInvalid, match="'tool_use.jinja' is a link"):
        read(folder)
    template.unlink()
    for at in range(101):
        (template.parent / f"{at}.jinja").write_text("{{ tools }}")
    with pytest.raises(ModelInvalid, match="more than 100 chat templates"):
        read(folder)
    shutil.rmtree(template.parent)
    folder = cached(folder)
    template = folder / "additional_chat_templates" / "tool_use.jinja"
    template.parent.mkdir()
    blob = folder.parents[1] / "blobs" / ("ab" * 20)
    template.symlink_to(f"../../../blobs/{blob.name}")
    with pytest.raises(ModelInvalid, match=f"'tool_use.jinja' {NOT_THERE}"):
        read(folder)
    blob.write_text("{{ tools }}")
    assert read(folder).tensors == 20


@pytest.mark.parametrize(
    ("words", "change"),
    [(OUT, _another), (OUT, _by_name), (NOT_THERE, _onward), (NOT_THERE, _gone), (OUT, _elsewhere), (OUT, _no_cache)],
)
def test_no_other_link_of_a_cache_is_followed(tmp_path: Path, words: str, change: Callable[[Path], None]) -> None:
    folder = cached(Folder().write(tmp_path / "Model"))
    change(folder)
    moved = next(tmp_path.glob("*odel/snapshots/*"))
    with pytest.raises(ModelInvalid, match=f"'.*' {words}"):
        read(moved)


def test_a_link_within_the_folder(tmp_path: Path) -> None:
    folder = Folder().write(tmp_path / "model")
    (folder / "model.safetensors").rename(folder / "blob")
    (folder / "model.safetensors").symlink_to("blob")
    assert read(folder).tensors == 20


def test_two_models_in_one_folder(tmp_path: Path) -> None:
    folder = Folder(files={"model-2.safetensors": file_of(llama_shapes())}).write(tmp_path / "model")
    with pytest.raises(ModelInvalid, match="two files hold the tensor"):
        read(folder)


# --- GPTQ


def gptq_shapes(**changes: tuple[str, tuple[int, ...]]) -> Shapes:
    """q_proj of the first layer packed in 4 bits, groups of 32."""
    shapes = llama_shapes()
    base = "model.layers.0.self_attn.q_proj."
    del shapes[base + "weight"]
    parts: Shapes = {
        "qweight": ("I32", (8, 64)), "qzeros": ("I32", (2, 8)), "scales": ("F16", (2, 64)), "g_idx": ("I32", (64,)),
    }  # fmt: skip
    return shapes | {base + part: told for part, told in {**parts, **changes}.items() if told[1]}


def gptq(bits: Any = 4, group: Any = 32, **changes: tuple[str, tuple[int, ...]]) -> Folder:
    quantization = {"quant_method": "gptq", "bits": bits, "group_size": group}
    return Folder(config={**LLAMA, "quantization_config": quantization}, shapes=gptq_shapes(**changes))


def test_gptq(tmp_path: Path) -> None:
    found = read(gptq().write(tmp_path / "model"))
    assert found.method == "gptq"
    plain = read(Folder().write(tmp_path / "plain"))
    assert found.converted == plain.converted


GPTQ_FAULTS: dict[str, Folder] = {
    "GPTQ with 7 bits is not read": gptq(bits=7), "GPTQ with 3 bits is not read": gptq(bits=3),
    "GPTQ with None bits": gptq(bits=None), "GPTQ with True bits": gptq(bits=True),
    "group_size of GPTQ takes": gptq(group=0), "group_size of GPTQ takes -1": gptq(group=-2),
    "group_size of GPTQ takes -1 or": gptq(group="32"),
    "q_proj.g_idx' is missing": gptq(g_idx=("I32", ())),
    "qzeros' has the shape .2, 9.": gptq(qzeros=("I32", (2, 9))),
    "scales' has the shape .3, 64.": gptq(scales=("F16", (3, 64))),
    "g_idx' has the shape .63.": gptq(g_idx=("I32", (63,))),
    "g_idx' has the shape": gptq(g_idx=("F32", (64,))),
    "another shape than GPTQ's": gptq(qweight=("I32", (512,))),
}  # fmt: skip


@pytest.mark.parametrize(("words", "folder"), GPTQ_FAULTS.items())
def test_gptq_parts_that_do_not_fit(tmp_path: Path, words: str, folder: Folder) -> None:
    with pytest.raises(ModelInvalid, match=words):
        read(folder.write(tmp_path / "model"))


# --- packed, and not said so


def without_word(**changes: Any) -> Folder:
    """GPTQ whose configuration says nothing of it."""
    folder = gptq(**changes)
    del folder.config["quantization_config"]
    return folder


def test_gptq_is_known_by_its_tensors(tmp_path: Path) -> None:
    told = {"bits": 4, "group_size": 32, "desc_act": False, "sym": True}
    folder = without_word()
    folder.files["quantize_config.json"] = json.dumps(told).encode()
    assert read(folder.write(tmp_path / "a")).method == "gptq"
    assert read(tmp_path / "a") == read(gptq().write(tmp_path / "b"))
    assert parts(tmp_path / "a")[0]["quantization_config"] == {**told, "quant_method": "gptq"}
    folder.files["quantize_config.json"] = json.dumps({**told, "bits": 8}).encode()
    with pytest.raises(ModelInvalid, match="belongs to 8 bits in groups of 32"):
        read(folder.write(tmp_path / "c"))
    with pytest.raises(ModelInvalid, match="quantized with GPTQ, and nothing says how: copy quantize_config.json too"):
        read(without_word().write(tmp_path / "d"))


LAYER = "model.layers.0.mlp.up_proj."
PACKED: dict[str, dict[str, tuple[str, tuple[int, ...]]]] = {
    "MLX, for Apple's machines": {
        "weight": ("U32", (128, 8)), "scales": ("F16", (128, 1)), "biases": ("F16", (128, 1)),
    },
    "'awq', which is not read": {
        "qweight": ("I32", (64, 16)), "qzeros": ("I32", (2, 16)), "scales": ("F16", (2, 128)),
    },
    "with bitsandbytes, and its config.json does not say how": {
        "weight": ("U8", (4096, 1)), "weight.absmax": ("F32", (128,)), "weight.quant_map": ("F32", (16,)),
    },
    "with EXL2, and": {"q_weight": ("I32", (8, 128)), "q_perm": ("I16", (64,))},
    "with HQQ, and": {"W_q": ("U8", (64, 64))},
    "with AQLM, and": {"codes": ("I16", (128, 8, 1)), "codebooks": ("F16", (1, 256, 1, 8))},
    "with compressed-tensors, and": {"weight_packed": ("I32", (128, 8)), "weight_shape": ("I64", (2,))},
    "with FP8, and": {"weight": ("F8_E4M3", (128, 64)), "weight_scale_inv": ("F32", (1, 1))},
}  # fmt: skip


@pytest.mark.parametrize(("words", "tensors"), PACKED.items())
@pytest.mark.parametrize("config", [{}, {"quantization_config": {"bits": 4, "group_size": 64}}])
def test_what_is_packed_otherwise_is_refused_by_name(
    tmp_path: Path, words: str, tensors: dict[str, tuple[str, tuple[int, ...]]], config: dict[str, Any]
) -> None:
    shapes = {name: tensor for name, tensor in llama_shapes().items() if not name.startswith(LAYER)}
    shapes |= {LAYER + part: tensor for part, tensor in tensors.items()}
    with pytest.raises(ModelInvalid, match=words):
        read(Folder({**LLAMA, **config}, shapes).write(tmp_path))


@pytest.mark.parametrize("rows", [31, 33])
def test_embeddings_have_a_row_for_each_word(tmp_path: Path, rows: int) -> None:
    shapes = llama_shapes() | {"model.embed_tokens.weight": ("F16", (rows, 64))}
    with pytest.raises(ModelInvalid, match=f"says 32 tokens of 64 numbers, and .* has {rows} of 64"):
        read(Folder(shapes=shapes).write(tmp_path))


# --- the names, and the child


@pytest.mark.slow
@needs_torch
def test_the_names_are_the_converters() -> None:
    found = list((ROOT / ".build" / "torch" / "lib").glob("python3*/site-packages/conversion/__init__.py"))
    names = set(re.findall(r'^    "(\w+)": "\w+",$', found[0].read_text().partition("MMPROJ_MODEL_MAP")[0], re.M))
    assert names == CHECKPOINTS | OTHERS.keys()
    assert not CHECKPOINTS & OTHERS.keys()


def test_the_child_says_it_in_a_line(tmp_path: Path) -> None:
    def said(folder: Path) -> dict[str, Any]:
        command = [sys.executable, "-P", "-m", "llmd.quantize.checkpoints.checkpoint", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    assert said(Folder().write(tmp_path / "model"))["checkpoint"]["architecture"] == "LlamaForCausalLM"
    assert said(tmp_path / "nothing") == {
        "ok": False, "code": "model_invalid", "message": "the folder cannot be read: No such file or directory",
    }  # fmt: skip
