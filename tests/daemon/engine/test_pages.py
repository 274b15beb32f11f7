"""Who has which pages: what is shared, what stays, and who gives."""

from collections.abc import Sequence as Tokens
from dataclasses import replace

import pytest
from paged import Watched

from llmd.daemon.engine.pages import PATIENCE, STALE, Pages
from llmd.daemon.engine.prefixes import beginnings
from llmd.daemon.engine.scheduler import Scheduler
from llmd.daemon.engine.types import ModelInfo, Request, Sample, SamplingParams, Sequence, Start

SIZE = 64


def info(slots: int = 8, context: int = 512, block: int = 0) -> ModelInfo:
    return ModelInfo(1000, context, slots, frozenset({0}), True, block, "", 0, 0)


class House:
    """A space, and sequences that come and grow in it as a scheduler would have them."""

    def __init__(self, pages: int, *, slots: int = 8, block: int = 0) -> None:
        self.space = Watched(info(slots, block=block), pages, SIZE)
        self.arrived = 0

    def sequence(self, tokens: Tokens[int], owner: str = "a", weight: float = 1.0, seed: int | None = None) -> Sequence:
        self.arrived += 1
        request = Request(self.arrived, owner, tuple(tokens), SamplingParams(50, seed=seed), weight=weight)
        hashes = beginnings(request.prefix_key, request.prompt)
        return Sequence(request, 0, list(tokens), arrived=self.arrived, beginnings=hashes)

    def enter(self, sequence: Sequence) -> Start | None:
        self.space.open(enter=True)
        start = self.space.enter(sequence)
        self.space.open(enter=False)
        return start

    def grow(self, sequence: Sequence, end: int) -> list[Sequence] | None:
        lost = self.space.room(sequence, end)
        if lost is not None:
            sequence.computed = end
            for other in lost:
                other.slot, other.computed = -1, 0
        return lost

    def lives(self, length: int) -> Sequence:
        """One of its own text, computed."""
        sequence = self.sequence(range(1, length + 1))
        assert self.enter(sequence) is not None and self.grow(sequence, length) == []
        return sequence

    def grows(self, length: int, owner: str = "a", *, first: int = 1) -> Sequence:
        """One that has said most of that."""
        sequence = self.sequence([first], owner)
        assert self.enter(sequence) is not None
        sequence.tokens += range(2, length + 1)
        assert self.grow(sequence, length) == []
        return sequence

    def pages(self, sequence: Sequence) -> list[int]:
        return list(self.space.tables[sequence.slot])


def test_a_pool_holds_a_context() -> None:
    with pytest.raises(ValueError, match="7 pages of 64 positions"):
        Pages(info(), 7)


def test_whole_pages_are_shared_and_the_one_where_they_part_is_copied() -> None:
    house = House(16)
    first = house.lives(200)
    other = house.sequence([*first.tokens[:180], 7, 8, 9])
    start = house.enter(other)
    assert start and start.keep == 180 and start.copy_from == -1
    assert house.pages(other)[:2] == house.pages(first)[:2] and len(house.pages(other)) == 3
    assert start.copy == (house.pages(first)[2], house.pages(other)[2])
    parted = house.sequence([*first.tokens[:140], 7, 8, 9])
    again = house.enter(parted)
    assert again and (again.keep, again.copy) == (128, None), "so little of a page is read anew"
    assert house.pages(parted) == house.pages(first)[:2]
    alone = house.enter(house.sequence(first.tokens, owner="b"))
    assert alone and (alone.keep, alone.copy) == (0, None), "nothing is another owner's"
    house.space.check()


def test_who_goes_on_where_another_has_ended_takes_its_pages_over() -> None:
    house = House(16)
    first = house.lives(200)
    pages = house.pages(first)
    house.space.leave(first)
    start = house.enter(house.sequence([*first.tokens, 5, 6, 7]))
    assert start and (start.keep, start.copy) == (200, None)
    assert house.space.tables[start.slot] == pages and not house.space._left


def test_what_is_promised_shares_what_was_read_as_it_reads_it() -> None:
    house = House(16, block=64)
    first = house.sequence(range(1, 201), seed=1)
    assert house.enter(first) and house.grow(first, 200) == [] and first.read == 128
    promised = house.enter(house.sequence([*range(1, 201), *range(300, 400)], seed=1))
    assert promised and (promised.keep, promised.copy) == (128, None)
    free = house.enter(house.sequence([*range(1, 201), *range(500, 600)]))
    assert free and (free.keep, free.copy) == (192, None)


