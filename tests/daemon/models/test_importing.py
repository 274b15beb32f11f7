"""Hugging Face folders become models, whole or not at all: as a job, in children that reach nothing else."""

import asyncio
import json
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hf_folder import LLAMA, Folder, cached
from torch_folders import needs_torch

from llmd.daemon.errors import BadRequest, Conflict, LlmdError, ModelInvalid, NoSpace, Unavailable
from llmd.daemon.models import importing
from llmd.daemon.models.files import ModelStore
from llmd.daemon.models.importing import Imported, Importer, Importing
from llmd.daemon.models.making import Maker
from llmd.daemon.state.records import Info, Proof
from llmd.daemon.state.store import StateThread, Store


class Place:
    def __init__(self, folder: Path) -> None:
        self.folder, self.state = folder, StateThread()
        self.store = Store(folder / "state.db")
        self.models = ModelStore(folder / "models", self.store, self.state)
        self.importer = Importer(self.models, Maker(self.models, self.state, lambda: 2), self.state, lambda: 2)
        self.told: list[tuple[int, int, str]] = []

    async def job(self, path: Path, name: str | None = None) -> tuple[str, Importing]:
        return await self.importer.asked(str(path), name)

    async def run(self, path: Path, name: str | None = None) -> Imported:
        return await self.importer.make(*await self.job(path, name), lambda *told: self.told.append(told))

    def left(self) -> list[Path]:
        models = self.folder / "models"
        return [p for p in models.iterdir() if p.name != "staging"] + list((models / "staging").iterdir())


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    place = Place(tmp_path)
    yield place
    place.state.close()
    place.store.close()


