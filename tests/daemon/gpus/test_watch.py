"""What follows from a GPU's faults, and the thread that hears of them."""

import asyncio
import json
import re
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pynvml
import pytest
from fake_nvml import DriverNotLoaded, FakeNvml, GpuIsLost, a100_mig, h200

from llmd.daemon.gpus import watch as gpu_watch
from llmd.daemon.gpus.faults import XIDS, Action, action, describe
from llmd.daemon.gpus.inventory import RECOVERY, Event, Inventory
from llmd.daemon.gpus.nvml import Nvml
from llmd.daemon.gpus.watch import ABSENT_SECONDS, POLL_SECONDS, SETTLE_SECONDS, Watcher, figures
from llmd.daemon.metrics import Metrics

ONE, TWO = h200(0).uuid, h200(1).uuid
RESTART, DRAIN, REMOVE, NOTE = Action.RESTART, Action.DRAIN, Action.REMOVE, Action.NOTE


class Machine:
    """A watcher on a fake, stepped by hand, and all that it told."""

    def __init__(self, fake: FakeNvml, folder: Path) -> None:
        self.fake, self.now = fake, 1000.0
        self.inventories: list[Inventory] = []
        self.actions: list[tuple[str, Action]] = []
        self.reasons: list[str] = []
        clock: Callable[[], float] = lambda: self.now  # noqa: E731
        self.watcher = Watcher(Nvml(fake, fake.root(folder)), self.inventories.append, self._act, clock, clock)
        self.watcher.refresh()

    def _act(self, uuid: str, todo: Action, reason: str) -> None:
        self.actions.append((uuid, todo))
        self.reasons.append(reason)

    def poll(self) -> None:
        self.now += POLL_SECONDS
        self.watcher.step()

    def event(self, uuid: str, kind: str, code: int = 0) -> list[tuple[str, Action]]:
        """What one event leads to."""
        assert self.fake.emit(uuid, kind, code)
        told = len(self.actions)
        assert self.watcher.step()
        return self.actions[told:]

    def state(self, uuid: str) -> str:
        return self.watcher.health(uuid).state


@pytest.fixture
def two(tmp_path: Path) -> Machine:
    return Machine(FakeNvml(h200(0), h200(1)), tmp_path)


# --- the table

# what the catalog's immediate actions come to; the others are ours
BUCKETS = {"RESTART_APP": RESTART, "RESET_GPU": DRAIN, "RESTART_BM": REMOVE, "IGNORE": NOTE}
OURS = {43: RESTART, 45: RESTART, 48: DRAIN, 74: DRAIN}


@pytest.mark.parametrize("code", XIDS)
@pytest.mark.parametrize("seen_before", [False, True])
def test_known_xids(code: int, seen_before: bool) -> None:
    bucket = XIDS[code][1]
    assert action(Event(ONE, "xid", code), seen_before) == (OURS[code] if code in OURS else BUCKETS[bucket])


@pytest.mark.parametrize("code", [0, 1, 30, 144, 999])
def test_an_unknown_xid_restarts_once_and_then_drains(code: int) -> None:
    event = Event(ONE, "xid", code)
    assert (action(event, False), action(event, True)) == (RESTART, DRAIN)
    assert f"XID {code}" in describe(event)


@pytest.mark.parametrize("seen_before", [False, True])
def test_other_events(seen_before: bool) -> None:
    assert action(Event(ONE, "ecc", 0), seen_before) == DRAIN
    assert action(Event(ONE, "lost", 0), seen_before) == action(Event(ONE, "unavailable", 0), seen_before) == REMOVE
    assert action(Event(ONE, "recovery", RECOVERY.index("none")), seen_before) == NOTE
    others = {action(Event(ONE, "recovery", code), seen_before) for code in (-1, *range(1, len(RECOVERY)))}
    assert others == {DRAIN} == {action(Event(ONE, "xid", 154), seen_before)}


def test_every_event_has_its_own_plain_words() -> None:
    events = [Event(ONE, "xid", code) for code in (*XIDS, 7)] + [
        Event(ONE, kind, 0) for kind in ("ecc", "unavailable", "lost")
    ]
    events += [Event(ONE, "recovery", code) for code in range(-1, len(RECOVERY))]
    texts = [describe(event) for event in events]
    assert len(set(texts)) == len(texts) and not any("_" in text for text in texts)


