"""The scheduler alone: what it plans, and that everything it is given ends exactly once."""

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from paged import Watched

from llmd.daemon.engine import prefixes
from llmd.daemon.engine.prefixes import MAX_FOUND, common_prefix
from llmd.daemon.engine.scheduler import LITTLE, PATIENCE, SHORT, Scheduler
from llmd.daemon.engine.sharing import Held
from llmd.daemon.engine.slots import MAX_STARTS, Slots
from llmd.daemon.engine.types import Chunk, ModelInfo, Plan, Request, Sample, SamplingParams, Token, next_cut


def info(slots: int = 4, context: int = 256, can_trim: bool = True, block: int = 4) -> ModelInfo:
    return ModelInfo(1000, context, slots, frozenset({0}), can_trim, block, "", 0, 0)


def make(
    slots: int = 4,
    *,
    batch: int = 64,
    chunk: int = 16,
    context: int = 256,
    can_trim: bool = True,
    block: int = 4,
    pages: int = 0,
) -> Scheduler:
    """With `pages` the sequences live in so many pages of 16 positions; else in slots."""
    about = info(slots, context, can_trim, block)
    return Scheduler(about, batch=batch, chunk=chunk, space=Watched(about, pages, 16) if pages else None)


def slots_of(s: Scheduler) -> list[Held]:
    assert isinstance(s.space, Slots)
    return s.space._slots


def ask(
    id_: int, prompt: list[int], *, owner: str = "a", max_tokens: int = 8, choices: int = 1, **params: Any
) -> Request:
    return Request(id_, owner, tuple(prompt), SamplingParams(max_tokens=max_tokens, **params), choices)


def step(s: Scheduler, token: int = 7) -> tuple[Plan, list[Token]]:
    plan = s.plan()
    return plan, s.apply(plan, [Sample(c.slot, token) for c in plan.chunks if c.sample])


def words(seed: int, count: int) -> list[int]:
    return [random.Random(seed).randrange(1, 1000) for _ in range(1)] + [
        1 + (seed * 31 + i) % 997 for i in range(count - 1)
    ]


def test_a_prompt_is_read_in_chunks_and_sampled_at_its_end() -> None:
    s = make(batch=64)
    s.add(ask(1, words(1, 100)))
    first, none = step(s)
    assert [(c.start, len(c.tokens), c.sample) for c in first.chunks] == [(0, 64, False)] and none == []
    second, tokens = step(s)
    assert [(c.start, len(c.tokens), c.sample) for c in second.chunks] == [(64, 36, True)]
    assert [t.sample.token for t in tokens] == [7]


def test_running_sequences_come_first_and_a_long_prompt_gets_a_chunk_beside_them() -> None:
    s = make(batch=64, chunk=16)
    s.add(ask(1, words(1, 10), max_tokens=100))
    step(s)
    s.add(ask(2, words(2, 200), max_tokens=100))
    for _ in range(5):
        plan, _ = step(s)
        assert [len(c.tokens) for c in plan.chunks] == [1, 16]
    assert plan.chunks[0].sample and not plan.chunks[1].sample


def test_when_many_prompts_wait_they_get_twice_as_much() -> None:
    s = make(slots=8, chunk=16)
    s.add(ask(1, words(1, 10), max_tokens=100))
    step(s)
    for id_ in range(2, 7):
        s.add(ask(id_, words(id_, 100), max_tokens=100))
    assert sum(len(c.tokens) for c in step(s)[0].chunks) == 1 + 32


def test_it_ends_at_max_tokens_at_eos_and_at_the_context() -> None:
    s = make(context=32)
    s.add(ask(1, words(1, 4), max_tokens=2))
    s.add(ask(2, words(2, 4), max_tokens=100))
    s.add(ask(3, words(3, 4), max_tokens=100, ignore_eos=True))
    _, tokens = step(s)
    assert [t.finish for t in tokens] == [None, None, None]
    plan = s.plan()
    ends = s.apply(plan, [Sample(c.slot, 0 if c.slot else 7) for c in plan.chunks])
    assert [t.finish for t in ends] == ["length", "stop", None]
    last = None
    while s.busy:
        last = step(s)[1][-1]
    assert last is not None and last.finish == "length" and len(last.sequence.tokens) == 32


