"""What is kept for one is nobody else's, and nobody pushes out others."""

import random

from llmd.daemon.kept import Kept


def test_what_one_has_another_has_not() -> None:
    kept = Kept[int](9, 9)
    kept.put("alice", "key", 1)
    assert kept.get("alice", "key") == 1 and kept.get("bob", "key") is None
    kept.put("bob", "key", 2)
    assert kept.get("alice", "key") == 1 and kept.get("bob", "key") == 2 and len(kept) == 2


def test_of_one_owner_the_one_used_longest_ago_goes() -> None:
    kept = Kept[int](9, 2)
    for key in range(2):
        kept.put("alice", key, key)
    assert kept.get("alice", 0) == 0
    kept.put("alice", 2, 2)
    assert [kept.get("alice", key) for key in range(3)] == [0, None, 2] and len(kept) == 2


def test_who_has_most_makes_room() -> None:
    kept = Kept[int](6, 4)
    kept.put("bob", 0, 0)
    for key in range(100):
        kept.put("alice", key, key)
    kept.put("carol", 0, 0)
    kept.put("dave", 0, 0)
    assert [kept.get(name, 0) for name in ("bob", "carol", "dave")] == [0, 0, 0]
    assert [key for key in range(100) if kept.get("alice", key) is not None] == [97, 98, 99] and len(kept) == 6


def test_however_it_is_used_its_bounds_hold() -> None:
    chance, kept = random.Random(1), Kept[int](20, 7)
    for _ in range(5000):
        owner, key = str(chance.randrange(12)), chance.randrange(15)
        if chance.random() < 0.5:
            kept.put(owner, key, key)
            assert kept.get(owner, key) == key
        found = {name: [k for k in range(15) if k in own] for name, own in kept._owned.items()}
        assert len(kept) == sum(map(len, found.values())) <= 20 and all(0 < len(own) <= 7 for own in found.values())
