"""The scheduler alone: what it plans, and that everything it is given ends exactly once."""

import random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from llmd.daemon.engine.messages import SamplingParams
from llmd.daemon.engine.scheduler import Scheduler, common_prefix
from llmd.daemon.engine.types import ModelInfo, Plan, Request, Sample, Token


def info(slots: int = 4, context: int = 256, can_trim: bool = True) -> ModelInfo:
    return ModelInfo(1000, context, slots, frozenset({0}), can_trim, None, "", "", "", 0, 0)


def make(
    slots: int = 4, *, batch: int = 64, chunk: int = 16, context: int = 256, can_trim: bool = True, block: int = 4
) -> Scheduler:
    return Scheduler(info(slots, context, can_trim), batch=batch, chunk=chunk, block=block)


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
    assert s.slots[0].tokens[:140] == [*system, *long]


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
    assert [slot.sequence is None for slot in s.slots] == [True, False, False, True, False, False, True, False]
    s.add(ask(20, words(20, 4), owner="x", max_tokens=50))
    assert step(s)[0].starts[0].slot in (3, 6)


def test_cancel_frees_the_slot_before_the_next_step() -> None:
    s = make(slots=1)
    s.add(ask(1, words(1, 50), max_tokens=50))
    s.add(ask(2, words(2, 5), max_tokens=50))
    step(s)
    assert [q.request.id for q in s.cancel(1)] == [1]
    plan, _ = step(s)
    assert plan.starts[0].prompt == tuple(words(2, 5))
    assert s.cancel(1) == []


@given(st.lists(st.integers(0, 3), max_size=200), st.lists(st.integers(0, 3), max_size=200), st.integers(0, 200))
def test_common_prefix_is_what_a_plain_loop_finds(a: list[int], b: list[int], limit: int) -> None:
    limit = min(limit, len(a), len(b))
    plain = 0
    while plain < limit and a[plain] == b[plain]:
        plain += 1
    assert common_prefix(a, b, limit) == plain


class Driver:
    """Random adds, cancels and ends. It also holds what each slot's keys and values would be, and checks starts against
    it."""

    def __init__(self, rng: random.Random, can_trim: bool) -> None:
        self.rng, self.s = (
            rng,
            make(rng.choice([1, 2, 5]), batch=rng.choice([8, 64]), chunk=8, context=64, can_trim=can_trim),
        )
        self.kv: list[list[int]] = [[] for _ in self.s.slots]
        self.owner_of: list[list[str]] = [[] for _ in self.s.slots]
        self.ends: dict[tuple[int, int], int] = {}
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
            self.s.add(ask(self.ids, prompt, owner=rng.choice("ab"), choices=choices, max_tokens=rng.randrange(1, 9)))
        if rng.random() < 0.1 and self.ids:
            for sequence in self.s.cancel(rng.randrange(1, self.ids + 1)):
                self.ends[sequence.request.id, sequence.choice] += 1
        if self.s.busy:
            self.step()

    def step(self) -> None:
        plan = self.s.plan()
        assert plan.chunks, "a busy scheduler always has something to compute"
        assert sum(len(c.tokens) for c in plan.chunks) < self.s.batch + 2 * self.s.block + len(self.s.slots)
        for start in plan.starts:
            if start.copy_from >= 0:
                self.kv[start.slot] = list(self.kv[start.copy_from])
            if not self.s.info.can_trim and start.keep:
                assert len(self.kv[start.slot]) == start.keep
            assert tuple(self.kv[start.slot][: start.keep]) == start.prompt[: start.keep]
            assert start.keep < len(start.prompt)
            del self.kv[start.slot][start.keep :]
        for chunk in plan.chunks:
            assert len(self.kv[chunk.slot]) == chunk.start
            self.kv[chunk.slot] += chunk.tokens
        for token in self.s.apply(plan, [Sample(c.slot, self.rng.randrange(4)) for c in plan.chunks if c.sample]):
            if token.finish:
                self.ends[token.sequence.request.id, token.sequence.choice] += 1


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32), st.booleans())
def test_whatever_happens_everything_ends_once_and_every_slot_is_free(seed: int, can_trim: bool) -> None:
    driver = Driver(random.Random(seed), can_trim)
    for _ in range(80):
        driver.act()
    while driver.s.busy:
        driver.step()
    assert set(driver.ends.values()) <= {1}
    assert all(slot.sequence is None for slot in driver.s.slots)
