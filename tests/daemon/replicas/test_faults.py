"""A GPU that is full, lost or failing: what a stream is told, what is audited, and what follows. Real processes; the
GPUs are scripted."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_nvml import GIB, FakeNvml, h200
from placing import PLACED, Placing, end

from llmd.daemon.gpus.faults import Action
from llmd.daemon.gpus.nvml import Nvml
from llmd.daemon.gpus.watch import Watcher
from llmd.daemon.machine import memory
from llmd.daemon.metrics import Metrics
from llmd.daemon.planning.plan import Placement, Wish
from llmd.daemon.replicas import runs as runs_module
from llmd.daemon.replicas import trials
from llmd.daemon.replicas.deployment import Deployment
from llmd.daemon.replicas.pool import Pool
from llmd.daemon.replicas.stream import Stream
from llmd.daemon.tasks import Tasks
from llmd.daemon.wire.events import Failed, Finished
from llmd.daemon.wire.work import Generate, RawText, SamplingWish

ONE, TWO = h200(0).uuid, h200(1).uuid
FULL = """CUDA error: out of memory
  current device: 0, in function alloc at ggml-cuda.cu:490
  cuMemCreate(&handle, reserve_size, &prop, 0)
ggml-cuda.cu:109: CUDA error"""


class Box:
    """A pool on two scripted GPUs."""

    def __init__(self, folder: Path) -> None:
        self.fake = FakeNvml(h200(0), h200(1))
        self.watcher = Watcher(Nvml(self.fake, self.fake.root(folder / "root")))
        self.planner = Placing(self.watcher)
        self.rows: list[dict[str, Any]] = []
        self.pool = Pool(Metrics(), Tasks(), self.planner, pause=(0.1, 1.0), audit=self._row)

    def _row(self, kind: str, **fields: Any) -> None:
        if kind != "model.ready":
            self.rows.append({"kind": kind, **fields})

    async def deploy(self, wish: Wish = PLACED) -> Deployment:
        deployment = self.pool.deploy("m", "0" * 64, wish)
        await ready(deployment)
        return deployment

    def ask(self, tokens: int = 1000) -> Stream:
        work = Generate((RawText("hello"),), SamplingWish(tokens, temperature=0.0))
        return self.pool.serves("m")[0].open("alice", work)


@pytest.fixture
async def box(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Box]:
    monkeypatch.setattr(memory, "available", lambda: 100 * GIB)
    box = Box(tmp_path)
    yield box
    await box.pool.close(0)


def slots(deployment: Deployment) -> int:
    return deployment.capacity.slots if deployment.capacity else 0


async def ready(deployment: Deployment) -> None:
    async with asyncio.timeout(20):
        while deployment.state != "ready" or not deployment.ready:
            await deployment.changed.wait()


async def failed(stream: Stream) -> str:
    last = await end(stream)
    assert isinstance(last, Failed)
    return last.code


async def test_quantized_keys_are_measured_again_with_a_full_slot_when_nobody_asks(
    box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs_module, "FILL_PAUSE_SECONDS", 0.05)
    measured: list[tuple[int, int]] = []

    async def measure(key: tuple[str, int]) -> None:
        worker = box.pool.serves("m")[0]
        lease = box.planner.leases.get(key)
        assert lease
        measured.append((lease.pid(), worker.busy.kv_used))

    monkeypatch.setattr(box.planner, "measure", measure)
    deployment = await box.deploy(replace(PLACED, placement=Placement(kv="q8_0"), fake={"text": "one two"}))
    stream = box.ask(3)
    assert isinstance(await end(stream), Finished)
    async with asyncio.timeout(10):
        while len(measured) < 2:
            await asyncio.sleep(0.01)
    worker = deployment.worker
    assert worker is not None and [pid for pid, _ in measured] == [worker.pid] * 2
    assert measured[0][1] == 0 and measured[1][1] >= 4095
    assert b'llmd_prompt_tokens_total{model="m"} 7.0' in box.pool._metrics.text(), "nobody asked for that prompt"


async def test_a_prompt_that_nobody_waits_for_ends_before_a_request_begins(
    box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs_module, "FILL_PAUSE_SECONDS", 3600.0)
    deployment = await box.deploy(replace(PLACED, fake={"text": "one two", "step_seconds": 0.05}))
    worker = deployment.worker
    assert worker is not None
    sent: list[object] = []
    send = worker.send

    def record(message: Any) -> None:
        sent.append(message)
        send(message)

    monkeypatch.setattr(worker, "send", record)
    filled = asyncio.ensure_future(trials.fill(worker, lambda: True))
    await asyncio.sleep(0)
    stream = box.ask(3)
    assert isinstance(await end(stream), Finished)
    assert await filled is False and worker.gives_way is None
    assert [type(message).__name__ for message in sent] == ["Open", "Cancel", "Open"]


async def test_a_full_gpu_is_told_audited_and_followed_by_a_smaller_plan(box: Box) -> None:
    dying = {"text": "one", "last_words": FULL, "dies_after": 3, "holds": 2}
    deployment = await box.deploy(replace(PLACED, fake=dying))
    assert slots(deployment) == 4
    assert await failed(box.ask()) == "gpu_out_of_memory"
    await ready(deployment)
    assert slots(deployment) == 2 and deployment.restarts == 1
    assert isinstance(await end(box.ask(5)), Finished)
    (row,) = box.rows
    assert row["kind"] == "worker.lost" and row["code"] == "gpu_out_of_memory" and row["gpus"] in (ONE, TWO)
    assert row["ran_with"] == "4 slots of 4096 tokens, f16" and row["reason"] == "CUDA: out of memory"
    key = ("m", deployment.replicas[0].number)
    assert box.planner.note(key) == "smaller than asked: it ran out of memory with 4 slots of 4096 tokens, f16"
    (step,) = [s for s in (await box.planner.explain("m", replace(PLACED, fake=dying)))["steps"] if not s["taken"]]
    assert "ran out of memory" in step["why"]
    assert (await box.planner.explain("other", PLACED))["slots"] == 4
    await box.deploy(replace(PLACED, slots=3))
    assert slots(deployment) == 3, "what is asked anew is planned anew"


async def test_a_gpu_that_is_full_while_a_model_loads_is_the_same(box: Box) -> None:
    dying = {"text": "one", "last_words": FULL, "holds": 1}
    deployment = await box.deploy(replace(PLACED, fake=dying))
    assert slots(deployment) == 1 and deployment.restarts == 2
    assert [row["code"] for row in box.rows] == ["gpu_out_of_memory"] * 2


async def test_what_was_asked_for_is_not_made_smaller(box: Box) -> None:
    pinned = replace(PLACED, keep_slots=True, keep_context=True, placement=Placement(kv="f16"),
                     fake={"text": "one", "last_words": FULL, "dies_after": 2, "holds": 0})  # fmt: skip
    deployment = await box.deploy(pinned)
    assert await failed(box.ask()) == "gpu_out_of_memory"
    await ready(deployment)
    assert slots(deployment) == 4


async def test_a_lost_gpu_is_told_and_left(box: Box) -> None:
    deployment = await box.deploy()
    stream = box.ask()
    await stream.next()
    (lost,) = box.planner.given.values()
    box.fake.lose(lost[0])
    assert deployment.worker is not None
    os.kill(deployment.worker.pid, signal.SIGABRT)
    assert await failed(stream) == "gpu_lost"
    await ready(deployment)
    assert box.planner.given["m", 1] != lost
    assert box.rows[0]["code"] == "gpu_lost"


async def test_a_cuda_error_is_its_reason(box: Box) -> None:
    words = "CUDA error: an illegal memory access was encountered\n/src/ggml-cuda.cu:109: CUDA error"
    deployment = await box.deploy(replace(PLACED, fake={"text": "one", "last_words": words, "dies_after": 3}))
    assert await failed(box.ask()) == "worker_lost"
    async with asyncio.timeout(5):
        while deployment.state == "ready":
            await deployment.changed.wait()
    assert deployment.reason == "CUDA: an illegal memory access was encountered"


@pytest.mark.parametrize(("action", "code"), [(Action.RESTART, "worker_lost"), (Action.REMOVE, "gpu_lost")])
async def test_a_fault_ends_the_workers_of_its_gpu_and_no_other(box: Box, action: Action, code: str) -> None:
    deployment = await box.deploy()
    box.fake.hold(box.planner.given["m", 1][0], 7, 76 * GIB)
    other = box.pool.deploy("other", "0" * 64, PLACED)
    await ready(other)
    (gpu,), (elsewhere,) = box.planner.given["m", 1], box.planner.given["other", 1]
    assert gpu != elsewhere
    stream = box.ask()
    await stream.next()
    box.fake.release(7)
    box.pool.fault(gpu, action, "XID 13")
    assert await failed(stream) == code
    await ready(deployment)
    assert deployment.restarts == 1 and other.restarts == 0 and other.ready
    assert box.rows == [
        {"kind": "worker.lost", "model": "m", "code": code, "reason": f"GPU {gpu}: XID 13", "gpus": gpu}
    ]


async def test_a_failing_gpu_is_left_without_cutting_a_stream(box: Box) -> None:
    deployment = await box.deploy()
    stream = box.ask(150)
    await stream.next()
    (gpu,) = box.planner.given["m", 1]
    box.fake.emit(gpu, "xid", 48)
    box.watcher.refresh()
    box.watcher.step()
    assert box.watcher.health(gpu).state == "draining"
    box.pool.fault(gpu, Action.DRAIN, "a memory error that could not be corrected")
    assert deployment.state == "replacing" and "memory error" in deployment.reason
    await ready(deployment)
    assert box.planner.given["m", 2] != (gpu,) and deployment.ready
    assert isinstance(await end(stream), Finished) and deployment.restarts == 0 and box.rows == []


async def test_what_runs_on_an_ignored_gpu_moves_without_cutting_a_stream(box: Box) -> None:
    deployment = await box.deploy()
    stream = box.ask(150)
    await stream.next()
    (gpu,) = box.planner.given["m", 1]
    box.watcher.ignore(frozenset({gpu}))
    box.pool.fault(gpu, Action.DRAIN, "an administrator keeps it out")
    await ready(deployment)
    assert box.planner.given["m", 2] == (({ONE, TWO} - {gpu}).pop(),)
    assert isinstance(await end(stream), Finished) and deployment.restarts == 0 and box.rows == []
    box.watcher.ignore(frozenset({ONE, TWO}))
    box.pool.fault(box.planner.given["m", 2][0], Action.DRAIN, "an administrator keeps it out")
    await ready(deployment)
    assert box.planner.given["m", 3] == () and deployment.restarts == 0


async def test_a_failing_gpu_without_another_is_left_once_its_requests_have_ended(box: Box) -> None:
    box.fake.hold(TWO, 1, 100 * GIB)
    box.watcher.refresh()
    deployment = await box.deploy()
    stream = box.ask(80)
    await stream.next()
    box.fake.emit(ONE, "xid", 48)
    box.watcher.step()
    box.pool.fault(ONE, Action.DRAIN, "a memory error")
    assert isinstance(await end(stream), Finished)
    async with asyncio.timeout(10):
        while deployment.state != "restarting":
            await deployment.changed.wait()
    assert "141" in deployment.reason or "missing" in deployment.reason
    box.fake.release(1)
    await ready(deployment)