def test_the_same_owner_continues_in_place_and_computes_at_least_the_last_token() -> None:
    s = make()
    prompt = words(1, 50)
    s.add(ask(1, prompt, max_tokens=1))
    step(s)
    s.add(ask(2, prompt, max_tokens=1))
    plan, _ = step(s)
    assert (plan.starts[0].slot, plan.starts[0].copy_from, plan.starts[0].keep) == (0, -1, 49)
    assert [len(c.tokens) for c in plan.chunks] == [1]


def test_a_request_with_a_seed_shares_whole_blocks_of_what_was_read() -> None:
    for seed, shared in ((None, 55), (3, 44)):
        s = make()
        s.add(ask(1, words(1, 50), max_tokens=8))
        while s.busy:
            step(s)
        s.add(ask(2, [*words(1, 50), *[7] * 5, 8, 9, 10], max_tokens=1, seed=seed))
        assert step(s)[0].starts[0].keep == shared
        # what was read behind a generated part is not as if read alone
        s.add(ask(3, [*words(1, 50), *[7] * 5, 8, 9, 10, 11], max_tokens=1, seed=3))
        assert step(s)[0].starts[0].keep == (44 if seed is None else 52)


def test_prompts_are_cut_at_blocks_whatever_runs_beside_them() -> None:
    for length in range(1, 70):
        s = make(batch=8, chunk=6)
        s.add(ask(1, words(1, 3), max_tokens=60, owner="b"))
        s.add(ask(2, words(2, length), max_tokens=1))
        ends: list[int] = []
        while not ends or ends[-1] < length:
            plan = s.plan()
            slot = next(q.slot for q in s.running if q.request.id == 2)
            ends += [c.start + len(c.tokens) for c in plan.chunks if c.slot == slot]
            s.apply(plan, [Sample(c.slot, 7) for c in plan.chunks if c.sample])
        assert all(end % 4 == 0 and length - end >= 4 for end in ends[:-1]) and ends[-1] == length


def test_another_owner_never_shares() -> None:
    s = make()
    prompt = words(1, 50)
    s.add(ask(1, prompt, max_tokens=1))
    step(s)
    s.add(ask(2, prompt, owner="b", max_tokens=1))
    plan, _ = step(s)
    assert plan.starts[0].keep == 0 and plan.starts[0].copy_from == -1 and len(plan.chunks[0].tokens) == 50


def test_a_busy_slots_prefix_is_copied() -> None:
    s = make()
    shared = words(1, 40)
    s.add(ask(1, [*shared, 5], max_tokens=50))
    step(s)
    s.add(ask(2, [*shared, 6], max_tokens=50))
    plan, _ = step(s)
    assert (plan.starts[0].slot, plan.starts[0].copy_from, plan.starts[0].keep) == (1, 0, 40)


def test_equal_prompts_that_come_together_are_read_once() -> None:
    s = make(batch=64)
    prompt = words(1, 60)
    s.add(ask(1, prompt, choices=4, max_tokens=4))
    plan, _ = step(s)
    assert len(plan.starts) == 1
    plan, _ = step(s)
    assert [(p.copy_from, p.keep) for p in plan.starts] == [(0, 59)] * 3
    assert sum(len(c.tokens) for c in plan.chunks) == 4


def test_a_conversation_is_not_overwritten_by_one_that_only_shares_its_beginning() -> None:
    s = make()
    system, long = words(1, 40), words(2, 100)
    s.add(ask(1, [*system, *long], max_tokens=1))
    step(s), step(s), step(s)
    s.add(ask(2, [*system, 9, 9], max_tokens=1))
    plan, _ = step(s)
    assert (plan.starts[0].slot, plan.starts[0].copy_from, plan.starts[0].keep) == (1, 0, 40)
    assert slots_of(s)[0].tokens[:140] == [*system, *long]


