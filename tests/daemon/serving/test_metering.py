"""What was used is counted by day, client, groups and model; a GPU's energy is split by who computed, idle apart."""

import pytest

from llmd.daemon import metrics as metrics_module
from llmd.daemon.metrics import Metrics
from llmd.daemon.serving.metering import Meter
from llmd.daemon.state.records import Used
from llmd.daemon.wire.control import Spent


class Metering:
    def __init__(self) -> None:
        self.day, self.metrics = "2026-11-30", Metrics()
        self.groups = {"alice": "ops,team"}
        self.meter = Meter(self.metrics, lambda: self.day, lambda client: self.groups.get(client, ""))

    def rows(self) -> dict[tuple[str, ...], Used]:
        return {(row.day, row.client, row.groups, row.model): row for row in self.meter.take()}


def test_each_day_client_groups_and_model_has_its_own() -> None:
    at = Metering()
    at.meter.used("alice", "m", 10, 4, 5)
    at.meter.used("alice", "m", 1, 0, 2)
    at.meter.used("bob", "m", 7, 0, 0)
    at.groups["alice"] = "team"
    at.meter.used("alice", "m", 100, 0, 1)
    assert at.rows() == {
        ("2026-11-30", "alice", "ops,team", "m"): Used("2026-11-30", "alice", "ops,team", "m", 2, 11, 4, 7),
        ("2026-11-30", "alice", "team", "m"): Used("2026-11-30", "alice", "team", "m", 1, 100, 0, 1),
        ("2026-11-30", "bob", "", "m"): Used("2026-11-30", "bob", "", "m", 1, 7, 0, 0),
    }
    assert at.meter.take() == [], "nothing has changed since"
    at.meter.used("bob", "m", 1, 0, 0)
    (bob,) = at.meter.take()
    assert (bob.requests, bob.prompt) == (2, 8), "what is written is the day's sum"
    at.meter.give_back([bob])
    at.day = "2026-12-01"
    at.meter.used("bob", "m", 1, 0, 0)
    assert {day: row.prompt for (day, *_), row in at.rows().items()} == {"2026-11-30": 8, "2026-12-01": 1}
    assert {key[0] for key in at.meter._used} == {"2026-12-01"}, "an older day is forgotten once it is written"


def test_a_start_goes_on_where_the_day_was() -> None:
    at = Metering()
    at.meter.load([Used(at.day, "bob", "", "m", 3, 30, 0, 3, 1.5, 9.0)])
    at.meter.used("bob", "m", 10, 0, 1)
    at.meter.spent("m", (), [Spent("bob", 0.5)])
    assert at.meter.take() == [Used(at.day, "bob", "", "m", 4, 40, 0, 4, 2.0, 9.0)]


def test_energy_goes_to_who_computed_and_what_an_idle_gpu_draws_to_nobody() -> None:
    at = Metering()
    at.meter.energy({"gpu": 1000.0, "other": None}, 0.0)
    at.meter.energy({"gpu": 1500.0}, 10.0)  # 50 W
    at.meter.spent("m", ("gpu",), [Spent("alice", 3.0), Spent("bob", 1.0)])
    at.meter.energy({"gpu": 1500.0 + 6 * 50 + 4 * 400}, 20.0)
    joules = {(row.client, row.model): row.joules for row in at.meter.take()}
    assert joules == {("", ""): 800.0, ("alice", "m"): 1200.0, ("bob", "m"): 400.0}
    at.meter.energy({"gpu": 10.0}, 25.0)  # its driver was loaded anew
    at.meter.spent("m", ("gpu",), [Spent("bob", 5.0)])
    at.meter.energy({"gpu": 510.0}, 30.0)
    joules = {(row.client, row.model): row.joules for row in at.meter.take()}
    assert joules == {("", ""): 800.0, ("bob", "m"): 900.0}, "a GPU that computes all the time is never idle"


def test_every_joule_is_somebodys() -> None:
    at = Metering()
    at.meter.energy({"a": 0.0, "b": 0.0}, 0.0)
    at.meter.energy({"a": 70.0, "b": 90.0}, 1.0)
    for n in range(1, 100):
        at.meter.spent("m", ("a", "b"), [Spent("alice", 0.01 * (n % 7)), Spent("bob", 0.3)])
        at.meter.spent("k", ("b",), [Spent("bob", 0.2 * (n % 3))])
        at.meter.energy({"a": 70.0 + 300.0 * n, "b": 90.0 + 410.0 * n}, 1.0 + n)
    assert sum(row.joules for row in at.meter.take()) == pytest.approx(70 + 90 + 99 * 710)


def test_of_several_gpus_each_ones_seconds_count() -> None:
    at = Metering()
    at.meter.spent("m", ("a", "b"), [Spent("alice", 2.0)])
    at.meter.spent("m", (), [Spent("alice", 1.0), Spent("", 0.5)])
    seconds = {row.client: row.seconds for row in at.meter.take()}
    assert seconds == {"alice": 5.0, "": 0.5}


def test_metrics_name_the_first_clients_and_the_others_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_module, "MAX_CLIENTS", 2)
    at = Metering()
    for client in ("alice", "bob", "carol", "dave", "alice"):
        at.meter.used(client, "m", 10, 0, 1)
    page = at.metrics.text().decode()
    told = {line.split(" ")[0]: float(line.split(" ")[1]) for line in page.splitlines() if "llmd_client_prompt" in line
            and not line.startswith("#")}  # fmt: skip
    assert told == {
        'llmd_client_prompt_total{client="alice"}': 20.0, 'llmd_client_prompt_total{client="bob"}': 10.0,
        'llmd_client_prompt_total{client="other"}': 20.0,
    }  # fmt: skip
