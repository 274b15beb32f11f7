"""Reads and checks the header of a GGUF file. Pure Python, no size in the file is believed, no tensor data is read.

Every count and size is held against what the file can still hold before anything is done with it, so that the time and
memory of a verdict are bounded by the caps below, whatever the bytes are. The format:
github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

import math
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from llmd.daemon.errors import ModelInvalid, cut

MIB = 1 << 20
MAX_HEADER_BYTES = 256 * MIB
MAX_STRING_BYTES = 64 * MIB
MAX_TENSORS = 100_000
MAX_KEYS = 65_536
MAX_KEY_BYTES = 1024
# walking strings is the only slow part of reading: this many take about a second; a vocabulary and its merges are half
# of it
MAX_STRINGS = 2 * MIB
# arrays up to this length are kept, longer ones only counted
KEEP_VALUES = 2048
MAX_ALIGNMENT = MIB
MAX_TENSOR_BYTES = (1 << 63) - 1
MAX_NAME_BYTES = 63

# GGUF value types: number to (name, struct code)
_SCALARS = {
    0: ("uint8", "B"), 1: ("int8", "b"), 2: ("uint16", "H"), 3: ("int16", "h"), 4: ("uint32", "I"), 5: ("int32", "i"),
    6: ("float32", "f"), 7: ("bool", "?"), 10: ("uint64", "Q"), 11: ("int64", "q"), 12: ("float64", "d"),
}  # fmt: skip
_STRING, _ARRAY, _UINT32 = 8, 9, 4
_TEMPLATE = "tokenizer.chat_template"  # and those for one purpose, `tokenizer.chat_template.tool_use`

# a text, as in 2,32000: every token that ends a text, where an llmd has made the file (`checkpoints/ends.py`)
ENDS = "llmd.eos_token_ids"

# ggml tensor types: number to (name, elements a block, bytes a block); a test holds them against the library
TENSOR_TYPES = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34), 9: ("Q8_1", 32, 36), 10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110), 12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210), 15: ("Q8_K", 256, 292), 16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98), 19: ("IQ1_S", 256, 50), 20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136), 24: ("I8", 1, 1), 25: ("I16", 1, 2), 26: ("I32", 1, 4), 27: ("I64", 1, 8),
    28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56), 30: ("BF16", 1, 2), 34: ("TQ1_0", 256, 54), 35: ("TQ2_0", 256, 66), 39: ("MXFP4", 32, 17),
    40: ("NVFP4", 64, 36), 41: ("Q1_0", 128, 18), 42: ("Q2_0", 64, 18),
}  # fmt: skip
_REMOVED_TYPES = {4, 5, 31, 32, 33, 36, 37, 38}
# what Git leaves in place of a large file that it did not fetch (github.com/git-lfs/git-lfs/blob/main/docs/spec.md)
LFS = b"version https://git-lfs"
LFS_LEFT = "what Git LFS leaves in place of a file: fetch the file itself (git lfs pull), and copy that"
_FOLDER = "name the folder that it lies in, with its config.json and tokenizer"
HEAD_BYTES = 32  # of a file, for `refuse_foreign`
_PAGE = "a web page and no model: the download asked for something else, or for a login"
_ARCHIVE = "an archive: unpack it, and name what was in it"
_OLD = "a GGML file, as llama.cpp wrote them until August 2023: take the model as GGUF"
# how a file begins that people hand over in place of one, in lower case
_FOREIGN = {
    LFS: LFS_LEFT, b"<!doctype": _PAGE, b"<html": _PAGE, b"lmgg": _OLD, b"fmgg": _OLD, b"tjgg": _OLD,
    b"\x1f\x8b": _ARCHIVE, b"bzh": _ARCHIVE, b"\xfd7zxz": _ARCHIVE, b"\x28\xb5\x2f\xfd": _ARCHIVE,
    b"7z\xbc\xaf": _ARCHIVE, b"rar!": _ARCHIVE,
}  # fmt: skip
_BESIDE_WEIGHTS = {
    "config.json", "generation_config.json", "model.safetensors.index.json", "tokenizer.json", "tokenizer_config.json",
    "tokenizer.model", "special_tokens_map.json", "vocab.json", "merges.txt",
}  # fmt: skip
_PICKLE_NAMES = {".bin", ".pt", ".pth", ".pkl", ".ckpt"}


@dataclass(frozen=True, slots=True)
class Array:
    """A metadata array: `kind` is its elements' type. `values` is None where it is longer than KEEP_VALUES."""

    kind: str
    count: int
    values: tuple[Any, ...] | None


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor. `shape` is in ggml's order, the row length first; `offset` is in bytes from the header's
    `data_offset`."""

    name: str
    shape: tuple[int, ...]
    type: str
    offset: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Header:
    """A checked header. `metadata` holds int, float, bool, str or Array; sizes and offsets are bytes."""

    version: int
    alignment: int
    metadata: dict[str, Any]
    tensors: tuple[TensorInfo, ...]
    data_offset: int
    file_size: int
    head_size: int = 0  # bytes up to the last tensor's entry


# what a file asks for where a request does not say: its key, the parameter's name, the least and the most
_GENERATION = (
    ("temp", "temperature", 0.0, 2.0), ("top_k", "top_k", 0.0, 1e6), ("top_p", "top_p", 1e-6, 1.0),
    ("min_p", "min_p", 0.0, 1.0), ("penalty_repeat", "repeat_penalty", 1e-6, 10.0),
)  # fmt: skip


def generation_defaults(value_of: Callable[[str], Any]) -> dict[str, float]:
    """A model's own defaults of generation, by the names of parameters; what is no number, or beyond its bounds, is
    left out. `value_of` gives a key's value, or None."""
    found: dict[str, float] = {}
    for key, name, least, most in _GENERATION:
        value = value_of(f"general.sampling.{key}")
        try:
            number = float(value)
        except (TypeError, ValueError):
            continue
        if not isinstance(value, bool) and least <= number <= most:
            found[name] = int(number) if name == "top_k" else number
    return found