def test_a_recurrent_state_is_only_continued_never_cut() -> None:
    s = make(can_trim=False)
    s.add(ask(1, words(1, 50), max_tokens=2))
    step(s), step(s)
    s.add(ask(2, words(1, 50), max_tokens=2))
    assert step(s)[0].starts[0].keep == 0
    s = make(can_trim=False)
    s.add(ask(1, words(1, 50), max_tokens=2))
    step(s), step(s)
    s.add(ask(2, [*words(1, 50), 7, 3, 3], max_tokens=2))
    assert step(s)[0].starts[0].keep == 51


def test_busy_slots_stay_adjacent() -> None:
    s = make(slots=8)
    for i in range(8):
        s.add(ask(i, words(i, 4), max_tokens=1 if i in (0, 3, 6) else 50, owner=str(i)))
    step(s)
    assert [slot.sequence is None for slot in slots_of(s)] == [True, False, False, True, False, False, True, False]
    s.add(ask(20, words(20, 4), owner="x", max_tokens=50))
    assert step(s)[0].starts[0].slot in (3, 6)


def test_what_comes_at_once_gets_adjacent_slots_whatever_was_used_last() -> None:
    """Each gap between busy slots costs a pass: 8 streams were a sixth slower on slots chosen by age alone."""
    s = make(slots=16, batch=256)
    for i in range(16):
        s.add(ask(i, words(i, 4), max_tokens=1 + i * 7 % 16, owner=str(i)))
    while s.busy:
        step(s)
    for i in range(20, 26):
        s.add(ask(i, words(i, 4), max_tokens=50, owner=str(i)))
    step(s)
    taken = [i for i, slot in enumerate(slots_of(s)) if slot.sequence]
    assert len(taken) == 6 and taken == list(range(taken[0], taken[0] + 6))


def test_cancel_frees_the_slot_before_the_next_step() -> None:
    s = make(slots=1)
    s.add(ask(1, words(1, 50), max_tokens=50))
    s.add(ask(2, words(2, 60), max_tokens=50))
    step(s)
    assert [q.request.id for q in s.cancel(1)] == [1]
    plan, _ = step(s)
    assert plan.starts[0].prompt == tuple(words(2, 60))
    assert s.cancel(1) == []


@given(st.lists(st.integers(0, 3), max_size=200), st.lists(st.integers(0, 3), max_size=200), st.integers(0, 200))
def test_common_prefix_is_what_a_plain_loop_finds(a: list[int], b: list[int], limit: int) -> None:
    limit = min(limit, len(a), len(b))
    plain = 0
    while plain < limit and a[plain] == b[plain]:
        plain += 1
    assert common_prefix(a, b, limit) == plain


def steps_until_first_token(
    s: Scheduler, id_: int, each: Callable[[int], None] = lambda _: None, most: int = 10_000
) -> int:
    """How many steps until a request has its first token; `each` may add others before every step."""
    for number in range(1, most):
        each(number)
        if any(t.sequence.request.id == id_ for t in step(s)[1]):
            return number
    raise AssertionError("it starves")


def test_one_principals_prompts_do_not_hold_up_anothers() -> None:
    """A prompt of 70 tokens waited 390 steps behind another principal's 100,000."""
    s = make(slots=16, context=200_000, chunk=256, batch=512, block=64)
    s.add(ask(1, words(1, 10), max_tokens=100_000, owner="c"))
    step(s)
    for id_ in range(2, 12):
        s.add(ask(id_, words(id_, 10_000), owner="a", max_tokens=1))
    step(s)
    s.add(ask(20, words(20, 70), owner="b", max_tokens=1))
    assert steps_until_first_token(s, 20) == 1


def test_within_one_principal_the_shortest_comes_first() -> None:
    s = make(slots=8, context=20_000, chunk=64, batch=512, block=64)
    s.add(ask(1, words(1, 10), max_tokens=10_000))
    step(s)
    s.add(ask(2, words(2, 10_000), max_tokens=1))
    step(s)
    s.add(ask(3, words(3, 70), max_tokens=1))
    assert steps_until_first_token(s, 3) <= 2


