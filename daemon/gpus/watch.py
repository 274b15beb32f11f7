"""How the GPUs do, and what follows from it: a thread asks NVML and waits for its events, a table says what to do.

The table is `faults.py` (docs/gpus.md has it in words).
"""

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final, Literal

from llmd.daemon.gpus.faults import LIMITED, THROTTLES, Action, action, describe
from llmd.daemon.gpus.inventory import RECOVERY, Event, Gpu, Inventory
from llmd.daemon.gpus.nvml import Nvml

log = logging.getLogger(__name__)

POLL_SECONDS: Final = 5.0
WAIT_SECONDS: Final = 0.1  # who asks in between waits so long: a plan before each load
# without any GPU: a driver may still be installed
ABSENT_SECONDS: Final = 60.0
# one fault is often reported several times, and ending the work that it hit is reported too (XID 45)
SETTLE_SECONDS: Final = 10.0
KEPT_EVENTS: Final = 20
# how long a driver may hang when llmd ends
CLOSE_SECONDS: Final = 5.0

State = Literal["ok", "throttled", "draining", "removed"]


@dataclass(frozen=True, slots=True)
class Seen:
    """An event of a device. `at` in seconds since 1970; `text` in plain words."""

    at: float
    kind: str
    code: int
    action: Action
    text: str


@dataclass(frozen=True, slots=True)
class Health:
    """How one device does. `needs_reset`: a person must reset it, or restart the server. `reasons` are plain words.
    `ignored`: an administrator keeps it out of every plan, however it does."""

    uuid: str
    state: State = "ok"
    reasons: tuple[str, ...] = ()
    events: tuple[Seen, ...] = ()
    needs_reset: bool = False
    ignored: bool = False

    @property
    def well(self) -> bool:
        return self.state in ("ok", "throttled")

    @property
    def usable(self) -> bool:
        """Whether a worker may be started on it."""
        return self.well and not self.ignored


@dataclass(frozen=True, slots=True)
class View:
    """All that is known at one moment. `gone`: removed devices that the inventory no longer has, as they last were; of
    one that was never seen there is only the health. `answered` is False while NVML gives no answer: the inventory then
    is the last one that there was. `at`: when the inventory was answered, in seconds since 1970. `ignored`: the UUIDs
    that an administrator named, of devices or of GPUs whose MIG instances they are, there or not."""

    inventory: Inventory = field(
        default_factory=lambda: Inventory(reason="the GPUs have not been asked yet", answered=False)
    )
    health: Mapping[str, Health] = field(default_factory=dict)
    gone: Mapping[str, Gpu | None] = field(default_factory=dict)
    at: float = 0.0
    ignored: frozenset[str] = frozenset()

    @property
    def usable(self) -> frozenset[str]:
        """The devices that a worker may be started on."""
        return frozenset(uuid for uuid, health in self.health.items() if health.usable)

    @property
    def none(self) -> bool:
        """There is nothing to compute on but the CPU: no driver was ever installed, or every GPU is ignored."""
        if not self.health:
            return self.inventory.absent
        return all(health.ignored for health in self.health.values())

    def to_dict(self) -> dict[str, Any]:
        """For JSON: the inventory's, with each GPU's `health`, and the `gone` ones."""
        found = self.inventory.to_dict()
        for gpu in found["gpus"]:
            gpu["health"] = asdict(self.health[gpu["uuid"]])
        found["gone"] = [
            {**({"name": gpu.name, "index": gpu.index} if gpu else {"name": "", "index": None}), "uuid": uuid,
             "health": asdict(self.health[uuid])}
            for uuid, gpu in self.gone.items()
        ]  # fmt: skip
        return {**found, "at": self.at, "ignored": sorted(self.ignored)}

    def devices(self, uuid: str) -> list[str]:
        """Those that are there: the one, or the MIG instances of a GPU."""
        return [gpu.uuid for gpu in self.inventory.gpus if uuid in (gpu.uuid, gpu.parent)]


def figures(gpu: Gpu, health: Health) -> dict[str, float | None]:
    """What the metrics show of a device (`daemon/metrics.py`)."""
    return {
        "usable": float(health.usable),
        "utilization_ratio": None if gpu.utilization is None else gpu.utilization / 100,
        "memory_used_bytes": gpu.total - gpu.free,
        "memory_total_bytes": gpu.total,
        "power_watts": gpu.power_draw,
        "energy_joules": gpu.energy,
        "temperature_celsius": gpu.temperature,
    }


