"""Workers that share cores: real processes, on cores that only the page knows of."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from llmd.daemon.admin.shown import crowded
from llmd.daemon.machine.seats import Seats
from llmd.daemon.metrics import Metrics
from llmd.daemon.planning.plan import Wish
from llmd.daemon.replicas.deployment import Deployment
from llmd.daemon.replicas.pool import Pool
from llmd.daemon.replicas.stream import Stream
from llmd.daemon.tasks import Tasks
from llmd.daemon.wire.control import Busy
from llmd.daemon.wire.work import Generate, RawText, SamplingWish


@pytest.fixture
async def seats() -> Seats:
    return Seats(8)


@pytest.fixture
async def pool(seats: Seats) -> AsyncIterator[Pool]:
    pool = Pool(Metrics(), Tasks(), pause=(0.2, 2.0), seats=seats)
    yield pool
    await pool.close(0)


async def deploy(pool: Pool, name: str, **fake: Any) -> Deployment:
    fake = {"text": "one two three", "step_seconds": 0.01, "threads": 8, **fake}
    deployment = pool.deploy(name, "0" * 64, Wish("", 2, 100_000, 64, 32, 8, engine="fake", fake=fake))
    async with asyncio.timeout(20):
        while deployment.state != "ready":
            await deployment.changed.wait()
    return deployment


def stream(pool: Pool, name: str) -> Stream:
    """An answer that does not end by itself."""
    return pool.serves(name)[0].open("a", Generate((RawText("hello"),), SamplingWish(90_000, ignore_eos=True)))


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not holds():
            await asyncio.sleep(0.01)


def busy(deployment: Deployment) -> Busy:
    assert deployment.worker
    return deployment.worker.busy


async def test_two_models_share_the_cores_while_both_compute(pool: Pool, seats: Seats) -> None:
    one, two = await deploy(pool, "one"), await deploy(pool, "two")
    first = stream(pool, "one")
    await until(lambda: busy(one).share == 8)
    second = stream(pool, "two")
    await until(lambda: busy(one).share == busy(two).share == 4)
    assert sum(busy(model).share for model in (one, two)) == 8
    second.cancel()
    await until(lambda: busy(one).share == 8)
    seats.use(6)  # other settings were read
    await until(lambda: busy(one).share == 6)
    first.cancel()


async def test_what_dies_gives_its_cores_back(pool: Pool) -> None:
    one, two = await deploy(pool, "one"), await deploy(pool, "two")
    streams = [stream(pool, "one"), stream(pool, "two")]
    await until(lambda: busy(one).share == 4)
    assert two.worker
    os.kill(two.worker.pid, signal.SIGKILL)
    await until(lambda: busy(one).share == 8)
    for each in streams:
        each.cancel()


async def test_a_model_that_loads_has_a_core_to_itself(pool: Pool) -> None:
    one = await deploy(pool, "one")
    running = stream(pool, "one")
    await until(lambda: busy(one).share == 8)
    loading = asyncio.create_task(deploy(pool, "two"))
    await until(lambda: busy(one).share == 7)
    two = await loading
    await until(lambda: busy(one).share == 8)
    assert busy(two).running == 0 and busy(one).running == 1
    running.cancel()


async def test_metrics_have_the_threads(pool: Pool) -> None:
    await deploy(pool, "one")
    running = stream(pool, "one")
    text = pool._metrics.text
    await until(lambda: b'llmd_threads_share{model="one"} 8.0' in text())
    assert b'llmd_threads{model="one"} ' in text()
    running.cancel()
    await until(lambda: b'llmd_threads{model="one"} 0.0' in text())


@pytest.mark.parametrize(
    ("now", "told"),
    [
        (Busy(1, 0, 9, threads=1, share=2), "computes on 1 of 2 cores: others use them"),
        (Busy(1, 0, 9, threads=2, share=2), ""),
        (Busy(0, 0, 9, threads=1, share=2), ""),  # it computes nothing
    ],
)
def test_an_admin_is_told_that_others_use_the_cores(now: Busy, told: str) -> None:
    assert crowded(now) == told