@pytest.mark.parametrize("owners", [1, 3])
def test_the_longest_prompt_ends_within_its_bound_whatever_keeps_coming(owners: int) -> None:
    """Each second turn of its owner is its: 2 * owners * length / chunk steps."""
    length, chunk = 4096, 64
    s = make(slots=32, context=20_000, chunk=chunk, batch=chunk, block=32)
    s.add(ask(1, words(1, length), owner="0", max_tokens=1))

    def more(number: int) -> None:
        for owner in range(owners):
            s.add(ask(100 * number + owner, words(number, chunk), owner=str(owner), max_tokens=1))

    bound = 2 * owners * length // chunk
    took = steps_until_first_token(s, 1, more)
    assert length // chunk < took <= bound + 2 * owners


def test_slots_go_round_by_principal_too() -> None:
    s = make(slots=2, batch=64)
    for id_ in range(1, 9):
        s.add(ask(id_, words(id_, 8), owner="a", max_tokens=2))
    step(s)
    s.add(ask(20, words(20, 8), owner="b", max_tokens=2))
    assert steps_until_first_token(s, 20) <= 2


@pytest.mark.parametrize("params", [{"seed": 3}, {"temperature": 0.0}, {}])
def test_nobody_waits_for_ever_for_a_prefix_that_keeps_growing(params: dict[str, Any]) -> None:
    """Requests with a seed starved for 2,000 steps behind readers of the same prefix that came one after the other."""
    s = make(slots=8, context=2000, chunk=8, batch=64, block=4)
    shared = words(1, 600)
    s.add(ask(1, [*shared, 1], max_tokens=1))
    s.add(ask(2, [*shared, 2], max_tokens=1, **params))

    def more(number: int) -> None:
        if number % 10 == 0:
            s.add(ask(100 + number, [*shared, number], max_tokens=1))

    assert steps_until_first_token(s, 2, more) < 3 * 600 // 8


@pytest.mark.parametrize("prefix", [0, 64, 2000])
def test_planning_many_arrivals_costs_a_bounded_number_of_comparisons(
    prefix: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared = 0

    def counted(a: list[int], b: list[int], limit: int, start: int) -> int:
        nonlocal compared
        compared += 1
        length = common_prefix(a, b, limit, start)
        assert length - start < prefixes.BLOCK, "what the hashes have told is not compared"
        return length

    monkeypatch.setattr(prefixes, "common_prefix", counted)
    s = make(slots=128, context=4000, chunk=512, batch=512, block=64)
    for id_ in range(128):
        s.add(ask(id_, [*words(1, 1 + prefix), *words(id_, 40)], owner=f"{id_ % 4}", max_tokens=20))
    for _ in range(60):
        before = compared
        plan, _ = step(s)
        assert len(plan.starts) <= MAX_STARTS
        assert compared - before <= MAX_FOUND * 128
    assert not s.waiting


def test_two_beginnings_with_one_hash_are_not_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefixes, "hash", lambda _: 1, raising=False)
    s = make()
    s.add(ask(1, words(1, 50), max_tokens=1))
    step(s)
    s.add(ask(2, words(2, 50), max_tokens=1))
    plan, _ = step(s)
    assert plan.starts[0].keep == 0 and len(plan.chunks[0].tokens) == 50


def test_where_prompts_may_be_cut_anywhere_only_a_short_one_or_a_little_rest_goes_over_the_budget() -> None:
    s = make(batch=50, chunk=10, block=0, context=1000)
    length = 50 * 3 + LITTLE - 1
    s.add(ask(1, words(1, length), max_tokens=2, seed=1))
    assert [sum(len(c.tokens) for c in step(s)[0].chunks) for _ in range(4)] == [50, 50, 50 + LITTLE - 1, 1]
    s.add(ask(2, [*words(1, length), 5], max_tokens=1, seed=1))
    assert step(s)[0].starts[0].keep == length, "it shares all, with a seed too"
    s.add(ask(3, words(3, SHORT), max_tokens=2))
    assert [sum(len(c.tokens) for c in step(s)[0].chunks) for _ in range(2)] == [SHORT, 1]
    s.add(ask(4, [*words(3, SHORT), *words(4, SHORT)], max_tokens=1))
    assert [len(c.tokens) for c in step(s)[0].chunks] == [SHORT], "what was found does not count"


