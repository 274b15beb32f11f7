"""How many prompt tokens a step computes beside the streams."""

import pytest

from llmd.daemon.engine.pace import LEAST, Pace


def settled(streams: float, fixed: float, token: float, most: int = 2048) -> int:
    """On a device whose passes take so long by themselves, and so long a token."""
    pace = Pace(256, most)
    for _ in range(100):
        pace.note(0, 32, streams)
        pace.note(pace.chunk, 32, streams + fixed + pace.chunk * token)
    return pace.chunk


@pytest.mark.parametrize(
    ("streams", "fixed", "token", "wanted"),
    [(0.020, 0.0, 0.0001, 200), (0.020, 0.007, 0.0001, 130), (0.0097, 0.0067, 0.000087, 34), (0.04, 0.0, 0.00005, 800)],
)
def test_prompts_take_as_long_as_the_streams_do(streams: float, fixed: float, token: float, wanted: int) -> None:
    assert abs(settled(streams, fixed, token) - wanted) <= 2


def test_it_has_bounds_and_begins_with_what_was_set() -> None:
    assert settled(0.001, 0.001, 0.001) == LEAST and settled(1.0, 0.0, 0.0001, 512) == 512
    pace = Pace(256, 2048)
    for _ in range(10):
        pace.note(0, 8, 0.02)
    assert pace.chunk == 256, "no prompt was measured"


def test_what_says_nothing_changes_nothing() -> None:
    pace = Pace(256, 2048)
    pace.note(0, 8, 0.01)
    for prompts, generating, seconds in ((256, 0, 0.1), (256, 8, 0.005), (2000, 8, 0.02), (20, 8, 0.02)):
        pace.note(prompts, generating, seconds)
    assert pace.chunk == 256
