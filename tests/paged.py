"""Pages as tests look at them: what is taken and refused is counted, and what they say of themselves is true."""

from collections import Counter

from llmd.daemon.engine.pages import Pages
from llmd.daemon.engine.types import ModelInfo, Plan, Sequence


class Watched(Pages):
    """`taken`: how often a place was taken away, `refused`: how often the answer was 'not now'; `given`: pages that
    sequences got from others, `copied`: of these, copies."""

    def __init__(self, info: ModelInfo, pages: int, size: int) -> None:
        super().__init__(info, pages, size)
        self.taken = self.refused = self.given = self.copied = 0
        # of each page, the tokens that it would hold
        self.holds: list[list[int]] = [[] for _ in range(pages)]

    def room(self, sequence: Sequence, end: int) -> list[Sequence] | None:
        lost = super().room(sequence, end)
        self.refused += lost is None
        self.taken += len(lost or ())
        self.check()
        return lost

    def check(self) -> None:
        """Each page is free, or as many use it as say so."""
        users = Counter(page for place in (*self._rows, *self._left.values()) if place for page in place.pages)
        assert users == {page: n for page, n in enumerate(self._users) if n}
        live = Counter(page for place in self._rows if place for page in place.pages)
        assert live == {page: n for page, n in enumerate(self._live) if n} and self._spare == len(users) - len(live)
        assert sorted((*self._free, *users)) == list(range(len(self._users)))
        for row, place in enumerate(self._rows):
            assert self.tables[row] is (place.pages if place else self.tables[row]) and (place or not self.tables[row])

    def compute(self, plan: Plan) -> None:
        """A step, as a runner would: what is kept is there, and nobody writes where another one reads."""
        for start in plan.starts:
            if start.copy:
                self.holds[start.copy[1]] = list(self.holds[start.copy[0]])
                self.copied += 1
            self.given += bool(start.keep)
            assert tuple(self.text(start.slot, start.keep)) == (start.prompt + start.generated)[: start.keep]
            assert start.keep < len(start.prompt) + len(start.generated)
        for chunk in plan.chunks:
            for at, token in enumerate(chunk.tokens, chunk.start):
                page = self.tables[chunk.slot][at // self.size]
                assert self._users[page] == 1
                del self.holds[page][at % self.size :]
                self.holds[page].append(token)
            sequence = self.at(chunk.slot)
            assert sequence and self.text(chunk.slot, sequence.computed) == sequence.tokens[: sequence.computed]

    def text(self, row: int, length: int) -> list[int]:
        pages = self.tables[row][: -(-length // self.size)]
        return [token for page in pages for token in self.holds[page]][:length]
