"""Chooses tokens for many sequences at once, in a few array operations.

Sampling, not the GPU, is what limits a server with many streams: a vocabulary has 128,000 entries, and llama.cpp's
samplers copy and sort them for one sequence after the other. Here the likeliest `top_k` are found in C (`top.c`: a row
of 128,256 in 35 µs, memory's speed), and the rest works on those few. The filters and their order are llama.cpp's:
top-k, top-p, min-p, temperature.
"""

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llmd.daemon.engine.messages import SamplingParams
from llmd.daemon.engine.types import Mask

# more than this many candidates are left to llama.cpp's own samplers
MAX_TOP_K = 256

Floats = np.ndarray[Any, np.dtype[np.float32]]
Ints = np.ndarray[Any, np.dtype[np.int64]]

_top = ctypes.CDLL(str(Path(__file__).with_name("_top.abi3.so"))).llmd_top
_pointer, _number = ctypes.c_void_p, ctypes.c_int64
_top.argtypes = [_pointer, _number, _pointer, _number, _number, _pointer, _pointer]


def is_simple(params: SamplingParams) -> bool:
    """Whether `Sampling` can choose for these: no logit is changed before the likeliest are taken."""
    changed = params.logit_bias or params.repeat_penalty != 1.0 or params.presence_penalty or params.frequency_penalty
    return not changed and (params.temperature <= 0 or 0 < params.top_k <= MAX_TOP_K)


class Sampling:
    """The parameters and random states of `slots` sequences. One thread uses it."""

    def __init__(self, slots: int) -> None:
        self._top_k = np.ones(slots, np.int64)
        self._top_p, self._min_p = np.ones(slots), np.zeros(slots)
        self._temperature = np.ones(slots)
        self._seed, self._drawn = np.zeros(slots, np.uint64), np.zeros(slots, np.uint64)

    def start(self, slot: int, params: SamplingParams, seed: int) -> None:
        """A sequence enters a slot. The same `seed` (64 bits) gives the same random numbers, whatever else is
        sampled."""
        greedy = params.temperature <= 0
        self._top_k[slot] = 1 if greedy else params.top_k
        self._top_p[slot], self._min_p[slot] = (1.0, 0.0) if greedy else (params.top_p, params.min_p)
        self._temperature[slot] = 1.0 if greedy else params.temperature
        self._seed[slot], self._drawn[slot] = np.uint64(seed & (1 << 64) - 1), 0

    def count(self, slots: Sequence[int]) -> int:
        """How many of the likeliest `choose` needs for these."""
        return int(self._top_k[np.array(slots)].max())

    def choose(self, ids: Ints, found: Floats, slots: Sequence[int]) -> list[int]:
        """The next token of each slot, of the likeliest in its row: ids and logits, greatest first, shape (len(slots),
        `count`)."""
        at = np.array(slots)
        top_k = self._top_k[at]
        values = found.astype(np.float64)
        values -= values[:, :1]
        out = np.arange(values.shape[1]) >= top_k[:, None]
        weights = np.where(out, 0.0, np.exp(values))
        before = np.cumsum(weights, axis=1) - weights  # of those that are likelier
        out |= before >= self._top_p[at, None] * weights.sum(axis=1, keepdims=True)
        out |= np.exp(values) < self._min_p[at, None]
        out[:, 0] = False
        chances = np.cumsum(np.where(out, 0.0, np.exp(values / self._temperature[at, None])), axis=1)
        drawn = self._random(at) * chances[:, -1]
        chosen = (chances <= drawn[:, None]).sum(axis=1)
        return [int(t) for t in ids[np.arange(len(at)), chosen]]

    def _random(self, at: Ints) -> np.ndarray[Any, np.dtype[np.float64]]:
        """A number in [0, 1) a slot: SplitMix64 (Steele, Lea, Flood 2014) of seed and count, so it depends on nothing
        else."""
        self._drawn[at] += np.uint64(1)
        z = self._seed[at] + self._drawn[at] * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
        drawn: np.ndarray[Any, np.dtype[np.float64]] = (z >> np.uint64(11)).astype(np.float64) * 2.0**-53
        return drawn


def forbid(logits: Floats, mask: Mask) -> None:
    """Take the tokens without a bit in `mask` out of a row, in place."""
    words = np.asarray(mask, np.uint32).astype("<u4").view(np.uint8)
    allowed = np.unpackbits(words, bitorder="little")[: len(logits)].astype(bool)
    logits[: len(allowed)][~allowed] = -np.inf
    logits[len(allowed) :] = -np.inf


def likeliest(logits: int, size: int, rows: Sequence[int], count: int) -> tuple[Ints, Floats]:
    """The `count` greatest entries of some rows, greatest first, of equals the first: indices and values, shape
    (len(rows), count). `logits`: where 32-bit floats lie, `size` a row. The interpreter is left alone meanwhile:
    threads do several at a time. Where there are fewer numbers than `count`, the rest is minus infinity."""
    wanted = np.array(rows, np.int64)
    ids, values = np.empty((len(wanted), count), np.int64), np.empty((len(wanted), count), np.float32)
    if _top(logits, size, wanted.ctypes.data, len(wanted), count, ids.ctypes.data, values.ctypes.data):
        raise MemoryError
    return ids, values
