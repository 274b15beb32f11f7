"""Which GPUs an engine has code for."""

import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from llmd.daemon.machine import children
from llmd.daemon.planning import gpu_code
from llmd.quantize import backends


@pytest.mark.parametrize(
    ("known", "runs", "does_not"),
    [
        (["90-real"], [(9, 0)], [(6, 1), (8, 0), (8, 9), (10, 0), (12, 0)]),
        (["80-real", "90-real"], [(8, 0), (8, 6), (8, 9), (9, 0)], [(7, 5), (10, 0)]),
        (["86-real"], [(8, 6), (8, 9)], [(8, 0), (9, 0)]),
        (["80-virtual"], [(8, 0), (8, 6), (9, 0), (12, 1)], [(6, 1), (7, 5)]),
        (["75", "120"], [(7, 5), (8, 0), (9, 0), (12, 0), (12, 1)], [(6, 1), (7, 0)]),
        (["90a"], [(9, 0)], [(8, 9), (10, 0)]),
        (["100f"], [(10, 0), (10, 3)], [(9, 0), (12, 0)]),
        (["all-major"], [(5, 0), (12, 1)], []),
        (["90-real", "native"], [(6, 1)], []),
        ([], [(3, 5), (12, 1)], []),
    ],
)
def test_a_card_that_there_is_code_for(
    known: Sequence[str], runs: Sequence[tuple[int, int]], does_not: Sequence[tuple[int, int]]
) -> None:
    assert backends.has_code(known, None), "a driver that does not tell keeps no card out"
    assert [one for one in (*runs, *does_not) if backends.has_code(known, one)] == [*runs]


def test_the_engine_says_what_it_was_compiled_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "folder", lambda: tmp_path)
    assert backends.architectures() == ()
    (tmp_path / "libggml-cuda.architectures").write_text("80-real; 90\n")
    assert backends.architectures() == ("80-real", "90")
    (tmp_path / "libggml-cuda.architectures").write_bytes(b"\xff")
    assert backends.architectures() == ()
    monkeypatch.setattr(backends, "folder", lambda: None)
    assert backends.architectures() == ()


# what ggml's base and a backend of CUDA's have of what is asked
BASE = """
typedef void *(*look)(const char *);
void *ggml_backend_reg_get_proc_address(void *reg, const char *name) { return ((look) reg)(name); }
"""
CUDA = """
#include <string.h>
struct feature { const char *name, *value; };
static struct feature found[] = {{"FORCE", "1"}, {"ARCHS", "%s"}, {0, 0}};
static struct feature *features(void *reg) { return found; }
static void *address(const char *name) { return strcmp(name, "ggml_backend_get_features") ? 0 : (void *) features; }
void *ggml_backend_cuda_reg(void) { return (void *) address; }
"""


def compiled(folder: Path, name: str, source: str) -> None:
    subprocess.run(
        ["gcc", "-shared", "-fPIC", "-x", "c", "-", "-o", str(folder / name)], input=source, text=True, check=True
    )


async def test_an_engine_without_that_file_is_asked_in_a_child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The child finds the engine where this test has it: by its own module of that name."""
    package = tmp_path / "llama_cpp"
    (package / "lib").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    compiled(package / "lib", "libggml-base.so.0", BASE)
    compiled(package / "lib", "libggml-cuda.so", CUDA % "800,900")
    kept = children.environment
    monkeypatch.setattr(children, "environment", lambda more: {**kept(more), "PYTHONPATH": str(tmp_path)})
    monkeypatch.setattr(backends, "folder", lambda: package / "lib")
    assert await gpu_code.known() == ("80", "90")
    compiled(package / "lib", "libggml-cuda.so", CUDA % "nothing")
    assert await gpu_code.known() == (), "an answer that is none is none"
    (package / "lib" / "libggml-cuda.so").write_bytes(b"no library")
    assert await gpu_code.known() == ()
    (package / "lib" / "libggml-cuda.architectures").write_text("90-real")
    assert await gpu_code.known() == ("90-real",)
    (package / "lib" / "libggml-cuda.so").unlink()
    (package / "lib" / "libggml-cuda.architectures").unlink()
    assert await gpu_code.known() == ()
