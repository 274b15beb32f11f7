"""ggml's backends as loadable libraries, as the packages ship them: one for each generation of CPUs, and CUDA's.

An engine that was compiled for one machine has its CPU code built in: there is nothing to load then. Standard library
only, besides the engine itself.
"""

import ctypes
import importlib.util
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llmd.daemon.errors import Unavailable
from llmd.daemon.machine.telling import verdict

# names the CPU's library; `daemon/machine/cpu.py` finds out which one, and every child of the daemon gets it
VARIABLE = "GGML_CPU_VARIANT"
# beside CUDA's library, written where that was compiled (packaging/build_cuda.sh)
CUDA, ARCHITECTURES = "libggml-cuda.so", "libggml-cuda.architectures"


def folder() -> Path | None:
    """Where the engine's libraries are."""
    found = importlib.util.find_spec("llama_cpp")
    places = (found.submodule_search_locations if found else None) or []
    return next((Path(place, "lib") for place in places), None)


def variants(where: Path | None) -> dict[str, Path]:
    """The CPU's libraries by name."""
    found = sorted(where.glob("libggml-cpu-*.so")) if where else []
    return {file.stem.removeprefix("libggml-cpu-"): file for file in found}


def score(library: Path) -> int:
    """How well it fits this CPU, as it says itself; 0: not at all. Nothing is computed."""
    ctypes.CDLL(str(library.parent / "libggml-base.so.0"), ctypes.RTLD_GLOBAL)  # it needs that, and does not find it
    call = ctypes.CDLL(str(library)).ggml_backend_score
    call.restype = ctypes.c_int
    return int(call())


def architectures() -> tuple[str, ...]:
    """What CUDA's library has code for, as CMake names it: 90-real, 80-virtual, 120; none: it is not known."""
    where = folder()
    try:
        told = (where / ARCHITECTURES).read_text() if where else ""
    except (OSError, ValueError):
        return ()
    return tuple(one.strip() for one in told.split(";") if one.strip())


class _Feature(ctypes.Structure):
    _fields_ = (("name", ctypes.c_char_p), ("value", ctypes.c_char_p))


def asked() -> tuple[str, ...]:
    """`architectures`, as CUDA's library says itself; it needs the driver for that. Raises OSError."""
    where = folder()
    if where is None or not (where / CUDA).exists():
        return ()
    base = ctypes.CDLL(str(where / "libggml-base.so.0"), ctypes.RTLD_GLOBAL)  # it needs that, and does not find it
    made, look = ctypes.CDLL(str(where / CUDA)).ggml_backend_cuda_reg, base.ggml_backend_reg_get_proc_address
    made.restype = look.restype = ctypes.c_void_p
    look.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
    features = look(made(), b"ggml_backend_get_features")
    if not features:
        return ()
    call = ctypes.CFUNCTYPE(ctypes.POINTER(_Feature), ctypes.c_void_p)(features)
    for one in call(made()):
        if not one.name:
            break
        if one.name == b"ARCHS":  # __CUDA_ARCH_LIST__, as in 800,900: not whether there is code for later ones too
            return tuple(str(int(number) // 10) for number in one.value.decode().split(","))
    return ()


def has_code(known: Sequence[str], compute: tuple[int, int] | None) -> bool:
    """Whether a GPU of this compute capability runs what was compiled for these architectures. Machine code runs on its
    own generation, from its number on, and intermediate code (PTX) on whatever is later. (CUDA Programming Guide,
    "Application Compatibility".)"""
    return compute is None or not known or any(_runs(one, compute) for one in known)


def _runs(architecture: str, compute: tuple[int, int]) -> bool:
    found = re.fullmatch(r"(\d+)(\d)([af]?)(-real|-virtual)?", architecture)
    if not found:  # all, native: whatever that was
        return True
    at, only, kind = (int(found[1]), int(found[2])), found[3], found[4]
    if only == "a":  # what this one has and no other
        return at == compute
    later = not only and kind != "-real" and at <= compute
    return later or (kind != "-virtual" and at[0] == compute[0] and at[1] <= compute[1])


def engine() -> Any:
    """llama.cpp. Raises Unavailable where one of its libraries cannot be loaded, which says nothing of a model."""
    try:
        import llama_cpp.llama_cpp as lib  # here only: the daemon imports this file, and must not load llama.cpp
    except (ImportError, OSError, RuntimeError) as e:
        raise _broken(e) from e
    return lib


def _broken(error: Exception) -> Unavailable:
    said = re.sub(r"[^\s'\"]*/", "", str(error))  # without its folders
    return Unavailable(f"a library of the engine cannot be loaded: {said}; install llmd, or the GPU's driver, again")


def load(*, gpus: bool) -> None:
    """The library that the environment names, else the one that fits best; and CUDA's, if there is one. Once a
    process, before anything else of llama.cpp. Raises Unavailable."""
    try:
        _load(gpus=gpus)
    except OSError as e:
        raise _broken(e) from e


def _load(*, gpus: bool) -> None:
    where = folder()
    known = variants(where)
    if where is None or not known:
        return
    ggml = ctypes.CDLL(str(where / "libggml.so.0"))  # the name that libllama knows it by: else it is another one
    ggml.ggml_backend_reg_count.restype = ctypes.c_size_t
    if ggml.ggml_backend_reg_count():
        return
    chosen = known.get(os.environ.get(VARIABLE, "")) or max(known.values(), key=score)
    wanted = [chosen, *([where / CUDA] if gpus else [])]
    ggml.ggml_backend_load.restype, ggml.ggml_backend_load.argtypes = ctypes.c_void_p, [ctypes.c_char_p]
    for library in (file for file in wanted if file.exists()):
        try:
            ctypes.CDLL(str(library))  # says what is missing; ggml only says that it failed
        except OSError as e:
            raise OSError(f"{library.name}: {e}") from e
        if not ggml.ggml_backend_load(os.fsencode(library)):
            raise OSError(f"{library.name} is of another version")


if __name__ == "__main__":
    verdict(lambda _: {"architectures": asked()}, "load the engine")
