"""Where sequences live in an engine with pages: each has a row, and a table of pages out of one pool that all share.
Pure; a `Space` (`protocols.py`).

Whole pages are shared by reference: one that holds what several have in common is theirs, and nobody writes into it any
more. Of the page where a sequence goes its own way it gets a copy, so of one at most. What a sequence has had stays
when it ends, for others of its owner to share, until the pages are needed: the longest unused goes first, from its end.

Who needs pages takes, in this order,

1. free ones, and those that nobody uses any more;
2. those of an owner that holds no less than its own does, for its weight, even without them;
3. those of its own owner's sequences that came later;
4. if nobody came before it, anybody's.

It is the owner who holds most that gives in 2 and 4, and its newest sequence. So one owner's long texts leave room for
others', nobody is passed by for ever, and two never take the same pages from each other in turn.

A sequence enters where it would come as far as it has been, and all the others a page further: else it would soon lose
what is computed for it. One that finds no room for PATIENCE steps is waited for by those that came later.
"""

from collections import Counter, OrderedDict
from dataclasses import dataclass, field, replace
from itertools import count

from llmd.daemon.engine.prefixes import SHARE_MIN, Prefixes, beginnings
from llmd.daemon.engine.sharing import Held, Sharing
from llmd.daemon.engine.types import ModelInfo, Sequence, Start

PAGE = 64  # positions
PATIENCE = 16
# steps after which one that has not asked again is gone
STALE = 64


@dataclass(slots=True, eq=False)
class _Place(Held):
    """`id`: a sequence's row; of what nobody uses any more, a number above all rows."""

    id: int = -1
    pages: list[int] = field(default_factory=list)


