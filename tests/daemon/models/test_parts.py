"""A model in parts is one model: joined on its way in, whole or not at all."""

from pathlib import Path
from typing import Any

import pytest
from gguf_writer import U16, File
from small_models import ATTENTION, DENSE, model

from llmd.daemon.errors import LlmdError, ModelInvalid
from llmd.daemon.models.files import ModelStore
from llmd.daemon.state.store import StateThread, Store
from llmd.quantize.header import read_header
from llmd.quantize.quantizing import parts

COUNT = 3


def whole() -> File:
    return model("llama", {}, {**ATTENTION, **DENSE}, blocks=2)


def data(file: File) -> bytes:
    """Of a file whose tensors are all of zeros."""
    head = file.head()
    return head + bytes(-len(head) % 32) + bytes(file.layout()[1])


def write_parts(folder: Path, name: str = "small") -> list[Path]:
    """As llama.cpp splits: every part has the tensors that fall to it, the first one has the model's keys too."""
    written = []
    names = list(whole().tensors)
    for number in range(COUNT):
        part = whole()
        part.tensors = {n: part.tensors[n] for n in names[number::COUNT]}
        keys: dict[str, tuple[int, Any]] = part.keys if number == 0 else {}
        architecture = {"general.architecture": part.keys["general.architecture"]}
        part.keys = {**architecture, **keys, "split.no": (U16, number), "split.count": (U16, COUNT),
                     "split.tensors.count": (5, len(names))}  # fmt: skip
        path = folder / f"{name}-{number + 1:05}-of-{COUNT:05}.gguf"
        path.write_bytes(data(part))
        written.append(path)
    return written


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "models", Store(tmp_path / "state.db"), StateThread())


@pytest.mark.parametrize("named", [0, 2])
async def test_any_part_names_the_model(tmp_path: Path, store: ModelStore, named: int) -> None:
    files, seen = write_parts(tmp_path), []
    made = await store.import_file(files[named], progress=lambda done, total: seen.append((done, total)))
    assert made.name == "small" and made.info.architecture == "llama" and made.info.tried
    header = read_header(store.path("small"))
    assert {t.name: t.shape for t in header.tensors} == {n: shape for n, (shape, _) in whole().tensors.items()}
    assert "split.count" not in header.metadata and seen == sorted(seen) and seen[-1][0] == seen[-1][1]
    assert (await store.import_file(files[0])).digest == made.digest, "the same again changes nothing"
    assert await store.verify(store.own_form("small"))


async def wrong(store: ModelStore, path: Path) -> str:
    with pytest.raises(LlmdError) as caught:
        await store.import_file(path)
    assert isinstance(caught.value, ModelInvalid) and not store.list()
    assert not list((store._folder / "staging").iterdir())
    return caught.value.message


async def test_a_part_is_missing_damaged_or_another_models(tmp_path: Path, store: ModelStore) -> None:
    files = write_parts(tmp_path)
    good = files[1].read_bytes()
    files[1].unlink()
    assert "part 2 of 3 is missing: small-00002-of-00003.gguf has to lie beside" in await wrong(store, files[0])
    files[1].write_bytes(good[:-2000])
    assert "truncated" in await wrong(store, files[0])
    files[1].write_bytes(files[2].read_bytes())
    assert "is not what its name says: part 2 of 3" in await wrong(store, files[0])
    files[1].write_bytes(good)
    renamed = files[0].rename(tmp_path / "renamed.gguf")
    assert "one of 3 parts of a model and not named so" in await wrong(store, renamed)


def test_what_is_a_part() -> None:
    assert parts("/a/m.gguf") == ["/a/m.gguf"] and parts("/a/m-00001-of-00001.gguf") == ["/a/m-00001-of-00001.gguf"]
    assert parts("/a/m-00002-of-00002.gguf") == ["/a/m-00001-of-00002.gguf", "/a/m-00002-of-00002.gguf"]
