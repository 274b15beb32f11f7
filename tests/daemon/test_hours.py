"""Hours of the week, as people write them."""

from datetime import datetime

import pytest

from llmd.daemon.hours import Hours


def at(hours: Hours, moment: str) -> bool:
    return hours.at(datetime.fromisoformat(moment))


@pytest.mark.parametrize(
    ("span", "inside", "outside"),
    [
        ("Mon-Fri 08:00-18:00", ["2026-11-30T08:00", "2026-12-04T17:59"], ["2026-11-30T18:00", "2026-12-05T12:00"]),
        ("Sat,Sun 10:00-16:00", ["2026-12-05T10:00", "2026-12-06T15:59"], ["2026-12-04T12:00", "2026-12-06T16:00"]),
        ("22:00-06:00", ["2026-11-30T22:00", "2026-12-01T05:59", "2026-12-07T01:00"], ["2026-11-30T06:00"]),
        ("Fri 22:00-06:00", ["2026-12-04T23:00", "2026-12-05T05:59"], ["2026-12-05T06:00", "2026-12-04T05:00"]),
        ("Sun 22:00-06:00", ["2026-12-06T22:00", "2026-11-30T05:59"], ["2026-11-30T06:00"]),
        ("Fri-Mon", ["2026-12-04T00:00", "2026-12-06T12:00", "2026-11-30T23:59"], ["2026-12-01T00:00"]),
        ("00:00-24:00", ["2026-11-30T00:00", "2026-12-06T23:59"], []),
        ("Tue 00:00-24:00", ["2026-12-01T00:00", "2026-12-01T23:59"], ["2026-12-02T00:00"]),
    ],
)  # fmt: skip
def test_a_span_has_these_minutes_and_no_others(span: str, inside: list[str], outside: list[str]) -> None:
    hours = Hours.of([span], "UTC")
    assert all(at(hours, f"{moment}+00:00") for moment in inside)
    assert not any(at(hours, f"{moment}+00:00") for moment in outside)


@pytest.mark.parametrize(
    "span", ["", "Mon", "08:00", "8:00-9:00", "Mon 24:00-25:00", "mon-fri 08:00-18:00", "Mon - Fri 08:00-18:00",
             "Mon 08:00-08:00", "Mon 08:00-24:30", "Montag 08:00-18:00", "Mon 08:00-18:00 please"],
)  # fmt: skip
def test_what_is_no_span_is_refused_with_one_that_is(span: str) -> None:
    if span == "Mon":
        assert bin(Hours.of([span], "UTC").minutes).count("1") == 24 * 60
        return
    with pytest.raises(ValueError, match="written as|no hours"):
        Hours.of([span], "UTC")


@pytest.mark.parametrize("zone", ["", "Berlin", "Europe", "../etc/passwd", "/etc/passwd", "Europe/Berlin\0", "x" * 500])
def test_a_zone_that_there_is_not_is_refused(zone: str) -> None:
    with pytest.raises(ValueError, match="no time zone"):
        Hours.of(["Mon"], zone)


def test_the_zones_own_clock_decides() -> None:
    hours = Hours.of(["Mon 08:00-18:00"], "Europe/Berlin")
    assert at(hours, "2026-11-30T07:00+00:00") and not at(hours, "2026-11-30T06:59+00:00")
    assert at(hours, "2026-06-29T06:00+00:00"), "in summer it is an hour earlier"
    assert str(hours) == "Mon 08:00-18:00 Europe/Berlin"


def test_an_hour_that_summer_time_skips_never_comes_and_one_that_comes_twice_counts_twice() -> None:
    night = Hours.of(["Sun 02:00-03:00"], "Europe/Berlin")
    spring = [f"2026-03-29T{hour:02}:{minute:02}+00:00" for hour in range(24) for minute in (0, 30)]
    assert not any(at(night, moment) for moment in spring)
    autumn = [f"2026-10-25T{hour:02}:{minute:02}+00:00" for hour in range(24) for minute in (0, 30)]
    assert [moment[11:16] for moment in autumn if at(night, moment)] == ["00:00", "00:30", "01:00", "01:30"]


def test_whether_they_are_open_whenever_others_are() -> None:
    week, day = Hours.of(["Mon-Fri 08:00-18:00"], "UTC"), Hours.of(["Tue 09:00-10:00"], "UTC")
    assert week.covers(day) and not day.covers(week) and week.covers(week)
    always = Hours.of(["00:00-24:00"], "Europe/Berlin")
    assert always.always and always.covers(week) and not week.covers(always)
    assert not Hours.of(["Mon"], "Europe/Berlin").covers(Hours.of(["Mon"], "UTC")), "it is not known"
