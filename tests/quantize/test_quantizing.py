"""Other forms of a file: what they would take is what they take, and what goes wrong is one line."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from small_models import ATTENTION, DENSE, model, write

from llmd.quantize.header import read_header
from llmd.quantize.quantizing import STANDARD, TYPES, quantized, size_of
from llmd.quantize.shape import shape_of


def child(*arguments: str) -> list[dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "llmd.quantize.quantizing", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0 and not done.stderr, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def sizes(file: Path) -> dict[str, list[Any]]:
    *told, last = child("sizes", str(file))
    assert last == {"ok": True}
    return {one["size"][0]: one["size"][1:] for one in told}


def made(file: Path, out: Path, kind: str, *more: str) -> dict[str, Any]:
    return child("make", str(file), str(out), kind, "2", *more)[-1]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("small"), model("llama", {}, {**ATTENTION, **DENSE}, blocks=2))


def test_every_size_is_that_of_the_file(small: Path, tmp_path: Path) -> None:
    told = sizes(small)
    assert told.keys() == TYPES.keys() and set(STANDARD) < TYPES.keys()
    for kind, (count, bits, fallbacks, shape) in told.items():
        out = tmp_path / f"{kind}.gguf"
        assert made(small, out, kind) == {"ok": True}, kind
        header = read_header(out)
        assert header.file_size == count == size_of(header, {}), kind
        assert 2.0 < bits < 33 and fallbacks == 0 and shape == shape_of(header).to_dict(), kind
        assert header.metadata["general.file_type"] == TYPES[kind]


def test_a_real_model(model_file: Path, tmp_path: Path) -> None:
    """Its rows are of 576 elements, which no K-quant divides: other types stand in."""
    told = sizes(model_file)
    assert told["Q4_K_M"][2] > 100 and told["Q8_0"][2] == 0
    refused = made(model_file, tmp_path / "a", "Q8_0")
    assert refused["code"] == "invalid_request" and "quantized already (Q4_1)" in refused["message"]
    assert made(model_file, tmp_path / "b", "Q4_K_M", "again") == {"ok": True}
    assert (tmp_path / "b").stat().st_size == told["Q4_K_M"][0]
    assert quantized(read_header(tmp_path / "b"))


def test_progress_is_in_bytes_of_the_source_and_ends_with_all(small: Path, tmp_path: Path) -> None:
    lines = child("make", str(small), str(tmp_path / "q"), "Q8_0", "1")
    at = [(line["done"], line["total"]) for line in lines if "total" in line]
    total = sum(t.nbytes for t in read_header(small).tensors)
    assert at[0] == (0, total) and at[-1] == (total, total) and at == sorted(at)
    assert any("converting to q8_0" in line.get("log", "") for line in lines)


@pytest.mark.parametrize("what", ["sizes", "make"])
def test_a_damaged_file(tmp_path: Path, small: Path, what: str) -> None:
    rest = [str(tmp_path / "out"), "Q8_0", "1"] if what == "make" else []
    for data in (b"", b"GGUF", small.read_bytes()[:-5000], b"\0" * 5000):
        (tmp_path / "bad.gguf").write_bytes(data)
        said = child(what, str(tmp_path / "bad.gguf"), *rest)[-1]
        assert said["ok"] is False and said["code"] == "model_invalid" and len(said["message"]) < 300


def test_a_disk_that_is_full_is_said(small: Path, tmp_path: Path) -> None:
    said = made(small, Path("/dev/full"), "Q8_0")
    assert said["ok"] is False and said["message"]


def test_how_long_it_takes_is_measured(small: Path) -> None:
    told = {kind: child("speed", str(small), kind, "2")[-1]["seconds"] for kind in ("Q8_0", "IQ4_XS")}
    assert 0 < told["Q8_0"] < told["IQ4_XS"] < 60, "one that is searched for takes longer"
