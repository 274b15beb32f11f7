"""A space as an engine with pages has it, for tests: rows, and pages of positions that all rows share. Whoever came
later gives its pages to who came before, and who finds none waits. Nothing is shared."""

from llmd.daemon.engine.types import ModelInfo, Sequence, Start


class Pages:
    """`pages` of `size` positions each, which hold one context at least. `taken`: how often a place was taken away,
    `refused`: how often the answer was 'not now'."""

    bounded = True

    def __init__(self, info: ModelInfo, pages: int, size: int) -> None:
        assert pages * size >= info.context
        self._rows: list[Sequence | None] = [None] * info.slots
        self._held: dict[Sequence, int] = {}
        self._size, self.free = size, pages
        self.taken = self.refused = 0

    def open(self, *, enter: bool) -> None:
        return

    @property
    def full(self) -> bool:
        full = not self.free or None not in self._rows
        self.refused += full
        return full

    def enter(self, sequence: Sequence) -> Start | None:
        row = self._rows.index(None)
        self._rows[row], self._held[sequence] = sequence, 1
        self.free -= 1
        return sequence.start(row, -1, 0)

    def room(self, sequence: Sequence, end: int) -> list[Sequence] | None:
        need = -(-end // self._size) - self._held[sequence]
        younger = [s for s in self._held if s.arrived > sequence.arrived]
        younger.sort(key=lambda s: s.arrived)
        if self.free + sum(self._held[s] for s in younger) < need:
            self.refused += 1
            return None
        lost = []
        while self.free < need:
            lost.append(younger.pop())
            self.leave(lost[-1])
        self.taken += len(lost)
        self._held[sequence] += max(0, need)
        self.free -= max(0, need)
        return lost

    def leave(self, sequence: Sequence) -> None:
        self._rows[sequence.slot] = None
        self.free += self._held.pop(sequence)

    def at(self, slot: int) -> Sequence | None:
        return self._rows[slot]

    @property
    def used(self) -> int:
        return sum(sequence.computed for sequence in self._held)