def end_tokens(said: str | None, vocabulary: int) -> frozenset[int]:
    """What ENDS says, of a vocabulary of that many tokens; what is none of them is left out."""
    ids = (int(one) for one in (said or "").split(",") if one.isascii() and one.isdecimal() and len(one) < 10)
    return frozenset(one for one in ids if one < vocabulary)


def read_header(path: str | os.PathLike[str]) -> Header:
    """The header of a GGUF file, every size in it checked. Raises ModelInvalid with what is wrong, OSError when
    unreadable."""
    with Path(path).open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        refuse_foreign(str(path), file.read(HEAD_BYTES))
        file.seek(0)
        return _Reader(file, size).header()


def refuse_foreign(name: str, head: bytes) -> None:
    """Raise ModelInvalid for a file that is not GGUF, by its name and first bytes, and say what to do instead.

    PyTorch's files are pickles: reading one runs the code in it, so none is ever opened here.
    """
    for begin, what in _FOREIGN.items():
        if head.lower().startswith(begin):
            raise ModelInvalid(f"this is {what}")
    if os.path.basename(name) in _BESIDE_WEIGHTS:
        raise ModelInvalid(f"this is one file of a Hugging Face model: {_FOLDER}")
    suffix = Path(name).suffix.lower()
    pickle = len(head) > 1 and head[0] == 0x80 and head[1] in range(2, 6)
    if suffix in _PICKLE_NAMES or pickle or head[:4] == b"PK\x03\x04":
        raise ModelInvalid(
            "this is a PyTorch checkpoint or an archive, which could run code: convert it to GGUF or safetensors"
        )
    if head[:4] != b"GGUF" and (suffix == ".safetensors" or head[8:9] == b"{"):
        raise ModelInvalid(f"this is a safetensors file, the weights of a Hugging Face model: {_FOLDER}")


