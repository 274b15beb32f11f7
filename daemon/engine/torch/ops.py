"""What a model's layers are computed with: the one place that knows a device's way to do it. `Reference` is torch's own
operations, on any device."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import torch
import torch.nn.functional as F

from llmd.daemon.engine.torch import sampling
from llmd.daemon.engine.torch.sampling import Drawing
from llmd.daemon.engine.torch.weights import Packed

Tensor: TypeAlias = torch.Tensor


@dataclass(frozen=True, slots=True)
class Span:
    """Rows `begin` to `end` are a sequence's positions up to `length`; its keys and values lie in the pages of `table`,
    in their order."""

    begin: int
    end: int
    length: int
    table: Tensor


@dataclass(frozen=True, slots=True)
class Rows:
    """Tokens that are computed together, of one sequence or of many: `tokens` and `positions` [rows]. Those of `spans`
    come first, and their keys and values go to `places` of `pages`; others are there to fill up."""

    tokens: Tensor
    positions: Tensor
    spans: Sequence[Span]
    pages: Tensor
    places: Tensor


class Ops(Protocol):
    def dense(self, weight: Tensor) -> Tensor:
        """A weight [out, in], as `linear` takes it."""
        ...

    def int4(self, weight: Packed) -> object:
        """One of 4 or 8 bits, as `linear_int4` takes it."""
        ...

    def norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """Each last dimension over its root mean square."""
        ...

    def rope(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """[rows, heads, head] turned by [rows, head]."""
        ...

    def attend(self, q: Tensor, k: Tensor, v: Tensor, pool: Tensor, rows: Rows, window: int) -> Tensor:
        """Puts keys and values [rows, kv heads, head] into the pool [2, pages, page, kv heads, head], and has each row
        [rows, heads, head] look at its sequence's positions up to its own, `window` of them (0: all). Rows of nobody
        give zeros."""
        ...

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor: ...

    def linear_int4(self, x: Tensor, weight: object, bias: Tensor | None) -> Tensor: ...

    def sample(self, logits: Tensor, drawings: Sequence[Drawing]) -> list[int]:
        """As `sampling.choose`."""
        ...


class Reference:
    """`type`: what it computes with. Packed weights are unpacked once: that is what they are held against."""

    def __init__(self, device: torch.device, type_: torch.dtype) -> None:
        self.device, self.type = device, type_

    def dense(self, weight: Tensor) -> Tensor:
        # a copy: what lies in a file's pages is read again and again
        return weight.to(self.device, self.type, copy=True)

    def int4(self, weight: Packed) -> Tensor:
        return weight.unpacked().to(self.device, self.type)

    def norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        wide = x.float()
        return weight * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(x.dtype)

    def rope(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        a, b = x.chunk(2, -1)
        return x * cos[:, None] + torch.cat((-b, a), -1) * sin[:, None]

    def attend(self, q: Tensor, k: Tensor, v: Tensor, pool: Tensor, rows: Rows, window: int) -> Tensor:
        count, out = len(rows.pages), torch.zeros_like(q)
        pool[0][rows.pages, rows.places] = k[:count]
        pool[1][rows.pages, rows.places] = v[:count]
        for span in rows.spans:
            at = rows.positions[span.begin : span.end]
            out[span.begin : span.end] = self._attend(q[span.begin : span.end], pool, span, at, window)
        return out

    def _attend(self, q: Tensor, pool: Tensor, span: Span, at: Tensor, window: int) -> Tensor:
        size, count = pool.shape[2], span.end - span.begin
        # a page that no row looks at any more is not read
        first = max(0, span.length - count - window + 1) // size if window else 0
        table = span.table[first : -(-span.length // size)]
        keys, values = (part[table].flatten(0, 1)[: span.length - first * size] for part in pool)
        seen = None
        if count > 1 or window:
            there = torch.arange(first * size, span.length, device=pool.device)
            seen = there[None] <= at[:, None]
            if window:
                seen &= there[None] > at[:, None] - window
        found = F.scaled_dot_product_attention(
            q.transpose(0, 1)[None], keys.transpose(0, 1)[None], values.transpose(0, 1)[None], seen, enable_gqa=True
        )
        return found[0].transpose(0, 1)

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(x, weight, bias)

    def linear_int4(self, x: Tensor, weight: object, bias: Tensor | None) -> Tensor:
        assert isinstance(weight, torch.Tensor)
        return F.linear(x, weight, bias)

    def sample(self, logits: Tensor, drawings: Sequence[Drawing]) -> list[int]:
        return sampling.choose(logits, drawings)
