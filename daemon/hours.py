"""Hours of the week in a named zone, as people write them: `Mon-Fri 08:00-18:00`."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo
from functools import reduce
from operator import or_
from zoneinfo import ZoneInfo

from llmd.daemon.errors import quoted

DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
DAY_MINUTES = 24 * 60
WEEK_MINUTES = 7 * DAY_MINUTES
RULE = "hours are written as Mon-Fri 08:00-18:00, Sat,Sun 10:00-16:00, 22:00-06:00 or Mon"
_DAY = "(?:" + "|".join(DAYS) + ")"
_DAYS = re.compile(f"{_DAY}(-{_DAY})?(,{_DAY}(-{_DAY})?)*")
_TIMES = re.compile(r"([01]\d|2[0-3]):([0-5]\d)-([01]\d|2[0-4]):([0-5]\d)")


@dataclass(frozen=True, slots=True)
class Hours:
    """`spans` as they were written; `minutes`: a bit for each minute of the week in them, Monday's first the lowest.

    The zone's clock decides: an hour that it skips in spring never comes, and one that it has twice in autumn counts
    both times.
    """

    spans: tuple[str, ...]
    zone: str
    minutes: int

    @classmethod
    def of(cls, spans: Sequence[str], zone: str) -> "Hours":
        """Raises ValueError, with what to write instead."""
        zoned(zone)
        return cls(tuple(spans), zone, reduce(or_, map(_minutes, spans), 0))

    def at(self, moment: datetime) -> bool:
        """Whether an aware moment is among them."""
        there = moment.astimezone(zoned(self.zone))
        return bool(self.minutes >> (there.weekday() * DAY_MINUTES + there.hour * 60 + there.minute) & 1)

    @property
    def always(self) -> bool:
        return self.minutes == (1 << WEEK_MINUTES) - 1

    def covers(self, other: "Hours") -> bool:
        """Whether it is open whenever the other is; False where that is not known, for their zones differ."""
        return self.always or (self.zone == other.zone and not other.minutes & ~self.minutes)

    def __str__(self) -> str:
        return f"{'; '.join(self.spans)} {self.zone}"


def zoned(zone: str) -> tzinfo:
    """Raises ValueError for a zone that there is not."""
    if zone == "UTC":  # also where the machine knows no other
        return UTC
    try:
        return ZoneInfo(zone)
    except (KeyError, ValueError, OSError) as e:
        raise ValueError(
            f"this machine knows no time zone {quoted(zone, 60)}; they are named as Europe/Berlin or UTC, and come "
            "with the package tzdata"
        ) from e


def _minutes(span: str) -> int:
    """The bits of one span. One that ends before it begins ends on the next day."""
    days, _, times = span.strip().rpartition(" ")
    if not days and _DAYS.fullmatch(times):
        days, times = times, "00:00-24:00"
    found = _TIMES.fullmatch(times)
    if not found or (days and not _DAYS.fullmatch(days)):
        raise ValueError(f"{quoted(span, 60)}: {RULE}")
    begin, end = int(found[1]) * 60 + int(found[2]), int(found[3]) * 60 + int(found[4])
    if end > DAY_MINUTES or begin == end:
        raise ValueError(f"{quoted(span, 60)}: these are no hours; a whole day is 00:00-24:00")
    length = (end - begin) % DAY_MINUTES or DAY_MINUTES
    bits = 0
    for day in _days(days) if days else range(7):
        for minute in range(day * DAY_MINUTES + begin, day * DAY_MINUTES + begin + length):
            bits |= 1 << minute % WEEK_MINUTES
    return bits


def _days(text: str) -> Iterator[int]:
    for part in text.split(","):
        first, _, last = part.partition("-")
        begin, end = DAYS.index(first), DAYS.index(last or first)
        yield from (day % 7 for day in range(begin, end + 1 + (7 if end < begin else 0)))
