"""How a step's chunks are dealt to calls on a GPU."""

import random
from collections.abc import Callable

from llmd.daemon.engine.llama.passes import A_PASS, MAX_GAP, passes
from llmd.daemon.engine.types import Chunk


def chunk(slot: int, size: int, start: int = 0, sample: bool = True) -> Chunk:
    return Chunk(slot, start, list(range(1, size + 1)), sample)


def seven(_: int) -> int:
    """What every other slot holds."""
    return 7


def shape(
    chunks: list[Chunk], ubatch: int = 512, context: int = 1024, held: Callable[[int], int] | None = seven
) -> list[list[tuple[int, int]]]:
    """Slot and length of each call's chunks."""
    return [[(c.slot, len(c.tokens)) for c in call.chunks] for call in passes(chunks, ubatch, context, held)]


def test_generating_sequences_are_one_call_by_slot_and_come_first() -> None:
    assert shape([chunk(3, 100), chunk(1, 1, 50), chunk(0, 1, 9)]) == [[(0, 1), (1, 1)], [(3, 100)]]
    assert shape([chunk(1, 1, 5)]) == [[(1, 1)]] and shape([]) == []


def test_prompts_in_adjacent_slots_are_filled_up_to_the_longest() -> None:
    (call,) = passes([chunk(1, 100), chunk(0, 97), chunk(2, 99)], 512, 1024, seven)
    assert [(c.slot, len(c.tokens)) for c in call.chunks] == [(0, 100), (1, 100), (2, 100)]
    assert call.filling == {0: 3, 2: 1} and call.chunks[0].tokens == [*range(1, 98), 97, 97, 97]


def test_a_group_ends_where_slots_lie_apart_a_pass_is_full_or_filling_costs_too_much() -> None:
    assert shape([chunk(0, 100), chunk(2, 100)]) == [[(0, 100)], [(2, 100)]]
    assert shape([chunk(i, 100) for i in range(7)]) == [[(i, 100) for i in range(5)], [(5, 100), (6, 100)]]
    assert shape([chunk(0, 100), chunk(1, 50)]) == [[(0, 100)], [(1, 50)]]
    assert shape([chunk(0, 100), chunk(1, 98)], context=99) == [[(0, 100)], [(1, 98)]], "no room behind the shorter"
    assert shape([chunk(0, 100), chunk(1, 98)], held=None) == [[(0, 100)], [(1, 98)]]
    assert shape([chunk(0, 2000)]) == [[(0, 2000)]]
    assert shape([chunk(0, 21), chunk(1, 13), chunk(2, 3)]) == [[(0, 21), (1, 21), (2, 21)]], "two passes saved"


def test_who_is_named_first_is_computed_first() -> None:
    assert shape([chunk(5, 100), chunk(9, 90), chunk(1, 80)]) == [[(5, 100)], [(9, 90)], [(1, 80)]]


def test_small_gaps_between_generating_sequences_are_closed() -> None:
    (call,) = passes([chunk(0, 1, 30), chunk(3, 1, 40), chunk(3 + MAX_GAP + 2, 1, 50)], 512, 1024, seven)
    assert [(c.slot, c.start, c.sample) for c in call.chunks] == [
        (0, 30, True), (1, 7, False), (2, 7, False), (3, 40, True), (MAX_GAP + 5, 50, True),
    ]  # fmt: skip
    assert call.filling == {1: 1, 2: 1}
    assert shape([chunk(0, 1), chunk(2, 1)], context=7) == [[(0, 1), (2, 1)]], "the slot between them is full"
    assert shape([chunk(0, 1), chunk(2, 1)], held=None) == [[(0, 1), (2, 1)]]


def test_whatever_comes_every_token_is_computed_once_and_filling_is_bounded() -> None:
    rng = random.Random(4)
    for _ in range(300):
        slots = rng.sample(range(64), rng.randrange(1, 40))
        given = [chunk(s, rng.choice([1, 1, rng.randrange(2, 300)]), rng.randrange(500)) for s in slots]
        calls = passes(given, 512, 1024, seven)
        own = {c.slot for c in given}
        back = {
            c.slot: c.tokens[: len(c.tokens) - call.filling.get(c.slot, 0)]
            for call in calls for c in call.chunks if c.slot in own
        }  # fmt: skip
        assert back == {c.slot: c.tokens for c in given}
        for call in calls:
            sizes, count = {len(c.tokens) for c in call.chunks}, len(call.chunks)
            assert len(sizes) == 1 and (count == 1 or count * max(sizes) <= 512)
            if sizes != {1}:
                assert sum(call.filling.values()) <= A_PASS * (count - 1)
            assert all(c.start + len(c.tokens) <= 1024 or c.slot not in call.filling for c in call.chunks)
