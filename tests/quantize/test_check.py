"""The GGUF checker against good, broken and hostile files. The kinds are those of llama.cpp's test-gguf, and more."""

import ctypes
import math
import random
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gguf_writer import (
    ARR,
    BOOL,
    CODES,
    F32,
    F64,
    I32,
    STR,
    U8,
    U16,
    U32,
    U64,
    File,
    text,
    tiny,
    tiny_bytes,
    value,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmd.daemon.errors import ModelInvalid
from llmd.quantize import header
from llmd.quantize.architectures import KNOWN
from llmd.quantize.check import check_model, describe
from llmd.quantize.header import read_header
from llmd.quantize.shape import shape_of


def judge(path: Path) -> None:
    check_model(read_header(path))


# --- what is good


def test_a_good_file(tmp_path: Path) -> None:
    path = tmp_path / "good.gguf"
    path.write_bytes(tiny_bytes())
    header = read_header(path)
    check_model(header)
    assert (header.version, header.alignment, header.file_size) == (3, 32, path.stat().st_size)
    assert header.metadata["tokenizer.ggml.tokens"].values[-1] == "a"
    assert header.tensors[0].shape == (32, 260) and header.tensors[0].nbytes == 32 * 260 * 4
    assert describe(header) == {
        "architecture": "llama", "name": "tiny 0", "parameters": sum(math.prod(t.shape) for t in header.tensors),
        "file_type": "F32", "context_length": 64, "embedding_length": 32, "block_count": 1, "vocab": 260,
        "chat_template": False, "size": path.stat().st_size, "generation": {}, "shape": shape_of(header).to_dict(),
    }  # fmt: skip


GOOD: dict[str, Callable[[File], None]] = {
    "version 2": lambda f: setattr(f, "version", 2),
    "every scalar type": lambda f: f.keys.update({f"x.{k}": (k, 1) for k in CODES}),
    "every array type": lambda f: f.keys.update({f"x.{k}": (ARR, (k, [1, 0])) for k in CODES}),
    "an empty array": lambda f: f.keys.update({"x": (ARR, (STR, []))}),
    "heads for each block": lambda f: f.keys.update({"llama.attention.head_count_kv": (ARR, (I32, [2]))}),
    "every tensor type": lambda f: f.tensors.update({f"t{k}": ((512, 3), k) for k in header.TENSOR_TYPES}),
    "four dimensions": lambda f: f.tensors.update({"t": ((2, 3, 4, 5), 0)}),
    "unsigned count": lambda f: f.keys.update({"llama.block_count": (U64, 1)}),
    "the longest tensor name": lambda f: f.tensors.update({"n" * 63: ((1,), 0)}),
}


@pytest.mark.parametrize("name", GOOD)
def test_good_kinds(tmp_path: Path, name: str) -> None:
    file = tiny()
    GOOD[name](file)
    (tmp_path / "x.gguf").write_bytes(file.bytes())
    judge(tmp_path / "x.gguf")
    header = read_header(tmp_path / "x.gguf")
    assert {t.name: t.shape for t in header.tensors} == {name: shape for name, (shape, _) in file.tensors.items()}
    assert header.metadata.keys() == file.keys.keys()


def test_a_models_own_defaults_of_generation(tmp_path: Path) -> None:
    file = tiny()
    file.keys |= {
        "general.sampling.temp": (F32, 0.5), "general.sampling.top_k": (I32, 20), "general.sampling.top_p": (F32, 1.5),
        "general.sampling.min_p": (STR, "much"), "general.sampling.penalty_repeat": (BOOL, True),
    }  # fmt: skip
    path = tmp_path / "model.gguf"
    path.write_bytes(file.bytes())
    assert describe(read_header(path))["generation"] == {"temperature": 0.5, "top_k": 20}


def test_own_alignment(tmp_path: Path) -> None:
    for alignment in (1, 8, 64, 4096):
        file = tiny()
        file.alignment = alignment
        file.keys["general.alignment"] = (U32, alignment)
        (tmp_path / "x.gguf").write_bytes(file.bytes())
        judge(tmp_path / "x.gguf")
        header = read_header(tmp_path / "x.gguf")
        assert header.alignment == alignment and header.data_offset % alignment == 0


def test_long_arrays_are_only_counted(tmp_path: Path) -> None:
    file = tiny()
    file.keys["x.texts"] = (ARR, (STR, ["abc", ""] * 5000))
    file.keys["x.numbers"] = (ARR, (F64, [0.0] * 5000))
    (tmp_path / "x.gguf").write_bytes(file.bytes())
    found = read_header(tmp_path / "x.gguf").metadata
    assert found["x.texts"] == header.Array("string", 10_000, None)
    assert found["x.numbers"] == header.Array("float64", 5000, None)


def test_the_type_table_is_the_librarys() -> None:
    import llama_cpp

    base = ctypes.CDLL(str(Path(llama_cpp.__file__).parent / "lib" / "libggml-base.so"))
    base.ggml_type_name.restype, base.ggml_blck_size.restype = ctypes.c_char_p, ctypes.c_int64
    base.ggml_type_size.restype = ctypes.c_size_t
    for kind, (name, block, width) in header.TENSOR_TYPES.items():
        there = base.ggml_type_name(kind).decode().upper(), base.ggml_blck_size(kind), base.ggml_type_size(kind)
        assert (name, block, width) == there
    assert all(base.ggml_blck_size(kind) == 0 for kind in header._REMOVED_TYPES)


# --- what is broken: a change to the good file, and what the verdict says


def keys(**changes: Any) -> Callable[[File], None]:
    return lambda f: f.keys.update({k.replace("__", "."): v for k, v in changes.items()})


def without(*names: str) -> Callable[[File], None]:
    def change(f: File) -> None:
        for name in names:
            f.keys.pop(name)

    return change


def tensor(shape: tuple[int, ...], kind: int = 0, **offset: int) -> Callable[[File], None]:
    def change(f: File) -> None:
        f.tensors["t"] = (shape, kind)
        f.offsets.update(offset)

    return change


def having(**attributes: Any) -> Callable[[File], None]:
    def change(f: File) -> None:
        for key, content in attributes.items():
            setattr(f, key, content)

    return change


def extra_key(raw: bytes) -> Callable[[File], None]:
    return lambda f: having(more_keys=raw, n_keys=len(f.keys) + 1)(f)


def extra_tensor(raw: bytes) -> Callable[[File], None]:
    return lambda f: having(more_tensors=raw, n_tensors=len(f.tensors) + 1)(f)


HUGE = 0x7FFFFFFFFFFFFFC0
ONE = struct.pack("<I1qiQ", 1, 1, 0, 0)

BROKEN: list[tuple[str, Callable[[File], None], str]] = [
    ("magic", having(magic=b"GGML"), "not a GGUF file"),
    ("version 0", having(version=0), "version 0 is not supported"),
    ("version 1", having(version=1), "version 1 is no longer supported"),
    ("version 4", having(version=4), "version 4 is not supported"),
    ("big-endian", having(version=3 << 24), "big-endian"),
    ("negative tensors", having(n_tensors=-1), "claims -1 tensors"),
    ("negative keys", having(n_keys=-1), "claims -1 keys"),
    ("tensors over the cap", having(n_tensors=100_001), "100001 tensors: at most"),
    ("more tensors than bytes", having(n_tensors=99_000), "more than the file can hold"),
    ("more keys than bytes", having(n_keys=60_000), "more than the file can hold"),
    ("one key too many", lambda f: having(n_keys=len(f.keys) + 1)(f), "."),
    ("key size", extra_key(struct.pack("<Q", 1 << 63) + b"x"), "key 14 claims 9223372036854775808 bytes"),
    ("empty key", extra_key(text("") + value(U8, 1)), "key 14 is empty"),
    ("key not UTF-8", extra_key(text(b"\xff\xfe") + value(U8, 1)), "key 14 is not UTF-8"),
    ("duplicate key", extra_key(text("general.name") + value(STR, "b")), "'general.name' is there twice"),
    ("value type", extra_key(text("x") + struct.pack("<i", 13) + bytes(8)), "unknown type 13"),
    ("negative value type", extra_key(text("x") + struct.pack("<i", -1) + bytes(8)), "unknown type -1"),
    ("element type", extra_key(text("x") + struct.pack("<iiQ", ARR, 77, 1)), "unknown element type 77"),
    ("array of arrays", extra_key(text("x") + struct.pack("<iiQ", ARR, ARR, 1) + bytes(32)), "array of arrays"),
    ("array length", extra_key(text("x") + struct.pack("<iiQ", ARR, U64, 1 << 61)), "more than the file can hold"),
    ("string array length", extra_key(text("x") + struct.pack("<iiQ", ARR, STR, 1 << 60)), "at most"),
    ("string array too long", extra_key(text("x") + struct.pack("<iiQ", ARR, STR, 1 << 20)),
     "more than the file can hold"),
    ("string in an array", extra_key(text("x") + struct.pack("<iiQQ", ARR, STR, 1, 1 << 62)),
     "claims 4611686018427387904"),
    ("string in a long array",
     extra_key(text("x") + struct.pack("<iiQ", ARR, STR, 3000) + bytes(8 * 2999) + b"\xff" * 8),
     "claims 18446744073709551615"),
    ("string past the end", extra_key(text("x") + struct.pack("<iQ", STR, 1 << 25)), "truncated: its header needs"),
    ("alignment 0", keys(general__alignment=(U32, 0)), "power of two"),
    ("alignment 13", keys(general__alignment=(U32, 13)), "power of two"),
    ("alignment 2^31", keys(general__alignment=(U32, 1 << 31)), "power of two"),
    ("alignment type", keys(general__alignment=(U64, 32)), "must be a uint32"),
    ("alignment text", keys(general__alignment=(STR, "32")), "must be a uint32"),
    ("other alignment", keys(general__alignment=(U32, 256)), "starts at byte|truncated"),
    ("tensor name length", lambda f: f.tensors.update({"n" * 64: ((1,), 0)}), "claims 64 bytes: at most 63"),
    ("tensor without a name", lambda f: f.tensors.update({"": ((1,), 0)}), "has no name"),
    ("duplicate tensor", extra_tensor(text("output_norm.weight") + ONE), "same name"),
    ("no dimensions", extra_tensor(text("t") + struct.pack("<IiQ", 0, 0, 0)), "0 dimensions"),
    ("five dimensions", tensor((1, 1, 1, 1, 1)), "5 dimensions"),
    ("2^32-1 dimensions", extra_tensor(text("t") + struct.pack("<I", (1 << 32) - 1) + bytes(64)),
     "4294967295 dimensions"),
    ("zero shape", tensor((32, 0)), "every dimension must be 1"),
    ("negative shape", tensor((-32,)), "every dimension must be 1"),
    ("shape overflow", tensor((1 << 32, 1 << 32)), "overflows"),
    ("bytes overflow", tensor((1 << 62,), 28), "overflows"),
    ("padding overflow", tensor((HUGE,), 24), "truncated"),
    ("two that overflow together", lambda f: f.tensors.update({"t": ((HUGE,), 24), "u": ((HUGE,), 24)}), "truncated"),
    ("tensor type", tensor((32,), 43), "unknown type 43"),
    ("negative tensor type", tensor((32,), -1), "unknown type -1"),
    ("removed tensor type", tensor((32,), 31), "no longer supported"),
    ("rows and blocks", tensor((33,), 2), "not a multiple of Q4_0's 32"),
    ("unaligned offset", tensor((32,), t=7), "starts at byte 7"),
    ("offset that overlaps", tensor((32,), t=0), "starts at byte 0"),
    ("offset past the end", tensor((32,), t=1 << 63), "starts at byte 9223372036854775808"),
    ("data missing", having(cut=2000), "truncated: [0-9]+ bytes expected, [0-9]+ there"),
    # the keys of a model
    ("no architecture", without("general.architecture"), "general.architecture is missing"),
    ("architecture type", keys(general__architecture=(U32, 1)), "general.architecture is missing"),
    ("architecture name", keys(general__architecture=(STR, "a\nb")), "is not a name"),
    ("other architecture", keys(general__architecture=(STR, "nonesuch")), "unknown model architecture: .nonesuch."),
    ("no tensors", lambda f: f.tensors.clear(), "vocabulary only"),
    ("adapter", keys(general__type=(STR, "adapter")), "'adapter', not a model"),
    ("part of a model", keys(split__count=(U16, 3)), "one of 3 parts of a model and not named so"),
    ("embedding model", keys(llama__attention__causal=(BOOL, False)), "cannot generate"),
    ("blocks 0", keys(llama__block_count=(U32, 0)), "block_count is 0"),
    ("blocks 2^31", keys(llama__block_count=(U32, 1 << 31)), "block_count is 2147483648"),
    ("blocks text", keys(llama__block_count=(STR, "1")), "whole number"),
    ("blocks bool", keys(llama__block_count=(BOOL, True)), "whole number"),
    ("context 0", keys(llama__context_length=(U32, 0)), "context_length is 0"),
    ("context 2^62", keys(llama__context_length=(U64, 1 << 62)), "context_length is 4611686018427387904"),
    ("no context", without("llama.context_length"), "context_length is missing"),
    ("embedding 0", keys(llama__embedding_length=(U32, 0)), "embedding_length is 0"),
    ("heads 0", keys(llama__attention__head_count=(U32, 0)), "head_count is 0"),
    ("heads huge", keys(llama__attention__head_count=(U32, 1 << 30)), "head_count is 1073741824"),
    ("kv heads 0", keys(llama__attention__head_count_kv=(U32, 0)), "head_count_kv is 0"),
    ("heads array", keys(llama__attention__head_count=(ARR, (I32, []))), "heads for each"),
    ("heads array of 0", keys(llama__attention__head_count=(ARR, (I32, [0]))), "heads for each"),
    ("heads array negative", keys(llama__attention__head_count=(ARR, (I32, [4, -1]))), "heads for each"),
    ("rope NaN", keys(llama__rope__freq_base=(F32, math.nan)), "not a finite number"),
    ("rope infinite", keys(llama__rope__scaling__factor=(F64, math.inf)), "not a finite number"),
    ("rope array", keys(llama__rope__x=(ARR, (F32, [1.0, math.nan]))), "not a finite number"),
    ("rope base 0", keys(llama__rope__freq_base=(F32, 0.0)), "more than 0"),
    ("epsilon NaN", keys(llama__attention__layer_norm_rms_epsilon=(F32, math.nan)), "not a finite number"),
    ("no tokenizer", without("tokenizer.ggml.model"), "no tokenizer"),
    ("no tokens", without("tokenizer.ggml.tokens"), "no tokenizer"),
    ("empty tokens", keys(tokenizer__ggml__tokens=(ARR, (STR, []))), "at least one"),
    ("tokens of numbers", keys(tokenizer__ggml__tokens=(ARR, (U32, [1]))), "at least one"),
    ("scores", keys(tokenizer__ggml__scores=(ARR, (F32, [1.0]))), "one entry for each token"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "says"), [b[1:] for b in BROKEN], ids=[b[0] for b in BROKEN])
def test_broken_kinds(tmp_path: Path, change: Callable[[File], None], says: str) -> None:
    file = tiny()
    change(file)
    path = tmp_path / "x.gguf"
    path.write_bytes(file.bytes())
    with pytest.raises(ModelInvalid, match=says) as caught:
        judge(path)
    assert "\n" not in caught.value.message and str(tmp_path) not in caught.value.message


def test_a_cut_at_every_place_of_the_header(tmp_path: Path) -> None:
    whole, path = tiny_bytes(), tmp_path / "x.gguf"
    for end in [*range(0, len(tiny().head()), 7), len(whole) - 129]:
        path.write_bytes(whole[:end])
        with pytest.raises(ModelInvalid):
            judge(path)


FOREIGN = [
    ("model.gguf", b"\x80\x02}q\x00", "PyTorch"),
    ("model.gguf", b"PK\x03\x04" + bytes(30), "PyTorch"),
    ("pytorch_model.bin", b"GGUF" + bytes(30), "PyTorch"),
    ("model.PT", b"", "PyTorch"),
    ("model.safetensors", b"", "safetensors"),
    ("model", struct.pack("<Q", 100) + b'{"a":1}' + bytes(100), "safetensors"),
    ("model.gguf", b"<html>", "a web page and no model"),
    ("model.gguf", b"", "empty"),
]


@pytest.mark.parametrize(("name", "content", "says"), FOREIGN)
def test_other_formats(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelInvalid, match=says):
        read_header(tmp_path / name)


# --- at random


def test_mutated_headers_get_a_verdict_fast(tmp_path: Path) -> None:
    """Random bytes and interesting numbers at random places: a verdict each time, nothing but ModelInvalid, quickly."""
    rng = random.Random(7)
    whole, head = tiny_bytes(), len(tiny().head())
    path, refused, slowest = tmp_path / "x.gguf", 0, 0.0
    numbers = [0, 1, 0xFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, HUGE, (1 << 63) - 1, 1 << 63, (1 << 64) - 1]
    for _ in range(4000):
        data = bytearray(whole)
        for _ in range(rng.randint(1, 4)):
            at, width = rng.randrange(head), rng.choice((1, 1, 4, 8))
            data[at : at + width] = (rng.choice(numbers) & ((1 << 8 * width) - 1)).to_bytes(width, "little")
        path.write_bytes(data)
        began = time.perf_counter()
        try:
            judge(path)
        except ModelInvalid:
            refused += 1
        slowest = max(slowest, time.perf_counter() - began)
    assert 1000 < refused < 4000
    assert slowest < 1.0


@settings(max_examples=300, deadline=2000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 2000), st.binary(max_size=64), st.binary(max_size=16))
def test_spliced_headers(tmp_path: Path, at: int, put: bytes, tail: bytes) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(tiny().head()[:at] + put + tail * 40)
    with pytest.raises(ModelInvalid):
        judge(path)


@pytest.mark.parametrize("arrays", [1, 1024])
def test_the_slowest_file_the_caps_allow(tmp_path: Path, arrays: int) -> None:
    path, count = tmp_path / "x.gguf", header.MAX_STRINGS // arrays
    with path.open("wb") as out:
        out.write(b"GGUF" + struct.pack("<Iqq", 3, 0, arrays))
        for i in range(arrays):
            out.write(text(f"x{i}") + struct.pack("<iiQ", ARR, STR, count) + bytes(8 * count))
    began = time.process_time()
    with pytest.raises(ModelInvalid, match="architecture"):
        judge(path)
    assert time.process_time() - began < 4.0  # on an idle core 0.6 and 1.3 s


def test_the_architectures_are_those_of_the_library() -> None:
    import llama_cpp

    library = (Path(llama_cpp.__file__).parent / "lib" / "libllama.so").read_bytes()
    # a text that another one ends with is not there twice
    assert len(KNOWN) > 100 and not [name for name in KNOWN if name.encode() + b"\0" not in library]
