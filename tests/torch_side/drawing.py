"""The torch engine draws as `engine/llama/sampling.c` does, token for token, and changes logits as llama.cpp's samplers
do."""

import ctypes
import math
import random
from typing import Any

import llama_cpp.llama_cpp as lib
import numpy as np
import pytest
import torch

from llmd.daemon.engine.llama.chains import Chain
from llmd.daemon.engine.llama.sampling import Sampling, is_simple
from llmd.daemon.engine.torch import sampling
from llmd.daemon.engine.torch.sampling import Drawing
from llmd.daemon.engine.types import SamplingParams

KINDS: dict[str, dict[str, Any]] = {
    "as usual": {},
    "hot": {"temperature": 2.5, "top_p": 1.0, "min_p": 0.0},
    "top-p": {"top_k": 100, "top_p": 0.6, "min_p": 0.0},
    "min-p": {"top_k": 256, "top_p": 1.0, "min_p": 0.1},
    "few": {"top_k": 3, "temperature": 1.3},
    "one": {"top_k": 1},
    "greedy": {"temperature": 0.0},
    "nothing left": {"top_p": 0.0, "min_p": 1.0},
    "cold": {"temperature": 0.01},
}


def rows(count: int, size: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, size)).astype(np.float32) * 3


@pytest.mark.parametrize("size", [2, 40, 300, 5000, 49152])
@pytest.mark.parametrize("ties", [False, True])
def test_the_same_logits_and_seed_give_the_same_token(size: int, ties: bool) -> None:
    """All kinds in one step, twenty steps."""
    kinds = [SamplingParams(1, **kind) for kind in KINDS.values() for _ in range(4)]
    assert all(map(is_simple, kinds))
    seeds = [random.Random(at).getrandbits(64) for at in range(len(kinds))]
    drawings = [Drawing(params, [1, 2], seed) for params, seed in zip(kinds, seeds, strict=True)]
    other = Sampling(len(kinds))
    for slot, (params, seed) in enumerate(zip(kinds, seeds, strict=True)):
        other.start(slot, params, seed)
    for step in range(20):
        logits = rows(len(kinds), size, seed=step)
        logits = np.round(logits) * np.float32(0.5) if ties else logits
        logits[step % len(kinds), : size // 2] = -np.inf
        logits[(step + 1) % len(kinds), size // 2 :] = np.nan
        slots = list(range(len(kinds)))
        expected = other.choose(logits.ctypes.data, size, slots, slots)
        assert sampling.choose(torch.from_numpy(logits), drawings) == expected
    other.close()


def test_a_row_without_a_number_gives_the_first_token() -> None:
    logits = torch.full((2, 50), -torch.inf)
    logits[1] = torch.nan
    for params in (SamplingParams(1), SamplingParams(1, temperature=0.0), SamplingParams(1, top_k=0)):
        assert sampling.choose(logits.clone(), [Drawing(params, [], 1), Drawing(params, [], 2)]) == [0, 0]


def test_the_likeliest_are_those_of_a_full_sort() -> None:
    logits = np.round(rows(1, 3000))[0]
    logits[[5, 6]] = 0.0, -0.0
    logits[[8, 9]] = np.nan, -np.inf
    top, chances = sampling.likeliest(torch.from_numpy(logits), 3000)
    finite = np.where(np.isfinite(logits), logits, -np.inf)
    assert top.tolist() == np.argsort(-finite, kind="stable").tolist()
    assert chances.shape == (3000,)


def test_log_probabilities_are_those_of_the_model() -> None:
    logits = torch.from_numpy(rows(1, 500)[0])
    expected = np.log(np.exp(logits.double().numpy()) / np.exp(logits.double().numpy()).sum())
    shown = sampling.logprob(7, sampling.likeliest(logits, 3))
    assert shown.logprob == pytest.approx(expected[7])
    best = np.argsort(-expected)[:3]
    assert [token for token, _ in shown.top] == best.tolist()
    assert [p for _, p in shown.top] == pytest.approx(expected[best].tolist())
    assert sampling.logprob(7, sampling.likeliest(logits, 0)).top == ()


@pytest.mark.parametrize("size", [100, 32 * 5, 5000])
def test_a_mask_forbids_what_it_does_not_name(size: int) -> None:
    logits = torch.from_numpy(rows(4, size))
    allowed = [0, 31, 32, size - 1]
    words = [sum(1 << t % 32 for t in allowed if t // 32 == word) for word in range(-(-size // 32))]
    sampling.forbid(logits, [(1, words), (3, [2**32 - 1] * len(words))])
    assert logits[1].isfinite().nonzero()[:, 0].tolist() == allowed
    assert bool(logits[[0, 2, 3]].isfinite().all())


# --- what llama.cpp's samplers do to logits


class Candidates:
    """A row as llama.cpp's samplers take it."""

    def __init__(self, logits: np.ndarray) -> None:
        self.data = (lib.llama_token_data * len(logits))(
            *(lib.llama_token_data(i, float(v), 0.0) for i, v in enumerate(logits))
        )
        self.array = lib.llama_token_data_array(self.data, len(logits), -1, False)

    def apply(self, sampler: Any) -> None:
        lib.llama_sampler_apply(sampler, ctypes.byref(self.array))

    @property
    def chosen(self) -> int:
        return int(self.array.data[self.array.selected].id)

    def chances(self) -> dict[int, float]:
        left = {self.array.data[i].id: self.array.data[i].logit for i in range(self.array.size)}
        top = max(left.values())
        weights = {token: math.exp(value - top) for token, value in left.items()}
        return {token: weight / sum(weights.values()) for token, weight in weights.items()}


CHANGES: dict[str, dict[str, Any]] = {
    "bias": {"logit_bias": ((3, 9.0), (4, -100.0), (7, 2.5))},
    "repeat": {"repeat_penalty": 1.4},
    "rewarded": {"repeat_penalty": 0.8},
    "frequency": {"frequency_penalty": 0.9},
    "presence": {"presence_penalty": 1.7},
    "all": {"logit_bias": ((3, 9.0),), "repeat_penalty": 1.2, "frequency_penalty": 0.4, "presence_penalty": -0.3},
}
PROMPT = [random.Random(4).randrange(60) for _ in range(90)]


@pytest.mark.parametrize("kind", CHANGES)
def test_greedy_texts_are_llama_cpps(kind: str) -> None:
    """200 tokens, each chosen from what the ones before have changed."""
    params = SamplingParams(1, temperature=0.0, **CHANGES[kind])
    assert not is_simple(params)
    chain, drawing = Chain(params, PROMPT, 1, 60, 512), Drawing(params, PROMPT, 1)
    said = set()
    for step in range(200):
        logits = rows(1, 60, seed=step // 3)  # the same three times
        candidates = Candidates(logits[0])
        candidates.apply(chain.address)
        lib.llama_sampler_accept(chain.address, candidates.chosen)
        assert sampling.choose(torch.from_numpy(logits), [drawing]) == [candidates.chosen], step
        said.add(candidates.chosen)
    assert len(said) > 10


@pytest.mark.parametrize(
    "more", [{}, {"top_k": 0, "top_p": 0.9}, {"top_k": 0, "top_p": 1.0, "min_p": 0.0}, {"top_k": 400}]
)
@pytest.mark.parametrize("kind", ["nothing", "all"])
def test_it_draws_as_often_as_llama_cpp_says(kind: str, more: dict[str, Any]) -> None:
    params = SamplingParams(1, **{"temperature": 1.2, **CHANGES.get(kind, {}), **more})
    draws, logits = 4000, rows(1, 600, seed=7)
    chain = Chain(params, PROMPT, 1, 600, 512)
    said = [5, 9, 5, 3, 200]
    for token in said:
        lib.llama_sampler_accept(chain.address, token)
    candidates = Candidates(logits[0])
    count = lib.llama_sampler_chain_n(chain.address)
    for at in range(count - 1):  # all but what draws
        candidates.apply(lib.llama_sampler_chain_get(chain.address, at))
    chances = candidates.chances()
    drawings = [Drawing(params, PROMPT, seed) for seed in range(draws)]
    for drawing in drawings:
        for token in said:
            drawing.accept(token)
    chosen = sampling.choose(torch.from_numpy(np.repeat(logits, draws, axis=0)), drawings)
    assert set(chosen) <= set(chances)
    for token, chance in chances.items():
        # five standard deviations, and what is rare comes in lumps
        assert abs(chosen.count(token) - draws * chance) <= 5 * math.sqrt(draws * chance * (1 - chance)) + 5


def test_the_same_seed_gives_the_same_tokens_whatever_the_company() -> None:
    logits = torch.from_numpy(rows(6, 900, seed=3))
    params = SamplingParams(1, temperature=1.5, repeat_penalty=1.1)

    def drawn(at: list[int]) -> list[list[int]]:
        drawings = [Drawing(params, PROMPT, seed) for seed in at]
        return [sampling.choose(logits[at].clone(), drawings) for _ in range(8)]

    alone = [[step[0] for step in drawn([at])] for at in range(6)]
    together = drawn(list(range(6)))
    assert [[step[at] for step in together] for at in range(6)] == alone
    assert len({tuple(one) for one in alone}) == 6
