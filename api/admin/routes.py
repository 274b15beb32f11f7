"""The admin socket's routes: what `llmctl` calls. The kernel says who calls; the listener lets only admins in."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Collection
from dataclasses import replace
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from fastapi import Query
from pydantic import BeforeValidator, ConfigDict, Field
from starlette.responses import JSONResponse, Response

from llmd.api.admin import forms
from llmd.api.admin.service import Admin, who
from llmd.api.http import probes
from llmd.api.http.body import Body
from llmd.api.http.routes import ADMIN, Caller, Route
from llmd.api.http.streams import progress
from llmd.api.openai import chat
from llmd.api.openai import models as models_of_clients
from llmd.api.openai.messages import Message
from llmd.daemon import limits
from llmd.daemon.admin.doctor import rfc3339
from llmd.daemon.admin.fitting import Deploying
from llmd.daemon.admin.service import Service
from llmd.daemon.audit.chain import KINDS, OUTCOMES
from llmd.daemon.errors import MAX_GIVEN, BadRequest, Conflict, ModelNotReady, quoted
from llmd.daemon.planning.plan import Placement
from llmd.daemon.replicas.deployment import Deployment
from llmd.daemon.state.records import of_form

PROGRESS_SECONDS = 0.1
FOLLOW_SECONDS = 0.25
MAX_ROWS = 2000

_Name = Annotated[str, Field(min_length=1, max_length=256)]


class ImportBody(Body):
    path: Annotated[str, Field(min_length=1, max_length=4096)]
    name: _Name | None = None


class RenameBody(Body):
    name: _Name


class ConversationBody(Body):
    messages: Annotated[list[Message], Field(fail_fast=True, min_length=1, max_length=limits.MAX_MESSAGES)]


class DeployBody(Body):
    model: _Name
    ctx: Annotated[int, Field(ge=0, le=1 << 24)] | None = None  # 0: as long as the model was trained for
    slots: Annotated[int, Field(ge=1, le=256)] | None = None
    gpus: Annotated[list[_Name], Field(fail_fast=True, max_length=64)] = []
    split: Literal["none", "layer", "tensor"] | None = None
    kv: Literal["f16", "q8_0", "q4_0"] | None = None
    ubatch: Annotated[int, Field(ge=64, le=16384)] | None = None
    form: _Name | None = None


class ReplicasBody(DeployBody):
    replicas: Annotated[int, Field(ge=1, le=64)] | Literal["auto"] = 1
    evict: bool | None = None


class FittingBody(ReplicasBody):
    """`model` is a Hugging Face folder."""

    model: Annotated[str, Field(min_length=1, max_length=4096)]
    name: _Name | None = None


class GpuBody(Body):
    gpu: _Name


class UndeployBody(Body):
    model: _Name


class IssueBody(Body):
    name: _Name
    days: int = 90
    role: _Name | None = None
    again: bool = False


class SyntaxBody(Body):
    syntax: Annotated[str, Field(max_length=64)]


class RoleBody(Body):
    role: _Name


# --- the daemon


async def status(service: Admin) -> dict[str, Any]:
    return await service.status()


async def doctor(service: Admin) -> dict[str, Any]:
    return {"checks": await service.doctor.checks()}


async def gpus(service: Admin) -> dict[str, Any]:
    return service.cards.shown()


async def use_gpu(body: GpuBody, service: Admin, caller: Caller) -> dict[str, Any]:
    return await service.cards.use(body.gpu, caller.name)


async def ignore_gpu(body: GpuBody, service: Admin, caller: Caller) -> dict[str, Any]:
    return await service.cards.ignore(body.gpu, caller.name)


async def ca(service: Admin) -> dict[str, Any]:
    return {"ca_pem": service.authority.ca_pem.decode()}


async def reload(service: Admin, caller: Caller) -> dict[str, Any]:
    return {"reloaded": True, **await service.reload(caller.name)}


# --- models


async def models(service: Admin) -> dict[str, Any]:
    return {"models": await service.imported()}


async def show(name: str, service: Admin) -> dict[str, Any]:
    return await service.show(name)


async def template(name: str, body: ConversationBody, service: Admin) -> dict[str, Any]:
    turns = tuple(message.turn(i) for i, message in enumerate(body.messages))
    return {"model": name, "prompt": await service.template(name, turns)}


async def syntax(name: str, body: SyntaxBody, service: Admin, caller: Caller) -> dict[str, Any]:
    return await service.set_syntax(name, body.syntax, caller.name)


async def rename(name: str, body: RenameBody, service: Admin, caller: Caller) -> dict[str, Any]:
    return await service.rename_model(name, body.name, caller.name)


async def remove(name: str, service: Admin, caller: Caller) -> dict[str, Any]:
    await service.remove_model(name, caller.name)
    return {"removed": name}


async def verify_model(name: str, service: Admin) -> dict[str, Any]:
    return await service.verify(name)


async def import_model(body: ImportBody, service: Admin, caller: Caller) -> Response:
    """Events {"done", "total"} in bytes, then {"model"} or an error. A client that goes away ends the import."""

    async def steps() -> AsyncIterator[dict[str, Any]]:
        at = [0, 0]

        def note(done: int, total: int) -> None:
            at[:] = done, total

        work = asyncio.ensure_future(service.import_model(body.path, body.name, caller.name, note))
        try:
            while not work.done():
                await asyncio.wait({work}, timeout=PROGRESS_SECONDS)
                if at[1]:
                    yield {"done": at[0], "total": at[1]}
            model = await work
            yield {"model": await service.show(model.name)}
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)

    return progress(steps())


async def plan(body: DeployBody, service: Admin) -> dict[str, Any]:
    placement = Placement(tuple(body.gpus), body.split, body.kv, body.ubatch, body.form)
    return await service.plan(body.model, body.ctx, body.slots, placement)


async def fitting(body: ReplicasBody, service: Admin) -> dict[str, Any]:
    return await service.fitting.of_model(body.model, _asked(body, None))


async def fitting_folder(body: FittingBody, service: Admin) -> dict[str, Any]:
    return await service.fitting.of_folder(body.model, body.name, _asked(body, body.form))


def _asked(body: ReplicasBody, form: str | None) -> Deploying:
    placement = Placement(tuple(body.gpus), body.split, body.kv, body.ubatch, form)
    return Deploying(body.ctx, body.slots, placement, 0 if body.replicas == "auto" else body.replicas)


async def deploy(body: ReplicasBody, service: Admin, caller: Caller) -> Response:
    """Events {"state"} until the model is ready, has failed to load or was deployed anew by somebody else. It goes on
    when the client goes away."""
    placement = Placement(tuple(body.gpus), body.split, body.kv, body.ubatch, body.form)
    replicas = 0 if body.replicas == "auto" else body.replicas
    deployment, before = await service.deploy(
        body.model, body.ctx, body.slots, caller.name, placement, replicas=replicas, evict=body.evict
    )
    return progress(_until_ready(service, deployment, caller.name, keep=before))


async def _until_ready(
    service: Service, deployment: Deployment, actor: str, *, keep: bool
) -> AsyncIterator[dict[str, Any]]:
    wish = deployment.wanted
    said: dict[str, Any] = {}
    while True:
        changed, now = deployment.changed, {"state": deployment.state, "reason": deployment.reason}
        if deployment.state == "ready":
            now |= service.chosen(deployment)
        if now != said:
            said = now
            yield {"model": deployment.model, **now}
        if changed.is_set():
            continue  # it went on while the client read
        if deployment.wanted is None:
            raise ModelNotReady(f"{deployment.model} was taken out of service")
        if deployment.wanted != wish:
            raise Conflict(f"{deployment.model} was deployed again with other settings; see `llmctl status`")
        if deployment.state == "ready":
            await service.served(deployment.model)
            return
        if reason := deployment.failed:
            serves = deployment.ready
            if not keep and not serves:
                await service.withdraw(deployment, actor)
            raise ModelNotReady(
                f"{deployment.model} could not be loaded{', what serves goes on' if serves else ''}: {reason}. "
                f"`llmctl model verify {deployment.model}` says whether its file is as it was imported"
            )
        await changed.wait()


async def undeploy(body: UndeployBody, service: Admin, caller: Caller) -> dict[str, Any]:
    await service.undeploy(body.model, caller.name)
    return {"undeployed": body.model}


# --- clients


async def clients(service: Admin) -> dict[str, Any]:
    return {"clients": await service.clients.list()}


async def issue(body: IssueBody, service: Admin, caller: Caller) -> dict[str, Any]:
    issued = await service.clients.issue(body.name, body.days, caller.name, role=body.role, again=body.again)
    role, config = service.clients.roles[issued.name], service.current.now
    # what the role may call and that answers whatever is deployed
    path = next(route.path for route in (*models_of_clients.ROUTES, *probes.ROUTES) if role in route.roles)
    return {
        "name": issued.name, "uri": issued.uri, "role": role, "serial": f"{issued.serial:x}",
        "not_after": rfc3339(issued.not_after.timestamp()), "certificate_pem": issued.certificate_pem.decode(),
        "key_pem": issued.key_pem.decode(), "ca_pem": service.authority.ca_pem.decode(),
        "listen": config.listen, "try": {"url": config.url + path, "host": next(iter(config.allowed_hosts), None)},
    }  # fmt: skip


async def revoke(
    name: str, service: Admin, caller: Caller, serial: Annotated[str, Query(max_length=64)] = ""
) -> dict[str, Any]:
    return await service.clients.revoke(name, caller.name, serial)


async def role(name: str, body: RoleBody, service: Admin, caller: Caller) -> dict[str, Any]:
    return await service.clients.set_role(name, body.role, caller.name)


# --- audit


# one spelling a number: what a text is read as, " 5" and "5.0" are too
Digits = BeforeValidator(lambda given: given if re.fullmatch("0|[1-9][0-9]{0,18}", str(given)) else "no number")
Count = Annotated[int, Digits, Query(ge=0, le=10**18)]


async def audit_tail(service: Admin, n: Count = 20, after: Count | None = None, follow: bool = False) -> Any:
    """The last rows; with `follow` an event a row, and new ones as they come."""
    audit = service.serving.audit
    rows = await audit.tail(n, after)
    if not follow:
        return JSONResponse({"rows": rows})  # FastAPI would look at every value
    newest = await audit.tail(1)
    at: int = after if after is not None else newest[-1]["seq"] if newest else 0

    async def following() -> AsyncIterator[dict[str, Any]]:
        last, fresh = at, rows
        while True:
            for row in fresh:
                last = row["seq"]
                yield row
            await asyncio.sleep(FOLLOW_SECONDS)
            fresh = await audit.tail(MAX_ROWS, last)

    return progress(following())


_Word = Annotated[str, Field(max_length=256)]


class AuditQuery(Body):
    """`since` and `until`: a date or time, in this server's zone where it names none. `limit` 0: all."""

    model_config = ConfigDict(strict=False)

    principal: _Word | None = None
    model: _Word | None = None
    outcome: _Word | None = None
    kind: _Word | None = None
    request: _Word | None = None
    since: _Word | None = None
    until: _Word | None = None
    after: Count | None = None
    limit: Annotated[int, Digits, Field(ge=0, le=10**18)] = 100


