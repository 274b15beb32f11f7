"""Who computes on how many of the machine's cores: a page of memory that the daemon and its children share.

The threads of one computation meet hundreds of times a token. With more of them than cores, each meeting waits for one
that does not run: two models with two threads each on two cores were measured at a thirtieth of one. So every child
that computes has a seat on the page, where it says how many threads it could use, and reads before each step how many
it has: every one has one, the rest goes by weight. Nobody asks anybody, and looking costs no system call.

This is the children's side; `seats.py` is the daemon's.
"""

import mmap
import os
from collections.abc import Sequence
from pathlib import Path

SEATS = 255
WORD = 4  # bytes: how many cores there are, then a seat each: its weight, and the threads it could use (16 bits each)
BYTES = WORD * (1 + SEATS)
MOST = 1024  # threads of one child, or weight
LOW = (1 << 16) - 1
VARIABLE = "LLMD_SEAT"  # for a child: the page's descriptor, the number of its seat, its weight
# weights: what people wait for, what is tried out beside it, and what runs while nobody else wants to
# (`children.Limits.background`)
SERVING, BESIDE, BACKGROUND = 4, 1, 0


def available() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0))


def shares(cores: int, seats: Sequence[tuple[int, int]]) -> list[int]:
    """How many threads each gets that could use `most` and has a `weight`: one each, and of what is left the next to
    whoever has least for its weight. Together they are never more than `cores`, or than there are of them.

    What has no weight runs only while a core has nothing else to do: it takes nothing from others, and beside its one
    thread it gets what they leave."""
    given = [min(most, 1) for most, _ in seats]
    weighty = [i for i, (_, weight) in enumerate(seats) if weight]
    light = [i for i, (_, weight) in enumerate(seats) if not weight]
    left = cores - sum(given[i] for i in weighty)
    left = _deal(given, seats, weighty, left)
    _deal(given, seats, light, left - sum(given[i] for i in light))
    return given


def _deal(given: list[int], seats: Sequence[tuple[int, int]], among: Sequence[int], left: int) -> int:
    """Returns what nobody of them could use."""
    while left > 0 and (wanting := [i for i in among if given[i] < seats[i][0]]):
        given[min(wanting, key=lambda i: (given[i] / max(1, seats[i][1]), i))] += 1
        left -= 1
    return left


class Seat:
    """A child's side. One thread uses it."""

    def __init__(self, page: memoryview, number: int, weight: int) -> None:
        self._page, self._number, self._weight = page, number, weight
        self._seen, self._share = b"", 1

    def sit(self, most: int) -> None:
        """It computes from now on, and could use so many threads."""
        self._page[self._number] = word(most, self._weight)

    def leave(self) -> None:
        """It computes nothing."""
        self._page[self._number] = 0

    def share(self) -> int:
        """How many threads it has now; at least one."""
        now = self._page.tobytes()
        if now != self._seen:
            self._seen, words = now, self._page.tolist()
            taken = [n for n in range(1, SEATS + 1) if words[n] or n == self._number]
            # what other processes write is not trusted to be sensible
            given = shares(min(words[0], MOST), [(min(words[n] & LOW, MOST), words[n] >> 16) for n in taken])
            self._share = max(1, given[taken.index(self._number)])
        return self._share


class Alone(Seat):
    """Of a process that nobody gave a seat: it has all the cores there are."""

    def __init__(self) -> None:
        page = memoryview(bytearray(BYTES)).cast("I")
        page[0] = available()
        super().__init__(page, 1, 1)


def mine() -> Seat:
    """This process' seat, as its parent gave it."""
    given = os.environ.pop(VARIABLE, "")
    if not given:
        return Alone()
    fd, number, weight = map(int, given.split(":"))
    page = memoryview(mmap.mmap(fd, BYTES)).cast("I")
    os.close(fd)
    return Seat(page, number, weight)


class Idle:
    """How much of the cores that this process may use nobody uses."""

    def __init__(self, root: Path = Path("/")) -> None:
        """`root` stands for / in tests."""
        self._file = root / "proc/stat"
        self._seen = self._read()

    def cores(self) -> float:
        """How many had nothing to do, on average since this was last asked; all, where the kernel does not tell."""
        before, self._seen = self._seen, self._read()
        idle, whole = (now - then for now, then in zip(self._seen, before, strict=True))
        mine = len(os.sched_getaffinity(0))
        return mine * idle / whole if whole else float(mine)

    def _read(self) -> tuple[int, int]:
        """Ticks that our cores were idle, and all of theirs (proc_stat(5))."""
        idle = whole = 0
        mine = {f"cpu{n}" for n in os.sched_getaffinity(0)}
        try:
            lines = self._file.read_text().splitlines()
        except OSError:
            return 0, 0
        for name, *ticks in (line.split() for line in lines if line.startswith("cpu")):
            if name in mine:
                idle += int(ticks[3]) + int(ticks[4])
                whole += sum(map(int, ticks[:8]))
        return idle, whole


def word(most: int, weight: int) -> int:
    return min(most, MOST) | min(weight, MOST) << 16
