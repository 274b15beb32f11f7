"""Chooses tokens for many sequences at once, in a few array operations.

Sampling, not the GPU, is what limits a server with many streams: a vocabulary has 128,000 entries, and llama.cpp's
samplers copy and sort them for one sequence after the other. Here the likeliest `top_k` are found without sorting: a
row is folded into 64 layers, the maximum of each column is taken, and the `top_k` best columns hold the `top_k` best
entries. The rest works on those few. The filters and their order are llama.cpp's: top-k, top-p, min-p, temperature.
"""

from typing import Any

import numpy as np

from llmd.daemon.engine.messages import SamplingParams

# more than this many candidates are left to llama.cpp's own samplers
MAX_TOP_K = 256
LAYERS = 64

Floats = np.ndarray[Any, np.dtype[np.float32]]
Ints = np.ndarray[Any, np.dtype[np.int64]]


def is_simple(params: SamplingParams) -> bool:
    """Whether `Sampling` can choose for these: no logit is changed before the likeliest are taken."""
    changed = params.logit_bias or params.repeat_penalty != 1.0 or params.presence_penalty or params.frequency_penalty
    return not changed and (params.temperature <= 0 or 0 < params.top_k <= MAX_TOP_K)


class Sampling:
    """The parameters and random states of `slots` sequences. `start` and `sample` of one slot never run at the same
    time."""

    def __init__(self, slots: int) -> None:
        self._top_k = np.ones(slots, np.int64)
        self._top_p, self._min_p = np.ones(slots), np.zeros(slots)
        self._temperature = np.zeros(slots)
        self._seed, self._drawn = np.zeros(slots, np.uint64), np.zeros(slots, np.uint64)

    def start(self, slot: int, params: SamplingParams, seed: int) -> None:
        """A sequence enters a slot. The same `seed` (64 bits) gives the same random numbers, whatever else is
        sampled."""
        greedy = params.temperature <= 0
        self._top_k[slot] = 1 if greedy else params.top_k
        self._top_p[slot], self._min_p[slot] = (1.0, 0.0) if greedy else (params.top_p, params.min_p)
        self._temperature[slot] = 1.0 if greedy else params.temperature
        self._seed[slot], self._drawn[slot] = np.uint64(seed & (1 << 64) - 1), 0

    def sample(self, logits: Floats, slots: list[int]) -> list[int]:
        """The next token of each slot; `logits` has a row a slot, shape (len(slots), vocabulary)."""
        at = np.array(slots)
        top_k = np.minimum(self._top_k[at], logits.shape[1])
        ids, found = likeliest(logits, int(top_k.max()))
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


def likeliest(logits: Floats, count: int) -> tuple[Ints, Floats]:
    """The `count` greatest entries of each row, greatest first, of equals the first: indices and values, shape (rows,
    count)."""
    rows, size = logits.shape
    if count == 1:
        best = logits.argmax(axis=1)[:, None]
        return best, np.take_along_axis(logits, best, axis=1)
    columns = size // LAYERS
    if columns <= count:
        return _greatest(np.broadcast_to(np.arange(size), logits.shape), logits, count)
    folded = logits[:, : columns * LAYERS].reshape(rows, LAYERS, columns).max(axis=1)
    # a column that ties with the last one taken holds nothing greater than what is taken
    best = np.argpartition(folded, columns - count, axis=1)[:, columns - count :]
    ids = (best[:, :, None] + columns * np.arange(LAYERS)).reshape(rows, -1)
    rest = np.broadcast_to(np.arange(columns * LAYERS, size), (rows, size - columns * LAYERS))
    ids = np.concatenate([ids, rest], axis=1)
    return _greatest(ids, np.take_along_axis(logits, ids, axis=1), count)


def _greatest(ids: Ints, values: Floats, count: int) -> tuple[Ints, Floats]:
    if count < values.shape[1]:
        kept = np.argpartition(values, values.shape[1] - count, axis=1)[:, values.shape[1] - count :]
        ids, values = np.take_along_axis(ids, kept, axis=1), np.take_along_axis(values, kept, axis=1)
    order = np.lexsort((ids, -values), axis=1)
    return np.take_along_axis(ids, order, axis=1), np.take_along_axis(values, order, axis=1)
