"""How many threads a step gets, on machines that only exist here: how long a step takes follows from what others do."""

import random
from collections.abc import Callable

import pytest

from llmd.daemon.engine.threads import FIRST_PAUSE, LAST_PAUSE, SAMPLES, Threads

Took = Callable[[int], float]


class Machine:
    """Steps on `limit` cores, of which `others` are busy. What is shared makes every thread wait."""

    def __init__(self, limit: int, seed: int = 1) -> None:
        self.threads, self.limit, self.others, self.now = Threads(self.idle), limit, 0, 100.0
        self.counts: list[int] = []
        self._dice = random.Random(seed)

    def idle(self) -> float:
        return max(0, self.limit - self.others - self.threads.used)

    def took(self, count: int, cores: int) -> float:
        shared = max(0, count + self.others - cores)
        quiet = 0.010 * (1 + cores) / (1 + count)
        # several threads wait for the one that does not run: some steps a little, others for whole slices of time
        waits = (self._dice.choice((1.7, 2.5, 6)) if count > 1 else 1.5) if shared else 1
        return quiet * self._dice.uniform(0.95, 1.05) * waits

    def run(self, seconds: float, sequences: int = 1, prompts: int = 0) -> list[int]:
        """The threads of each step."""
        self.counts, until = [], self.now + seconds
        while self.now < until:
            count = self.threads.count(self.limit)
            took = self.took(count, self.limit) * (1 + sequences / 4)
            self.now += took
            self.threads.note(sequences, prompts, took, self.now)
            self.counts.append(count)
        return self.counts


def share_at(counts: list[int], count: int) -> float:
    return counts.count(count) / len(counts)


@pytest.mark.parametrize("limit", [1, 2, 4, 16])
def test_undisturbed_it_computes_on_all_it_has(limit: int) -> None:
    counts = Machine(limit).run(20)
    assert share_at(counts, limit) > 0.99
    assert sum(count < limit for count in counts) <= SAMPLES  # fewer are tried once


@pytest.mark.parametrize(("limit", "others", "best"), [(2, 1, 1), (2, 2, 1), (16, 1, 15), (16, 4, 12)])
def test_others_get_the_cores_that_they_use(limit: int, others: int, best: int) -> None:
    machine = Machine(limit)
    machine.run(5)
    machine.others = others
    counts = machine.run(60)
    assert share_at(counts[len(counts) // 2 :], best) > 0.9
    assert next(i for i, count in enumerate(counts) if count < limit) <= 3 * SAMPLES  # soon
    machine.others = 0
    counts = machine.run(LAST_PAUSE + 5)
    assert machine.threads.used == limit, "and it takes them again"


def test_who_begins_beside_others_finds_out_as_well() -> None:
    machine = Machine(2)
    machine.others = 1
    assert share_at(machine.run(60), 1) > 0.9


def test_more_are_tried_only_when_a_core_has_nothing_to_do() -> None:
    machine = Machine(2)
    machine.run(5)
    machine.others = 1
    machine.run(5)
    assert set(machine.run(120)) == {1}  # nobody's stream waits for a try that is no good
    machine.others = 0
    machine.run(2.5 * FIRST_PAUSE)
    assert machine.threads.used == 2


def test_where_the_machine_does_not_tell_more_are_tried_less_and_less_often() -> None:
    """Who is in the way may be another machine on the same host."""
    machine = Machine(2)
    machine.threads = Threads(lambda: 2.0)
    machine.others = 1
    counts = machine.run(120)
    tries = [i for i, (a, b) in enumerate(zip(counts, counts[1:], strict=False)) if (a, b) == (1, 2)]
    assert 5 <= len(tries) <= 20
    assert 120 / LAST_PAUSE / 2 < len(tries) < 120 / FIRST_PAUSE


def test_steps_that_are_stuck_are_seen_at_once() -> None:
    machine = Machine(2)
    machine.run(5)
    machine.threads.count(1)  # what it has seen last is of no use
    machine.run(SAMPLES * 0.0102)
    for seconds in (1.5, 2.0):
        assert machine.threads.count(2) == 2
        machine.now += seconds
        machine.threads.note(1, 0, seconds, machine.now)
    assert machine.threads.count(2) == 1


def test_one_slow_step_changes_nothing() -> None:
    machine = Machine(2)
    machine.run(5)
    for _ in range(20):
        machine.threads.count(2)
        machine.threads.note(1, 0, 0.5, machine.now)  # a page fault, a collection
        assert share_at(machine.run(1), 2) == 1


def test_another_kind_of_step_is_not_held_against_it() -> None:
    machine = Machine(2)
    machine.run(3)
    for sequences, prompts in ((8, 0), (1, 256), (4, 0), (1, 0)):
        counts = machine.run(2, sequences, prompts)
        assert share_at(counts, 2) == 1, (sequences, prompts)


def test_a_share_that_changes_is_followed_at_once() -> None:
    machine = Machine(8)
    machine.run(3)
    assert machine.threads.count(3) == 3
    assert machine.threads.count(1) == 1
    machine.limit = 8
    assert machine.threads.count(8) == 8
    machine.others = 2
    machine.run(30)
    assert machine.threads.used == 6
    assert machine.threads.count(4) == 2  # what it leaves to others it leaves still
    assert machine.threads.count(1) == 1
    assert machine.threads.count(8) == 6
