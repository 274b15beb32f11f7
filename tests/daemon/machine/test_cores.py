"""Who computes on how many cores: what is dealt, and that children in real processes follow."""

import asyncio
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmd.daemon.machine import cores
from llmd.daemon.machine.cores import BACKGROUND, BESIDE, SEATS, SERVING, Alone, Seat, shares
from llmd.daemon.machine.seats import Seats

# says what it has, each time it is asked: `sit N`, `leave`, `share`
CHILD = """
import sys
from llmd.daemon.machine import cores
seat = cores.mine()
for line in open(int(sys.argv[1])):
    what, *number = line.split()
    print(getattr(seat, what)(*map(int, number)), flush=True)
"""


@pytest.mark.parametrize(
    ("total", "seats", "dealt"),
    [
        (2, [(2, SERVING)], [2]),
        (2, [(2, SERVING), (2, SERVING)], [1, 1]),
        (2, [(2, SERVING)] * 4, [1, 1, 1, 1]),  # more of them than cores: one each
        (16, [(16, SERVING), (16, SERVING)], [8, 8]),
        (16, [(16, SERVING), (16, BESIDE)], [13, 3]),
        (16, [(16, SERVING), (1, SERVING)], [15, 1]),  # one on a GPU needs one
        (16, [(4, SERVING), (16, SERVING)], [4, 12]),
        (4, [(4, SERVING), (0, SERVING)], [4, 0]),  # who computes nothing
        (2, [(2, SERVING), (2, BACKGROUND)], [2, 1]),  # takes nothing from others
        (4, [(1, SERVING), (4, BACKGROUND)], [1, 3]),  # and has what they leave
        (4, [(4, BACKGROUND)], [4]),
    ],
)
def test_cores_are_dealt(total: int, seats: Sequence[tuple[int, int]], dealt: Sequence[int]) -> None:
    assert shares(total, seats) == dealt


@given(st.integers(1, 64), st.lists(st.tuples(st.integers(0, 64), st.integers(0, 8)), max_size=20))
def test_never_more_threads_than_cores(total: int, seats: list[tuple[int, int]]) -> None:
    dealt = shares(total, seats)
    computing = [share for share, (_, weight) in zip(dealt, seats, strict=True) if weight]
    assert sum(computing) <= max(total, sum(1 for share in computing if share))
    for share, (most, _) in zip(dealt, seats, strict=True):
        assert min(1, most) <= share <= most
    if sum(dealt) < total:  # no core is left to nobody
        assert all(share == most for share, (most, _) in zip(dealt, seats, strict=True))


def test_who_has_no_seat_has_all_cores() -> None:
    alone = Alone()
    alone.sit(10_000)
    assert alone.share() == len(os.sched_getaffinity(0))
    alone.sit(1)
    assert alone.share() == 1


def test_a_page_full_of_nonsense_gives_a_sensible_number() -> None:
    page = memoryview(bytearray(b"\xff" * cores.BYTES)).cast("I")
    seat = Seat(page, 3, SERVING)
    seat.sit(8)
    assert 1 <= seat.share() <= 8
    page[0] = 0
    assert seat.share() == 1


def test_idle_cores_are_those_that_this_process_may_use(tmp_path: Path) -> None:
    mine = sorted(os.sched_getaffinity(0))
    file = tmp_path / "proc/stat"
    file.parent.mkdir()

    def stat(used: int, idle: int) -> None:
        lines = [f"cpu{n} {used} 0 0 {idle} 0 0 0 0 0 0" for n in mine]
        file.write_text("\n".join(["cpu 1 2 3 4 5 6 7 8 9 10", *lines, "cpu9999 0 0 0 99999 0 0 0 0 0 0", "intr 7"]))

    stat(100, 100)
    idle = cores.Idle(tmp_path)
    stat(175, 125)
    assert idle.cores() == pytest.approx(len(mine) / 4)
    stat(175, 225)
    assert idle.cores() == pytest.approx(len(mine))
    file.unlink()
    assert cores.Idle(tmp_path).cores() == len(mine)


class Children:
    """Children with seats, in real processes."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, total: int) -> None:
        (folder / "seated.py").write_text(CHILD)
        monkeypatch.setenv("PYTHONPATH", str(folder))
        self.seats = Seats(total)

    async def start(self, **how: Any) -> "Child":
        read, write = os.pipe()
        process = await self.seats.start("seated", str(read), descriptors=[read], stdout=asyncio.subprocess.PIPE, **how)
        os.close(read)
        return Child(process, write)


class Child:
    def __init__(self, process: asyncio.subprocess.Process, write: int) -> None:
        self.process, self._write = process, write

    async def ask(self, *what: object) -> str:
        os.write(self._write, " ".join(map(str, what)).encode() + b"\n")
        assert self.process.stdout is not None
        return (await self.process.stdout.readline()).decode().strip()

    async def end(self, how: signal.Signals = signal.SIGKILL) -> None:
        os.close(self._write)
        self.process.send_signal(how)
        await self.process.wait()


@pytest.fixture
def children(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Children:
    return Children(tmp_path, monkeypatch, total=8)


async def test_all_follow_when_one_begins_ends_or_dies(children: Children) -> None:
    one, two = await children.start(), await children.start()
    await one.ask("sit", 8)
    assert await one.ask("share") == "7"  # the other has its core from its start, while it loads
    await two.ask("sit", 8)
    assert [await one.ask("share"), await two.ask("share")] == ["4", "4"]
    await two.ask("leave")
    assert await one.ask("share") == "8"
    await two.ask("sit", 8)
    assert await one.ask("share") == "4"
    await two.end(signal.SIGKILL)  # it said nothing more
    assert await one.ask("share") == "8"
    children.seats.use(3)  # another configuration
    assert await one.ask("share") == "3"
    await one.end()


async def test_a_trial_takes_less_than_what_serves(children: Children) -> None:
    serves, trial = await children.start(), await children.start(weight=BESIDE)
    await serves.ask("sit", 8)
    await trial.ask("sit", 8)
    assert [await serves.ask("share"), await trial.ask("share")] == ["6", "2"]
    await serves.end()
    await trial.end()


async def test_seats_are_given_again_and_none_is_no_failure(children: Children) -> None:
    first = await children.start()
    children.seats._taken |= set(range(1, SEATS + 1))
    stands = await children.start()
    await stands.ask("sit", 64)
    assert await stands.ask("share") == str(min(64, len(os.sched_getaffinity(0))))
    await stands.end()
    children.seats._taken -= set(range(2, SEATS + 1))
    await first.end()
    again = await children.start()
    await again.ask("sit", 8)
    assert await again.ask("share") == "8"
    await again.end()


async def test_a_child_that_cannot_start_leaves_its_seat(children: Children) -> None:
    with pytest.raises(OSError):
        await children.seats.start("seated", interpreter="/nowhere/python")
    one = await children.start()
    await one.ask("sit", 8)
    assert await one.ask("share") == "8"
    await one.end()
