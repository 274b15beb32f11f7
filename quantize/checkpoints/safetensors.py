"""Reads the header of a safetensors file; believes no size in it. Nothing of a tensor's data is read.

A file is: 8 bytes of the header's length N, little-endian; N bytes of JSON, `{NAME: {"dtype", "shape", "data_offsets":
[BEGIN, END]}, "__metadata__": {…}}`; and the data, which the offsets count from. (huggingface/safetensors, README.)
"""

import json
import math
import os
from dataclasses import dataclass
from typing import Any

from llmd.daemon.errors import ModelInvalid

MAX_HEADER_BYTES = 100_000_000  # as the format's own reader has it
MAX_TENSORS = 1_000_000
MAX_DIMENSIONS = 8
# bytes of an element
WIDTHS = {
    "F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2, "F8_E4M3": 1,
    "F8_E5M2": 1, "F8_E8M0": 1, "I8": 1, "U8": 1, "BOOL": 1,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Tensor:
    """`begin` is where its data begin in `file`; `shape` has the last dimension last, as torch has it."""

    name: str
    type: str
    shape: tuple[int, ...]
    begin: int
    nbytes: int
    file: str


def read_header(path: str | os.PathLike[str]) -> list[Tensor]:
    """The tensors of a file, in the order of their data. Raises ModelInvalid, OSError."""
    name = os.path.basename(path)
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or not 2 <= length <= MAX_HEADER_BYTES or 8 + length > size:
            raise ModelInvalid(f"{name} is cut off or is not a safetensors file: its header does not end within it")
        text = file.read(length)
    tensors = [_tensor(name, path, key, value, 8 + length) for key, value in _entries(name, text)]
    tensors.sort(key=lambda t: (t.begin, t.nbytes))
    at = 8 + length
    for t in tensors:
        if t.begin != at:
            how = "overlaps the one before it" if t.begin < at else "leaves a hole before it"
            raise ModelInvalid(f"{name} is damaged: the tensor {shown(t.name)} {how}")
        at += t.nbytes
    if at != size:
        how = "is cut off" if at > size else "has bytes behind its last tensor"
        raise ModelInvalid(f"{name} {how}: its tensors end at byte {at:,}, the file at {size:,}. Copy it again")
    return tensors


def _entries(name: str, text: bytes) -> list[tuple[str, Any]]:
    """What the header holds, in its order, without `__metadata__`."""

    def pairs(found: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(made := dict(found)) != len(found):
            raise ModelInvalid(f"{name} is damaged: its header names something twice")
        return made

    try:
        header = json.loads(text, object_pairs_hook=pairs, parse_constant=_refuse)
    except (ValueError, RecursionError) as e:
        raise ModelInvalid(f"{name} is damaged: its header is not JSON") from e
    if not isinstance(header, dict) or len(header) > MAX_TENSORS:
        raise ModelInvalid(f"{name} is damaged: its header is not a list of tensors")
    return [(key, value) for key, value in header.items() if key != "__metadata__"]


def _refuse(constant: str) -> None:
    raise ValueError(constant)


def _tensor(file: str, path: str | os.PathLike[str], name: str, told: Any, data: int) -> Tensor:
    def damaged(why: str) -> ModelInvalid:
        return ModelInvalid(f"{file} is damaged: the tensor {shown(name)} {why}")

    if not isinstance(told, dict):
        raise damaged("has no type, shape and place")
    kind: Any = told.get("dtype")
    shape: Any = told.get("shape")
    place: Any = told.get("data_offsets")
    if not isinstance(kind, str) or kind not in WIDTHS:
        raise damaged(f"has the type {shown(str(kind))}, which is not known")
    if not _whole(shape) or len(shape) > MAX_DIMENSIONS:
        raise damaged("has no shape")
    if not _whole(place) or len(place) != 2 or place[0] > place[1]:
        raise damaged("has no place")
    nbytes = math.prod(shape) * WIDTHS[kind]
    if nbytes != place[1] - place[0]:
        raise damaged(f"has {place[1] - place[0]:,} bytes, and its shape needs {nbytes:,}")
    return Tensor(name, kind, tuple(shape), data + place[0], nbytes, os.fspath(path))


def _whole(numbers: Any) -> bool:
    return isinstance(numbers, list) and all(type(n) is int and 0 <= n < 1 << 62 for n in numbers)


def shown(name: str) -> str:
    return repr(name if len(name) <= 80 else name[:79] + "…")
