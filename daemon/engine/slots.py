"""Where sequences live in llama.cpp: slots, each with the keys and values of one sequence, or of what an earlier one
left. Pure; a `Space` (`protocols.py`).

A waiting sequence gets a slot in this order:

1. a free slot that holds most of the longest prefix this owner may share (nothing is moved);
2. a free slot into which that prefix is copied from another slot, busy or not;
3. with no shared prefix: the free slot that keeps busy slots adjacent (llama.cpp computes adjacent slots in one pass,
   and each gap costs another), and of these the one longest unused.

It waits where it will share more with a prompt that is being read. `prefixes.py` finds who holds what, `sharing.py`
says what of it can be shared. A slot holds a whole context: who has one never lacks room, and never loses it.
"""

from llmd.daemon.engine.prefixes import SHARE_MIN, Prefixes, beginnings
from llmd.daemon.engine.sharing import Held, Sharing
from llmd.daemon.engine.types import ModelInfo, Sequence, Start

# the most slots that change hands in one step, or an eighth of them: planning it stays a fraction of computing it
MAX_STARTS = 16


class FreeSlots:
    """The free slots of one step, as they are taken."""

    def __init__(self, slots: list[Held]) -> None:
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
        self._sharing = Sharing(info)
        self._slots = [Held() for _ in range(info.slots)]
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
        slot.leave(sequence, self._tick)
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
        held = {i: self._sharing.shared(self._slots[i], sequence, common) for i, common in found.items()}
        donor = max(held, key=lambda i: (held[i], i in free, -i), default=-1)
        best = held.get(donor, 0)
        if self._sharing.waits(sequence, [(self._slots[i], common) for i, common in found.items()], best):
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

    def _reads(self, reader: Sequence) -> bool:
        """Whether its prompt is being read still."""
        return self._slots[reader.slot].sequence is reader and not reader.prefilled

    def _start(self, sequence: Sequence, index: int, copy_from: int, keep: int) -> Start:
        slot, source = self._slots[index], self._slots[copy_from if copy_from >= 0 else index]
        if source.tokens[:keep] != sequence.tokens[:keep]:
            copy_from, keep = -1, 0  # two beginnings with one hash
        self._sharing.begin(slot, sequence, source, keep)
        self._prefixes.put(index, sequence.beginnings, slot.tokens)
        return sequence.start(index, copy_from, keep)