def test_the_docs_have_every_xid() -> None:
    page = (Path(__file__).parents[3] / "docs" / "gpus.md").read_text()
    named = re.findall(r"\d+", " ".join(line.split("|")[1] for line in page.splitlines() if line.startswith("| XID")))
    assert [code for code in XIDS if str(code) not in named] == []


# --- events


def test_a_quiet_machine(two: Machine) -> None:
    two.poll()
    assert two.actions == [] and [len(found.gpus) for found in two.inventories] == [2, 2]
    assert two.state(ONE) == two.state(TWO) == "ok" and two.watcher.health(ONE).usable
    assert two.watcher.inventory is two.inventories[-1]


def test_an_xid_restarts_the_gpus_workers(two: Machine) -> None:
    assert two.event(ONE, "xid", 31) == [(ONE, RESTART)]
    health = two.watcher.health(ONE)
    assert health.state == "ok" and health.reasons == () and not health.needs_reset
    assert [(seen.at, seen.kind, seen.code, seen.action) for seen in health.events] == [(1000.0, "xid", 31, RESTART)]
    assert "XID 31" in health.events[0].text and two.reasons == [health.events[0].text]
    assert two.watcher.health(TWO).events == ()


def test_one_fault_that_is_told_many_times_restarts_once(two: Machine) -> None:
    assert two.event(ONE, "xid", 13) == [(ONE, RESTART)]
    two.now += SETTLE_SECONDS
    assert two.event(ONE, "xid", 13) == [(ONE, NOTE)] and two.event(ONE, "xid", 45) == [(ONE, NOTE)]
    assert two.event(TWO, "xid", 13) == [(TWO, RESTART)]
    two.now += 1.0
    assert two.event(ONE, "xid", 13) == [(ONE, RESTART)]


def test_an_unknown_xid_that_comes_again_drains(two: Machine) -> None:
    assert two.event(ONE, "xid", 999) == [(ONE, RESTART)]
    two.now += 1.0
    assert two.event(ONE, "xid", 999) == [(ONE, NOTE)]
    two.now += SETTLE_SECONDS
    assert two.event(ONE, "xid", 998) == [(ONE, RESTART)] and two.state(ONE) == "ok"
    assert two.event(ONE, "xid", 999) == [(ONE, DRAIN)] and two.state(ONE) == "draining"


@pytest.mark.parametrize(("kind", "code"), [("xid", 48), ("xid", 119), ("ecc", 0), ("recovery", 1)])
def test_a_drained_gpu_stays_drained_until_it_is_cleared(two: Machine, kind: str, code: int) -> None:
    assert two.event(ONE, kind, code) == [(ONE, DRAIN)]
    two.poll()
    two.poll()
    health = two.watcher.health(ONE)
    assert (health.state, health.needs_reset, health.usable, len(health.events)) == ("draining", True, False, 1)
    assert health.reasons == (two.reasons[0],) and two.actions == [(ONE, DRAIN)] and two.state(TWO) == "ok"
    two.fake.gpus[0].recovery = 0
    two.watcher.clear(ONE)
    assert two.watcher.health(ONE).state == "ok" and two.watcher.health(ONE).events == ()
    two.poll()
    assert two.state(ONE) == "ok" and two.actions == [(ONE, DRAIN)]


def test_a_drained_gpu_is_drained_once_and_restarts_nothing(two: Machine) -> None:
    two.event(ONE, "xid", 48)
    assert two.event(ONE, "xid", 95) == [] and two.event(ONE, "xid", 13) == [(ONE, NOTE)]
    health = two.watcher.health(ONE)
    assert len(health.events) == 3 and len(health.reasons) == 2
    assert two.event(ONE, "xid", 48) == [] and two.watcher.health(ONE).reasons == health.reasons
    assert two.event(ONE, "xid", 79) == [(ONE, REMOVE)] and two.state(ONE) == "removed"


def test_a_removed_gpu_is_removed_once(two: Machine) -> None:
    assert two.event(ONE, "xid", 79) == [(ONE, REMOVE)]
    assert two.event(ONE, "unavailable") == [] and two.event(ONE, "xid", 13) == []
    two.poll()
    assert two.actions == [(ONE, REMOVE)] and two.state(ONE) == "removed" and not two.watcher.health(ONE).usable