def pieces(chunk: Chunk, block: int) -> list[tuple[int, int]]:
    """Where a runner that cuts prompts itself (`passes.py`) begins and ends them."""
    at, end, found = chunk.start, chunk.start + len(chunk.tokens), []
    while at < end:
        cut = next_cut(at, end, block) if chunk.sample or chunk.last else min(end, at - at % block + block)
        found.append((at, cut))
        at = cut
    return found


class Driver:
    """Random adds, cancels and ends. It also holds what each slot's keys and values would be, and checks starts against
    it; and that what is computed again, of a text that is promised, is cut as it was the first time."""

    def __init__(self, rng: random.Random, can_trim: bool, paged: bool) -> None:
        slots = rng.choice([1, 2, 5])
        self.rng, self.s = (
            rng,
            make(
                slots,
                batch=rng.choice([8, 64]),
                chunk=8,
                context=64,
                can_trim=can_trim,
                block=rng.choice([0, 4]),
                pages=rng.randrange(4, 9) if paged else 0,
            ),
        )
        self.kv: list[list[int]] = [[] for _ in range(slots)]
        self.ends: dict[tuple[int, int], int] = {}
        self.cuts: dict[tuple[int, int, int], tuple[int, int]] = {}  # pieces, by where they begin
        self.ids = 0

    def act(self) -> None:
        rng = self.rng
        if rng.random() < 0.4:
            self.ids += 1
            prompt = [1 + rng.randrange(3) for _ in range(rng.randrange(1, 63))]
            if rng.random() < 0.5:
                prompt = ([5] * 45 + prompt)[: rng.randrange(1, 63)]
            choices = rng.randrange(1, 4)
            self.ends |= {(self.ids, c): 0 for c in range(choices)}
            seed = rng.choice([None, 1])
            given: dict[str, Any] = {"choices": choices, "max_tokens": rng.randrange(1, 30), "seed": seed}
            owner = rng.choice("abcd")
            self.s.add(replace(ask(self.ids, prompt, owner=owner, **given), weight=1.0 + ord(owner) % 3))
        if rng.random() < 0.1 and self.ids:
            for sequence in self.s.cancel(rng.randrange(1, self.ids + 1)):
                self.ends[sequence.request.id, sequence.choice] += 1
        if self.s.busy:
            self.step()

    def compute(self, plan: Plan) -> None:
        for start in plan.starts:
            if start.copy_from >= 0:
                self.kv[start.slot] = list(self.kv[start.copy_from])
            if not self.s.info.can_trim and start.keep:
                assert len(self.kv[start.slot]) == start.keep
            assert tuple(self.kv[start.slot][: start.keep]) == (start.prompt + start.generated)[: start.keep]
            assert start.keep < len(start.prompt) + len(start.generated)
            del self.kv[start.slot][start.keep :]
        for chunk in plan.chunks:
            assert len(self.kv[chunk.slot]) == chunk.start
            self.kv[chunk.slot] += chunk.tokens
            sequence = self.s.space.at(chunk.slot)
            assert sequence and self.kv[chunk.slot] == sequence.tokens[: sequence.computed]

    def step(self) -> None:
        plan = self.s.plan()
        assert plan.chunks, "a busy scheduler always has something to compute"
        over = 2 * self.s.block or SHORT
        assert sum(len(c.tokens) for c in plan.chunks) < self.s.batch + over + len(self.kv)
        assert len({c.slot for c in plan.chunks}) == len(plan.chunks)
        if isinstance(self.s.space, Watched):
            self.s.space.compute(plan)
        else:
            self.compute(plan)
        for chunk in plan.chunks:
            sequence = self.s.space.at(chunk.slot)
            assert sequence and chunk.start + len(chunk.tokens) == sequence.computed
            assert chunk.sample == (sequence.computed == len(sequence.tokens))
            if self.s.block and sequence.exact:
                for piece in pieces(chunk, self.s.block):
                    key = sequence.request.id, sequence.choice, piece[0]
                    assert self.cuts.setdefault(key, piece) == piece
        for token in self.s.apply(plan, [Sample(c.slot, self.rng.randrange(4)) for c in plan.chunks if c.sample]):
            if token.finish:
                self.ends[token.sequence.request.id, token.sequence.choice] += 1


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32), st.booleans(), st.booleans())
def test_whatever_happens_everything_ends_once_and_every_slot_is_free(seed: int, can_trim: bool, paged: bool) -> None:
    driver = Driver(random.Random(seed), can_trim, paged)
    for _ in range(80):
        driver.act()
    while driver.s.busy:
        driver.step()
    assert set(driver.ends.values()) <= {1}
    assert all(driver.s.space.at(slot) is None for slot in range(len(driver.kv)))


