"""`llmctl deploy` on a box with GPUs: replicas, and what goes for what. The GPUs are scripted, the workers real ones of
the fake runner."""

import asyncio
import json
import subprocess
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import small_models
from fake_nvml import GIB, FakeNvml, h200
from placing import SHAPE
from scripted_admin import Admin, scripted

from llmd.daemon.errors import ModelNotReady
from llmd.daemon.machine import memory
from llmd.daemon.state.records import Form, Info
from llmd.daemon.wire.work import Generate, RawText, SamplingWish

SMALL = replace(SHAPE, layers=(replace(SHAPE.layers[0], nbytes=GIB),) * 32)  # 33 GiB of weights


@pytest.fixture
async def admin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Admin]:
    monkeypatch.setattr(memory, "available", lambda: 500 * GIB)
    async with scripted(tmp_path) as admin:
        for name, shape, size in (("large", SHAPE, 66), ("small", SMALL, 34), ("other", SMALL, 35)):
            info = Info(context_length=131072, shape=shape.to_dict())
            small_models.stored(admin.daemon.config.state / "models", name[0] * 64, size * GIB)
            admin.daemon.store.add_model(name, name[0] * 64, size * GIB, f"{name}.gguf", info)
        yield admin


async def deploy(admin: Admin, fake: FakeNvml, *arguments: str) -> dict[str, Any]:
    """Deploys, and lets the driver see what the model then holds."""
    told: dict[str, Any] = await admin.json("deploy", *arguments)
    for one in told["replicas"]:
        sizes = {"large": 68, "small": 37, "other": 37}
        fake.hold(one["gpus"][0], one["pid"], sizes[arguments[0]] * GIB)
    return told


async def fails(admin: Admin, *arguments: str) -> str:
    process = await asyncio.create_subprocess_exec(*admin.command, *arguments, stderr=subprocess.PIPE)
    _, err = await asyncio.wait_for(process.communicate(), 60)
    *progress, told = err.decode().splitlines()
    assert process.returncode == 1 and told.startswith("llmctl: ")
    assert all(line.startswith(f"{arguments[1]}: ") for line in progress)
    return told


async def test_replicas_are_shown_and_refused_where_there_are_too_few_gpus(admin: Admin) -> None:
    fake = FakeNvml(h200(0), h200(1))
    admin.see(fake)
    assert "there is no place for replica 3 of 3" in await fails(admin, "deploy", "large", "--replicas", "3")
    assert "gpus names where one replica lies" in await fails(
        admin, "deploy", "large", "--replicas", "2", "--gpus", h200(0).uuid
    )
    told = await deploy(admin, fake, "large", "--replicas", "2")
    assert sorted(told["gpus"]) == [h200(0).uuid, h200(1).uuid] and told["slots"] == 16
    text = await admin.run("status")
    assert " 2/2 " in text
    assert admin.daemon.store.deployments()[0].replicas == 2
    await deploy(admin, fake, "large", "--replicas", "auto")
    assert " 2/auto " in await admin.run("status") and admin.daemon.store.deployments()[0].replicas == 0


