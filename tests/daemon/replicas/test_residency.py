"""Whether a deployment is loaded, in any order of events; and who goes where another one needs room."""

import random

import pytest

from llmd.daemon.replicas.residency import Called, Deployed, Event, Evicted, Load, Residency, Unload, Unloaded, room

EVENTS: list[Event] = [Deployed(), Evicted("x"), Called(), Unloaded()]


def away(*, comes: bool = False) -> Residency:
    one = Residency()
    one.comes = comes
    assert one.on(Evicted("made room")) == [Unload()] and one.on(Unloaded()) == []
    return one


def test_one_that_is_evicted_is_away_once_it_has_gone_and_says_why() -> None:
    one = Residency()
    assert one.loaded and one.on(Evicted("made room")) == [Unload()]
    assert not one.loaded and not one.away
    assert one.on(Unloaded()) == [] and one.away and one.why == "made room"
    assert one.on(Evicted("once more")) == [] and one.why == "once more"


def test_one_that_is_deployed_again_is_loaded_whether_it_has_gone_or_not() -> None:
    assert away().on(Deployed()) == [Load()]
    one = Residency()
    one.on(Evicted("made room"))
    assert one.on(Deployed()) == [], "its processes end first"
    assert one.on(Unloaded()) == [Load()] and one.loaded and one.why == ""


@pytest.mark.parametrize("comes", [True, False])
def test_a_request_brings_one_back_that_comes_when_it_is_called(comes: bool) -> None:
    one = away(comes=comes)
    assert one.on(Called()) == ([Load()] if comes else [])
    assert one.loaded == comes and one.on(Called()) == [], "however many call"


def test_whatever_happens_it_loads_and_unloads_by_turns_and_ends_as_it_was_asked_to() -> None:
    dice = random.Random(1)
    for _ in range(300):
        one, loaded, wanted = Residency(), True, True
        one.comes = dice.random() < 0.5
        for _ in range(40):
            event = dice.choice(EVENTS)
            if isinstance(event, Unloaded) and one.state != "leaving":
                continue
            brought = isinstance(event, Called) and one.comes and one.away
            wanted = True if isinstance(event, Deployed) or brought else wanted and not isinstance(event, Evicted)
            for effect in one.on(event):
                assert loaded != isinstance(effect, Load)
                loaded = isinstance(effect, Load)
        if one.state == "leaving":
            one.on(Unloaded())
        assert one.loaded == wanted and one.away != wanted


def gone(idle: dict[str, int], enough: set[frozenset[str]]) -> tuple[list[str], int]:
    """Who goes where these sets, and what holds one of them, are enough; and how often it was asked."""
    search, asked = room(idle), 0
    try:
        tried = next(search)
        while True:
            asked += 1
            tried = search.send(any(one <= tried for one in enough))
    except StopIteration as e:
        return e.value, asked


def test_the_cheapest_go_first_and_no_more_than_needed() -> None:
    idle = {"large": 9, "small": 1, "middle": 4, "also": 4}
    assert gone(idle, {frozenset({"small"})}) == (["small"], 2)
    assert gone(idle, {frozenset({"middle"})})[0] == ["middle"], "the small one was not enough, and is not needed"
    assert gone(idle, {frozenset({"small", "large"})})[0] == ["small", "large"]
    assert gone(idle, set()) == ([], 4), "nothing would help"
    assert gone({}, {frozenset()}) == ([], 0)