def test_slots_are_taken_and_given_back_in_what_is_driven() -> None:
    """Else the random driver would show nothing of that."""
    back = 0
    for seed in range(20):
        driver = Driver(random.Random(seed), True, False)
        while driver.ids < 60:
            driver.act()
            back += sum(bool(s.generated) for s in driver.s.waiting)
    assert back > 20


def held(s: Scheduler) -> dict[str, int]:
    return dict(Counter(q.request.owner for q in s.running))


def test_who_is_alone_has_all_slots_and_gives_them_back_as_others_come() -> None:
    s = make(slots=8)

    def after(*added: Request) -> dict[str, int]:
        for request in added:
            s.add(request)
        for _ in range(PATIENCE + 3):  # a second choice's prompt is the first one's
            step(s)
        return held(s)

    assert after(ask(1, words(1, 10), max_tokens=200, choices=20)) == {"a": 8}
    assert after(ask(2, words(2, 10), owner="b", max_tokens=200, choices=2)) == {"a": 6, "b": 2}
    assert after(ask(3, words(3, 10), owner="b", max_tokens=200, choices=20)) == {"a": 4, "b": 4}
    twice = replace(ask(4, words(4, 10), owner="c", max_tokens=200, choices=20), weight=2.0)
    assert after(twice) == {"a": 2, "b": 2, "c": 4}
    for id_ in (2, 3, 4):
        s.cancel(id_)
    assert after() == {"a": 8}


def test_who_has_next_to_no_weight_has_its_turn_all_the_same() -> None:
    """The daemon lets it in when its turn has come; it is not passed by then."""
    s = make(slots=4)
    for n in range(8):
        s.add(ask(n, words(n, 10), max_tokens=5))
    step(s)
    s.add(replace(ask(50, words(50, 10), owner="batch", max_tokens=5), weight=0.01))
    for n in range(100, 200):
        s.add(ask(n, words(n, 10), max_tokens=5))
        _, tokens = step(s)
        if any(t.sequence.request.owner == "batch" for t in tokens):
            break
    assert n < 110
    while any(q.request.owner == "batch" for q in s.running):
        step(s)
    assert not any(q.request.owner == "batch" for q in s.waiting), "and keeps it"


def test_more_owners_than_slots_take_none_from_each_other() -> None:
    s = make(slots=2)
    for n, owner in enumerate("abcd"):
        s.add(ask(n, words(n, 10), owner=owner, max_tokens=50))
    starts = sum(len(step(s)[0].starts) for _ in range(40))
    assert starts == 2 and len(s.waiting) == 2


def test_the_one_that_has_said_least_waits_again_and_goes_on_where_it_was() -> None:
    s = make(slots=2, context=64)
    s.add(ask(1, words(1, 10), max_tokens=40, seed=1))
    step(s)
    step(s)
    s.add(ask(2, words(2, 10), max_tokens=40, seed=1))
    step(s)
    s.add(ask(3, words(3, 10), owner="b", max_tokens=2))
    for _ in range(PATIENCE):  # the other one would have no more than it
        step(s)
        assert s.waiting[0].request.id == 3
    step(s)
    (again,) = s.waiting
    assert again.request.id == 2 and again.generated == PATIENCE + 1
    said: Counter[int] = Counter()
    while s.busy:
        said.update(t.sequence.request.id for t in step(s)[1])
    assert said[2] == 39 - PATIENCE and said[1] == 36 - PATIENCE


