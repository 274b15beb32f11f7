"""Chooses tokens for many sequences at once.

Sampling, not the GPU, is what limits a server with many streams: a vocabulary has 128,000 entries, and llama.cpp's
samplers copy and sort them for one sequence after the other, while the GPU waits. `sampling.c` finds the likeliest
`top_k` (a row of 128,256 in 35 µs, memory's speed), filters them and draws, in several threads. The filters and their
order are llama.cpp's: top-k, top-p, min-p, temperature.
"""

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llmd.daemon.engine.types import Mask, SamplingParams

# more than this many candidates are left to llama.cpp's own samplers
MAX_TOP_K = 256

Floats = np.ndarray[Any, np.dtype[np.float32]]
Doubles = np.ndarray[Any, np.dtype[np.float64]]
Ints = np.ndarray[Any, np.dtype[np.int64]]

# a slot's parameters and random state, as `sampling.c` has them
STATE = [("top_k", "i8"), ("top_p", "f8"), ("min_p", "f8"), ("temperature", "f8"), ("seed", "u8"), ("drawn", "u8")]

_lib = ctypes.CDLL(str(Path(__file__).with_name("_sampling.abi3.so")))
_pointer, _number = ctypes.c_void_p, ctypes.c_int64
_lib.llmd_open.argtypes, _lib.llmd_open.restype = [_number], _pointer
_lib.llmd_close.argtypes, _lib.llmd_close.restype = [_pointer], None
_lib.llmd_use.argtypes, _lib.llmd_use.restype = [_pointer, _number], None
_lib.llmd_choose.argtypes = [_pointer, _pointer, _number, _pointer, _pointer, _number, _pointer, _pointer]
_lib.llmd_likeliest.argtypes = [_pointer, _pointer, _number, _pointer, _number, _number, _pointer, _pointer, _pointer]
_lib.llmd_forbid.argtypes = [_pointer, _pointer, _number, _pointer, _pointer, _number]


def is_simple(params: SamplingParams) -> bool:
    """Whether `Sampling` can choose for these: no logit is changed before the likeliest are taken."""
    changed = params.logit_bias or params.repeat_penalty != 1.0 or params.presence_penalty or params.frequency_penalty
    return not changed and (params.temperature <= 0 or 0 < params.top_k <= MAX_TOP_K)


class Sampling:
    """The parameters and random states of `slots` sequences, and `threads` to look at logits with at most, the caller's
    among them. One thread uses it. `logits` below is where 32-bit floats lie, `size` of them a row."""

    def __init__(self, slots: int, threads: int = 1) -> None:
        self._states = np.zeros(slots, STATE)
        self.threads = threads  # that are used
        self._pool = _lib.llmd_open(threads - 1)
        if not self._pool:
            raise MemoryError

    def use(self, threads: int) -> None:
        """Look with so many from now on."""
        self.threads = threads
        _lib.llmd_use(self._pool, threads - 1)

    def start(self, slot: int, params: SamplingParams, seed: int) -> None:
        """A sequence enters a slot. The same `seed` (64 bits) gives the same random numbers, whatever else is
        sampled."""
        greedy = params.temperature <= 0
        filters = (1, 1.0, 0.0, 1.0) if greedy else (params.top_k, params.top_p, params.min_p, params.temperature)
        self._states[slot] = (*filters, seed & (1 << 64) - 1, 0)

    def state(self, slot: int) -> Any:
        """As its sequence has it, to go on with in any slot."""
        return self._states[slot].copy()

    def resume(self, slot: int, state: Any) -> None:
        self._states[slot] = state

    def choose(self, logits: int, size: int, rows: Sequence[int], slots: Sequence[int]) -> list[int]:
        """The next token of each slot from its row; 0 where a row holds no number."""
        at, of, tokens = np.array(rows, np.int64), np.array(slots, np.int64), np.empty(len(rows), np.int64)
        self._done(
            _lib.llmd_choose(
                self._pool, logits, size, at.ctypes.data, of.ctypes.data, len(at), self._states.ctypes.data,
                tokens.ctypes.data,
            )
        )  # fmt: skip
        return tokens.tolist()

    def likeliest(self, logits: int, size: int, rows: Sequence[int], count: int) -> tuple[Ints, Floats, Doubles]:
        """The `count` greatest entries of some rows, greatest first, of equals the first: indices and values, shape
        (len(rows), count), where there are fewer numbers 0 and minus infinity; and the logarithm of the sum of all
        exponentials of each row, which a logit is less by than its log-probability."""
        at = np.array(rows, np.int64)
        ids, values = np.empty((len(at), count), np.int64), np.empty((len(at), count), np.float32)
        norms = np.empty(len(at))
        self._done(
            _lib.llmd_likeliest(
                self._pool, logits, size, at.ctypes.data, len(at), count, ids.ctypes.data, values.ctypes.data,
                norms.ctypes.data,
            )
        )  # fmt: skip
        return ids, values, norms

    def forbid(self, logits: int, size: int, rows: Sequence[int], masks: Sequence[Mask]) -> None:
        """Take the tokens without a bit in its mask out of each row, in place."""
        words = [np.ascontiguousarray(mask, np.uint32) for mask in masks]
        at = np.array(rows, np.int64)
        addresses = np.array([mask.ctypes.data for mask in words], np.uint64)
        self._done(_lib.llmd_forbid(self._pool, logits, size, at.ctypes.data, addresses.ctypes.data, len(at)))

    def close(self) -> None:
        """End the threads. It cannot be used after."""
        _lib.llmd_close(self._pool)

    def _done(self, status: int) -> None:
        if status:
            raise MemoryError
