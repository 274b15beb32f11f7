"""Headers of safetensors files that lie: each is refused, in words, before anything of the data is read."""

import json
import struct
from pathlib import Path
from typing import Any

import pytest
from hf_folder import entries, file_of, packed
from hypothesis import given
from hypothesis import strategies as st

from llmd.daemon.errors import ModelInvalid
from llmd.quantize.checkpoints.safetensors import read_header

TWO = {"a": ("F16", (2, 3)), "b": ("F32", (4,))}


def write(folder: Path, data: bytes) -> Path:
    path = folder / "model.safetensors"
    path.write_bytes(data)
    return path


def test_what_a_file_holds(tmp_path: Path) -> None:
    path = write(tmp_path, packed({**entries(TWO), "__metadata__": {"format": "pt"}}, bytes(28)))
    tensors = read_header(path)
    data = path.stat().st_size - 28
    assert [(t.name, t.type, t.shape, t.begin, t.nbytes) for t in tensors] == [
        ("a", "F16", (2, 3), data, 12), ("b", "F32", (4,), data + 12, 16),
    ]  # fmt: skip


def test_an_empty_tensor_and_a_number(tmp_path: Path) -> None:
    path = write(tmp_path, file_of({"none": ("F16", (0, 3)), "one": ("F32", ())}))
    assert [(t.name, t.nbytes) for t in read_header(path)] == [("none", 0), ("one", 4)]


def changed(name: str, **told: Any) -> dict[str, Any]:
    header = entries(TWO)
    header[name] = {**header[name], **told}
    return header


LIES = {
    "its header does not end within it": [
        b"", b"\x00" * 7, struct.pack("<Q", 1 << 63) + b"{}", struct.pack("<Q", 3) + b"{}", struct.pack("<Q", 0),
        struct.pack("<Q", 100_000_001) + b"{}" * 10,
    ],
    "its header is not JSON": [packed(b"[" * 200_000, b""), packed(b"{not", b""), packed(b'{"a": NaN}', b"")],
    "its header is not a list of tensors": [packed([], b""), packed("x", b"")],
    "names something twice": [packed(b'{"a": {}, "a": {}}', b"")],
    "has no type, shape and place": [packed({"a": []}, b"")],
    "which is not known": [packed(changed("a", dtype="F7"), bytes(28)), packed(changed("a", dtype=[1]), bytes(28))],
    "has no shape": [
        packed(changed("a", shape=s), bytes(28))
        for s in (None, 6, [-2, -3], [2.0, 3], [True, 6], ["2"], [1] * 9, [1 << 63])
    ],
    "has no place": [
        packed(changed("a", data_offsets=p), bytes(28))
        for p in (None, [0], [12, 0], [-12, 0], [0, 6, 12], [0, 1 << 63])
    ],
    "its shape needs": [
        packed(changed("a", shape=[2, 4]), bytes(28)), packed(changed("a", shape=[1 << 60, 1 << 60]), bytes(28)),
        packed(changed("b", data_offsets=[12, 29]), bytes(29)),
    ],
    "overlaps the one before it": [packed(changed("b", data_offsets=[8, 24]), bytes(28))],
    "leaves a hole before it": [packed(changed("b", data_offsets=[16, 32]), bytes(32))],
    "is cut off": [packed(entries(TWO), bytes(27)), packed(entries(TWO), b"")],
    "has bytes behind its last tensor": [packed(entries(TWO), bytes(29))],
}  # fmt: skip


@pytest.mark.parametrize(("words", "data"), [(words, data) for words, files in LIES.items() for data in files])
def test_a_lie_is_refused(tmp_path: Path, words: str, data: bytes) -> None:
    with pytest.raises(ModelInvalid, match=words):
        read_header(write(tmp_path, data))


@given(st.binary(max_size=200), st.integers(0, 300))
def test_any_bytes_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, noise: bytes, at: int) -> None:
    whole = bytearray(file_of(TWO))
    whole[at : at + len(noise)] = noise
    try:
        tensors = read_header(write(tmp_path_factory.getbasetemp(), bytes(whole)))
    except ModelInvalid:
        return
    assert sum(t.nbytes for t in tensors) <= len(whole)


def test_a_name_is_shown_short(tmp_path: Path) -> None:
    header = json.loads(json.dumps(entries({"x" * 500: ("F16", (2,))})))
    with pytest.raises(ModelInvalid) as refused:
        read_header(write(tmp_path, packed(header, b"")))
    assert len(refused.value.message) < 300
