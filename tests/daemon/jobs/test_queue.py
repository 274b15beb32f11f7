"""The queue of what takes a while: one after the other, whoever goes away, over a restart."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from llmd.daemon.errors import Conflict, ModelInvalid, NotFound
from llmd.daemon.jobs.queue import CANCELLED, DONE, FAILED, QUEUED, RUNNING, Jobs, Kind, Tell
from llmd.daemon.state.records import Job
from llmd.daemon.state.store import StateThread, Store
from llmd.daemon.tasks import Tasks


@dataclass(frozen=True)
class Part:
    count: int


@dataclass(frozen=True)
class Asked:
    type: str = "Q8_0"
    part: Part | None = None


@dataclass(frozen=True)
class Came:
    form: str
    parts: int | None = None


class Place:
    """A queue whose jobs do what a test says: `go` lets the one that runs end."""

    def __init__(self, file: Path) -> None:
        self.file, self.tasks = file, Tasks()
        self.begun: list[int] = []
        self.ended: list[tuple[int, str]] = []
        self.error: Exception | None = None
        self.open()

    def open(self) -> None:
        self.go, self.state, self.store = asyncio.Event(), StateThread(), Store(self.file)
        self.jobs = Jobs(self.store, self.state, lambda job: self.ended.append((job.id, job.state)))
        self.jobs.register(Kind("quantize", Asked, self.run))
        self.task = self.jobs.start(self.tasks)

    async def run(self, job: Job, asked: Asked, tell: Tell) -> Came:
        self.begun.append(job.id)
        self.asked = asked
        tell(1, 4, f"job {job.id} says")
        await self.go.wait()
        if self.error:
            raise self.error
        tell(4, 4, "")
        return Came("a@b", asked.part.count if asked.part else None)

    async def close(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        self.state.close()
        self.store.close()

    async def add(self, model: str = "a", **asked: Any) -> int:
        return (await self.jobs.add("quantize", model, Asked(**asked), "test")).id

    async def until(self, number: int, state: str) -> Job:
        async with asyncio.timeout(10):
            while (job := await self.jobs.show(number)).state != state:
                await asyncio.sleep(0.01)
        return job


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    place = Place(tmp_path / "state.db")
    yield place
    await place.close()


async def test_one_after_the_other(place: Place) -> None:
    first, second = await place.add("a"), await place.add("b")
    await place.until(first, RUNNING)
    assert (await place.jobs.show(second)).state == QUEUED and place.begun == [first]
    assert place.jobs.runs(first) and place.jobs.progress.done == 1 and (place.jobs.progress.left or -1) >= 0
    place.go.set()
    done = await place.until(second, DONE)
    assert done.result == {"form": "a@b"} and done.log == f"job {second} says" and done.ended and done.started
    assert place.begun == [first, second] and place.ended == [(first, DONE), (second, DONE)]


async def test_the_same_is_not_queued_twice(place: Place) -> None:
    first = await place.add("a", type="Q8_0")
    with pytest.raises(Conflict, match=f"job {first} does that already"):
        await place.add("a", type="Q8_0")
    await place.add("a", type="Q4_0")
    place.go.set()
    await place.until(first, DONE)
    await place.add("a", type="Q8_0")


async def test_a_job_is_given_what_was_asked_and_what_came_of_it_is_kept(place: Place) -> None:
    number = await place.add("a", type="Q4_0", part=Part(3))
    place.go.set()
    done = await place.until(number, DONE)
    assert place.asked == Asked("Q4_0", Part(3)) and done.asked == {"type": "Q4_0", "part": {"count": 3}}
    assert done.result == {"form": "a@b", "parts": 3}


async def test_a_job_of_an_earlier_llmd_is_read_as_far_as_it_is_known(place: Place) -> None:
    number = place.store.add_job("quantize", "a", {"type": "Q4_0", "later": 1}, "test").id
    unknown = place.store.add_job("other", "a", {}, "test").id
    await place.add("b")
    place.go.set()
    await place.until(number, DONE)
    assert "log holds the cause" in (await place.until(unknown, FAILED)).error


async def test_cancelled_while_it_runs_and_while_it_waits(place: Place) -> None:
    first, second, third = await place.add("a"), await place.add("b"), await place.add("c")
    await place.until(first, RUNNING)
    assert (await place.jobs.cancel(second)).state == CANCELLED
    assert (await place.jobs.cancel(first)).state == CANCELLED
    place.go.set()
    await place.until(third, DONE)
    assert place.begun == [first, third] and (first, CANCELLED) in place.ended
    with pytest.raises(Conflict, match="is cancelled already"):
        await place.jobs.cancel(first)
    with pytest.raises(NotFound):
        await place.jobs.cancel(99)


async def test_what_was_cancelled_as_it_was_about_to_begin_does_not(place: Place) -> None:
    first, second = await place.add("a"), await place.add("b")
    await place.until(first, RUNNING)
    waiting = await place.jobs.show(second)
    await place.jobs.cancel(second)
    await place.jobs._do(waiting)
    assert place.begun == [first] and (await place.jobs.show(second)).state == CANCELLED
    await place.jobs.wait(second)
    assert not place.jobs._changed, "nobody waits"
    place.go.set()
    await place.until(first, DONE)


async def test_it_fails_with_its_reason_and_the_next_one_runs(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    place.error = ModelInvalid("the file is damaged")
    place.go.set()
    assert (await place.until(await place.add("a"), FAILED)).error == "the file is damaged"
    place.error = ZeroDivisionError("/secret")
    failed = await place.until(await place.add("b"), FAILED)
    assert "/secret" not in failed.error and "log holds the cause" in failed.error and "/secret" in caplog.text
    place.error = None
    await place.until(await place.add("c"), DONE)


async def test_a_restart_begins_what_ran_again_and_goes_on(place: Place) -> None:
    first, second = await place.add("a"), await place.add("b")
    await place.until(first, RUNNING)
    await place.close()
    assert place.ended == [], "it has not ended"
    place.open()
    await place.until(first, RUNNING)
    place.go.set()
    await place.until(second, DONE)
    assert place.begun == [first, first, second]


async def test_waiting_ends_with_the_job_or_after_so_long(place: Place) -> None:
    first = await place.add("a")
    await place.jobs.wait(first, 0.05)
    waiting = asyncio.create_task(place.jobs.wait(first))
    await place.until(first, RUNNING)
    assert not waiting.done()
    place.go.set()
    async with asyncio.timeout(10):
        await waiting
    await place.jobs.wait(first)


async def test_only_the_last_that_ended_are_kept(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmd.daemon.jobs.queue.MAX_ENDED", 3)
    place.go.set()
    for _ in range(6):
        await place.until(await place.add("a"), DONE)
    assert [job.id for job in await place.jobs.all()] == [3, 4, 5, 6]
