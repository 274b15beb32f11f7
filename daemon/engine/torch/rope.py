"""Rotary positions (Su et al. 2021), and how they are scaled beyond what a model was trained with. In float32 from the
beginning, as transformers computes them: at far positions a frequency's last bit is seen."""

import math
from collections.abc import Mapping
from typing import Any

import torch

from llmd.daemon.engine.torch.architecture import Rope


def table(rope: Rope, head: int, context: int, trained: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines [context, head], the second half as the first one. `trained`: positions that the model
    knows."""
    frequencies, scale = _scaled(rope, head, context, trained)
    angles = torch.outer(torch.arange(context, dtype=torch.float32), frequencies)
    both = torch.cat((angles, angles), -1)
    return both.cos() * scale, both.sin() * scale


def _scaled(rope: Rope, head: int, context: int, trained: int) -> tuple[torch.Tensor, float]:
    """Radians a position of each pair [head / 2], and what both cosine and sine are multiplied with."""
    powers = rope.base ** (torch.arange(0, head, 2, dtype=torch.int64).float() / head)
    plain, told = 1.0 / powers, rope.told
    match rope.kind:
        case "linear":
            return plain / told["factor"], 1.0
        case "llama3":
            return _llama3(plain, rope), 1.0
        case "yarn":
            return _yarn(powers, rope, head), _yarn_scale(told)
        case "longrope":
            factors = told["long_factor"] if context > rope.original else told["short_factor"]
            return 1.0 / (torch.tensor(factors, dtype=torch.float32) * powers), _long_scale(rope, trained)
        case _:  # dynamic scales beyond what it was trained with, and no context here is longer
            return plain, 1.0


def _llama3(plain: torch.Tensor, rope: Rope) -> torch.Tensor:
    """Short waves stay, long ones are stretched, those between go over from one to the other. (Llama 3.1.)"""
    told = rope.told
    low, high, factor = told["low_freq_factor"], told["high_freq_factor"], told["factor"]
    waves = 2 * math.pi / plain
    smooth = (rope.original / waves - low) / (high - low)
    between = (1 - smooth) * plain / factor + smooth * plain
    stretched = torch.where(waves > rope.original / low, plain / factor, plain)
    middle = (waves >= rope.original / high) & (waves <= rope.original / low)
    return torch.where(middle, between, stretched)


def _yarn(powers: torch.Tensor, rope: Rope, head: int) -> torch.Tensor:
    """NTK by parts. (Peng et al. 2023, YaRN.)"""
    told = rope.told

    def pair(turns: float) -> float:
        """Which one makes so many turns in what the model was trained with."""
        return head * math.log(rope.original / (turns * 2 * math.pi)) / (2 * math.log(rope.base))

    low, high = pair(told.get("beta_fast") or 32), pair(told.get("beta_slow") or 1)
    if told.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head - 1)
    if low == high:
        high += 0.001
    stretched = torch.clamp((torch.arange(head // 2, dtype=torch.float32) - low) / (high - low), 0, 1)
    kept = 1 - stretched
    return 1.0 / (told["factor"] * powers) * (1 - kept) + 1.0 / powers * kept


def _yarn_scale(told: Mapping[str, Any]) -> float:
    def of(scale: float) -> float:
        return 0.1 * scale * math.log(told["factor"]) + 1.0 if told["factor"] > 1 else 1.0

    if told.get("attention_factor"):
        return float(told["attention_factor"])
    one, all_ = told.get("mscale"), told.get("mscale_all_dim")
    return of(one) / of(all_) if one and all_ else of(1.0)


def _long_scale(rope: Rope, trained: int) -> float:
    """(Ding et al. 2024, LongRoPE.)"""
    if rope.told.get("attention_factor"):
        return float(rope.told["attention_factor"])
    factor = rope.told.get("factor") or trained / rope.original
    return math.sqrt(1 + math.log(factor) / math.log(rope.original)) if factor > 1 else 1.0