def test_the_driver_asks_for_nothing_any_more(two: Machine) -> None:
    assert two.event(ONE, "recovery", 0) == [(ONE, NOTE)] and two.state(ONE) == "ok"


def test_what_the_driver_already_asks_for_at_the_start_counts(tmp_path: Path) -> None:
    gpu = h200(0)
    gpu.recovery = RECOVERY.index("gpu_reset")
    machine = Machine(FakeNvml(gpu, h200(1)), tmp_path)
    assert machine.actions == [(ONE, DRAIN)] and machine.watcher.health(ONE).reasons == (
        "the driver asks for gpu reset",
    )
    machine.watcher.clear(ONE)
    assert machine.state(ONE) == "ok"
    machine.poll()
    assert machine.actions == [(ONE, DRAIN)] * 2 and machine.state(ONE) == "draining"


def test_a_mig_gpus_event_concerns_all_its_instances(tmp_path: Path) -> None:
    machine = Machine(FakeNvml(a100_mig(0), h200(1)), tmp_path)
    assert machine.event("GPU-a100-0", "xid", 95) == [("MIG-a100-0-0", DRAIN), ("MIG-a100-0-1", DRAIN)]
    assert machine.state(TWO) == "ok" and machine.event("MIG-a100-0-1", "xid", 79) == [("MIG-a100-0-1", REMOVE)]
    assert machine.state("MIG-a100-0-0") == "draining"


def test_an_ignored_gpu_is_used_by_nobody_however_it_does(two: Machine) -> None:
    two.watcher.ignore(frozenset({ONE, "GPU-pulled-out"}))
    health = two.watcher.health(ONE)
    assert (health.ignored, health.state, health.well, health.usable) == (True, "ok", True, False)
    assert two.watcher.view.usable == {TWO} and not two.watcher.health(TWO).ignored and two.actions == []
    assert two.event(ONE, "xid", 48) == [(ONE, DRAIN)] and two.state(ONE) == "draining"
    two.poll()
    assert two.watcher.health(ONE).ignored and two.watcher.view.to_dict()["ignored"] == [ONE, "GPU-pulled-out"]
    two.watcher.ignore(frozenset())
    assert two.state(ONE) == "draining" and not two.watcher.health(ONE).ignored


def test_the_instances_of_an_ignored_gpu_are_ignored_whichever_they_are(tmp_path: Path) -> None:
    machine = Machine(FakeNvml(a100_mig(0), h200(1)), tmp_path)
    machine.watcher.ignore(frozenset({"GPU-a100-0"}))
    assert machine.watcher.view.usable == {TWO} and len(machine.watcher.view.devices("GPU-a100-0")) == 2
    machine.watcher.ignore(frozenset({"MIG-a100-0-0"}))
    assert machine.watcher.view.usable == {TWO, "MIG-a100-0-1"}


def test_with_every_gpu_ignored_there_is_none_and_with_a_silent_driver_nobody_knows(tmp_path: Path) -> None:
    machine = Machine(FakeNvml(h200(0)), tmp_path)
    assert not machine.watcher.view.none
    machine.watcher.ignore(frozenset({ONE}))
    assert machine.watcher.view.none
    silent = Machine(FakeNvml.without_driver(DriverNotLoaded), tmp_path / "silent")
    silent.watcher.ignore(frozenset({ONE}))
    assert not silent.watcher.view.none


def test_only_so_many_events_are_kept(two: Machine) -> None:
    for _ in range(gpu_watch.KEPT_EVENTS + 5):
        two.event(ONE, "xid", 63)
    assert len(two.watcher.health(ONE).events) == gpu_watch.KEPT_EVENTS


# --- lost


def test_a_gpu_that_falls_off_the_bus_is_removed_once(two: Machine) -> None:
    two.fake.lose(TWO)
    assert two.watcher.step() and two.actions == [(TWO, REMOVE)]
    two.poll()
    two.poll()
    assert two.actions == [(TWO, REMOVE)]
    assert two.inventories[-1].lost == (TWO,) and two.state(TWO) == "removed" and two.state(ONE) == "ok"
    gone = two.watcher.view.gone[TWO]
    assert gone and gone.name == "NVIDIA H200"