async def audit_query(asked: Annotated[AuditQuery, Query()], service: Admin) -> Response:
    """A page of rows, `older` where more match before it, and `after` for the next one."""
    _one_of(asked.outcome, OUTCOMES, "outcome")
    _one_of(asked.kind, KINDS, "kind")
    given = asked.model_dump() | {name: _moment(getattr(asked, name), name) for name in ("since", "until")}
    given |= {"limit": asked.limit or None, "model": asked.model and of_form(asked.model)[0]}
    found = await service.serving.audit.query(**given)
    # thousands of rows: on the loop they would hold up every stream
    return Response(await asyncio.to_thread(lambda: json.dumps(found.to_dict())), media_type="application/json")


def _one_of(given: str | None, known: Collection[str], name: str) -> None:
    if given is not None and given not in known:
        raise BadRequest(
            f"there is no {name} {quoted(given, MAX_GIVEN)}; there is {', '.join(sorted(known))}", param=name
        )


async def audit_verify(service: Admin) -> dict[str, Any]:
    return (await service.serving.audit.verify()).to_dict()


def _moment(text: str | None, name: str) -> datetime | None:
    if text is None:
        return None
    try:
        return datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError) as e:  # a zone can move the first or the last day out of the calendar
        raise BadRequest(f"{name} takes a date or time as in 2026-11-23 or 2026-11-23T18:00", param=name) from e


