"""The admin socket's application: what `llmctl` calls. The kernel says who calls; the listener lets only admins in."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import datetime
from typing import Annotated, Any

from fastapi import FastAPI
from pydantic import Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from llmd.api.http.app import bare_app
from llmd.api.http.body import read_json
from llmd.api.openai import chat
from llmd.api.openai.schema import Body, parse
from llmd.daemon.admin import Service
from llmd.daemon.errors import BadRequest, LlmdError, ModelNotReady
from llmd.daemon.identity.principal import Principal
from llmd.daemon.serving.pool import Deployment

PROGRESS_SECONDS = 0.1
FOLLOW_SECONDS = 0.25
MAX_ROWS = 2000

Handler = Callable[[Request, Service], Awaitable[Response]]
_Name = Annotated[str, Field(min_length=1, max_length=256)]


class ImportBody(Body):
    path: Annotated[str, Field(min_length=1, max_length=4096)]
    name: _Name | None = None


class DeployBody(Body):
    model: _Name
    ctx: Annotated[int, Field(ge=256, le=1 << 24)] | None = None
    slots: Annotated[int, Field(ge=1, le=256)] | None = None


class UndeployBody(Body):
    model: _Name


class IssueBody(Body):
    name: _Name
    days: int = 90


def admin_app(service: Service) -> FastAPI:
    """What answers on the admin socket."""
    app = bare_app()

    def route(method: str, path: str, handler: Handler) -> None:
        async def endpoint(request: Request) -> Response:
            return await handler(request, service)

        app.add_api_route(path, endpoint, methods=[method], response_model=None)

    route("GET", "/status", status)
    route("GET", "/doctor", doctor)
    route("GET", "/ca", ca)
    route("POST", "/reload", reload)
    route("GET", "/models", models)
    route("POST", "/models", import_model)
    route("GET", "/models/{name}", show)
    route("DELETE", "/models/{name}", remove)
    route("POST", "/models/{name}/verify", verify_model)
    route("POST", "/deploy", deploy)
    route("POST", "/undeploy", undeploy)
    route("GET", "/clients", clients)
    route("POST", "/clients", issue)
    route("DELETE", "/clients/{name}", revoke)
    route("GET", "/audit/tail", audit_tail)
    route("GET", "/audit/query", audit_query)
    route("GET", "/audit/verify", audit_verify)

    async def talk(request: Request) -> Response:
        return await chat.chat(request, service.serving, Principal(actor(request), "admin", "", "local"))

    app.add_api_route("/v1/chat/completions", talk, methods=["POST"], response_model=None)
    return app


def actor(request: Request) -> str:
    """Who calls, as the audit log names them."""
    return f"uid:{request.scope['extensions']['peer']['uid']}"


def _lines(values: AsyncIterator[dict[str, Any]]) -> Response:
    """One JSON object a line, as they come; an error that comes late is a line too."""

    async def encoded() -> AsyncIterator[bytes]:
        try:
            async for value in values:
                yield json.dumps(value).encode() + b"\n"
        except LlmdError as e:
            yield json.dumps(e.body()).encode() + b"\n"

    return StreamingResponse(encoded(), media_type="application/x-ndjson")


# --- the daemon


async def status(_: Request, service: Service) -> Response:
    return JSONResponse(await service.status())


async def doctor(_: Request, service: Service) -> Response:
    return JSONResponse({"checks": await service.doctor()})


async def ca(_: Request, service: Service) -> Response:
    return JSONResponse({"ca_pem": service.authority.ca_pem.decode()})


async def reload(request: Request, service: Service) -> Response:
    service.reload_tls()
    service.serving.audit.event("reload", actor=actor(request))
    return JSONResponse({"reloaded": True})


# --- models


async def models(_: Request, service: Service) -> Response:
    return JSONResponse({"models": [service.show(m.name) for m in service.models.list()]})


async def show(request: Request, service: Service) -> Response:
    return JSONResponse(service.show(request.path_params["name"]))


async def remove(request: Request, service: Service) -> Response:
    await service.remove_model(request.path_params["name"], actor(request))
    return JSONResponse({"removed": request.path_params["name"]})


async def verify_model(request: Request, service: Service) -> Response:
    return JSONResponse(
        {"model": request.path_params["name"], "ok": await service.models.verify(request.path_params["name"])}
    )


async def import_model(request: Request, service: Service) -> Response:
    """Lines {"done", "total"} in bytes, then {"model"} or {"error"}. A client that goes away ends the import."""
    body = parse(ImportBody, await read_json(request))
    who = actor(request)

    async def steps() -> AsyncIterator[dict[str, Any]]:
        at = [0, 0]

        def note(done: int, total: int) -> None:
            at[:] = done, total

        work = asyncio.ensure_future(service.import_model(body.path, body.name, who, note))
        try:
            while not work.done():
                await asyncio.wait({work}, timeout=PROGRESS_SECONDS)
                if at[1]:
                    yield {"done": at[0], "total": at[1]}
            model = await work
            yield {"model": service.show(model.name)}
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)

    return _lines(steps())


async def deploy(request: Request, service: Service) -> Response:
    """Lines {"state"} until the model is ready or has failed to load."""
    body = parse(DeployBody, await read_json(request))
    before = any(d.model == body.model for d in service.store.deployments())
    deployment = service.deploy(body.model, body.ctx, body.slots, actor(request))
    return _lines(_until_ready(service, deployment, keep=before))


async def _until_ready(service: Service, deployment: Deployment, *, keep: bool) -> AsyncIterator[dict[str, Any]]:
    while True:
        yield {"model": deployment.model, "state": deployment.state, "reason": deployment.reason}
        if deployment.state == "ready":
            return
        if deployment.state != "loading":
            reason = deployment.reason or "it was taken out of service"
            if not keep and deployment.state == "restarting":
                service.store.remove_deployment(deployment.model)
                await service.serving.pool.undeploy(deployment.model)
            raise ModelNotReady(f"{deployment.model} could not be loaded: {reason}")
        await deployment.changed.wait()


async def undeploy(request: Request, service: Service) -> Response:
    body = parse(UndeployBody, await read_json(request))
    await service.undeploy(body.model, actor(request))
    return JSONResponse({"undeployed": body.model})


# --- clients


async def clients(_: Request, service: Service) -> Response:
    return JSONResponse({"clients": service.clients()})


async def issue(request: Request, service: Service) -> Response:
    body = parse(IssueBody, await read_json(request))
    issued = service.issue(body.name, body.days, actor(request))
    return JSONResponse({
        "name": issued.name, "uri": issued.uri, "serial": f"{issued.serial:x}",
        "not_after": issued.not_after.timestamp(),
        "certificate_pem": issued.certificate_pem.decode(), "key_pem": issued.key_pem.decode(),
        "ca_pem": service.authority.ca_pem.decode(), "listen": service.config.listen,
    })  # fmt: skip


async def revoke(request: Request, service: Service) -> Response:
    return JSONResponse(service.revoke(request.path_params["name"], actor(request)))


# --- audit


async def audit_tail(request: Request, service: Service) -> Response:
    """?n=&after=&follow=1: the last rows, one a line; with follow, new ones as they come."""
    audit = service.serving.audit
    count, after = _number(request, "n", 20), _number(request, "after", None)
    rows = await audit.tail(count or 0, after)
    if request.query_params.get("follow") != "1":
        return JSONResponse({"rows": rows})

    newest = await audit.tail(1)
    at = after if after is not None else newest[-1]["seq"] if newest else 0

    async def follow() -> AsyncIterator[dict[str, Any]]:
        last, fresh = at, rows
        while True:
            for row in fresh:
                last = row["seq"]
                yield row
            await asyncio.sleep(FOLLOW_SECONDS)
            fresh = await audit.tail(MAX_ROWS, last)

    return _lines(follow())


async def audit_query(request: Request, service: Service) -> Response:
    given = {key: request.query_params.get(key) for key in ("principal", "model", "outcome", "kind", "request")}
    rows = await service.serving.audit.query(
        **given,
        since=_moment(request, "since"),
        until=_moment(request, "until"),
        limit=_number(request, "limit", 100) or 100,
    )
    return JSONResponse({"rows": rows})


async def audit_verify(_: Request, service: Service) -> Response:
    report = await service.serving.audit.verify()
    return JSONResponse({"ok": report.ok, **report.to_dict()})


def _number(request: Request, name: str, default: int | None) -> int | None:
    text = request.query_params.get(name)
    if text is None:
        return default
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise BadRequest(f"{name} takes a whole number", param=name)
    return int(text)


def _moment(request: Request, name: str) -> datetime | None:
    text = request.query_params.get(name)
    if text is None:
        return None
    try:
        return datetime.fromisoformat(text).astimezone()
    except ValueError as e:
        raise BadRequest(f"{name} takes a date or time as in 2026-11-23 or 2026-11-23T18:00", param=name) from e
