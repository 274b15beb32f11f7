"""Does a library of the engine run on this CPU? Asked in a child process, as the wrong one kills it.

    python -P -m llmd.daemon.engine.selftest           {"ok": true, "variants": {NAME: SCORE}}
    python -P -m llmd.daemon.engine.selftest NAME      {"ok": true}, or {"ok": false, "message": TEXT}

It multiplies matrices of every kind of weights that models have, one row and many at a time, and holds the products
against numpy's. `daemon/machine/cpu.py` runs it.
"""

import ctypes
import sys
from ctypes import POINTER, Structure, c_bool, c_float, c_int, c_int64, c_size_t, c_void_p
from pathlib import Path
from typing import Any

import numpy as np

from llmd.daemon.errors import Unavailable
from llmd.daemon.machine import cores
from llmd.daemon.machine.telling import Tell, verdict
from llmd.quantize import backends

# ggml's numbers, and how far a product may be off, as a share of the largest
KINDS = {"f32": (0, 1e-3), "f16": (1, 1e-2), "q4_0": (2, 0.2), "q8_0": (8, 0.02), "q4_K": (12, 0.2), "q5_K": (13, 0.1),
         "q6_K": (14, 0.05)}  # fmt: skip
WIDTH, ROWS = 512, 96
SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "ggml_new_tensor_2d": (c_void_p, [c_void_p, c_int, c_int64, c_int64]),
    "ggml_mul_mat": (c_void_p, [c_void_p, c_void_p, c_void_p]),
    "ggml_soft_max": (c_void_p, [c_void_p, c_void_p]),
    "ggml_rms_norm": (c_void_p, [c_void_p, c_void_p, c_float]),
    "ggml_new_graph": (c_void_p, [c_void_p]),
    "ggml_build_forward_expand": (None, [c_void_p, c_void_p]),
    "ggml_row_size": (c_size_t, [c_int, c_int64]),
    "ggml_quantize_chunk": (c_size_t, [c_int, POINTER(c_float), c_void_p, c_int64, c_int64, c_int64, c_void_p]),
    "ggml_backend_reg_dev_get": (c_void_p, [c_void_p, c_size_t]),
    "ggml_backend_dev_init": (c_void_p, [c_void_p, c_void_p]),
    "ggml_backend_alloc_ctx_tensors": (c_void_p, [c_void_p, c_void_p]),
    "ggml_backend_tensor_set": (None, [c_void_p, c_void_p, c_size_t, c_size_t]),
    "ggml_backend_tensor_get": (None, [c_void_p, c_void_p, c_size_t, c_size_t]),
    "ggml_backend_graph_compute": (c_int, [c_void_p, c_void_p]),
}


class Params(Structure):
    _fields_ = (("mem_size", c_size_t), ("mem_buffer", c_void_p), ("no_alloc", c_bool))


class Trial:
    """One library, loaded and ready to compute."""

    def __init__(self, where: Path, library: Path) -> None:
        self.g = g = ctypes.CDLL(str(where / "libggml-base.so.0"), ctypes.RTLD_GLOBAL)
        for name, (result, arguments) in SIGNATURES.items():
            call = getattr(g, name)
            call.restype, call.argtypes = result, arguments
        g.ggml_init.restype, g.ggml_init.argtypes = c_void_p, [Params]
        load = ctypes.CDLL(str(where / "libggml.so.0")).ggml_backend_load
        load.restype, load.argtypes = c_void_p, [ctypes.c_char_p]
        loaded = load(bytes(library))
        if not loaded:
            raise OSError("it cannot be loaded")
        self.backend = g.ggml_backend_dev_init(g.ggml_backend_reg_dev_get(loaded, 0), None)
        threads = ctypes.CDLL(str(library)).ggml_backend_cpu_set_n_threads
        threads.restype, threads.argtypes = None, [c_void_p, c_int]
        threads(self.backend, min(2, cores.available()))

    def product(self, kind: int, weights: Any, inputs: Any) -> Any:
        """Weights, as this kind packs them, times inputs; float32."""
        g, rows, count = self.g, weights.shape[0], inputs.shape[0]
        ctx = g.ggml_init(Params(1 << 20, None, True))
        a, b = g.ggml_new_tensor_2d(ctx, kind, WIDTH, rows), g.ggml_new_tensor_2d(ctx, 0, WIDTH, count)
        out = g.ggml_mul_mat(ctx, a, b)
        graph = g.ggml_new_graph(ctx)
        g.ggml_build_forward_expand(graph, out)
        # what else every model asks for: its result is not looked at
        g.ggml_build_forward_expand(graph, g.ggml_soft_max(ctx, g.ggml_rms_norm(ctx, out, 1e-5)))
        g.ggml_backend_alloc_ctx_tensors(ctx, self.backend)
        packed = np.zeros(g.ggml_row_size(kind, WIDTH) * rows, np.uint8)
        source = weights.ctypes.data_as(POINTER(c_float))
        g.ggml_quantize_chunk(kind, source, packed.ctypes.data, 0, rows, WIDTH, None)
        g.ggml_backend_tensor_set(a, packed.ctypes.data, 0, packed.nbytes)
        g.ggml_backend_tensor_set(b, inputs.ctypes.data, 0, inputs.nbytes)
        if g.ggml_backend_graph_compute(self.backend, graph):
            raise OSError("it cannot compute")
        found = np.zeros((count, rows), np.float32)
        g.ggml_backend_tensor_get(out, found.ctypes.data, 0, found.nbytes)
        return found


def fails(where: Path, library: Path) -> str:
    """Why a library is not good; "" where it is."""
    dice = np.random.default_rng(1)
    weights = dice.standard_normal((ROWS, WIDTH), np.float32)
    trial = Trial(where, library)
    for name, (kind, allowed) in KINDS.items():
        for count in (1, 3, 64):
            inputs = dice.standard_normal((count, WIDTH), np.float32)
            right = inputs @ weights.T
            wrong = np.abs(trial.product(kind, weights, inputs) - right).max() / np.abs(right).max()
            if not wrong <= allowed:
                return f"its products of {name} weights are wrong"
    return ""


def _asked(_: Tell) -> dict[str, Any]:
    where = backends.folder()
    known = backends.variants(where)
    if len(sys.argv) < 2:
        return {"variants": {name: backends.score(file) for name, file in known.items()}}
    try:
        why = fails(where, known[sys.argv[1]]) if where else "there are no libraries"
    except OSError as e:
        why = str(e)
    if why:
        raise Unavailable(why)
    return {}


if __name__ == "__main__":
    verdict(_asked, "try this library")
