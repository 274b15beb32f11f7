"""Which replicas a deployment has, without processes: the rules, and that they come to rest in any order."""

import random
from dataclasses import replace

import pytest

from llmd.daemon.replicas.rollout import Add, Change, Release, Replace, Seen, change

NEW = Seen(2, fits=True, ready=True)
LOADS = Seen(2, fits=True, ready=False)
OLD = Seen(1, fits=False, ready=True)
DEAD = Seen(1, fits=False, ready=False)
GOES = Seen(9, fits=False, ready=True, goes=True)


@pytest.mark.parametrize(
    ("wanted", "count", "replicas", "crowded", "next_"),
    [
        (False, 1, [OLD], False, Release(1)),
        (False, 1, [GOES], False, None),
        (True, 1, [], False, Add(beside=False)),
        (True, 1, [GOES], False, Add(beside=False)),
        (True, 1, [NEW], False, None),
        (True, 2, [LOADS], False, Add(beside=False)),
        (True, 1, [replace(NEW, load=3), Seen(3, fits=True, ready=True)], False, Release(3)),
        (True, 1, [NEW, Seen(3, fits=True, ready=False, load=3)], False, Release(3)),
        (True, 1, [DEAD], False, Replace(1)),
        (True, 1, [DEAD, LOADS], False, Release(1)),
        (True, 1, [OLD], False, Add(beside=True)),
        (True, 1, [OLD], True, Replace(1)),
        (True, 1, [OLD, LOADS], False, None),
        (True, 1, [OLD, NEW], False, Release(1)),
        (True, 2, [OLD, LOADS], False, None),
        (True, 2, [OLD, NEW], False, Add(beside=True)),
        (True, 2, [OLD, NEW], True, Replace(1)),
        (True, 2, [OLD, replace(OLD, number=3, load=2), NEW], False, Release(1)),
    ],
)
def test_the_next_thing_to_do(
    wanted: bool, count: int, replicas: list[Seen], crowded: bool, next_: Change | None
) -> None:
    assert change(wanted, count, replicas, crowded) == next_


@pytest.mark.parametrize("seed", range(300))
def test_it_comes_to_rest_with_what_is_wanted_and_something_always_serves(seed: int) -> None:
    """Replicas load, fail and go at random; memory holds what is wanted and perhaps one beside it."""
    dice = random.Random(seed)
    count, room = dice.randint(1, 4), dice.randint(0, 1)
    replicas = [Seen(n, fits=False, ready=True) for n in range(1, dice.randint(1, count) + 1)]
    crowded, number = False, len(replicas)
    for _ in range(200):
        while next_ := change(True, count, replicas, crowded):
            match next_:
                case Add(beside):
                    if beside and len(replicas) >= count + room:
                        crowded = True
                        continue
                    number += 1
                    replicas.append(Seen(number, fits=True, ready=False))
                case Replace(n):
                    replicas = [Seen(n, fits=True, ready=False) if one.number == n else one for one in replicas]
                case Release(n):
                    replicas = [replace(one, goes=True) if one.number == n else one for one in replicas]
            assert len(replicas) <= count + room + sum(one.goes for one in replicas)
            if room or count > 1 and len(replicas) > 1:
                assert any(one.ready for one in replicas)
        waits = [one for one in replicas if not one.ready]
        gone = [one for one in replicas if one.goes]
        if not waits and not gone:
            break
        one = dice.choice([*waits, *gone])
        replicas.remove(one)
        if not one.goes:
            replicas.append(replace(one, ready=True))
    assert sorted((one.fits, one.ready, one.goes) for one in replicas) == [(True, True, False)] * count
