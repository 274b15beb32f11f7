"""A request that was being answered in two crashes is refused for an hour; others are not."""

import itertools

import pytest

from llmd.daemon.errors import RequestCrashesWorker
from llmd.daemon.serving import poison
from llmd.daemon.serving.poison import Poison

PROCESSES = itertools.count(1)


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_two_crashes_are_enough_for_an_hour(clock: Clock) -> None:
    seen = Poison(clock)
    seen.check("a")
    seen.crashed("a", next(PROCESSES))
    seen.check("a")
    clock.now += 3599
    seen.crashed("a", next(PROCESSES))
    for later, minutes in ((0, 60), (1800, 30), (1799, 1)):
        clock.now += later
        with pytest.raises(RequestCrashesWorker, match=f"2 times .* for {minutes} minutes") as e:
            seen.check("a")
        assert e.value.status == 400 and e.value.code == "request_crashes_worker"
        seen.check("b")
    clock.now += 1
    seen.check("a")
    seen.crashed("a", next(PROCESSES))
    seen.check("a")


def test_crashes_more_than_an_hour_apart_are_not_its_own(clock: Clock) -> None:
    seen = Poison(clock)
    for _ in range(5):
        seen.crashed("a", next(PROCESSES))
        assert seen._seen["a"][0] == 1
        clock.now += 3601
    seen.check("a")
    assert not seen._seen


def test_who_only_was_there_too_and_is_answered_later_is_none(clock: Clock) -> None:
    seen = Poison(clock)
    for _ in range(3):
        seen.crashed("a", next(PROCESSES))
        assert seen._seen
        seen.answered("a")
        assert not seen._seen
    seen.check("a")


def test_there_is_an_end_to_what_it_keeps(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(poison, "KEPT", 3)
    seen = Poison(clock)
    for digest in "aabcdd":
        seen.crashed(digest, next(PROCESSES))
    assert list(seen._seen) == ["b", "c", "d"]


def test_equal_ones_in_one_crash_are_one(clock: Clock) -> None:
    seen = Poison(clock)
    for _ in range(16):
        seen.crashed("a", 1)
    seen.check("a")
    seen.crashed("a", 2)
    with pytest.raises(RequestCrashesWorker):
        seen.check("a")