async def test_idle_models_go_for_another_one_only_when_told_and_the_cheapest_first(admin: Admin) -> None:
    fake = FakeNvml(h200(0))
    admin.see(fake)
    await deploy(admin, fake, "small")
    await deploy(admin, fake, "other")
    pids = {d.model: d.worker.pid for d in admin.daemon.pool.all() if d.worker}
    told = await fails(admin, "deploy", "large", "--slots", "8", "--ctx", "4096", "--kv", "f16")
    assert "It fits without what is idle now (--evict): small" in told
    assert admin.daemon.store.deployments()[0].model == "other" and len(admin.daemon.pool.all()) == 2

    work = Generate((RawText("hello"),), SamplingWish(1000, temperature=0.0))
    busy = admin.daemon.pool.serves("small")[0].open("alice", work)
    told = await fails(admin, "deploy", "large", "--slots", "8", "--ctx", "4096", "--kv", "f16")
    assert "(--evict): other" in told, "who is asked something stays"
    busy.cancel()

    releasing = asyncio.create_task(release(admin, fake, pids["small"]))
    await deploy(admin, fake, "large", "--slots", "8", "--ctx", "4096", "--kv", "f16", "--evict")
    await releasing
    assert sorted(d.model for d in admin.daemon.pool.all()) == ["large", "other"]
    status = await admin.json("status")
    (gone,) = status["evicted"]
    assert gone["model"] == "small" and gone["reason"].startswith("made room for large at 20")
    text = await admin.run("status")
    assert "small made room for large" in text and "llmctl deploy small brings it back" in text
    with pytest.raises(ModelNotReady, match="made room for another model"):
        admin.daemon.pool.serves("small")
    assert "deployed" in await fails(admin, "model", "rm", "small")
    rows = [r["body"] for r in await admin.daemon.audit.tail(100) if r["kind"] == "admin.evict"]
    assert [(r["model"], r["made_room_for"], r["result"]) for r in rows] == [
        ("small", "large", "begun"), ("small", "large", "done"),
    ]  # fmt: skip
    stored = {d.model: d.evicted.get("for") for d in admin.daemon.store.deployments()}
    assert stored == {"large": None, "other": None, "small": "large"}

    del admin.daemon.pool._deployed["small"]
    admin.daemon.service.deployments.restore()  # as after a restart
    assert [d.model for d in admin.daemon.pool.away()] == ["small"]
    with pytest.raises(ModelNotReady, match="made room for another model"):
        admin.daemon.pool.serves("small")
    assert json.loads(await admin.run("undeploy", "small", "--json")) == {"undeployed": "small"}
    assert [d.model for d in admin.daemon.store.deployments()] == ["large", "other"]


async def release(admin: Admin, fake: FakeNvml, pid: int) -> None:
    """What the driver does when a process ends."""
    while any(d.model == "small" for d in admin.daemon.pool.all()):
        await asyncio.sleep(0.01)
    fake.release(pid)


async def test_a_form_can_be_pinned_and_the_log_has_what_serves(admin: Admin) -> None:
    fake = FakeNvml(h200(0))
    admin.see(fake)
    small_models.stored(admin.daemon.config.state / "models", "4" * 64, 34 * GIB)
    admin.daemon.store.add_form(Form("large", "Q4_K_M", "4" * 64, 34 * GIB, Info(shape=SMALL.to_dict())))
    assert (await admin.json("plan", "large"))["form"] == "large@GGUF"
    assert (await admin.json("plan", "large", "--form", "Q4_K_M"))["form"] == "large@Q4_K_M"
    assert "there is GGUF, Q4_K_M" in await fails(admin, "deploy", "large", "--form", "Q2_K")
    told = await admin.json("deploy", "large", "--form", "Q4_K_M")
    assert told["replicas"][0]["form"] == "large@Q4_K_M"
    (row,) = [r["body"] for r in await admin.daemon.audit.tail(100) if r["kind"] == "model.ready"]
    assert row == {"model": "large", "replica": 1, "form": "large@Q4_K_M", "gpus": h200(0).uuid, "split": "none",
                   "kv": "f16", "context": 4096, "slots": 8}  # fmt: skip
    assert [f["name"] for f in (await admin.json("model", "show", "large"))["forms"]] == ["large@GGUF", "large@Q4_K_M"]


async def test_a_first_deploy_that_runs_out_of_memory_goes_on_with_less(admin: Admin) -> None:
    admin.see(FakeNvml(h200(0)))
    admin.planner.fake = {"text": "one", "last_words": "CUDA error: out of memory", "holds": 4}
    told = await admin.json("deploy", "large")
    assert told["slots"] == 4
    assert "large: smaller than asked: it ran out of memory with 8 slots" in await admin.run("status")
    await admin.run("undeploy", "large")
    said = await fails(admin, "deploy", "large", "--slots", "8", "--ctx", "4096", "--kv", "f16")
    assert "gpu" not in said and "large could not be loaded" in said and "out of memory" in said
    assert admin.daemon.pool.all() == [] and admin.daemon.store.deployments() == []


async def test_nothing_goes_where_it_would_not_help(admin: Admin) -> None:
    fake = FakeNvml(h200(0))
    admin.see(fake)
    fake.hold(h200(0).uuid, 1, 70 * GIB)
    await deploy(admin, fake, "small")
    told = await fails(admin, "deploy", "large", "--slots", "64", "--ctx", "4096", "--kv", "f16", "--evict")
    assert "are missing" in told and "--evict" not in told
    assert [d.model for d in admin.daemon.pool.all()] == ["small"]