__all__ = ["ROUTES", "who"]

ROUTES = (
    Route("GET", "/status", status, ADMIN),
    Route("GET", "/doctor", doctor, ADMIN),
    Route("GET", "/gpus", gpus, ADMIN),
    Route("POST", "/gpus/use", use_gpu, ADMIN),
    Route("POST", "/gpus/ignore", ignore_gpu, ADMIN),
    Route("GET", "/ca", ca, ADMIN),
    Route("POST", "/reload", reload, ADMIN),
    Route("GET", "/models", models, ADMIN),
    Route("POST", "/models", import_model, ADMIN),
    Route("GET", "/models/{name}", show, ADMIN),
    Route("DELETE", "/models/{name}", remove, ADMIN),
    Route("POST", "/models/{name}/syntax", syntax, ADMIN),
    Route("POST", "/models/{name}/rename", rename, ADMIN),
    Route("POST", "/models/{name}/template", template, ADMIN),
    Route("POST", "/models/{name}/verify", verify_model, ADMIN),
    *forms.ROUTES,
    Route("POST", "/plan", plan, ADMIN),
    Route("POST", "/fitting", fitting, ADMIN),
    Route("POST", "/fitting/folder", fitting_folder, ADMIN),
    Route("POST", "/deploy", deploy, ADMIN),
    Route("POST", "/undeploy", undeploy, ADMIN),
    Route("GET", "/clients", clients, ADMIN),
    Route("POST", "/clients", issue, ADMIN),
    Route("DELETE", "/clients/{name}", revoke, ADMIN),
    Route("POST", "/clients/{name}/role", role, ADMIN),
    Route("GET", "/audit/tail", audit_tail, ADMIN),
    Route("GET", "/audit/query", audit_query, ADMIN),
    Route("GET", "/audit/verify", audit_verify, ADMIN),
    replace(chat.ROUTES[0], roles=ADMIN),  # `llmctl chat`
)