@pytest.mark.parametrize("listed", [True, False])
def test_a_gpu_that_is_missing_from_an_answer_is_lost(two: Machine, listed: bool) -> None:
    two.fake.lose(ONE, listed=listed)
    two.fake.fail("nvmlEventSetWait", pynvml.NVMLError_Timeout)
    two.poll()
    two.poll()
    assert two.actions == [(ONE, REMOVE)] and two.state(ONE) == "removed" and "lost" in two.reasons[0]


def test_a_removed_gpu_that_answers_again_waits_for_clear(two: Machine) -> None:
    two.fake.lose(ONE)
    two.poll()
    two.fake.gpus[0].lost = False
    two.poll()
    assert two.state(ONE) == "removed" and two.watcher.view.gone == {} and two.actions == [(ONE, REMOVE)]
    two.watcher.clear(ONE)
    two.poll()
    assert two.state(ONE) == "ok"


def test_a_gpu_that_is_cleared_while_gone_is_forgotten(two: Machine) -> None:
    two.fake.lose(ONE, listed=False)
    two.poll()
    two.watcher.clear(ONE)
    two.poll()
    assert two.watcher.view.gone == {} and two.watcher.health(ONE).reasons == ("there is no such GPU",)
    assert two.actions == [(ONE, REMOVE)]


def test_a_gpu_that_is_lost_from_the_start_is_shown_until_it_answers(tmp_path: Path) -> None:
    fake = FakeNvml(h200(0), h200(1))
    fake.fail("nvmlDeviceGetUUID", GpuIsLost, uuid=TWO)
    machine = Machine(fake, tmp_path)
    name = "GPU 1 (0000:11:00.0)"
    assert machine.actions == [(name, REMOVE)] and machine.watcher.view.gone == {name: None}
    fake.mend("nvmlDeviceGetUUID")
    machine.poll()
    assert machine.watcher.view.gone == {} and machine.state(TWO) == "ok"


def test_a_lost_mig_gpu_removes_its_instances(tmp_path: Path) -> None:
    machine = Machine(FakeNvml(a100_mig(0), h200(1)), tmp_path)
    machine.fake.lose("GPU-a100-0")
    machine.poll()
    instances = [("MIG-a100-0-0", REMOVE), ("MIG-a100-0-1", REMOVE)]
    machine.poll()
    assert [told for told in machine.actions if told in instances] == instances
    assert len(machine.actions) == len(set(machine.actions)) and machine.state("MIG-a100-0-0") == "removed"


def test_another_split_into_instances_is_no_fault(tmp_path: Path) -> None:
    machine = Machine(FakeNvml(a100_mig(0), h200(1)), tmp_path)
    gpu = machine.fake.gpus[0]
    migs, gpu.migs = gpu.migs, None
    machine.poll()
    assert machine.actions == [("MIG-a100-0-0", REMOVE), ("MIG-a100-0-1", REMOVE)] and machine.watcher.view.gone == {}
    gpu.migs = migs
    machine.poll()
    assert machine.actions[2:] == [("GPU-a100-0", REMOVE)]
    assert machine.state("MIG-a100-0-1") == "ok" and "MIG" in machine.reasons[-1]


# --- no answer


def test_a_driver_that_restarts_changes_nothing_but_is_told(two: Machine) -> None:
    two.event(ONE, "xid", 48)
    at = two.watcher.view.at
    two.fake.unload()
    two.poll()
    assert two.actions == [(ONE, DRAIN)]
    found = two.inventories[-1]
    assert len(found.gpus) == 2 and not found.answered and "restarted" in found.reason and two.watcher.view.at == at
    assert two.state(ONE) == "draining" and two.state(TWO) == "ok"
    two.poll()
    assert "not loaded" in two.inventories[-1].reason and two.actions == [(ONE, DRAIN)]
    two.fake.load()
    two.poll()
    assert two.actions == [(ONE, DRAIN)] and two.state(ONE) == "draining"
    assert two.inventories[-1].answered and two.inventories[-1].reason == "" and two.watcher.view.at > at


def test_a_gpu_that_a_restarted_driver_no_longer_has_is_lost(two: Machine) -> None:
    two.fake.unload()
    two.fake.lose(TWO, listed=False)
    two.poll()
    assert two.actions == []
    two.fake.load()
    two.poll()
    assert two.actions == [(TWO, REMOVE)]


