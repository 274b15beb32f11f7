"""`llmctl deploy` of a model that does not fit: a form that does is proposed, made and served."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from scripted_admin import Admin, scripted
from small_models import ATTENTION, DENSE, model, write

from llmd.daemon.admin.fitting import Deploying
from llmd.daemon.errors import Conflict
from llmd.daemon.machine import memory
from llmd.daemon.planning import plan
from llmd.daemon.planning.plan import Placement


@pytest.fixture
async def admin(tmp_path: Path) -> AsyncIterator[Admin]:
    async with scripted(tmp_path) as admin:
        jobs = admin.daemon.jobs.start(admin.daemon.tasks)
        await admin.daemon.service.import_model(
            str(write(tmp_path, model("llama", {}, {**ATTENTION, **DENSE}, blocks=2))), "small", "test", lambda *_: None
        )
        yield admin
        jobs.cancel()
        await asyncio.gather(jobs, return_exceptions=True)


def short_of(admin: Admin, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """This machine's memory lacks so many bytes of what the model needs, as it was imported."""
    service = admin.daemon.service
    need = plan.memory(service.fitting.wish(service.models.show("small"), Deploying(256, 1, Placement()))).total
    monkeypatch.setattr(memory, "available", lambda: need - count)


async def said(admin: Admin, *arguments: str, code: int = 0) -> str:
    """What a person reads of `llmctl deploy small`."""
    command = [*admin.command, "deploy", "small", "--ctx", "256", "--slots", "1", *arguments]
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, stdin=asyncio.subprocess.DEVNULL, stdout=pipe, stderr=pipe)
    out, err = await asyncio.wait_for(process.communicate(), 90)
    assert process.returncode == code and b"Traceback" not in err, err
    return (out + err).decode()


async def test_it_is_proposed_made_and_served(admin: Admin, monkeypatch: pytest.MonkeyPatch) -> None:
    short_of(admin, monkeypatch, 3_500_000)
    told = await said(admin, code=1)
    assert "small does not fit: the model needs" in told and "As Q8_0 it would: 1.3 MiB instead of 5.0 MiB" in told
    assert "Making that takes about" in told and "--yes makes Q8_0, and deploys that" in told
    assert [form.type for form in admin.daemon.store.forms("small")] == ["F32"]
    told = await said(admin, "--yes")
    assert "made small@Q8_0" in told and "small is ready: 1 slots of 256 tokens" in told
    (deployment,) = admin.daemon.pool.all()
    assert deployment.replicas[0].worker and deployment.replicas[0].worker.settings.form == "small@Q8_0"
    await admin.run("undeploy", "small")
    told = await said(admin)
    assert "made" not in told and "is ready" in told, "the form that fits is there now"


async def test_with_room_nothing_is_made(admin: Admin) -> None:
    assert "made" not in await said(admin)
    (deployment,) = admin.daemon.pool.all()
    assert deployment.replicas[0].worker and deployment.replicas[0].worker.settings.form == "small@F32"
    with pytest.raises(Conflict, match="fits as it is"):
        await admin.daemon.service.fitting.of_model("small", Deploying(256, 1, Placement()))


async def test_what_no_form_fits_is_refused_as_before(admin: Admin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available", lambda: 1000)
    told = await said(admin, "--yes", code=1)
    assert told.startswith("llmctl: the model needs") and "--slots" in told and len(told.splitlines()) == 1
    assert (await admin.json("jobs", "list")) == []


async def test_who_names_a_form_gets_no_other(admin: Admin, monkeypatch: pytest.MonkeyPatch) -> None:
    short_of(admin, monkeypatch, 3_500_000)
    assert "As Q8_0" not in await said(admin, "--form", "F32", "--yes", code=1)
