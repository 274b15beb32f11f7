"""The batched sampler: it finds the likeliest, filters as llama.cpp does, and each sequence's luck is its own."""

import ctypes
import math
from collections.abc import Sequence
from pathlib import Path

import llama_cpp.llama_cpp as lib
import numpy as np
import pytest

from llmd.daemon.engine.llama.sampling import Sampling, is_simple
from llmd.daemon.engine.types import SamplingParams
from llmd.daemon.wire.work import SamplingWish


def rows(count: int, size: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, size)).astype(np.float32) * 3


def likeliest(logits: np.ndarray, wanted: Sequence[int], count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    assert logits.dtype == np.float32 and logits.flags.c_contiguous
    sampling = Sampling(1)
    found = sampling.likeliest(logits.ctypes.data, logits.shape[1], wanted, count)
    sampling.close()
    return found


def sample(sampling: Sampling, logits: np.ndarray, slots: list[int]) -> list[int]:
    assert logits.dtype == np.float32 and logits.flags.c_contiguous
    return sampling.choose(logits.ctypes.data, logits.shape[1], range(len(slots)), slots)


@pytest.mark.parametrize("size", [40, 300, 2048, 5000, 49152, 128_256])
@pytest.mark.parametrize("count", [1, 2, 40, 256])
@pytest.mark.parametrize("ties", [False, True])
def test_the_likeliest_are_those_of_a_full_sort(size: int, count: int, ties: bool) -> None:
    logits = rows(5, size)
    logits = np.round(logits) if ties else logits
    count, wanted = min(count, size), [4, 0, 0, 3]
    ids, values, norms = likeliest(logits, wanted, count)
    assert norms == pytest.approx(np.log(np.exp(logits[wanted].astype(np.float64)).sum(axis=1)), abs=1e-5)
    for i, row in enumerate(wanted):
        expected = np.argsort(-logits[row], kind="stable")[:count]
        assert ids[i].tolist() == expected.tolist()
        assert values[i].tolist() == logits[row][expected].tolist()


def test_what_is_forbidden_or_not_a_number_is_not_among_them() -> None:
    logits = rows(1, 10_000)
    logits[0, :5000] = np.nan
    logits[0, 5000:] = -np.inf
    logits[0, [1000, 9000]] = 1, 2
    assert likeliest(logits, [0], 2)[0].tolist() == [[9000, 1000]]
    ids, values, _ = likeliest(logits, [0], 5)
    assert ids[0, :2].tolist() == [9000, 1000] and values[0, 2:].tolist() == [-np.inf] * 3
    logits[:] = np.nan
    assert likeliest(logits, [0], 3)[1].tolist() == [[-np.inf] * 3]


def test_a_mask_forbids_what_it_does_not_name() -> None:
    sampling = Sampling(1, threads=2)
    for size in (100, 32 * 5):
        logits = rows(9, size)
        allowed = [0, 31, 32, size - 1]
        words = [sum(1 << t % 32 for t in allowed if t // 32 == word) for word in range(-(-size // 32))]
        masks = [words, [2**32 - 1] * len(words)] * 4
        sampling.forbid(logits.ctypes.data, size, range(1, 9), masks)
        for row in (1, 3, 5, 7):
            assert np.flatnonzero(np.isfinite(logits[row])).tolist() == allowed
        assert np.isfinite(logits[[0, 2, 4, 6, 8]]).all()
    sampling.close()


def test_the_likeliest_of_the_odd_end_are_found() -> None:
    logits = np.zeros((1, 64 * 100 + 63), np.float32)
    logits[0, -1], logits[0, -63], logits[0, 0] = 3, 2, 1
    assert likeliest(logits, [0], 3)[0][0].tolist() == [logits.shape[1] - 1, logits.shape[1] - 63, 0]


def llama_candidates(logits: np.ndarray, params: SamplingParams) -> dict[int, float]:
    """The chances that llama.cpp's own samplers leave."""
    data = (lib.llama_token_data * len(logits))(*[lib.llama_token_data(i, float(v), 0.0) for i, v in enumerate(logits)])
    array = lib.llama_token_data_array(data, len(logits), -1, False)
    for sampler in (
        lib.llama_sampler_init_top_k(params.top_k), lib.llama_sampler_init_top_p(params.top_p, 1),
        lib.llama_sampler_init_min_p(params.min_p, 1), lib.llama_sampler_init_temp(params.temperature),
    ):  # fmt: skip
        lib.llama_sampler_apply(sampler, ctypes.byref(array))
        lib.llama_sampler_free(sampler)
    left = {array.data[i].id: array.data[i].logit for i in range(array.size)}
    top = max(left.values())
    weights = {token: math.exp(value - top) for token, value in left.items()}
    return {token: weight / sum(weights.values()) for token, weight in weights.items()}


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(1),
        SamplingParams(1, temperature=1.5, top_k=5, top_p=1.0, min_p=0.0),
        SamplingParams(1, temperature=0.6, top_k=100, top_p=0.7, min_p=0.0),
        SamplingParams(1, temperature=1.0, top_k=64, top_p=1.0, min_p=0.2),
        SamplingParams(1, temperature=1.0, top_k=200, top_p=0.0, min_p=0.0),
    ],
)
def test_it_chooses_as_often_as_llama_cpp_says(params: SamplingParams) -> None:
    draws, logits = 4000, rows(1, 3000, seed=7)
    chances = llama_candidates(logits[0], params)
    sampling = Sampling(draws)
    for slot in range(draws):
        sampling.start(slot, params, seed=slot)
    chosen = sample(sampling, np.repeat(logits, draws, axis=0), list(range(draws)))
    assert set(chosen) <= set(chances)
    for token, chance in chances.items():
        # five standard deviations
        assert abs(chosen.count(token) / draws - chance) <= 5 * math.sqrt(chance * (1 - chance) / draws) + 1e-9


def test_the_same_seed_gives_the_same_tokens_whatever_the_company() -> None:
    alone, together = Sampling(8), Sampling(8)
    alone.start(3, SamplingParams(1, top_k=20), seed=99)
    for slot in range(8):
        together.start(slot, SamplingParams(1, top_k=20 if slot == 3 else 7 * slot + 1), seed=99 if slot == 3 else slot)
    steps = [rows(8, 10_000, seed=step) for step in range(20)]
    first = [sample(alone, logits[3:4], [3])[0] for logits in steps]
    assert first == [sample(together, logits, list(range(8)))[3] for logits in steps]
    assert len(set(first)) > 10


@pytest.mark.parametrize("threads", [2, 5])
def test_threads_choose_what_one_chooses(threads: int) -> None:
    alone, together = Sampling(100), Sampling(100, threads)
    try:
        for slot in range(100):
            for sampling in (alone, together):
                sampling.start(slot, SamplingParams(1, top_k=1 + slot), seed=slot)
        for step in range(50):
            slots = list(range(step % 7, 100, 1 + step % 5))
            logits = rows(len(slots), 5000, seed=step)
            assert sample(alone, logits, slots) == sample(together, logits, slots)
    finally:
        alone.close()
        together.close()


def test_its_threads_end_with_it() -> None:
    def running() -> int:
        return len(list(Path("/proc/self/task").iterdir()))

    before = running()
    sampling = Sampling(4, 6)
    assert running() == before + 5
    sampling.close()
    assert running() == before


def test_a_row_without_a_number_gives_a_token_all_the_same() -> None:
    sampling = Sampling(1)
    sampling.start(0, SamplingParams(1), seed=1)
    for value in (np.nan, -np.inf):
        assert sample(sampling, np.full((1, 5000), value, np.float32), [0]) == [0]


def test_temperature_zero_takes_the_likeliest_among_others_that_do_not() -> None:
    sampling = Sampling(2)
    sampling.start(0, SamplingParams(1, temperature=0), seed=1)
    sampling.start(1, SamplingParams(1, temperature=2.0, top_k=50), seed=1)
    logits = rows(2, 9000)
    logits[0, 17] = logits[0, 4000] = 50
    assert all(sample(sampling, logits, [0, 1])[0] == 17 for _ in range(20))


def test_what_changes_logits_or_keeps_too_many_is_left_to_llama_cpp() -> None:
    assert is_simple(SamplingParams(1)) and is_simple(SamplingParams(1, temperature=0, top_k=0))
    for other in (
        SamplingParams(1, top_k=0), SamplingParams(1, top_k=100_000), SamplingParams(1, presence_penalty=0.1),
        SamplingParams(1, frequency_penalty=-0.1), SamplingParams(1, repeat_penalty=1.1),
        SamplingParams(1, logit_bias=((1, 2.0),)),
    ):  # fmt: skip
        assert not is_simple(other)


def test_what_was_not_given_is_the_models_own_or_ours() -> None:
    own = {"temperature": 0.3, "top_k": 7}
    params = SamplingParams.of(SamplingWish(5, top_k=0, stop=("x",), ignore_eos=True), own)
    assert params == SamplingParams(5, temperature=0.3, top_k=0, stop=("x",), ignore_eos=True)
    assert SamplingParams.of(SamplingWish(5, temperature=0.0, seed=3), {}) == SamplingParams(5, temperature=0.0, seed=3)
