"""Other forms of a model, and the jobs that make them. Every change is an act in the audit log."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass, replace
from pathlib import PurePath
from typing import Any

from llmd.daemon.admin.doctor import rfc3339
from llmd.daemon.admin.fitting import Deploying
from llmd.daemon.audit.acts import Acts
from llmd.daemon.errors import BadRequest, Conflict
from llmd.daemon.jobs.queue import ENDED, Jobs, Kind
from llmd.daemon.models.files import ModelStore
from llmd.daemon.models.importing import Importer, Importing, Wanted
from llmd.daemon.models.making import Asked, Maker, Making, check_type
from llmd.daemon.replicas.pool import Pool
from llmd.daemon.state.records import Job, of_form
from llmd.daemon.state.store import StateThread

QUANTIZE, IMPORT, DEPLOY = "quantize", "import", "deploy"
FOLLOW_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Bringing:
    """What a job of kind DEPLOY is to do: a `folder` is converted, or of a model that is here a form of this `type` is
    made (which takes so many `bytes`; `again`: of what is quantized already), and that is deployed."""

    deploying: Deploying
    type: str | None
    bytes: int
    again: bool = False
    folder: Importing | None = None


@dataclass(slots=True)
class Forms:
    models: ModelStore
    maker: Maker
    importer: Importer
    jobs: Jobs
    pool: Pool
    state: StateThread
    acts: Acts

    async def sizes(self, name: str) -> list[dict[str, Any]]:
        """What each type would take, the largest first. Raises ModelNotFound, ModelInvalid."""
        await self._whole(name)
        told = [asdict(size) for size in await self.maker.sizes(name)]
        return [{name: value for name, value in size.items() if name != "shape"} for size in told]

    def kinds(self) -> tuple[Kind[Making], Kind[Importing]]:
        """The jobs that make something, and nothing else."""
        return (
            Kind(QUANTIZE, Making, lambda job, asked, tell: self.maker.make(job.model, asked, tell)),
            Kind(IMPORT, Importing, lambda job, asked, tell: self.importer.make(job.model, asked, tell)),
        )

    async def quantize(self, name: str, asked: Asked, actor: str, deploying: Deploying | None = None) -> Job:
        """Queue a job that makes this form, and deploys it where it is told how. Raises ModelNotFound, BadRequest,
        Conflict, NoSpace, ModelInvalid."""
        if deploying:
            deploying.check()
        await self._whole(name)
        model = await self.state.run(lambda: self.models.show(name))
        size = await self.maker.chosen(model, asked)
        self.models.make_room(size.bytes)
        async with self.acts("admin.model_quantize", actor, model=name, type=size.type) as result:
            if deploying:
                wanted = Bringing(deploying.of_form(size.type), size.type, size.bytes, asked.again)
                job = await self.jobs.add(DEPLOY, name, wanted, actor)
            else:
                making = Making(size.type, size.bytes, model.digest, asked.again)
                job = await self.jobs.add(QUANTIZE, name, making, actor)
            result["job"] = job.id
        return job

    async def _whole(self, name: str) -> None:
        """Raises BadRequest for a form: others are made of what was imported, which has lost less."""
        model, kind = of_form(name)
        if kind:
            await self.state.run(lambda: self.models.form(model, kind))
            raise BadRequest(f"{name} is a form: others are made of what was imported, {model}", param="name")

    async def import_folder(
        self, path: str, name: str | None, form: Wanted | None, actor: str, deploying: Deploying | None = None
    ) -> Job:
        """Queue a job that makes a model of a Hugging Face folder, and of that a form, and deploys that where it is
        told how. Raises BadRequest, ModelInvalid, Conflict, NoSpace, and Unavailable where nothing here converts."""
        async with self.acts("admin.model_import", actor, file=PurePath(path).name, model=name) as result:
            if form:
                check_type(form.type)
            if deploying:
                deploying.check()
            name, found = await self.importer.asked(path, name)
            folder = replace(found, form=form)
            if deploying:
                kind, size = form.type if form else None, folder.bytes + (form.bytes if form else 0)
                job = await self.jobs.add(
                    DEPLOY, name, Bringing(deploying.of_form(kind), kind, size, folder=folder), actor
                )
            else:
                job = await self.jobs.add(IMPORT, name, folder, actor)
            result |= {"model": name, "job": job.id}
        return job

    async def remove(self, name: str, kind: str, actor: str) -> str:
        """Raises ModelNotFound, NotFound, and Conflict for one that serves and for what was imported."""
        kind = kind.upper()
        form = f"{name}@{kind}"
        if form in self.used(name):
            raise Conflict(f"{form} serves: llmctl undeploy {name}, or deploy it with another --form")
        async with self.acts("admin.form_remove", actor, takes_away=True, model=name, form=kind) as result:
            result["digest"] = (await self.models.remove_form(name, kind)).digest
        return form

    def used(self, name: str) -> set[str]:
        """The forms of a model that serve, or are to."""
        found = [d for d in (*self.pool.all(), *self.pool.away()) if d.model == name]
        workers = [r.worker for d in found for r in d.replicas if r.worker]
        named = {f"{name}@{d.wanted.placement.form}" for d in found if d.wanted and d.wanted.placement.form}
        return {worker.settings.form for worker in workers} | named

    async def cancel(self, number: int, actor: str) -> dict[str, Any]:
        """Raises NotFound, and Conflict where it has ended."""
        async with self.acts("admin.job_cancel", actor, takes_away=True, job=number):
            return self.shown(await self.jobs.cancel(number))

    async def all(self) -> list[dict[str, Any]]:
        return [self.shown(job) for job in await self.jobs.all()]

    async def show(self, number: int) -> dict[str, Any]:
        """Raises NotFound."""
        return self.shown(await self.jobs.show(number))

    async def log(self, number: int) -> list[str]:
        """What it said, the last lines. Raises NotFound."""
        job = await self.jobs.show(number)
        return list(self.jobs.progress.lines) if self.jobs.runs(number) else job.log.splitlines()

    async def follow(self, number: int) -> AsyncIterator[dict[str, Any]]:
        """How it does, again and again until it has ended. Whoever stops listening stops nothing. Raises NotFound."""
        while True:
            job = await self.show(number)
            yield {"job": job}
            if job["state"] in ENDED:
                return
            await self.jobs.wait(number, FOLLOW_SECONDS)
            await asyncio.sleep(0)

    def shown(self, job: Job) -> dict[str, Any]:
        told = asdict(job)
        del told["log"]
        for moment in ("created", "started", "ended"):
            told[moment] = None if told[moment] is None else rfc3339(told[moment])
        if self.jobs.runs(job.id):
            at = self.jobs.progress
            told |= {"done": at.done, "total": at.total, "seconds_left": None if at.left is None else round(at.left, 1)}
        return told


def said(job: Job) -> dict[str, Any]:
    """A job that has ended, as the audit log has it."""
    return {
        "job": job.id, "model": job.model, "type": job.asked.get("type"), "state": job.state, "actor": job.actor,
        "digest": job.result.get("digest"), "error": job.error or None,
    }  # fmt: skip
