"""Where sequences live in llama.cpp: slots, each with the keys and values of one sequence, or of what an earlier one
left. Pure; a `Space` (`protocols.py`).

A waiting sequence gets a slot in this order:

1. a free slot that holds most of the longest prefix this owner may share (nothing is moved);
2. a free slot into which that prefix is copied from another slot, busy or not;
3. with no shared prefix: the free slot that keeps busy slots adjacent (llama.cpp computes adjacent slots in one pass,
   and each gap costs another), and of these the one longest unused.

It waits, once, when a prompt of the same owner that is being read right now shares much more than any slot holds yet:
reading it twice would cost more than waiting for it. `prefixes.py` finds who holds what. A slot holds a whole context:
who has one never lacks room, and never loses it.

Where the runner cuts prompts at fixed places (`ModelInfo.exact_block` says why), a sequence whose text is promised
shares only pieces that were read as it would read them itself.
"""

from dataclasses import dataclass, field

from llmd.daemon.engine.prefixes import SHARE_MIN, Prefixes, beginnings
from llmd.daemon.engine.types import ModelInfo, Sequence, Start, last_cut

# the most slots that change hands in one step, or an eighth of them: planning it stays a fraction of computing it
MAX_STARTS = 16


@dataclass(slots=True)
class Slot:
    """What a slot's keys and values stand for. `tokens` is a running sequence's own list while one runs."""

    tokens: list[int] = field(default_factory=list)
    key: tuple[str, ...] = ()  # whose they are: `Request.prefix_key`
    read: int = 0  # of an idle slot: how many tokens were computed as a prompt's
    used: int = 0  # the tick of its last release: least recently used goes first
    sequence: Sequence | None = None

    @property
    def computed(self) -> int:
        return self.sequence.computed if self.sequence else len(self.tokens)

    @property
    def as_prompt(self) -> int:
        """How many of its first tokens were computed as a prompt's."""
        return min(self.sequence.computed, self.sequence.read) if self.sequence else self.read

    @property
    def reading(self) -> bool:
        return self.sequence is not None and not self.sequence.prefilled


class FreeSlots:
    """The free slots of one step, as they are taken."""

    def __init__(self, slots: list[Slot]) -> None:
        self._used = [slot.used for slot in slots]
        free = [i for i, slot in enumerate(slots) if slot.sequence is None]
        self._free = dict.fromkeys(sorted(free, key=lambda i: (self._used[i], i)))  # the longest unused first
        self._beside: dict[int, int] = {}  # those beside one or two busy slots
        for i, slot in enumerate(slots):
            if slot.sequence is not None:
                self._touch(i)

    def __contains__(self, i: int) -> bool:
        return i in self._free

    def __bool__(self) -> bool:
        return bool(self._free)

    def take(self, i: int) -> None:
        del self._free[i]
        self._beside.pop(i, None)
        self._touch(i)

    def best(self, avoided: int) -> int:
        """The one that keeps busy slots adjacent, and of these the one longest unused; `avoided` only if it is the
        last."""
        edge = [i for i in self._beside if i != avoided]
        if edge:
            return min(edge, key=lambda i: (-self._beside[i], self._used[i], i))
        return next((i for i in self._free if i != avoided), avoided)

    def _touch(self, busy: int) -> None:
        for i in (busy - 1, busy + 1):
            if i in self._free:
                self._beside[i] = self._beside.get(i, 0) + 1


