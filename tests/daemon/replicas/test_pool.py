"""Several replicas of a model, real processes: who answers what, and that a death is invisible to the others."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from fake_nvml import GIB, FakeNvml, h200
from placing import PLACED, Placing, end

from llmd.daemon.errors import Conflict, DoesNotFit, ModelNotReady
from llmd.daemon.gpus.faults import Action
from llmd.daemon.gpus.nvml import Nvml
from llmd.daemon.gpus.watch import Watcher
from llmd.daemon.machine import memory
from llmd.daemon.metrics import Metrics
from llmd.daemon.planning.plan import Wish
from llmd.daemon.replicas.deployment import Deployment
from llmd.daemon.replicas.pool import Pool
from llmd.daemon.replicas.routing import BLOCK
from llmd.daemon.replicas.stream import Stream
from llmd.daemon.tasks import Tasks
from llmd.daemon.wire.events import Failed, Finished
from llmd.daemon.wire.work import Generate, RawText, SamplingWish

WISH = Wish("", 2, 4096, 64, 32, 1, engine="fake", fake={"text": "one two", "step_seconds": 0.01})


@pytest.fixture
async def pool() -> AsyncIterator[Pool]:
    pool = Pool(Metrics(), Tasks(), pause=(0.2, 2.0))
    yield pool
    await pool.close(0)


def slots(deployment: Deployment) -> int:
    return deployment.capacity.slots if deployment.capacity else 0


async def ready(deployment: Deployment) -> None:
    async with asyncio.timeout(20):
        while deployment.state != "ready":
            await deployment.changed.wait()


def ask(pool: Pool, text: str, tokens: int = 4, owner: str = "alice") -> Stream:
    work = Generate((RawText(text),), SamplingWish(tokens, temperature=0.0))
    worker, _ = pool.serves("m", owner, work.spelled())
    return worker.open(owner, work)


async def test_one_that_is_deployed_again_while_it_makes_room_serves_again(pool: Pool) -> None:
    deployment = pool.deploy("m", "0" * 64, WISH)
    await ready(deployment)
    old, leaving = deployment.worker, asyncio.create_task(pool.evict("m", "made room"))
    await asyncio.sleep(0)
    assert deployment.state == "stopping" and not deployment.residency.loaded
    assert pool.deploy("m", "0" * 64, WISH) is deployment
    await leaving
    await ready(deployment)
    assert pool.away() == [] and deployment.worker is not old
    stream = ask(pool, "hello", 10_000)
    with pytest.raises(Conflict, match="not idle any more"):
        await pool.evict("m", "made room")
    stream.cancel()
    await pool.undeploy("m")
    assert pool.all() == [] and not pool.known("m")


async def test_one_that_is_away_can_be_taken_out_of_service(pool: Pool) -> None:
    pool.keep("m", "0" * 64, WISH, 1, "made room")
    with pytest.raises(ModelNotReady, match="made room"):
        pool.serves("m")
    assert pool.known("m") and pool.all() == []
    await pool.undeploy("m")
    assert pool.away() == [] and not pool.known("m")


async def test_requests_are_spread_and_conversations_stay(pool: Pool) -> None:
    deployment = pool.deploy("m", "0" * 64, WISH, replicas=2)
    await ready(deployment)
    pids = {one.worker.pid for one in deployment.replicas if one.worker}
    assert len(pids) == 2 and slots(deployment) == 4
    spread = [ask(pool, "hello", 200) for _ in range(4)]
    assert sorted(one.worker.open_sequences for one in deployment.replicas if one.worker) == [2, 2]
    for stream in spread:
        stream.cancel()
    talk = "x" * BLOCK
    first = ask(pool, talk)
    busy = [ask(pool, "hello", 200) for _ in range(1)]
    assert isinstance(await end(first), Finished)
    again = ask(pool, talk + " and more")
    assert again.calls[0].worker is first.calls[0].worker
    assert isinstance(await end(again), Finished)
    for stream in busy:
        stream.cancel()


async def test_a_replicas_death_is_invisible_to_the_others_streams(pool: Pool) -> None:
    deployment = pool.deploy("m", "0" * 64, WISH, replicas=2)
    await ready(deployment)
    streams = [ask(pool, "hello", 150) for _ in range(2)]
    dying = next(one for one in deployment.replicas if one.worker is streams[0].calls[0].worker)
    assert dying.worker and streams[1].calls[0].worker is not dying.worker
    await asyncio.gather(*(s.next() for s in streams))
    os.kill(dying.worker.pid, signal.SIGKILL)
    failed = await end(streams[0])
    assert isinstance(failed, Failed) and failed.code == "worker_lost"
    assert deployment.ready
    late = ask(pool, "hello")
    assert late.calls[0].worker is streams[1].calls[0].worker and isinstance(await end(late), Finished)
    async with asyncio.timeout(5):
        while deployment.state != "degraded":
            await deployment.changed.wait()
    assert isinstance(await end(streams[1]), Finished)
    await ready(deployment)
    assert deployment.restarts == 1


async def test_more_and_fewer_replicas_touch_none_that_stays(pool: Pool) -> None:
    deployment = pool.deploy("m", "0" * 64, WISH)
    await ready(deployment)
    stream = ask(pool, "hello", 100)
    pool.deploy("m", "0" * 64, WISH, replicas=3)
    await ready(deployment)
    assert len(deployment.replicas) == 3
    pool.deploy("m", "0" * 64, WISH, replicas=1)
    async with asyncio.timeout(10):
        while len(deployment.replicas) > 1:
            await deployment.changed.wait()
    assert deployment.worker is stream.calls[0].worker, "the busy one stays"
    assert isinstance(await end(stream), Finished)


async def test_new_settings_go_round_one_after_the_other_and_something_always_serves(pool: Pool) -> None:
    deployment = pool.deploy("m", "0" * 64, WISH, replicas=2)
    await ready(deployment)
    old = {one.number for one in deployment.replicas}
    pool.deploy("m", "0" * 64, replace(WISH, slots=3), replicas=2)
    most = 0
    async with asyncio.timeout(20):
        while deployment.state != "ready" or len(deployment.replicas) > 2:
            assert deployment.ready
            most = max(most, len(deployment.replicas))
            await deployment.changed.wait()
    assert not old & {one.number for one in deployment.replicas} and slots(deployment) == 6 and most <= 4


async def test_auto_is_one_on_each_gpu_that_holds_it_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available", lambda: 100 * GIB)
    fake = FakeNvml(h200(0), h200(1), h200(2))
    fake.hold(h200(2).uuid, 1, 100 * GIB)
    watcher = Watcher(Nvml(fake, fake.root(tmp_path / "root")))
    planner = Placing(watcher)
    wish = replace(PLACED, slots=2)
    with pytest.raises(DoesNotFit, match="replica 3 of 3"):
        await planner.check("m", wish, {}, 3)
    pool = Pool(Metrics(), Tasks(), planner, pause=(0.2, 2.0))
    deployment = pool.deploy("m", "0" * 64, wish, replicas=0)
    await ready(deployment)
    assert deployment.count == 2 and sorted(planner.given.values()) == sorted([(h200(0).uuid,), (h200(1).uuid,)])

    (lost,) = next(one.worker.settings.gpus for one in deployment.replicas if one.worker)
    fake.lose(lost)
    watcher.refresh()
    pool.fault(lost, Action.REMOVE, "the GPU is lost")
    async with asyncio.timeout(20):
        while deployment.state != "ready" or deployment.count != 1:
            await deployment.changed.wait()
    assert len(deployment.replicas) == 1, "no replica waits for a GPU that is gone"
    fake.release(1)  # the third has room now
    pool.see(watcher.view.usable)
    await ready(deployment)
    assert deployment.count == 2
    await pool.close(0)