@pytest.fixture
def converter(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if there were one."""
    monkeypatch.setattr(importing, "INTERPRETERS", (Path("/bin/true"),))


async def test_without_the_package_the_error_names_it(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importing, "INTERPRETERS", (tmp_path / "nothing",))
    with pytest.raises(Unavailable, match="package llmd-torch, which is not installed.*convert_hf_to_gguf.py"):
        await place.job(Folder().write(tmp_path / "model"))


@pytest.mark.usefixtures("converter")
async def test_what_a_job_is_asked(place: Place, tmp_path: Path) -> None:
    folder = Folder().write(tmp_path / "Some Model_v1.5")
    name, asked = await place.job(folder)
    assert (name, asked.path, asked.architecture) == ("some-model_v1.5", str(folder), "LlamaForCausalLM")
    assert (await place.job(folder, "other"))[0] == "other"


@pytest.mark.usefixtures("converter")
@pytest.mark.parametrize(
    ("error", "words", "folder", "name"),
    [
        (BadRequest, "there is no folder", "nothing", None),
        (BadRequest, "there is no folder", "model/config.json", None),
        (BadRequest, "cannot be opened", "a\0b", None), (BadRequest, "a model's name has", "model", "No Name"),
        (BadRequest, "unlike this folder: give it one, as in --name modele", "modèle", None),
        (BadRequest, "named after its content", "0123456789abcdef0123456789abcdef01234567", None),
        (Conflict, "the name taken belongs to another model", "model", "taken"),
    ],
)  # fmt: skip
async def test_what_cannot_be_a_job(
    place: Place, tmp_path: Path, error: type[LlmdError], words: str, folder: str, name: str | None
) -> None:
    place.store.add_model("taken", "0" * 64, 1, "elsewhere", Info())
    for made in ("model", "modèle", "0123456789abcdef0123456789abcdef01234567"):
        Folder().write(tmp_path / made)
    with pytest.raises(error, match=words):
        await place.job(tmp_path / folder, name)


@pytest.mark.usefixtures("converter")
async def test_a_folder_that_is_no_model_is_refused_before_there_is_a_job(place: Place, tmp_path: Path) -> None:
    folder = Folder(config={**LLAMA, "auto_map": {}}).write(tmp_path / "model")
    with pytest.raises(ModelInvalid, match="auto_map"):
        await place.job(folder)


@pytest.mark.usefixtures("converter")
async def test_a_disk_without_room(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, 300 << 20))
    with pytest.raises(NoSpace, match="needs 269 MB and 67 MB to spare, the disk has 315 MB"):
        await place.job(Folder().write(tmp_path / "model"))


PROBE = """
import json, os, socket, sys
folder, out = sys.argv[2:4]
def reached(work):
    try:
        work()
        return True
    except OSError:
        return False
found = {
    "its folder": reached(lambda: open(folder + "/config.json").read()),
    "the stage": reached(lambda: open(out, "w").write("x")),
    "the folder, to write": reached(lambda: open(folder + "/config.json", "a")),
    "the state": reached(lambda: open(STATE).read()), "other models": reached(lambda: os.listdir(MODELS)),
    "a socket": reached(lambda: socket.socket()),
}
print(json.dumps({"ok": False, "code": "model_invalid", "message": ", ".join(k for k, yes in found.items() if yes)}))
"""


@pytest.mark.parametrize("cache", [False, True])
async def test_the_child_that_converts_reaches_its_folder_and_the_stage(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: bool
) -> None:
    folder = Folder().write(tmp_path / "model")
    folder = cached(folder) if cache else folder
    names = f"STATE, MODELS = {str(tmp_path / 'state.db')!r}, {str(tmp_path / 'models')!r}\n"
    (folder / "program.py").write_text(names + PROBE)
    python = tmp_path / "python"  # has another program in the place of the converter, under the same terms
    python.write_text(
        f'#!/bin/sh\nexport PYTHONPATH={folder}\nexec {sys.executable} "$1" "$2" "$3" program "$5" "$6" "$7"\n'
    )
    python.chmod(0o755)
    monkeypatch.setattr(importing, "INTERPRETERS", (python,))
    with pytest.raises(ModelInvalid) as said:
        await place.run(folder)
    assert said.value.message == "its folder, the stage"


# --- converted


slow = pytest.mark.slow


@slow
@needs_torch
async def test_a_folder_becomes_a_model(place: Place, folders: Path) -> None:
    done = await place.run(folders / "llama-spm")
    model = place.store.model("llama-spm")
    assert done.digest == model.digest and model.info.file_type == "BF16" and model.info.tried
    assert model.info.proof == done.proof and 0 < (done.proof.difference or 0) < 0.01
    assert model.info.converted and model.info.converted.of == "LlamaForCausalLM"
    assert await place.models.verify(place.models.own_form("llama-spm"))
    done_bytes = [d for d, total, _ in place.told if total]
    assert done_bytes == sorted(done_bytes) and done_bytes[-1] == place.told[-1][1]
    assert any(line.startswith("differs from the original's first 96 logits by 0.") for _, _, line in place.told)
    assert [p.name for p in place.left()] == [model.digest]
    assert {p.name for p in place.left()[0].iterdir()} == {"model.gguf"}


@slow
@needs_torch
async def test_a_model_is_converted_where_the_cache_of_hugging_face_has_it(place: Place, folders: Path) -> None:
    folder = cached(shutil.copytree(folders / "llama-spm", place.folder / "source" / "Llama-SPM"))
    done = await place.run(folder)
    assert done.model == "llama-spm" and 0 < (done.proof.difference or 0) < 0.01


@slow
@needs_torch
async def test_what_cannot_be_held_against_its_original_says_so(place: Place, folders: Path) -> None:
    folder = shutil.copytree(folders / "llama-spm", place.folder / "source" / "packed")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "fp8"}}))
    done = await place.run(folder)
    assert done.proof == Proof(unproven="weights that are packed as fp8 are not unpacked here")
    model = place.store.model("packed")
    assert model.info.tried is True and model.info.converted and model.info.converted.method == "fp8"


def nan(folder: Path) -> None:
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-4:-2] = b"\xc0\x7f"
    path.write_bytes(data)


def strange_tokens(folder: Path) -> None:
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["pre_tokenizer"] = {
        "type": "ByteLevel",
        "add_prefix_space": True,
        "trim_offsets": True,
        "use_regex": False,
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))


def another_group(folder: Path) -> None:
    """A g_idx that points behind its groups."""
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    begin, _ = header["model.layers.0.mlp.down_proj.g_idx"]["data_offsets"]
    data[8 + length + begin : 8 + length + begin + 4] = (1000).to_bytes(4, "little")
    path.write_bytes(data)


FAULTS = [
    ("llama-spm", nan, "holds numbers that are none .NaN."),
    ("llama-bpe", strange_tokens, "its tokenizer cannot be converted: llama.cpp knows each BPE tokenizer by"),
    ("gptq", another_group, "cannot be converted: index 1000 is out of bounds"),
    ("gemma3-odd", None, "does not compute what the original does: its first 96 logits differ by .. %"),
]


@slow
@needs_torch
@pytest.mark.parametrize(("name", "change", "words"), FAULTS, ids=["nan", "tokenizer", "g_idx", "scale"])
async def test_what_is_wrong_leaves_nothing(place: Place, folders: Path, name: str, change: Any, words: str) -> None:
    folder = shutil.copytree(folders / name, place.folder / "source" / name)
    if change:
        change(folder)
    with pytest.raises(ModelInvalid, match=words) as refused:
        await place.run(folder)
    assert str(place.folder) not in refused.value.message and not place.left() and not place.store.models()


@slow
@needs_torch
async def test_a_disk_that_becomes_full(folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**12, 0, 10**12))
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=20m", "none", str(small)], check=False).returncode:
        pytest.skip("needs the right to mount")
    place = Place(small)
    try:
        with pytest.raises(NoSpace, match="the disk became full while the model was converted: remove a model"):
            await place.run(folders / "llama-bpe")
        assert not place.left() and not place.store.models()
    finally:
        place.state.close()
        place.store.close()
        subprocess.run(["umount", "-l", str(small)], check=True)


@slow
@needs_torch
async def test_one_that_is_cancelled_leaves_nothing(place: Place, folders: Path) -> None:
    running = asyncio.ensure_future(place.run(folders / "llama-bpe"))
    while not any(done for done, _, _ in place.told):
        await asyncio.sleep(0.05)
        assert not running.done(), running.result()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert not place.left()
