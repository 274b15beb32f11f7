"""Chooses tokens for many sequences at once, by the rule of `engine/llama/sampling.c`: the same logits and seed give
the same token. First what changes logits, in the order of `engine/llama/chains.py`: bias, `repeat_penalty`, then the
penalties on what was said; then top-k, top-p, min-p, temperature.
"""

from collections import Counter, deque
from collections.abc import Iterable, Sequence

import torch

from llmd.daemon.engine.types import Logprob, Mask, SamplingParams

# penalties look back this far for `repeat_penalty`, as llama.cpp's own default does
REPEAT_WINDOW = 64
# who leaves more candidates than this has its whole row sorted
FEW = 256


class Drawing:
    """How one sequence's tokens are drawn: its parameters, its luck and what it has said."""

    __slots__ = ("drawn", "params", "recent", "said", "seed")

    def __init__(self, params: SamplingParams, prompt: Sequence[int], seed: int) -> None:
        self.params, self.seed, self.drawn = params, seed & (1 << 64) - 1, 0
        self.recent = deque(prompt[-REPEAT_WINDOW:], REPEAT_WINDOW)
        self.said: Counter[int] = Counter()

    @property
    def greedy(self) -> bool:
        return self.params.temperature <= 0

    def change(self, row: torch.Tensor) -> None:
        """What it does to its logits [vocabulary], in place."""
        p = self.params
        if p.logit_bias:
            ids, bias = zip(*p.logit_bias, strict=True)
            row.index_add_(0, _ids(row, ids), row.new_tensor(bias))
        if p.repeat_penalty != 1.0:
            at = _ids(row, set(self.recent))
            there = row[at]
            row[at] = torch.where(there <= 0, there * p.repeat_penalty, there / p.repeat_penalty)
        if self.said:
            row[_ids(row, self.said)] -= row.new_tensor(
                [count * p.frequency_penalty + p.presence_penalty for count in self.said.values()]
            )

    def accept(self, token: int) -> None:
        self.recent.append(token)
        if self.params.frequency_penalty or self.params.presence_penalty:
            self.said[token] += 1

    def luck(self) -> float:
        """In [0, 1): SplitMix64 (Steele, Lea, Flood 2014) of seed and count, so it depends on nothing else."""
        self.drawn += 1
        z = (self.seed + self.drawn * 0x9E3779B97F4A7C15) & _WORD
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & _WORD
        z = (z ^ z >> 27) * 0x94D049BB133111EB & _WORD
        return ((z ^ z >> 31) >> 11) * 2.0**-53


_WORD = (1 << 64) - 1


def _ids(row: torch.Tensor, tokens: Iterable[int]) -> torch.Tensor:
    return torch.tensor(list(tokens), dtype=torch.int64, device=row.device)


def forbid(logits: torch.Tensor, masks: Sequence[tuple[int, Mask]]) -> None:
    """Take the tokens without a bit in its row's mask out of it, in place. `logits`: [rows, vocabulary]."""
    if not masks:
        return
    device, size = logits.device, logits.shape[1]
    rows = torch.tensor([row for row, _ in masks], device=device)
    words = torch.tensor([list(mask) for _, mask in masks], dtype=torch.int64, device=device)
    bits = torch.arange(32, device=device)
    there = ((words[:, :, None] >> bits) & 1).flatten(1)[:, :size].bool()
    logits[rows] = logits[rows].masked_fill(~there, -torch.inf)


def likeliest(logits: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Of a row [vocabulary], before anything is forbidden: its `count` likeliest tokens, and every log-probability."""
    return _greatest(logits[None], count)[0], logits.double().log_softmax(-1)


def logprob(token: int, likeliest: tuple[torch.Tensor, torch.Tensor]) -> Logprob:
    top, chances = likeliest
    return Logprob(token, float(chances[token]), tuple(zip(top.tolist(), chances[top].tolist(), strict=True)))


def choose(logits: torch.Tensor, drawings: Sequence[Drawing]) -> list[int]:
    """A token for each row of [rows, vocabulary], which is changed; 0 where a row holds no number."""
    for row, one in enumerate(drawings):
        one.change(logits[row])
    size = logits.shape[1]
    counts = [1 if one.greedy else min(one.params.top_k or size, size) for one in drawings]
    tokens = [0] * len(drawings)
    for few in (True, False):
        rows = [row for row, count in enumerate(counts) if (count <= FEW) == few]
        if rows:
            drawn = _drawn(logits[rows], [drawings[row] for row in rows], [counts[row] for row in rows])
            for row, token in zip(rows, drawn, strict=True):
                tokens[row] = token
    for one, token in zip(drawings, tokens, strict=True):
        one.accept(token)
    return tokens


def _drawn(logits: torch.Tensor, drawings: Sequence[Drawing], counts: Sequence[int]) -> list[int]:
    def column(values: Iterable[float]) -> torch.Tensor:
        return torch.tensor(list(values), dtype=torch.float64, device=logits.device)[:, None]

    ids = _greatest(logits, max(counts))
    values = logits.gather(1, ids).double()
    order = torch.arange(ids.shape[1], device=logits.device)
    held = (order < column(counts)) & (values > -torch.inf)
    away = (values - values[:, :1]).masked_fill(~held, -torch.inf)  # from the greatest
    weights = away.exp()
    sums = weights.cumsum(1)
    top_p = column(1.0 if one.greedy else one.params.top_p for one in drawings)
    min_p = column(0.0 if one.greedy else one.params.min_p for one in drawings)
    left = held & (sums.roll(1, 1) < top_p * sums[:, -1:]) & (weights >= min_p)
    left[:, 0] = held[:, 0]
    heat = column(1.0 if one.greedy else one.params.temperature for one in drawings)
    sums = (away / heat).exp().masked_fill(~left, 0.0).cumsum(1)
    luck = column(one.luck() for one in drawings) * sums[:, -1:]
    at = torch.minimum((sums <= luck).sum(1), left.sum(1) - 1).clamp(min=0)
    tokens = ids.gather(1, at[:, None])[:, 0].masked_fill(~held[:, 0], 0)
    return [int(token) for token in tokens.tolist()]


def _greatest(logits: torch.Tensor, count: int) -> torch.Tensor:
    """The ids of the `count` greatest of each row, greatest first, of equals the first; what is not a number comes
    last. Each entry's order and its id are one whole number, so that no two are equal."""
    bits = (logits.nan_to_num(-torch.inf, torch.inf, -torch.inf) + 0.0).view(torch.int32)  # and -0 is 0
    order = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).long()
    ids = torch.arange(logits.shape[1], device=logits.device)
    keys = (order << 32) + (0xFFFFFFFF - ids)
    return 0xFFFFFFFF - (keys.topk(count, 1).values & 0xFFFFFFFF)