def test_places_are_refused_and_taken_away_in_what_is_driven() -> None:
    """Else the random driver would show nothing of that."""
    taken = refused = given = copied = 0
    for seed in range(20):
        driver = Driver(random.Random(seed), True, True)
        while driver.ids < 60:
            driver.act()
        space = driver.s.space
        assert isinstance(space, Watched)
        taken, refused = taken + space.taken, refused + space.refused
        given, copied = given + space.given, copied + space.copied
    assert taken > 20 and refused > 20 and given > 20 and copied > 20


def test_who_loses_its_place_reads_what_it_had_said_and_goes_on() -> None:
    s = make(2, context=64, pages=4, block=4)
    s.add(ask(1, words(1, 20), max_tokens=40, seed=1))
    s.add(ask(2, words(2, 20), max_tokens=20, seed=2))
    lost = None
    for _ in range(200):
        plan, tokens = step(s)
        first, second = (next((q for q in s.running + s.waiting if q.request.id == n), None) for n in (1, 2))
        if second and second.slot < 0 and second.generated and lost is None:
            lost = second.generated
        if lost is not None and any(start.generated for start in plan.starts):
            (start,) = plan.starts
            assert len(start.generated) == lost and start.keep == 0 and start.prompt == tuple(words(2, 20))
            break
    assert lost and second and second.generated == lost and not [t for t in tokens if t.sequence is second]
    sizes = []
    while second.generated == lost:
        plan, _ = step(s)
        sizes += [len(c.tokens) for c in plan.chunks if c.slot == second.slot]
    assert sizes[-lost:] == [1] * lost, "a token a step, as it was the first time"
    assert first is None or first.generated


def test_what_is_computed_with_other_weights_shares_no_prefix() -> None:
    s = make(2)
    prompt = words(1, 80)
    s.add(ask(1, prompt, max_tokens=1))
    while s.busy:
        step(s)
    s.add(replace(ask(2, prompt, max_tokens=1), adapter="x"))
    assert step(s)[0].starts[0].keep == 0


def reads(s: Scheduler, id_: int) -> tuple[list[tuple[int, int]], list[tuple[int, int, bool]]]:
    """How a request's prompt comes to be computed, whichever slot that is in: what it finds there (copied from where,
    how many tokens), and each chunk: its start, its length, and whether it is sampled."""
    found: list[tuple[int, int]] = []
    chunks: list[tuple[int, int, bool]] = []
    while not any(one.request.id == id_ and one.generated for one in s.running):
        plan = s.plan()
        slots = {one.slot for one in s.running if one.request.id == id_}
        found += [(start.copy_from, start.keep) for start in plan.starts if start.slot in slots]
        chunks += [(c.start, len(c.tokens), c.sample) for c in plan.chunks if c.slot in slots]
        s.apply(plan, [Sample(c.slot, 7) for c in plan.chunks if c.sample])
    return found, chunks


@pytest.mark.parametrize("pages", [0, 64])
@pytest.mark.parametrize("runs", [True, False])
@pytest.mark.parametrize("length", [3, 40, 200])
def test_the_plan_of_a_prompt_that_another_client_has_asked_is_the_plan_of_a_new_one(
    length: int, runs: bool, pages: int
) -> None:
    """Whether that one still runs or has ended; of the same client it is another plan."""
    plans = {}
    for owner, asked in (("b", 1), ("b", 2), ("a", 1)):
        s = make(pages=pages, chunk=64)
        s.add(ask(1, words(asked, length), max_tokens=50 if runs else 1))
        if runs:
            reads(s, 1)
        else:
            while s.busy:
                step(s)
        s.add(ask(2, words(1, length), owner=owner))
        plans[owner, asked] = reads(s, 2)
    assert plans["b", 1] == plans["b", 2] and all(keep == 0 for _, keep in plans["b", 1][0])
    if length > 3 and not pages:
        assert plans["a", 1] != plans["b", 1], "of the same client it is shared"
