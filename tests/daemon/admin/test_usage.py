"""What was used is kept, whatever the disk does, and told by day, client, model and group."""

from datetime import date, timedelta
from typing import Any

import pytest

from llmd.daemon.composition import Daemon
from llmd.daemon.errors import BadRequest, NoSpace
from llmd.daemon.serving.quotas import today
from llmd.daemon.state.records import Used
from llmd.daemon.wire.control import Spent


@pytest.fixture
async def house(daemon: Daemon) -> Daemon:
    meter = daemon.serving.books.meter
    meter.groups = {"alice": "ops,team", "bob": "team"}.get  # type: ignore[assignment]
    meter.used("alice", "m", 10, 5, 3)
    meter.used("bob", "m", 1, 0, 2)
    meter.used("bob", "k", 7, 0, 1)
    meter.spent("m", (), [Spent("alice", 1.5), Spent("", 0.25)])
    return daemon


def rows(told: dict[str, Any], by: str) -> dict[str, tuple[int, int, int]]:
    return {row[by]: (row["requests"], row["prompt"], row["output"]) for row in told["rows"]}


async def test_it_is_told_by_whatever_is_asked_for(house: Daemon) -> None:
    usage = house.service.usage
    assert rows(await usage.told("principal", "1d"), "principal") == {"alice": (1, 10, 3), "bob": (2, 8, 3)}
    assert rows(await usage.told("model", "1d"), "model") == {"k": (1, 7, 1), "m": (2, 11, 5)}
    assert rows(await usage.told("group", "1d"), "group") == {"ops": (1, 10, 3), "team": (3, 18, 6)}
    day = await usage.told("day", today()[0])
    assert rows(day, "day") == {today()[0]: (3, 18, 6)} and day["total"]["cached"] == 5
    assert day["total"]["seconds"] == 1.5, "what nobody asked for is in no sum"
    tomorrow = (date.fromisoformat(today()[0]) + timedelta(days=1)).isoformat()
    assert (await usage.told("day", tomorrow))["rows"] == []
    for by, since in (("weather", "1d"), ("day", "soon"), ("day", "2026-13-01"), ("day", "-3d"), ("day", "d")):
        with pytest.raises(BadRequest):
            await usage.told(by, since)


async def test_what_cannot_be_written_is_kept_for_the_next_time(house: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = house.service.usage

    def full(*_: object) -> None:
        raise NoSpace("the disk with the state database is full")

    with monkeypatch.context() as patch:
        patch.setattr(house.store, "keep_usage", full)
        with pytest.raises(NoSpace):
            await usage.keep()
        house.serving.books.meter.used("bob", "k", 1, 0, 0)
    await usage.keep()
    kept = {(row.client, row.model): row.prompt for row in house.store.usage(today()[0]) if row.client}
    assert kept == {("alice", "m"): 10, ("bob", "m"): 1, ("bob", "k"): 8}


async def test_old_days_go(house: Daemon) -> None:
    old, young = "2020-01-01", (date.fromisoformat(today()[0]) - timedelta(days=700)).isoformat()
    house.store.keep_usage([Used(day, "x", "", "m", 1) for day in (old, young)], "2000-01-01")
    await house.service.usage.keep()
    assert [row.day for row in house.store.usage("2000-01-01") if row.client == "x"] == [young]


async def test_a_start_goes_on_with_today(house: Daemon) -> None:
    await house.service.usage.keep()
    house.serving.books.meter._used.clear()
    house.service.usage.restore()
    house.serving.books.meter.used("bob", "k", 1, 0, 0)
    await house.service.usage.keep()
    kept = {(row.client, row.model): row.prompt for row in house.store.usage(today()[0])}
    assert kept["bob", "k"] == 8 and kept["alice", "m"] == 10
    assert house.serving.quotas._clients["bob"]["k"].requests == 1, "those that ended before the start"