class Slots:
    """As many as `info` says."""

    bounded = False

    def __init__(self, info: ModelInfo) -> None:
        self._info, self._block = info, info.exact_block
        self._slots = [Slot() for _ in range(info.slots)]
        self._prefixes = Prefixes()
        self._tick = 0  # of releases
        self._free, self._starts = FreeSlots([]), 0  # of the step
        self._max_starts = max(MAX_STARTS, info.slots // 8)

    def open(self, *, enter: bool) -> None:
        self._free, self._starts = FreeSlots(self._slots if enter else []), 0

    @property
    def full(self) -> bool:
        return self._starts >= self._max_starts or not self._free

    def enter(self, sequence: Sequence) -> Start | None:
        start = self._place(sequence)
        if start is not None:
            self._free.take(start.slot)
            self._starts += 1
        return start

    def room(self, sequence: Sequence, end: int) -> list[Sequence]:
        return []

    def leave(self, sequence: Sequence) -> None:
        """Its slot keeps what was computed, for the next request that shares it."""
        slot = self._slots[sequence.slot]
        self._tick += 1
        slot.tokens, slot.read = sequence.tokens[: sequence.computed], slot.as_prompt
        slot.used, slot.sequence = self._tick, None
        self._prefixes.put(sequence.slot, beginnings(slot.key, slot.tokens), slot.tokens)

    def at(self, slot: int) -> Sequence | None:
        return self._slots[slot].sequence

    @property
    def used(self) -> int:
        return sum(slot.computed for slot in self._slots)

    # --- which slot

    def _place(self, sequence: Sequence) -> Start | None:
        if sequence.awaits is not None and self._reads(sequence.awaits):
            return None
        free = self._free
        found = self._prefixes.find(sequence.beginnings, sequence.tokens)
        held = {i: self._shared(self._slots[i], sequence, common) for i, common in found.items()}
        donor = max(held, key=lambda i: (held[i], i in free, -i), default=-1)
        best = held.get(donor, 0)
        if self._waits(sequence, found, best):
            return None
        fits = [i for i in held if i in free and held[i] > 0 and 2 * held[i] >= len(self._slots[i].tokens)]
        here = max(fits, key=lambda i: held[i], default=-1)
        if here >= 0 and held[here] + SHARE_MIN > best:  # 1
            return self._start(sequence, here, -1, held[here])
        target = free.best(donor)
        if target == donor:
            return self._start(sequence, donor, -1, best)
        if best >= SHARE_MIN:  # 2
            return self._start(sequence, target, donor, best)
        return self._start(sequence, target, -1, 0)  # 3

    def _shared(self, slot: Slot, sequence: Sequence, common: int) -> int:
        """Tokens of a prompt that a slot holds and that can be reused; the last is computed anew, for its logits."""
        exact = self._block and sequence.exact
        shared = min(common, slot.as_prompt if exact else slot.computed, len(sequence.tokens) - 1)
        if exact:
            shared = self._exact(shared, sequence)
        if not self._info.can_trim and shared < slot.computed:
            return 0
        return shared

    def _exact(self, shared: int, sequence: Sequence) -> int:
        """The part of a shared prefix whose pieces are those that the sequence would read itself."""
        return min(shared - shared % self._block, last_cut(len(sequence.request.prompt), self._block))

    def _waits(self, sequence: Sequence, found: dict[int, int], best: int) -> bool:
        """Whether it waits for a prompt that is being read. It does so for one, and once: prompts that share a prefix
        may come one after the other for ever."""
        if sequence.awaits is not None or not self._info.can_trim:
            return False
        for i, common in found.items():
            slot = self._slots[i]
            soon = min(common, len(sequence.tokens) - 1)
            if self._block and sequence.exact:
                soon = self._exact(soon, sequence)
            if slot.reading and soon >= best + SHARE_MIN:
                sequence.awaits = slot.sequence
                return True
        return False

    def _reads(self, reader: Sequence) -> bool:
        """Whether its prompt is being read still."""
        return self._slots[reader.slot].sequence is reader and not reader.prefilled

    def _start(self, sequence: Sequence, index: int, copy_from: int, keep: int) -> Start:
        slot, source = self._slots[index], self._slots[copy_from if copy_from >= 0 else index]
        if source.tokens[:keep] != sequence.tokens[:keep]:
            copy_from, keep = -1, 0  # two beginnings with one hash
        if self._block:
            # behind a part that was cut elsewhere nothing is as if read anew
            whole = keep <= source.as_prompt and keep % self._block == 0
            last = last_cut(len(sequence.request.prompt), self._block)
            sequence.read = last if whole else min(keep, source.as_prompt)
        slot.tokens, slot.key, slot.sequence = sequence.tokens, sequence.request.prefix_key, sequence
        self._prefixes.put(index, sequence.beginnings, slot.tokens)
        return sequence.start(index, copy_from, keep)
