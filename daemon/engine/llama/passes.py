"""How a step's chunks are dealt to calls: `passes` on a GPU, `blocks` on the CPU. Pure.

llama.cpp cuts a call into passes in which every sequence has as many tokens, and computes only sequences in adjacent
slots in one pass: prompts of unequal length, or sequences in slots that lie apart, cost a pass each. A pass reads all
weights, whatever it computes (8B on an H100: a token of 1, 32, 128 sequences in 3.5, 9.7, 23.1 ms; 101 tokens of 1, 5,
16 prompts in 16, 50, 146 ms). So, on a GPU,

1. generating sequences, a token each, are one call; small gaps between their slots are closed with a token each;
2. prompts in adjacent slots are one call, as many as a pass holds, the shorter ones filled up to the longest where that
   costs less than the passes it saves;
3. every other prompt is a call of its own.

What calls are filled up with comes behind a slot's own tokens, where nothing of them can see it, and is removed. The
calls come in the order in which the plan names their first chunks: who waits longest has a first token first.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from llmd.daemon.engine.types import Chunk, next_cut

# a pass of its own costs at least what so many tokens more do: two prompts in one pass instead of two save the time of
# 55 to 130 tokens (8B and 1B on an H100, prompts of 17 and of 101 tokens)
A_PASS = 48
# slots: computing a token of each costs less than another pass
MAX_GAP = 16
# The CPU computes a prompt in pieces of this many tokens (`ModelInfo.exact_block`): a token's keys and values depend a
# little on how many others are computed with it (measured: logits differ by up to 1.0). Pieces of 64 cost no more than
# pieces of 256 (measured: 3.0 ms a token, both), shorter ones do
BLOCK = 64


@dataclass(frozen=True, slots=True)
class Call:
    """Chunks that llama.cpp gets together. `filling`: how many of a slot's last tokens are not its own, and are removed
    again; of a slot that has none of its own, all."""

    chunks: list[Chunk]
    filling: Mapping[int, int] = field(default_factory=dict)


def passes(chunks: Sequence[Chunk], ubatch: int, context: int, held: Callable[[int], int] | None) -> list[Call]:
    """`ubatch`: the most tokens of a pass; `context`: tokens a slot holds; `held`: how many a slot holds now, None
    where it cannot be cut back."""
    order = {chunk.slot: at for at, chunk in enumerate(chunks)}
    by_slot = sorted(chunks, key=lambda chunk: chunk.slot)
    single = [chunk for chunk in by_slot if len(chunk.tokens) == 1]
    groups: list[list[Chunk]] = []
    for chunk in by_slot:
        if len(chunk.tokens) == 1:
            continue
        if groups and held and _fits([*groups[-1], chunk], ubatch, context):
            groups[-1].append(chunk)  # 2
        else:
            groups.append([chunk])  # 3
    groups.sort(key=lambda group: min(order[chunk.slot] for chunk in group))
    closed = _closed(single, context, held) if held else Call(single)  # 1
    return ([closed] if closed.chunks else []) + [_filled(group) for group in groups]


def _closed(single: list[Chunk], context: int, held: Callable[[int], int]) -> Call:
    """With the gaps between their slots filled, where they are small and no slot in them is full."""
    out, filling = single[:1], dict[int, int]()
    for before, after in zip(single, single[1:], strict=False):
        gap = range(before.slot + 1, after.slot)
        ends = {slot: held(slot) for slot in gap} if len(gap) <= MAX_GAP else {}
        if all(end < context for end in ends.values()):
            out += [Chunk(slot, end, after.tokens, False) for slot, end in ends.items()]
            filling |= dict.fromkeys(ends, 1)
        out.append(after)
    return Call(out, filling)


def _fits(group: list[Chunk], ubatch: int, context: int) -> bool:
    """Whether a group that its last chunk has joined is one pass still."""
    longest = max(len(chunk.tokens) for chunk in group)
    whole, used = longest * len(group), sum(len(chunk.tokens) for chunk in group)
    return (
        group[-1].slot == group[-2].slot + 1
        and whole <= ubatch
        and whole - used <= A_PASS * (len(group) - 1)
        and all(chunk.start + longest <= context for chunk in group)
    )


def _filled(group: list[Chunk]) -> Call:
    longest = max(len(chunk.tokens) for chunk in group)
    lacking = {chunk.slot: longest - len(chunk.tokens) for chunk in group}
    whole = [replace(c, tokens=c.tokens + c.tokens[-1:] * lacking[c.slot]) if lacking[c.slot] else c for c in group]
    return Call(whole, {slot: more for slot, more in lacking.items() if more})


def blocks(chunks: Sequence[Chunk]) -> list[Call]:
    """Generating sequences are one call, and every block of a prompt goes by itself: llama.cpp cuts a mixed batch into
    pieces of equal length, which would make a text depend on its company."""
    chunks = sorted(chunks, key=lambda c: c.slot)  # adjacent slots in one pass
    single = [c for c in chunks if len(c.tokens) == 1]
    cut = [Call([block]) for c in chunks if len(c.tokens) > 1 for block in _cut(c)]
    return [Call(single), *cut] if single else cut


def _cut(chunk: Chunk) -> list[Chunk]:
    """A chunk as its prompt's pieces; only the last piece of a prompt's last chunk is longer."""
    at, end, pieces = chunk.start, chunk.start + len(chunk.tokens), []
    while at < end:
        cut = next_cut(at, end, BLOCK) if chunk.sample or chunk.last else min(end, at - at % BLOCK + BLOCK)
        pieces.append(
            Chunk(chunk.slot, at, chunk.tokens[at - chunk.start : cut - chunk.start], chunk.sample and cut == end)
        )
        at = cut
    return pieces