class Pages:
    """`count` pages of `size` positions each, in which a whole context fits. `tables`: the pages of each row, in the
    order of their positions: the runner's to read as it launches a step. Raises ValueError."""

    bounded = True

    def __init__(self, info: ModelInfo, pages: int, size: int = PAGE) -> None:
        if pages * size < info.context:
            raise ValueError(f"{pages} pages of {size} positions do not hold a context of {info.context}")
        self._sharing, self.size, self.count = Sharing(info), size, pages
        self._rows: list[_Place | None] = [None] * info.slots
        self.tables: list[list[int]] = [[] for _ in range(info.slots)]
        self._free = list(reversed(range(pages)))
        self._users = [0] * pages
        self._live = [0] * pages  # of those, that are running sequences
        self._spare = 0  # pages that have users, of which none is running
        self._left: OrderedDict[int, _Place] = OrderedDict()  # that nobody uses, the longest unused first
        self._prefixes = Prefixes()
        self._ids = count(info.slots)
        self._tick = 0
        self._entered: set[Sequence] = set()  # in this step: what they copy is not there yet
        # who came first of those that found no room, how often, and in which step it did last
        self._first: Sequence | None = None
        self._times = self._last = self._step = 0

    def open(self, *, enter: bool) -> None:
        self._entered.clear()
        self._step += 1

    @property
    def full(self) -> bool:
        return None not in self._rows

    def enter(self, sequence: Sequence) -> Start | None:
        if sequence.awaits is not None and self._reads(sequence.awaits):
            return None
        seen = self._prefixes.find(sequence.beginnings, sequence.tokens)
        found = [(self._place(id_), common) for id_, common in seen.items()]
        shared = [(self._sharing.shared(place, sequence, common), place) for place, common in found]
        keep, source = max(shared, key=lambda one: (one[0], -one[1].id), default=(0, None))
        if source is None or keep < SHARE_MIN or source.tokens[:keep] != sequence.tokens[:keep]:
            keep, source = 0, _Place()  # two beginnings may have one hash
        if self._sharing.waits(sequence, found, keep):
            return None
        if not self._fits(sequence, source, keep):
            self._pass_by(sequence)
            return None
        return self._start(sequence, source, keep)

    def room(self, sequence: Sequence, end: int) -> list[Sequence] | None:
        table = self.tables[sequence.slot]
        need = -(-end // self.size) - len(table)
        lost = self._make_room(sequence, need)
        if lost is not None:
            table += [self._take() for _ in range(need)]
        return lost

    def leave(self, sequence: Sequence) -> None:
        place = self._rows[sequence.slot]
        assert place is not None
        self._rows[sequence.slot], self.tables[sequence.slot] = None, []
        self._prefixes.drop(place.id)
        for page in place.pages:
            self._rests(page)
        self._tick += 1
        place.leave(sequence, self._tick)
        place.id = next(self._ids)
        self._left[place.id] = place
        there = len(place.tokens)
        if sequence in self._entered:
            there -= there % self.size
        self._cut(place, there)

    def at(self, slot: int) -> Sequence | None:
        place = self._rows[slot]
        return place.sequence if place else None

    @property
    def used(self) -> int:
        return (self.count - len(self._free)) * self.size

    # --- places

    def _place(self, id_: int) -> _Place:
        place = self._rows[id_] if id_ < len(self._rows) else self._left[id_]
        assert place is not None
        return place

    def _reads(self, reader: Sequence) -> bool:
        """Whether its prompt is being read still."""
        return reader.slot >= 0 and self.at(reader.slot) is reader and not reader.prefilled

    def _fits(self, sequence: Sequence, source: _Place, keep: int) -> bool:
        if self._waited_for(sequence):
            return False
        running, whole = sum(place is not None for place in self._rows), keep // self.size
        need = -(-(len(sequence.tokens) + 1) // self.size) - whole
        free = len(self._free) + self._spare - sum(not self._live[page] for page in source.pages[:whole])
        return need + running <= free or not running or self._givers(sequence, need) is not None

    def _waited_for(self, sequence: Sequence) -> bool:
        """Whether somebody that came before it is to enter first."""
        first, stale = self._first, self._step - self._last > STALE
        return first is not None and first.arrived < sequence.arrived and self._times >= PATIENCE and not stale

    def _pass_by(self, sequence: Sequence) -> None:
        stale = self._step - self._last > STALE
        if self._first is None or stale or sequence.arrived < self._first.arrived:
            self._first, self._times = sequence, 0
        if sequence is self._first:
            self._times, self._last = self._times + 1, self._step

    def _start(self, sequence: Sequence, source: _Place, keep: int) -> Start:
        row, copy = self._rows.index(None), None
        whole, part = divmod(keep, self.size)
        table = source.pages[:whole]
        if part and self._ends(source, keep):
            table = self._taken_over(source)
        else:
            for page in table:
                self._users[page] += 1
                self._lives(page)
            if part >= self.size // 2 and self._makes_room(1, but=source):
                copy = source.pages[whole], self._take()
                table.append(copy[1])
            else:
                keep -= part
        if sequence is self._first:
            self._first = None
        place = _Place(id=row, pages=table)
        self._sharing.begin(place, sequence, source, keep)
        self._rows[row], self.tables[row] = place, table
        self._prefixes.put(row, sequence.beginnings, place.tokens)
        self._entered.add(sequence)
        return replace(sequence.start(row, -1, keep), copy=copy)

    def _ends(self, source: _Place, keep: int) -> bool:
        """Whether a sequence goes on exactly where another has ended."""
        return source.sequence is None and keep == len(source.tokens) and self._users[source.pages[-1]] == 1

    def _taken_over(self, source: _Place) -> list[int]:
        table, source.pages = source.pages, []
        for page in table:
            self._lives(page)
        del self._left[source.id]
        self._prefixes.drop(source.id)
        return table

    # --- pages

    def _take(self) -> int:
        page = self._free.pop()
        self._users[page] = self._live[page] = 1
        return page

    def _lives(self, page: int) -> None:
        """One more running sequence has a page that somebody has already."""
        self._spare -= not self._live[page]
        self._live[page] += 1

    def _rests(self, page: int) -> None:
        """One less."""
        self._live[page] -= 1
        self._spare += not self._live[page]

    def _give(self, page: int) -> None:
        """One that has no running sequence has it no more."""
        self._users[page] -= 1
        if not self._users[page]:
            self._spare -= 1
            self._free.append(page)

    def _cut(self, place: _Place, length: int) -> None:
        """So many tokens of what nobody uses stay."""
        keeps = -(-length // self.size)
        while len(place.pages) > keeps:
            self._give(place.pages.pop())
        del place.tokens[length:]
        place.read = min(place.read, length)
        if length < SHARE_MIN:
            for page in place.pages:
                self._give(page)
            del self._left[place.id]
            self._prefixes.drop(place.id)
        else:
            self._prefixes.put(place.id, beginnings(place.key, place.tokens), place.tokens)

    def _makes_room(self, need: int, but: _Place | None = None) -> bool:
        """Whether there are so many free ones, when those are that nobody uses."""
        while len(self._free) < need:
            place = next((one for one in self._left.values() if one is not but), None)
            if place is None:
                return False
            lacking = need - len(self._free)
            self._cut(place, max(0, len(place.pages) - lacking) * self.size)
        return True

    def _make_room(self, sequence: Sequence, need: int) -> list[Sequence] | None:
        if self._makes_room(need):
            return []
        lost = self._givers(sequence, need)
        for other in lost or ():
            self.leave(other)
        if lost is not None:
            self._makes_room(need)
        return lost

    # --- whose

    def _givers(self, sequence: Sequence, need: int) -> list[Sequence] | None:
        """Who must give its place for so many free pages; None: nobody has to."""
        places = {place.sequence: place for place in self._rows if place and place.sequence}
        others = sorted((one for one in places if one is not sequence), key=lambda one: one.arrived)
        first = all(one.arrived > sequence.arrived for one in others)
        holds = Counter({one.request.owner: 0 for one in (sequence, *others)})
        for one, place in places.items():
            holds[one.request.owner] += len(place.pages)
        lost: list[Sequence] = []
        gone: Counter[int] = Counter()
        free = len(self._free)
        while free < need:
            giver = self._giver(sequence, others, holds, need, first=first)
            if giver is None:
                return None
            others.remove(giver)
            lost.append(giver)
            holds[giver.request.owner] -= len(places[giver].pages)
            for page in places[giver].pages:
                gone[page] += 1
                free += gone[page] == self._users[page]
        return lost

    def _giver(
        self, sequence: Sequence, others: list[Sequence], holds: Counter[str], need: int, *, first: bool
    ) -> Sequence | None:
        """The next one; `others` in the order in which they came."""
        newest = {one.request.owner: one for one in others}
        own, weight = sequence.request.owner, sequence.request.weight
        most = max(newest, key=lambda owner: holds[owner] / newest[owner].request.weight, default=None)
        if most is None:
            return None
        one = newest[most]
        left = (holds[most] - len(self.tables[one.slot])) / one.request.weight
        if most != own and left >= (holds[own] + need) / weight:
            return one  # 2
        later = newest.get(own)
        if later is not None and later.arrived > sequence.arrived:
            return later  # 3
        return one if first else None  # 4
