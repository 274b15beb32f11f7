"""How large llama.cpp's compute buffer is: its graph's tensors placed the way ggml places them.

llama.cpp reserves the buffer for the largest pass it will ever run. Each tensor of that graph goes to the smallest hole
that takes it, or to the end (ggml-alloc.c); so the size depends on the order in which tensors come and go, and is found
by going through a few blocks in that order. Sizes in bytes; a number of the graph is 4 of them.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from llmd.quantize.shape import ALIGNMENT, Layer, Shape

COPIES = 4  # pipelined over several GPUs, each input is kept so many times (GGML_SCHED_MAX_COPIES)


@dataclass(frozen=True, slots=True)
class Pass:
    """The largest pass: `tokens` at once over `slots` sequences of `context` tokens, `outputs` of them with logits.

    `f16`: keys and values are of this type, so that attention needs no copy of them. `flash`: there is flash attention.
    `cpu`: no device has a part in it.
    """

    tokens: int
    outputs: int
    context: int
    slots: int
    f16: bool = True
    flash: bool = True
    cpu: bool = False


class Arena:
    """ggml's allocator: best fit among the holes, the end otherwise."""

    def __init__(self) -> None:
        self.peak = 0
        self._holes: list[list[int]] = []  # [offset, size], by offset; what is behind `_end` is free
        self._end = 0
        self._sizes: dict[int, int] = {}

    def take(self, size: int) -> int:
        size = -(-size // ALIGNMENT) * ALIGNMENT
        best: list[int] | None = None
        for hole in self._holes:
            if hole[1] >= size and (best is None or hole[1] <= best[1]):
                best = hole
        if best is None:
            at, self._end = self._end, self._end + size
            self.peak = max(self.peak, self._end)
        else:
            at = best[0]
            best[0] += size
            best[1] -= size
            if not best[1]:
                self._holes.remove(best)
        self._sizes[at] = size
        return at

    def give(self, *offsets: int) -> None:
        holes = self._holes
        for at in offsets:
            size = self._sizes.pop(at)
            place = 0
            while place < len(holes) and holes[place][0] < at:
                place += 1
            if place < len(holes) and holes[place][0] == at + size:
                size += holes.pop(place)[1]
            if place and sum(holes[place - 1]) == at:
                place -= 1
                holes[place][1] += size
            else:
                holes.insert(place, [at, size])
            if sum(holes[-1]) == self._end:
                self._end = holes.pop()[0]


@dataclass(frozen=True, slots=True)
class Blocks:
    """What a run of a model's blocks comes to: sums over them, and the blocks that tell the compute buffer's size."""

    nbytes: int
    shared: int
    k: int
    v: int
    state: int
    masks: int
    telling: tuple[Layer, ...]


def blocks(layers: Sequence[Layer]) -> Blocks:
    nbytes = shared = k = v = state = 0
    kinds: dict[tuple[int, ...], Layer] = {}
    windows = set()
    found = {id(la): la for la in layers}  # equal blocks are mostly one object
    for at, count in Counter(map(id, layers)).items():
        la = found[at]
        nbytes += count * la.nbytes
        shared += count * la.shared
        k += count * la.k
        v += count * la.v
        state += count * (la.r + la.s)
        kinds.setdefault((la.k, la.v, la.r, la.s, la.q, la.ff, la.expert_ff), la)
        if la.k:
            windows.add(la.swa)
    # the arena has settled after two blocks of each kind; the last one is where inputs are freed
    telling = (*kinds.values(), *kinds.values(), layers[-1]) if layers else ()
    return Blocks(nbytes, shared, k, v, state, len(windows), telling)


def masks(shape: Shape, held: Blocks, one: Pass) -> int:
    """The attention masks' bytes: one for blocks with a window, one for those without."""
    return held.masks * (2 if one.flash else 4) * one.context * one.tokens


def buffer(shape: Shape, held: Blocks, one: Pass, *, output: bool, copies: int = 1) -> int:
    """The compute buffer of the device that holds these blocks, and the output layer if `output`."""
    sizes = _Sizes(
        shape.embedding, shape.vocab if output else 0, shape.key, shape.value, shape.mla, shape.experts, shape.used
    )
    mask = masks(shape, held, one)
    if one.f16 and one.flash and not held.state:  # nothing else depends on how long and how many sequences are
        one = Pass(one.tokens, one.outputs, 0, 1, cpu=one.cpu)
    return _buffer(sizes, held.telling, mask, one, copies)


@dataclass(frozen=True, slots=True)
class _Sizes:
    """What the graph takes of the model as a whole; no `vocab`: the output layer is elsewhere."""

    embedding: int
    vocab: int
    key: int
    value: int
    mla: int
    experts: int
    used: int


@lru_cache(maxsize=8192)
def _buffer(sizes: _Sizes, telling: tuple[Layer, ...], mask: int, one: Pass, copies: int) -> int:
    graph = _Graph(sizes, one, mask, copies)
    for layer in telling[:-1]:
        graph.block(layer)
    for layer in telling[-1:]:
        graph.block(layer, last=True)
    if sizes.vocab:
        graph.arena.take(4 * sizes.vocab * one.outputs)  # the norm before it happens in place
    return graph.arena.peak


class _Graph:
    """The graph's tensors as they come and go: inputs when it is made, then block by block."""

    def __init__(self, sizes: _Sizes, one: Pass, mask: int, copies: int) -> None:
        self.arena, self.sizes, self.one = Arena(), sizes, one
        self.row, self.embedded = 4 * one.tokens, 4 * one.tokens * sizes.embedding
        self.outputs, self.pipelined = one.outputs if sizes.vocab else 0, copies > 1
        take = self.arena.take
        if one.cpu:
            ids = take(self.row)
            take(self.embedded)  # embeddings that could come in instead
        self.x = -1 if one.cpu else take(self.embedded)
        self.position, *self.indices = take(self.row), take(2 * self.row), take(2 * self.row)
        self.mask = take(mask or 1)
        self.rows = take(4 * self.outputs or 1)
        for _ in range(copies - 1):
            take(self.embedded + 5 * self.row + mask + 4 * self.outputs)
        if one.cpu:  # the embedding's rows are looked up here too
            self.x = take(self.embedded)
            self.arena.give(ids)
        self.held = self.pipelined  # an input that is there several times is never freed

    def block(self, layer: Layer, last: bool = False) -> None:
        """One block. With the last one the inputs go, as they are used for the last time."""
        last = last and bool(self.outputs)
        take, give = self.arena.take, self.arena.give
        free = last and not self.pipelined
        norm = take(self.embedded)
        if layer.r or layer.s:
            mixed = self._recurrence(layer, norm)
        else:
            mixed = self._attention(layer, norm, free) if layer.q else norm
        tokens = self.one.tokens
        if last:
            tokens = self.outputs
            rows = take(4 * tokens * self.sizes.embedding)
            give(mixed)
            mixed, before = rows, take(4 * tokens * self.sizes.embedding)
            self._leave(self.x)
            self.x = before
            if free:
                give(self.rows)
        self._leave(self.x)  # added to `mixed` in place
        self.x = mixed
        if layer.ff or layer.expert_ff:
            norm = take(4 * tokens * self.sizes.embedding)
            self.x = self._experts(layer, tokens, norm) if layer.expert_ff else self._dense(layer, tokens, norm)
            give(mixed)

    def _leave(self, x: int) -> None:
        if self.held:
            self.held = False
        else:
            self.arena.give(x)

    def _instead(self, old: int, size: int) -> int:
        """A tensor computed from `old`, which nobody needs then."""
        new = self.arena.take(size)
        self.arena.give(old)
        return new

    def _attention(self, layer: Layer, norm: int, free: bool) -> int:
        row, width, sizes, one = self.row, layer.heads * self.sizes.value, self.sizes, self.one
        turned = not one.f16 and sizes.key % 64 == 0  # quantized keys and values are rotated first, and the result back
        found = self._latent(layer) if sizes.mla else []
        for size in () if found else (row * layer.q, row * (layer.v or 1), row * (layer.k or 1)):
            at = self.arena.take(size)
            found.append(self._instead(at, size) if turned else at)
        self.arena.give(norm, *found[1:], *((self.position, *self.indices) if free else ()))
        if one.flash:
            # CUDA's kernels want keys and values as f16
            copy = 0 if one.f16 or one.cpu else 2 * one.context * one.slots * (layer.k + layer.v)
            out = self._instead(found[0], row * width + copy)
        else:
            scores = self._instead(found[0], row * layer.heads * one.context)
            out = self._instead(self._instead(scores, row * width), row * width)
        if free:
            self.arena.give(self.mask)
        if turned:
            out = self._instead(out, row * width)
        return self._instead(out, self.embedded)

    def _latent(self, layer: Layer) -> list[int]:
        """Queries and keys of latent attention: queries are brought to the keys' space, both are put together of two
        parts."""
        take, row, sizes = self.arena.take, self.row, self.sizes
        raw = take(row * layer.heads * sizes.mla)
        absorbed = take(row * layer.heads * sizes.value)
        q = take(row * layer.q)
        self.arena.give(raw, absorbed)
        both, normed, k = take(row * layer.k), take(row * sizes.value), take(row * layer.k)
        self.arena.give(both, normed)
        return [q, k]

    def _dense(self, layer: Layer, tokens: int, norm: int) -> int:
        size = 4 * tokens * layer.ff
        up, gate = self.arena.take(size), self.arena.take(size)
        self.arena.give(norm)
        act = self.arena.take(size)
        self.arena.give(gate, up)
        return self._instead(act, 4 * tokens * self.sizes.embedding)

    def _experts(self, layer: Layer, tokens: int, norm: int) -> int:
        """Every chosen expert's rows at once."""
        row, used = 4 * tokens, max(self.sizes.used, 1)
        take, give = self.arena.take, self.arena.give
        probs, chosen, weights = take(row * self.sizes.experts), take(row * self.sizes.experts), take(row * used)
        give(probs)
        size = row * layer.expert_ff * used
        up, gate = take(size), take(size)
        give(norm)
        act = take(size)
        give(gate, up)
        each = self._instead(act, row * self.sizes.embedding * used)
        out = take(row * self.sizes.embedding)
        give(each, chosen, weights)
        return out

    def _recurrence(self, layer: Layer, norm: int) -> int:
        """Roughly: its projections, the convolution's input and output, the states that it reads and writes."""
        take, give, slots = self.arena.take, self.arena.give, self.one.slots
        width = self.row * (max(layer.r // 3, self.sizes.embedding) if layer.s else self.sizes.embedding)
        projected = take((2 if layer.s else 3) * width)
        give(norm)
        kept, into = take(4 * layer.r * slots), take(width + 4 * layer.r * slots)
        give(kept)
        conv = take(width)
        give(into)
        if layer.s:
            step, states = take(width), take(4 * layer.s * slots)
            out = take(width + 4 * layer.s * slots)
            give(step, states)
        else:
            out = take(width)
        give(conv, projected)
        return self._instead(out, self.embedded)
