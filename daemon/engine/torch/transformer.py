"""The Llama family (Llama 2 and 3, Mistral, Qwen2, Qwen3): tokens in, logits out, over `ops`."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F

from llmd.daemon.engine.torch import rope, weights
from llmd.daemon.engine.torch.architecture import Architecture
from llmd.daemon.engine.torch.ops import Ops, Rows, Tensor
from llmd.quantize.checkpoints.safetensors import Tensor as Told


class Linear:
    """One layer's, in full precision or packed."""

    def __init__(self, ops: Ops, name: str, a: Architecture, tensors: Mapping[str, Told]) -> None:
        self._ops = ops
        self._packed = ops.int4(weights.packed(name, tensors, a)) if f"{name}.qweight" in tensors else None
        self._weight = None if self._packed is not None else ops.dense(weights.loaded(tensors[f"{name}.weight"]))
        there = name.rpartition(".")[2] in a.biases or self._packed is not None
        bias = tensors.get(f"{name}.bias") if there else None
        self._bias = ops.dense(weights.loaded(bias)) if bias else None

    def __call__(self, x: Tensor) -> Tensor:
        if self._weight is None:
            return self._ops.linear_int4(x, self._packed, self._bias)
        return self._ops.linear(x, self._weight, self._bias)


class Layer:
    def __init__(self, ops: Ops, at: int, a: Architecture, tensors: Mapping[str, Told]) -> None:
        self._ops, self._a, self._window = ops, a, a.windows[at]
        self._q, self._k, self._v, self._o, self._gate, self._up, self._down = (
            Linear(ops, name, a, tensors) for name, _, _ in a.linears(at)
        )
        norms = [ops.dense(weights.loaded(tensors[f"{name}.weight"])) for name, _ in a.norms(at)]
        self._before, self._after, *self._qk = norms

    def __call__(self, x: Tensor, turns: tuple[Tensor, Tensor], pool: Tensor, rows: Rows) -> Tensor:
        a, ops = self._a, self._ops
        y = ops.norm(x, self._before, a.eps)
        q, k, v = self._q(y).unflatten(-1, (-1, a.head)), self._k(y).unflatten(-1, (-1, a.head)), self._v(y)
        if self._qk:
            q, k = (ops.norm(part, weight, a.eps) for part, weight in zip((q, k), self._qk, strict=True))
        q, k = ops.rope(q, *turns), ops.rope(k, *turns)
        found = ops.attend(q, k, v.unflatten(-1, (-1, a.head)), pool, rows, self._window)
        x = x + self._o(found.flatten(-2))
        y = ops.norm(x, self._after, a.eps)
        return x + self._down(F.silu(self._gate(y)) * self._up(y))


class Model:
    """A folder's, over `pages` of `size` positions each. `context`: the most positions of a sequence. Raises
    ModelInvalid."""

    def __init__(
        self, ops: Ops, a: Architecture, tensors: Mapping[str, Told], *, context: int, pages: int, size: int
    ) -> None:
        self._ops, self._a = ops, a
        embedding = weights.loaded(tensors["model.embed_tokens.weight"])
        self._embedding = ops.dense(embedding)
        self._layers = [Layer(ops, at, a, tensors) for at in range(a.layers)]
        self._norm = ops.dense(weights.loaded(tensors["model.norm.weight"]))
        self._head = None if a.tied else Linear(ops, "lm_head", a, tensors)
        like = self._norm
        cos, sin = rope.table(a.rope, a.head, context, a.context)
        self._cos, self._sin = cos.to(like), sin.to(like)
        self.pool = torch.zeros((a.layers, 2, pages, size, a.kv_heads, a.head), dtype=like.dtype, device=like.device)

    def copy(self, source: int, target: int) -> None:
        """A page's keys and values into another one."""
        self.pool[:, :, target] = self.pool[:, :, source]

    def logits(self, rows: Rows, wanted: Tensor) -> Tensor:
        """float32 [wanted, vocabulary], of the rows that `wanted` names."""
        x = F.embedding(rows.tokens, self._embedding)
        turns = self._cos[rows.positions], self._sin[rows.positions]
        for layer, pool in zip(self._layers, self.pool, strict=True):
            x = layer(x, turns, pool, rows)
        if not len(wanted):
            return x.new_empty((0, self._a.vocab), dtype=torch.float32)
        x = self._ops.norm(x[wanted], self._norm, self._a.eps)
        found = self._head(x) if self._head else self._ops.linear(x, self._embedding, None)
        return found.float()
