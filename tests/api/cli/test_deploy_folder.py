"""`llmctl deploy FOLDER` or FILE: what is on the stick is imported, made to fit and served by one command."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hf_folder import LLAMA, Folder
from scripted_admin import Admin, scripted
from small_models import ATTENTION, DENSE, model, write
from torch_folders import needs_torch

from llmd.daemon.admin.fitting import Deploying
from llmd.daemon.errors import BadRequest
from llmd.daemon.machine import memory
from llmd.daemon.models import importing
from llmd.daemon.models.importing import Wanted
from llmd.daemon.planning import plan
from llmd.daemon.planning.plan import Placement
from llmd.daemon.state.records import Form, Info, Model
from llmd.quantize.header import read_header
from llmd.quantize.shape import shape_of


@pytest.fixture
async def admin(tmp_path: Path) -> AsyncIterator[Admin]:
    async with scripted(tmp_path) as admin:
        jobs = admin.daemon.jobs.start(admin.daemon.tasks)
        yield admin
        jobs.cancel()
        await asyncio.gather(jobs, return_exceptions=True)


async def said(admin: Admin, *arguments: str, code: int = 0) -> str:
    """What a person reads."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        *admin.command, *arguments, stdin=asyncio.subprocess.DEVNULL, stdout=pipe, stderr=pipe
    )
    out, err = await asyncio.wait_for(process.communicate(), 120)
    assert process.returncode == code and b"Traceback" not in err, err
    return (err + out).decode()


def in_full(admin: Admin, file: Path) -> int:
    """Bytes that a converted file needs."""
    info = Info(shape=shape_of(read_header(file)).to_dict())
    whole = Form("m", "BF16", "", file.stat().st_size, info)
    model = Model("m", "", whole.size, "", 0.0, info)
    return plan.memory(admin.daemon.service.fitting.wish(model, Deploying(256, 1, Placement()), [whole])).total


async def test_what_is_no_model_is_refused_at_once(
    admin: Admin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Folder(config={**LLAMA, "architectures": ["BertModel"]}).write(tmp_path / "bert")
    for command in (["deploy", str(folder)], ["model", "import", str(folder)]):
        assert "BertModel is an embedding model, and embeddings are not" in await said(admin, *command, code=1)
    monkeypatch.setattr(importing, "INTERPRETERS", ())
    good = Folder().write(tmp_path / "good")
    for command in (["deploy", f"{good}/"], ["model", "import", str(good)]):
        assert "the package llmd-torch, which is not installed" in await said(admin, *command, code=1)
    assert "there is no folder" in await said(admin, "deploy", str(tmp_path / "nothing" / "there"), code=1)
    assert await admin.json("jobs", "list") == []


async def test_a_file_is_imported_and_served(admin: Admin, tmp_path: Path) -> None:
    file = write(tmp_path, model("llama", {}, {**ATTENTION, **DENSE}, blocks=2))
    few = ("--ctx", "256", "--slots", "1")
    assert "small is ready" in await said(admin, "deploy", str(file), "--name", "small", *few)
    assert "small is ready" in await said(admin, "deploy", str(file), "--name", "small", *few)
    assert [m["name"] for m in await admin.json("model", "list")] == ["small"]
    assert "there is no imported model of that name" in await said(admin, "deploy", file.name, code=1)


async def test_a_form_that_is_no_type_is_refused_before_there_is_a_job(admin: Admin, tmp_path: Path) -> None:
    folder = Folder().write(tmp_path / "good")
    with pytest.raises(BadRequest, match="there is no type 'Q9': F32, F16"):
        await admin.daemon.service.forms.import_folder(str(folder), None, Wanted("Q9", 1), "test")
    with pytest.raises(BadRequest, match="there is no type 'Q9'"):
        await admin.daemon.service.forms.maker.smaller_of(folder / "none", 1, "Q9")


@pytest.mark.slow
@needs_torch
async def test_one_command_imports_quantizes_and_serves(
    admin: Admin, folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, few = folders / "llama-spm", ("--ctx", "256", "--slots", "1")
    need = in_full(admin, folders / "llama-spm.gguf")
    monkeypatch.setattr(memory, "available", lambda: need - 1_500_000)
    told = await said(admin, "deploy", str(folder), *few, code=1)
    assert "llama-spm does not fit in full precision: the model needs" in told and "--yes makes that" in told
    told = await said(admin, "deploy", str(folder), *few, "--yes")
    assert "Converting, quantizing and deploying it takes about" in told
    percents = [int(line.split(": ")[1].split(" %")[0]) for line in told.splitlines() if " %, " in line]
    assert percents and percents == sorted(percents), told
    assert told.splitlines()[-1].startswith("llama-spm is ready: 1 slots of 256 tokens")
    (deployment,) = admin.daemon.pool.all()
    worker = deployment.replicas[0].worker
    assert worker and worker.settings.form.startswith("llama-spm@Q")
    shown = await admin.json("model", "show", "llama-spm")
    assert shown["info"]["proof"]["difference"] < 0.01 and len(shown["forms"]) == 2
    (job,) = await admin.json("jobs", "list")
    assert job["kind"] == "deploy" and job["result"]["form"] == worker.settings.form
    # once more: it is there
    told = await said(admin, "deploy", str(folder), *few, "--form", job["asked"]["type"])
    assert "is ready" in told and len(await admin.json("jobs", "list")) == 1
    assert json.dumps(shown).count(str(folder)) == 1, "its source, and nowhere else"