class Watcher:
    """Knows the GPUs and their health, and tells when something is to be done.

    Its thread alternates between waiting for events and asking for everything; `refresh()` may be called by any thread
    and then has NVML to itself. `view` is replaced as a whole, so readers need no lock. The callbacks run in the event
    loop that `start` was given, before that in the calling thread: `on_inventory(inventory)` after each answer and
    event, and `on_action(uuid, action, reason)`.
    """

    def __init__(
        self,
        nvml: Nvml,
        on_inventory: Callable[[Inventory], None] = lambda inventory: None,
        on_action: Callable[[str, Action, str], None] = lambda uuid, action, reason: None,
        clock: Callable[[], float] = time.time,
        pace: Callable[[], float] = time.monotonic,
    ) -> None:
        self.view = View()
        self._nvml, self._clock, self._pace = nvml, clock, pace
        self._on_inventory, self._on_action = on_inventory, on_action
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._closing = threading.Event()
        self._turn, self._using = threading.Lock(), threading.Lock()
        self._asked = float("-inf")  # when NVML was last asked for everything, by `pace`
        self._books = threading.Lock()  # guards what follows
        self._known: dict[str, Gpu] = {}  # every device that answered, as it last was
        self._marks: dict[str, tuple[State, tuple[str, ...]]] = {}  # draining and removed ones, and why
        self._events: dict[str, tuple[Seen, ...]] = {}
        self._ignored: frozenset[str] = frozenset()

    # what others use

    @property
    def inventory(self) -> Inventory:
        return self.view.inventory

    def health(self, uuid: str) -> Health:
        """Of a device that nobody ever saw: removed."""
        return self.view.health.get(uuid) or Health(uuid, "removed", ("there is no such GPU",))

    def refresh(self) -> Inventory:
        """Ask NVML for everything, now; waits for the thread, which may wait for events."""
        with self._nvml_alone():
            self._asked = self._pace()
            self._take(self._nvml.inventory())
        return self.view.inventory

    def nudge(self) -> None:
        """Somebody looks: have the thread ask again within a second. Without a GPU it keeps its pace."""
        self._asked = float("-inf") if self._known else self._asked

    def clear(self, uuid: str) -> None:
        """Use a drained or removed device again; it is marked again if the driver still asks for its recovery."""
        with self._books:
            self._marks.pop(uuid, None)
            self._events.pop(uuid, None)
            if not any(gpu.uuid == uuid for gpu in self.view.inventory.gpus):
                self._known.pop(uuid, None)
            self._publish(self.view.inventory, self.view.at)

    def ignore(self, uuids: frozenset[str]) -> None:
        """These, and the MIG instances of these, are `ignored` from now on, and no others."""
        with self._books:
            self._ignored = uuids
            self._publish(self.view.inventory, self.view.at)

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Watch in a thread from now on; callbacks run in `loop`."""
        self._loop = loop
        self._thread = threading.Thread(target=self._run, name="gpus", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Waits for the thread, which may wait for an event. A driver that hangs is left alone."""
        self._closing.set()
        if self._thread is not None:
            self._thread.join(CLOSE_SECONDS)
            if self._thread.is_alive():
                return
        with self._nvml_alone():
            self._nvml.close()

    def step(self) -> bool:
        """One round of the thread: an event if one comes within WAIT_SECONDS, and everything if it is time to ask.

        True when there was an event: more may be waiting.
        """
        with self._nvml_alone():
            event = self._nvml.wait(WAIT_SECONDS)
        if event:
            self._heed(event)
        if self._pace() >= self._asked + (POLL_SECONDS if self._known else ABSENT_SECONDS):
            self.refresh()
        return event is not None

    # the thread

    def _run(self) -> None:
        while not self._closing.is_set():
            began, heard = self._pace(), False
            try:
                heard = self.step()
            except Exception:  # a dead thread would leave old news looking fresh
                log.exception("the GPUs could not be watched")
                self._closing.wait(POLL_SECONDS)
            # wait() returns at once where no GPU reports events
            idle = WAIT_SECONDS - (self._pace() - began)
            if not self._known:
                idle = self._asked + ABSENT_SECONDS - self._pace()
            if idle > 0 and not heard:
                self._closing.wait(idle)

    @contextlib.contextmanager
    def _nvml_alone(self) -> Iterator[None]:
        """One user of NVML at a time, and in turn: the thread, which always wants it, would starve the others
        otherwise."""
        with self._turn:
            self._using.acquire()
        try:
            yield
        finally:
            self._using.release()

    # what was heard

    def _take(self, found: Inventory) -> None:
        with self._books:
            if not found.answered:
                silent = replace(self.view.inventory, reason=found.reason, answered=False, absent=found.absent)
                self._publish(silent, self.view.at)
                return
            for name in found.lost:
                self._mark(name, Event(name, "lost", 0))
            self._missing(found)
            for gpu in found.gpus:
                self._known[gpu.uuid] = gpu
                if gpu.recovery not in (None, "none"):
                    self._mark(gpu.uuid, Event(gpu.uuid, "recovery", RECOVERY.index(gpu.recovery)))
            for uuid in self._marks.keys() - self._known.keys() - set(found.lost):
                del self._marks[uuid]  # a device without a UUID that has got one, or has gone
                self._events.pop(uuid, None)
            self._publish(found, self._clock())

    def _missing(self, found: Inventory) -> None:
        """Devices that were there before. A GPU that was split into instances, or an instance taken away, is no
        fault."""
        there = {gpu.uuid for gpu in found.gpus}
        whole = {gpu.parent or gpu.uuid for gpu in found.gpus}
        for uuid, gpu in list(self._known.items()):
            if uuid in there or self._state(uuid) == "removed":
                continue
            if (gpu.parent or uuid) in whole:
                del self._known[uuid]
                self._marks.pop(uuid, None)
                self._tell(uuid, Action.REMOVE, "the GPU is split into MIG instances in another way now")
            else:
                self._mark(uuid, Event(uuid, "lost", 0))

    def _heed(self, event: Event) -> None:
        """A whole GPU's event concerns every MIG instance on it."""
        with self._books:
            instances = [gpu.uuid for gpu in self._known.values() if gpu.parent == event.uuid]
            for uuid in instances or [event.uuid]:
                self._mark(uuid, replace(event, uuid=uuid))
            self._publish(self.view.inventory, self.view.at)

    def _mark(self, uuid: str, event: Event) -> None:
        """Draw the consequence of an event of one device, and tell it if it is a new one."""
        now, seen = self._clock(), self._events.get(uuid, ())
        before = [s for s in seen if (s.kind, s.code) == (event.kind, event.code) and now - s.at > SETTLE_SECONDS]
        todo, text, state = action(event, bool(before)), describe(event), self._state(uuid)
        asked = any(s.kind == event.kind == "recovery" and s.code == event.code for s in seen)
        if state == "removed" or (state == "draining" and asked):
            return  # the poll finds the same again and again
        if todo == Action.RESTART and (
            state == "draining" or any(s.action == Action.RESTART and now - s.at <= SETTLE_SECONDS for s in seen)
        ):
            todo = Action.NOTE
        self._events[uuid] = (*seen, Seen(now, event.kind, event.code, todo, text))[-KEPT_EVENTS:]
        if todo in (Action.DRAIN, Action.REMOVE):
            why = self._marks.get(uuid, ("ok", ()))[1]
            self._marks[uuid] = (
                "removed" if todo == Action.REMOVE else "draining",
                (*why, text) if text not in why else why,
            )
            if todo == Action.DRAIN and state == "draining":
                return
        self._tell(uuid, todo, text)

    def _state(self, uuid: str) -> State:
        return self._marks.get(uuid, ("ok", ()))[0]

    # what is told

    def _publish(self, inventory: Inventory, at: float) -> None:
        names = {gpu.uuid for gpu in inventory.gpus}
        gone = {uuid: self._known.get(uuid) for uuid in self._marks if uuid not in names}
        health = {gpu.uuid: self._health(gpu.uuid, gpu) for gpu in inventory.gpus}
        health |= {uuid: self._health(uuid, None) for uuid in gone}
        self.view = View(inventory, health, gone, at, self._ignored)
        self._call(self._on_inventory, inventory)

    def _health(self, uuid: str, gpu: Gpu | None) -> Health:
        state, why = self._marks.get(uuid, ("ok", ()))
        slow = tuple(THROTTLES[name] for name in gpu.throttle if name in THROTTLES) if gpu else ()
        limited = tuple(LIMITED[name] for name in gpu.throttle if name in LIMITED) if gpu else ()
        if state == "ok" and slow:
            state = "throttled"
        known = self._known.get(uuid)
        return Health(
            uuid, state, (*why, *slow, *limited), self._events.get(uuid, ()),
            needs_reset=state in ("draining", "removed"),
            ignored=not self._ignored.isdisjoint((uuid, known.parent if known else "")),
        )  # fmt: skip

    def _tell(self, uuid: str, todo: Action, text: str) -> None:
        self._call(self._on_action, uuid, todo, text)

    def _call(self, callback: Callable[..., None], *values: Any) -> None:
        if self._loop is None:
            return callback(*values)
        with contextlib.suppress(RuntimeError):  # the loop has ended: nobody listens any more
            self._loop.call_soon_threadsafe(callback, *values)