class _Reader:
    """A cursor over the header that refuses to go where the file or the caps end."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self._size, self._at, self._strings = file, size, 0, 0

    def header(self) -> Header:
        version = self._version()
        n_tensors = self._count("tensors", MAX_TENSORS, 8 + 4 + 8 + 4 + 8)
        n_keys = self._count("keys", MAX_KEYS, 8 + 1 + 4 + 1)
        metadata, kinds = self._metadata(n_keys)
        alignment = _alignment(metadata, kinds)
        raw = [self._tensor(i) for i in range(n_tensors)]
        if len({t.name for t in raw}) != len(raw):
            raise ModelInvalid("two tensors have the same name")
        data_offset = _padded(self._at, alignment) if raw else self._at
        return _laid_out(Header(version, alignment, metadata, tuple(raw), data_offset, self._size, self._at))

    # --- pieces

    def _version(self) -> int:
        if self._size == 0:
            raise ModelInvalid("the file is empty")
        magic = self._take(4)
        if magic != b"GGUF":
            raise ModelInvalid(f"this is not a GGUF file: it starts with {magic!r}, not with b'GGUF'")
        version: int = self._number("I")
        if version in (2, 3):
            return version
        if version == 1:
            raise ModelInvalid("GGUF version 1 is no longer supported: convert the model again")
        if version and version & 0xFFFF == 0:
            raise ModelInvalid("this GGUF file is big-endian: convert the model for a little-endian machine")
        raise ModelInvalid(f"GGUF version {version} is not supported: 2 and 3 are")

    def _count(self, what: str, most: int, least_bytes: int) -> int:
        count: int = self._number("q")
        if not 0 <= count <= most:
            raise ModelInvalid(f"the header claims {count} {what}: at most {most} are allowed")
        if count * least_bytes > self._size - self._at:
            raise ModelInvalid(f"the header claims {count} {what}, more than the file can hold")
        return count

    def _metadata(self, count: int) -> tuple[dict[str, Any], dict[str, int]]:
        values: dict[str, Any] = {}
        kinds: dict[str, int] = {}
        for i in range(count):
            key = self._text(f"key {i}", MAX_KEY_BYTES)
            if not key:
                raise ModelInvalid(f"key {i} is empty")
            if key in values:
                raise ModelInvalid(f"the key {cut(key)!r} is there twice")
            kinds[key] = self._number("i")
            values[key] = self._value(key, kinds[key])
        return values, kinds

    def _value(self, key: str, kind: int) -> Any:
        if kind == _STRING and key.startswith(_TEMPLATE):
            return self._text(f"the chat template {cut(key)!r}", MAX_STRING_BYTES)
        if kind == _STRING:
            return self._bytes(f"the value of {cut(key)!r}", MAX_STRING_BYTES).decode(errors="replace")
        if kind == _ARRAY:
            return self._array(key)
        if kind not in _SCALARS:
            raise ModelInvalid(f"the key {cut(key)!r} has the unknown type {kind}")
        return self._number(_SCALARS[kind][1])

    def _array(self, key: str) -> Array:
        kind, count = self._number("i"), self._number("Q")
        if kind == _ARRAY:
            raise ModelInvalid(f"the key {cut(key)!r} is an array of arrays: these are not supported")
        if kind == _STRING:
            return self._string_array(key, count)
        if kind not in _SCALARS:
            raise ModelInvalid(f"the array {cut(key)!r} has the unknown element type {kind}")
        name, code = _SCALARS[kind]
        width = struct.calcsize("<" + code)
        if count * width > self._size - self._at:
            raise ModelInvalid(f"the array {cut(key)!r} claims {count} elements, more than the file can hold")
        if count <= KEEP_VALUES:
            return Array(name, count, struct.unpack(f"<{count}{code}", self._take(count * width)))
        self._skip(count * width)
        return Array(name, count, None)

    def _string_array(self, key: str, count: int) -> Array:
        self._strings += count
        if self._strings > MAX_STRINGS:
            raise ModelInvalid(f"the array {cut(key)!r} claims {count} strings: at most {MAX_STRINGS} are allowed")
        if count * 8 > self._size - self._at:
            raise ModelInvalid(f"the array {cut(key)!r} claims {count} strings, more than the file can hold")
        what = f"a string of {cut(key)!r}"
        if count > KEEP_VALUES:
            self._skip_strings(what, count)
            return Array("string", count, None)
        texts = [self._bytes(what, MAX_STRING_BYTES).decode(errors="replace") for _ in range(count)]
        return Array("string", count, tuple(texts))

    def _skip_strings(self, what: str, count: int) -> None:
        """`_bytes` count times, three times as fast."""
        at, limit, read = self._at, min(self._size, MAX_HEADER_BYTES) - 8, self._file.read
        for _ in range(count):
            size = int.from_bytes(read(8), "little")
            if at + size > limit or size > MAX_STRING_BYTES:
                break
            read(size)
            at += 8 + size
        else:
            self._at = at
            return
        self._at = self._file.seek(at)  # the slow way names what is wrong
        self._bytes(what, MAX_STRING_BYTES)

    def _tensor(self, index: int) -> TensorInfo:
        name = self._text(f"the name of tensor {index}", MAX_NAME_BYTES)
        if not name:
            raise ModelInvalid(f"tensor {index} has no name")
        n_dims = self._number("I")
        if not 1 <= n_dims <= 4:
            raise ModelInvalid(f"the tensor {name!r} has {n_dims} dimensions: 1 to 4 are allowed")
        shape = struct.unpack(f"<{n_dims}q", self._take(8 * n_dims))
        if min(shape) < 1:
            raise ModelInvalid(f"the tensor {name!r} has the shape {shape}: every dimension must be 1 or more")
        kind = self._number("i")
        if kind in _REMOVED_TYPES:
            raise ModelInvalid(
                f"the tensor {name!r} has type {kind}, which is no longer supported: convert the model again"
            )
        if kind not in TENSOR_TYPES:
            raise ModelInvalid(f"the tensor {name!r} has the unknown type {kind}")
        type_name, block, width = TENSOR_TYPES[kind]
        if shape[0] % block:
            raise ModelInvalid(
                f"the tensor {name!r} has rows of {shape[0]} elements, not a multiple of {type_name}'s {block}"
            )
        nbytes = math.prod(shape) // block * width
        if math.prod(shape) > MAX_TENSOR_BYTES or nbytes > MAX_TENSOR_BYTES:
            raise ModelInvalid(f"the tensor {name!r} has a shape whose size overflows: {shape}")
        return TensorInfo(name, shape, type_name, self._number("Q"), nbytes)

    # --- bytes

    def _text(self, what: str, most: int) -> str:
        try:
            return self._bytes(what, most).decode()
        except UnicodeDecodeError as e:
            raise ModelInvalid(f"{what} is not UTF-8 text") from e

    def _bytes(self, what: str, most: int) -> bytes:
        size = int.from_bytes(self._take(8), "little")
        if size > most:
            raise ModelInvalid(f"{what} claims {size} bytes: at most {most} are allowed")
        return self._take(size)

    def _number(self, code: str) -> Any:
        return struct.unpack("<" + code, self._take(struct.calcsize("<" + code)))[0]

    def _take(self, count: int) -> bytes:
        self._advance(count)
        data = self._file.read(count)
        if len(data) != count:
            raise ModelInvalid("the file became shorter while it was read")
        return data

    def _skip(self, count: int) -> None:
        self._advance(count)
        self._file.seek(count, os.SEEK_CUR)

    def _advance(self, count: int) -> None:
        self._at += count
        if self._at > self._size:
            raise ModelInvalid(f"the file is truncated: its header needs {self._at} bytes or more, {self._size} there")
        if self._at > MAX_HEADER_BYTES:
            raise ModelInvalid(f"the header is larger than {MAX_HEADER_BYTES // MIB} MiB")


def _padded(size: int, alignment: int) -> int:
    return -(-size // alignment) * alignment


def _alignment(metadata: dict[str, Any], kinds: dict[str, int]) -> int:
    key = "general.alignment"
    if key not in metadata:
        return 32
    if kinds[key] != _UINT32:
        raise ModelInvalid(f"{key} must be a uint32")
    value: int = metadata[key]
    if value < 1 or value & (value - 1) or value > MAX_ALIGNMENT:
        raise ModelInvalid(f"{key} is {value}: it must be a power of two, at most {MAX_ALIGNMENT}")
    return value


def _laid_out(header: Header) -> Header:
    """Tensors follow each other without holes or overlaps, as llama.cpp wants them, and end inside the file."""
    expected = end = 0
    for t in header.tensors:
        if t.offset != expected:
            raise ModelInvalid(
                f"the tensor {t.name!r} starts at byte {t.offset} of the data: {expected} is where it has to"
            )
        end = t.offset + t.nbytes
        expected = _padded(end, header.alignment)
    if header.data_offset + end > header.file_size:
        raise ModelInvalid(
            f"the file is truncated: {header.data_offset + end} bytes expected, {header.file_size} there"
        )
    return header
