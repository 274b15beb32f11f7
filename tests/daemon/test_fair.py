"""Who is next: shares, what each waits at most, and that being away is neither credit nor debt."""

import random
import threading
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmd.daemon import fair
from llmd.daemon.fair import FairQueue, Order


def test_shares_are_those_of_the_weights_whatever_a_turn_costs() -> None:
    rng, order, weights = random.Random(1), Order(), {"a": 1.0, "b": 2.0, "c": 4.0}
    had: Counter[str] = Counter()
    for owner in weights:
        order.come(owner)
    for _ in range(10_000):
        owner = order.next(weights)
        cost = rng.choice([1, 10, 500]) if owner == "a" else rng.randrange(1, 100)
        order.took(owner, cost, weights[owner])
        had[owner] += cost
    assert had["b"] / had["a"] == pytest.approx(2, rel=0.02) and had["c"] / had["a"] == pytest.approx(4, rel=0.02)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32), st.integers(2, 6))
def test_nobody_starves(seed: int, owners: int) -> None:
    """Between two turns of one, each other has at most what that one's turn cost for its weight, and a turn more."""
    rng, order = random.Random(seed), Order()
    names = [str(n) for n in range(owners)]
    weights = {name: rng.choice([1.0, 8.0, 64.0, 3.0]) for name in names}
    for name in names:
        order.come(name)
    since: dict[str, Counter[str]] = {name: Counter() for name in names}
    largest: Counter[str] = Counter()
    last = dict.fromkeys(names, 0.0)
    for _ in range(500):
        owner = order.next(names)
        for other in names:
            most = last[owner] / weights[owner] * weights[other] + largest[other]
            assert since[owner][other] <= most + 1e-6 or not last[owner]
        cost = rng.randrange(1, 1000)
        order.took(owner, cost, weights[owner])
        largest[owner] = max(largest[owner], cost)
        last[owner], since[owner] = cost, Counter()
        for name in names:
            if name != owner:
                since[name][owner] += cost


def test_being_away_is_no_credit() -> None:
    order = Order()
    order.come("a")
    for _ in range(100):
        order.took(order.next(["a"]), 10)
    order.come("b")
    turns = []
    for _ in range(6):
        turns.append(order.next(["a", "b"]))
        order.took(turns[-1], 10)
    assert turns.count("b") == 3


def test_what_a_turn_did_not_cost_is_given_back() -> None:
    order = Order()
    for owner in "ab":
        order.come(owner)
    order.took("a", 1000)
    order.took("b", 10)
    assert order.next("ab") == "b"
    order.correct("a", -995)
    assert order.next("ab") == "a"
    order.correct("a", 100, weight=2)
    assert order.next("ab") == "b"


def test_who_has_been_away_is_forgotten() -> None:
    order = Order()
    for n in range(10 * fair.KEPT):
        order.come(str(n))
        order.took(str(n), 1)
        order.took("other", 1)
    assert len(order._had) <= fair.KEPT + 1


def test_owners_have_turns() -> None:
    queue = FairQueue[str]()
    for item in ("a1", "a2", "a3", "b1", "c1", "b2"):
        queue.put(item[0], item)
    assert [queue.get() for _ in range(3)] == ["a1", "b1", "c1"]
    queue.put("c", "c2")
    assert [queue.get() for _ in range(4)] == ["a2", "b2", "c2", "a3"]
    assert not queue._waiting


def test_a_turn_counts_by_what_it_costs() -> None:
    queue = FairQueue[str]()
    for n in range(3):
        queue.put("long", f"l{n}", cost=250_000)
    queue.put("heavy", "h", cost=1000, weight=1000)
    for n in range(20):
        queue.put("short", f"s{n}", cost=100)
    assert [queue.get() for _ in range(24)] == ["l0", "h", *(f"s{n}" for n in range(20)), "l1", "l2"]


def test_it_waits() -> None:
    queue, got = FairQueue[int](), list[int]()
    taking = threading.Thread(target=lambda: got.append(queue.get()))
    taking.start()
    queue.put("a", 5)
    taking.join(10)
    assert got == [5]
