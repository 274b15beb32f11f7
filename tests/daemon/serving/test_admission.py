"""Counts: who is let in, who is told to come back, and that every place is given back once."""

import pytest

from llmd.daemon.errors import QueueFull
from llmd.daemon.identity.principal import Principal
from llmd.daemon.serving.admission import Admission
from llmd.daemon.serving.ask import Ask
from llmd.daemon.wire.work import Generate, RawText, SamplingWish

ALICE = Principal("alice", "user", "1", "127.0.0.1")


def ask(sequences: int = 1, model: str = "m") -> Ask:
    return Ask("/there", model, Generate((RawText("hello"),), SamplingWish(1), sequences))


def admission(queue: int, slots: int) -> Admission:
    return Admission(lambda: queue, lambda model: slots)


def test_slots_and_queue_are_filled_and_then_refuse() -> None:
    door = admission(queue=2, slots=3)
    places = [door.enter(ALICE, ask()) for _ in range(5)]
    with pytest.raises(QueueFull) as refused:
        door.enter(ALICE, ask())
    assert refused.value.retry_after == 1
    door.enter(ALICE, ask(model="other"))
    places[0].leave()
    door.enter(ALICE, ask())
    with pytest.raises(QueueFull):
        door.enter(ALICE, ask())


def test_a_place_is_given_back_once() -> None:
    door = admission(queue=0, slots=2)
    place = door.enter(ALICE, ask(2))
    place.leave()
    place.leave()
    door.enter(ALICE, ask(2))
    with pytest.raises(QueueFull):
        door.enter(ALICE, ask())


def test_choices_count_each() -> None:
    door = admission(queue=1, slots=2)
    door.enter(ALICE, ask())
    with pytest.raises(QueueFull):
        door.enter(ALICE, ask(3))
    door.enter(ALICE, ask(2))


def test_one_request_may_be_more_than_the_queue_where_nothing_else_is_inside() -> None:
    door = admission(queue=1, slots=2)
    place = door.enter(ALICE, ask(20))
    with pytest.raises(QueueFull):
        door.enter(ALICE, ask())
    place.leave()
    door.enter(ALICE, ask(20))


def test_when_to_come_back_follows_how_long_requests_take() -> None:
    door = admission(queue=0, slots=1)
    door.enter(ALICE, ask())
    for _ in range(100):
        door.took(ask(), 20.0)
    with pytest.raises(QueueFull) as refused:
        door.enter(ALICE, ask())
    assert refused.value.retry_after == 20