def test_without_a_driver_it_is_looked_for_once_a_minute(tmp_path: Path) -> None:
    machine = Machine(FakeNvml.without_driver(), tmp_path)
    assert machine.watcher.inventory.reason == "no NVIDIA driver is installed"
    for _ in range(int(ABSENT_SECONDS) - 1):
        machine.now += 1.0
        machine.watcher.step()
    assert machine.fake.calls == {"nvmlInit": 1}
    machine.now += 1.0
    machine.watcher.step()
    assert machine.fake.calls == {"nvmlInit": 2} and machine.actions == []


def test_a_driver_that_comes_later_is_used(tmp_path: Path) -> None:
    fake = FakeNvml(h200(0))
    fake.unload()
    machine = Machine(fake, tmp_path)
    fake.load()
    machine.now += ABSENT_SECONDS
    machine.watcher.step()
    assert machine.state(ONE) == "ok" and machine.event(ONE, "xid", 13) == [(ONE, RESTART)]


def test_before_the_first_answer_there_is_a_reason_too() -> None:
    watcher = Watcher(Nvml(FakeNvml()))
    assert not watcher.inventory.answered and watcher.inventory.reason
    assert json.dumps(watcher.view.to_dict())


# --- slow


@pytest.mark.parametrize(
    ("bits", "state", "words"),
    [
        (0x40, "throttled", "too hot"),
        (0x20, "throttled", "too hot"),
        (0x08, "throttled", "hardware"),
        (0x80, "throttled", "power supply"),
        (0x04, "ok", "power limit"),
        (0x10, "ok", "slower GPU"),
    ],
)
def test_throttling_is_a_state_with_a_reason_and_passes(two: Machine, bits: int, state: str, words: str) -> None:
    two.fake.gpus[0].throttle = bits
    two.poll()
    health = two.watcher.health(ONE)
    assert health.state == state and words in health.reasons[0] and health.usable and not health.needs_reset
    two.fake.gpus[0].throttle = 0
    two.poll()
    assert two.watcher.health(ONE).reasons == () and two.state(ONE) == "ok" and two.actions == []


def test_a_drained_gpu_that_is_hot_is_still_a_drained_one(two: Machine) -> None:
    two.event(ONE, "xid", 48)
    two.fake.gpus[0].throttle = 0x40
    two.poll()
    assert two.state(ONE) == "draining" and len(two.watcher.health(ONE).reasons) == 2


# --- as others see it


def test_a_nudge_has_the_gpus_asked_at_the_next_step(two: Machine) -> None:
    two.watcher.step()
    assert len(two.inventories) == 1
    two.watcher.nudge()
    two.watcher.step()
    assert len(two.inventories) == 2


def test_a_nudge_does_nothing_without_a_gpu(tmp_path: Path) -> None:
    machine = Machine(FakeNvml.without_driver(), tmp_path)
    machine.watcher.nudge()
    machine.watcher.step()
    assert machine.fake.calls == {"nvmlInit": 1}


def test_the_view_becomes_json(two: Machine) -> None:
    two.event(ONE, "xid", 48)
    two.fake.lose(TWO, listed=False)
    two.poll()
    told: dict[str, Any] = json.loads(json.dumps(two.watcher.view.to_dict()))
    (gpu,) = told["gpus"]
    assert (gpu["uuid"], gpu["health"]["state"], gpu["health"]["events"][0]["action"]) == (ONE, "draining", "drain")
    (gone,) = told["gone"]
    assert (gone["uuid"], gone["name"], gone["index"], gone["health"]["state"]) == (TWO, "NVIDIA H200", 1, "removed")


def test_a_view_that_was_read_does_not_change(two: Machine) -> None:
    before = two.watcher.view
    two.event(ONE, "xid", 79)
    assert before.health[ONE].state == "ok" and two.watcher.view is not before


