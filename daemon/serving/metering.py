"""What was used, by whom, of which model, on which day: pure, but for the clocks that are given.

Tokens are those of the `finish` rows of the audit log, to the token. Seconds are those in which a device computed: a
step's are split by the tokens that it computed for each (`engine/spending.py`), of several GPUs or cores each counts.
Energy is what NVML's counters say. Of a GPU's the part of the time in which nothing was computed is idle's, by what it
drew when nothing was computed at all; the rest is split by the seconds. A model and client of "" are nobody's: what is
idle, and what llmd asks a model for itself.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from llmd.daemon.metrics import Metrics
from llmd.daemon.state.records import Used
from llmd.daemon.wire.control import Spent

# how much one interval counts in what a GPU draws when nothing is computed
SMOOTHING = 0.1


@dataclass(slots=True)
class _Gpu:
    """`joules` of its counter at `at`, and the seconds of each model and client since."""

    joules: float
    at: float
    idle_watts: float | None = None
    seconds: defaultdict[tuple[str, str], float] = field(default_factory=lambda: defaultdict(float))


class Meter:
    """Made once, by `Books`. `today` gives the day, as a text; `groups` those of a client now, joined by commas."""

    def __init__(
        self,
        metrics: Metrics,
        today: Callable[[], str],
        groups: Callable[[str], str] = lambda client: "",
    ) -> None:
        self._metrics, self._today, self.groups = metrics, today, groups
        self._used: dict[tuple[str, str, str, str], Used] = {}
        self._changed: set[tuple[str, str, str, str]] = set()
        self._gpus: dict[str, _Gpu] = {}

    def load(self, rows: Iterable[Used]) -> None:
        """Of today, before this start."""
        for row in rows:
            self._used[row.day, row.client, row.groups, row.model] = row

    def used(self, client: str, model: str, prompt: int, cached: int, output: int) -> None:
        """A request has ended."""
        self._add(client, model, requests=1, prompt=prompt, cached=cached, output=output)

    def spent(self, model: str, gpus: Sequence[str], shares: Iterable[Spent]) -> None:
        """What a worker says that it has computed since it said so last; no `gpus`: on the CPU."""
        for share in shares:
            self._add(share.owner, model, seconds=share.seconds * max(1, len(gpus)))
            for gpu in gpus:
                if gpu in self._gpus:
                    self._gpus[gpu].seconds[share.owner, model] += share.seconds

    def energy(self, counters: Mapping[str, float | None], now: float) -> None:
        """What each GPU's counter says, in joules; None: it has none."""
        for uuid, joules in counters.items():
            if joules is None:
                continue
            known = self._gpus.get(uuid)
            if known is None or joules < known.joules:  # its driver was loaded anew
                self._gpus[uuid] = _Gpu(joules, now, known.idle_watts if known else None)
                continue
            self._split(known, joules - known.joules, now - known.at)
            known.joules, known.at = joules, now
            known.seconds.clear()

    def _split(self, gpu: _Gpu, joules: float, seconds: float) -> None:
        busy = sum(gpu.seconds.values())
        if seconds <= 0:
            return
        if not busy:
            watts = joules / seconds
            gpu.idle_watts = watts if gpu.idle_watts is None else gpu.idle_watts + SMOOTHING * (watts - gpu.idle_watts)
        idle = joules if not busy else min(joules, (gpu.idle_watts or 0.0) * max(0.0, seconds - busy))
        self._add("", "", joules=idle)
        for (client, model), share in gpu.seconds.items():
            self._add(client, model, joules=(joules - idle) * share / busy)

    def take(self) -> list[Used]:
        """What has changed since the last time, to be written; what is of another day is forgotten."""
        rows, today = [self._used[key] for key in sorted(self._changed)], self._today()
        self._changed.clear()
        self._used = {key: row for key, row in self._used.items() if key[0] == today}
        return rows

    def give_back(self, rows: Iterable[Used]) -> None:
        """They could not be written."""
        for row in rows:
            key = row.day, row.client, row.groups, row.model
            self._used.setdefault(key, row)
            self._changed.add(key)

    def _add(self, client: str, model: str, **more: float) -> None:
        key = self._today(), client, self.groups(client) if client else "", model
        row = self._used.get(key)
        if row is None:
            row = self._used[key] = Used(*key)
        for name, value in more.items():
            setattr(row, name, getattr(row, name) + value)
        self._changed.add(key)
        self._metrics.used(client, more)
