"""`llmctl deploy` of a model that does not fit: a form that does is proposed, made and served."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from scripted_admin import Admin, scripted
from small_models import ATTENTION, DENSE, model, write

from llmd.daemon.admin import deployments
from llmd.daemon.admin.fitting import Deploying
from llmd.daemon.admin.forms import Bringing
from llmd.daemon.errors import BadRequest, Conflict
from llmd.daemon.machine import memory
from llmd.daemon.models.making import Asked
from llmd.daemon.planning import plan
from llmd.daemon.planning.plan import Placement
from llmd.daemon.state.records import Job


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


async def ended(admin: Admin, job: Job) -> Job:
    await admin.daemon.jobs.wait(job.id, 60)
    return await admin.daemon.jobs.show(job.id)


async def test_what_is_begun_serves_whoever_goes_away(admin: Admin, monkeypatch: pytest.MonkeyPatch) -> None:
    """One job makes the form and deploys it: nobody need wait for it, and one that was cut off makes nothing twice."""
    short_of(admin, monkeypatch, 3_500_000)
    forms, asked = admin.daemon.service.forms, Deploying(256, 1)
    done = await ended(admin, await forms.quantize("small", Asked("Q8_0"), "uid:7", asked))
    assert done.state == "done" and done.kind == "deploy" and done.result["form"] == "small@Q8_0", done.error
    assert done.result["serves"]["slots"] == 1 and admin.daemon.pool.find("small").ready
    rows = [row["body"] for row in await admin.daemon.audit.tail(100) if row["kind"] == "admin.deploy"]
    assert [(row["actor"], row["form"]) for row in rows if row["result"] == "done"] == [("uid:7", "Q8_0")]
    shown = await admin.run("jobs", "show", str(done.id))
    assert "small@Q8_0" in shown and "{" not in shown

    async def twice(*_: object) -> None:
        raise AssertionError("it is there")

    monkeypatch.setattr(forms.maker, "make", twice)
    told: list[tuple[int, int, str]] = []
    again = Bringing(asked.of_form("Q8_0"), "Q8_0", 1)
    came = await admin.daemon.service.deployments.bring(done, again, lambda *what: told.append(what))
    assert came.form == "small@Q8_0" and ("small: ready" in told[-2][2]) and told[-1][0] == told[-1][1]


async def test_a_form_that_does_not_fit_when_it_is_made_stays(admin: Admin, monkeypatch: pytest.MonkeyPatch) -> None:
    short_of(admin, monkeypatch, 3_500_000)
    job = await admin.daemon.service.forms.quantize("small", Asked("Q6_K"), "test", Deploying(256, 1))
    monkeypatch.setattr(memory, "available", lambda: 1000)
    failed = await ended(admin, job)
    assert failed.state == "failed" and failed.error.startswith("the model needs")
    assert {form.type for form in admin.daemon.store.forms("small")} == {"F32", "Q6_K"}
    assert admin.daemon.pool.all() == []


async def test_a_job_whose_model_does_not_come_ends(admin: Admin, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next job waits for it."""
    short_of(admin, monkeypatch, 3_500_000)
    monkeypatch.setattr(deployments, "LOAD_SECONDS", 0.0)
    job = await admin.daemon.service.forms.quantize("small", Asked("Q8_0"), "test", Deploying(256, 1))
    failed = await ended(admin, job)
    assert failed.state == "failed" and failed.error.startswith("small is deployed, and not ready yet")
    await admin.run("undeploy", "small")


async def test_what_cannot_work_is_refused_before_there_is_a_job(admin: Admin) -> None:
    wrong = Deploying(placement=Placement(("GPU-a", "GPU-b"), split="none"))
    for asked in (wrong, Deploying(placement=Placement(("GPU-a",)), replicas=2)):
        with pytest.raises(BadRequest, match="gpus"):
            await admin.daemon.service.forms.quantize("small", Asked("Q8_0"), "test", asked)
    assert await admin.json("jobs", "list") == []