def test_what_nobody_uses_goes_from_its_end_the_longest_unused_first() -> None:
    house = House(8)
    old, new = house.grows(256, first=1), house.grows(256, first=2)
    house.space.leave(old)
    house.space.leave(new)
    third = house.grows(64, first=3)
    (shorter,) = [place for place in house.space._left.values() if place.tokens[0] == 1]
    assert len(shorter.tokens) == 192 and len(shorter.pages) == 3
    fourth = house.grows(4 * 64, first=4)
    assert [(place.tokens[0], len(place.tokens)) for place in house.space._left.values()] == [(2, 192)]
    house.space.leave(third)
    house.space.leave(fourth)
    again = house.enter(house.sequence([2, *range(2, 300)]))
    assert again and again.keep == 192
    house.space.check()


# --- who gives


def test_the_newest_of_who_holds_most_gives_to_who_holds_less() -> None:
    house = House(8)
    for n in range(4):
        last = house.grows(128, "a", first=n)
    b = house.sequence(range(1, 100), "b")
    assert house.enter(b) and house.grow(b, 99) == [last]
    c = house.sequence(range(1, 100), "c")
    assert house.enter(c) and len(house.grow(c, 99) or ()) == 1, "a held four"
    d = house.sequence(range(1, 100), "d", weight=4.0)
    assert house.enter(d) and len(house.grow(d, 99) or ()) == 1, "all have two now"
    for weight in (1.0, 4.0):
        assert house.enter(house.sequence(range(1, 100), "e", weight)) is None, "whose only one would be lost"
    house.space.check()


def test_of_ones_own_those_give_that_came_later() -> None:
    house = House(8)
    first, second = house.grows(256, first=1), house.grows(256, first=2)
    assert house.grow(second, 300) is None
    assert house.grow(first, 300) == [second] and second.slot == -1
    assert first.computed == 300


def test_who_came_first_gets_what_it_needs_and_nobody_takes_it_back() -> None:
    house = House(8)
    first, other = house.grows(384, "a"), house.grows(128, "b")
    assert house.grow(other, 129) is None, "it would have as many as a is left with: none"
    assert house.grow(first, 400) == [other]
    assert house.enter(other) is None
    house.space.check()


def test_a_long_prompt_is_not_passed_by_for_ever() -> None:
    space = Watched(info(), 8, SIZE)
    s = Scheduler(info(), batch=256, chunk=64, space=space)
    long = Request(1000, "long", tuple(range(1, 450)), SamplingParams(2))
    for step in range(400):
        if step % 4 == 0:
            s.add(Request(step, "short", tuple(range(step + 1, step + 100)), SamplingParams(20)))
        if step == 40:
            s.add(long)
        plan = s.plan()
        space.compute(plan)
        s.apply(plan, [Sample(chunk.slot, 1 + chunk.start % 900) for chunk in plan.chunks if chunk.sample])
        if any(one.request is long for one in s.running):
            break
    assert 40 + PATIENCE < step < 100


def test_one_that_is_gone_holds_up_nobody() -> None:
    house = House(8)
    running = house.grows(320)
    gone = house.sequence(range(1, 300))
    for _ in range(PATIENCE):
        assert house.enter(gone) is None
    short = house.sequence(range(1, 50))
    assert house.enter(short) is None
    for _ in range(STALE):
        house.space.open(enter=True)
    assert house.enter(short) and running.slot >= 0


def test_owners_with_long_texts_all_come_to_their_end() -> None:
    """In a pool of one context, of which each would have all, and nobody's work is done again and again."""
    about = info(6, 512)
    space = Watched(about, 8, SIZE)
    s = Scheduler(about, batch=256, chunk=64, space=space)
    for n in range(12):
        request = Request(n, "abc"[n % 3], tuple(range(n + 1, n + 151)), SamplingParams(300))
        s.add(replace(request, weight=1.0 + n % 3))
    steps = computed = 0
    while s.busy:
        plan = s.plan()
        space.compute(plan)
        s.apply(plan, [Sample(chunk.slot, 1 + chunk.start % 900) for chunk in plan.chunks if chunk.sample])
        steps, computed = steps + 1, computed + sum(len(chunk.tokens) for chunk in plan.chunks)
    assert 0 < space.taken < 40 and computed < 2 * 12 * 450