def test_the_metrics_show_what_is_known_and_forget_what_is_gone(tmp_path: Path) -> None:
    fake = FakeNvml(replace(h200(0), utilization=40), a100_mig(1, 1))
    machine, metrics = Machine(fake, tmp_path), Metrics()

    def show() -> str:
        found = machine.watcher.view.inventory.gpus
        metrics.gpus((gpu.uuid, gpu.name, figures(gpu, machine.watcher.health(gpu.uuid))) for gpu in found)
        return metrics.text().decode()

    text = show()
    for name, value in (
        ("usable", 1), ("utilization_ratio", 0.4), ("memory_total_bytes", 141 << 30), ("memory_used_bytes", 1 << 29),
        ("power_watts", 90), ("energy_joules", 90_000_000), ("temperature_celsius", 35),
    ):  # fmt: skip
        (line,) = re.findall(rf'^llmd_gpu_{name}{{gpu="{ONE}",name="NVIDIA H200"}} (.*)$', text, re.MULTILINE)
        assert float(line) == value
    assert 'llmd_gpu_utilization_ratio{gpu="MIG-a100-1-0"' not in text, "nobody tells that"
    machine.event(ONE, "xid", 48)
    assert f'llmd_gpu_usable{{gpu="{ONE}",name="NVIDIA H200"}} 0.0' in show()
    fake.lose(ONE)
    machine.poll()
    assert ONE not in show()


# --- the thread


async def test_the_thread_hears_events_and_tells_them_in_the_loop(tmp_path: Path) -> None:
    fake = FakeNvml(h200(0), h200(1))
    told: asyncio.Queue[tuple[str, Action, int]] = asyncio.Queue()
    watcher = Watcher(
        Nvml(fake, fake.root(tmp_path)),
        on_action=lambda uuid, todo, _: told.put_nowait((uuid, todo, threading.get_ident())),
    )
    watcher.refresh()
    fake.emit(ONE, "xid", 48)
    fake.emit(TWO, "xid", 13)
    watcher.start(asyncio.get_running_loop())
    try:
        here = threading.get_ident()
        assert [await asyncio.wait_for(told.get(), 20) for _ in range(2)] == [(ONE, DRAIN, here), (TWO, RESTART, here)]
        assert len((await asyncio.to_thread(watcher.refresh)).gpus) == 2
    finally:
        await asyncio.to_thread(watcher.close)
    assert fake.calls["nvmlShutdown"] == 1 and "gpus" not in [thread.name for thread in threading.enumerate()]


async def test_nvml_is_used_by_one_thread_at_a_time_and_nobody_starves(tmp_path: Path) -> None:
    fake, inside, clashes = FakeNvml(h200(0)), threading.Lock(), []

    class Strict(Nvml):
        def inventory(self) -> Inventory:
            if not inside.acquire(blocking=False):
                clashes.append("inventory")
            try:
                return super().inventory()
            finally:
                inside.release()

        def wait(self, seconds: float) -> Event | None:
            if not inside.acquire(blocking=False):
                clashes.append("wait")
            try:
                threading.Event().wait(0.005)
                return Event(ONE, "xid", 63)  # always something to do: the thread never rests
            finally:
                inside.release()

    watcher = Watcher(Strict(fake, fake.root(tmp_path)))
    watcher.refresh()
    watcher.start(asyncio.get_running_loop())
    try:
        found = await asyncio.wait_for(asyncio.gather(*(asyncio.to_thread(watcher.refresh) for _ in range(20))), 60)
    finally:
        await asyncio.to_thread(watcher.close)
    assert clashes == [] and len(found) == 20


async def test_the_thread_outlives_a_mistake_of_ours(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: Any
) -> None:
    monkeypatch.setattr(gpu_watch, "POLL_SECONDS", 0.01)
    fake, heard = FakeNvml(h200(0)), asyncio.Event()
    watcher = Watcher(Nvml(fake, fake.root(tmp_path)), on_action=lambda *_: heard.set())
    watcher.refresh()
    fake.fail("nvmlEventSetWait", pynvml.NVMLError_Timeout)
    step, failed = watcher.step, threading.Event()

    def broken() -> bool:
        if not failed.is_set():
            failed.set()
            raise ValueError("a mistake")
        return step()

    monkeypatch.setattr(watcher, "step", broken)
    watcher.start(asyncio.get_running_loop())
    try:
        fake.lose(ONE)
        await asyncio.wait_for(heard.wait(), 20)
    finally:
        await asyncio.to_thread(watcher.close)
    assert failed.is_set() and "could not be watched" in caplog.text
