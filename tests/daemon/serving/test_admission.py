"""Counts: who is let in, who is told to come back, and that every place is given back once."""

import pytest

from llmd.daemon.errors import QueueFull
from llmd.daemon.serving.admission import Admission


def test_slots_and_queue_are_filled_and_then_refuse() -> None:
    admission = Admission(lambda: 2)
    places = [admission.enter("m", 1, slots=3) for _ in range(5)]
    with pytest.raises(QueueFull) as refused:
        admission.enter("m", 1, slots=3)
    assert refused.value.retry_after == 1
    admission.enter("other", 1, slots=3)
    places[0].leave()
    admission.enter("m", 1, slots=3)
    with pytest.raises(QueueFull):
        admission.enter("m", 1, slots=3)


def test_a_place_is_given_back_once() -> None:
    admission = Admission(lambda: 0)
    place = admission.enter("m", 2, slots=2)
    place.leave()
    place.leave()
    admission.enter("m", 2, slots=2)
    with pytest.raises(QueueFull):
        admission.enter("m", 1, slots=2)


def test_choices_count_each() -> None:
    admission = Admission(lambda: 1)
    admission.enter("m", 1, slots=2)
    with pytest.raises(QueueFull):
        admission.enter("m", 3, slots=2)
    admission.enter("m", 2, slots=2)


def test_one_request_may_be_more_than_the_queue_where_nothing_else_is_inside() -> None:
    admission = Admission(lambda: 1)
    place = admission.enter("m", 20, slots=2)
    with pytest.raises(QueueFull):
        admission.enter("m", 1, slots=2)
    place.leave()
    admission.enter("m", 20, slots=2)


def test_when_to_come_back_follows_how_long_requests_take() -> None:
    admission = Admission(lambda: 0)
    admission.enter("m", 1, slots=1)
    for _ in range(100):
        admission.took("m", 20.0)
    with pytest.raises(QueueFull) as refused:
        admission.enter("m", 1, slots=1)
    assert refused.value.retry_after == 20
