"""The client application: every route, who may call it, and how errors look."""

import logging
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from llmd.api import chat
from llmd.api.exchange import Parts
from llmd.api.identity import Identity, Principal
from llmd.api.stream import render
from llmd.daemon.errors import BadRequest, LlmdError, MethodNotAllowed, NotFound
from llmd.daemon.pool import Deployment

log = logging.getLogger("llmd.api")

Handler = Callable[[Request, Parts, Principal], Awaitable[Response]]


def error_response(error: LlmdError) -> JSONResponse:
    status, headers, body = render(error)
    return JSONResponse(body, status_code=status, headers=headers)


def bare_app() -> FastAPI:
    """An application without routes whose every error is an OpenAI-style body."""
    # the interactive pages load scripts from the internet, and a schema made from handlers without models says nothing
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)

    async def known(_: Request, error: Exception) -> Response:
        assert isinstance(error, LlmdError)
        return error_response(error)

    async def http(_: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        kind: type[LlmdError] = {404: NotFound, 405: MethodNotAllowed}.get(error.status_code, BadRequest)
        text = {404: "there is no such route", 405: "this route does not take that method"}.get(error.status_code)
        return error_response(kind(text or str(error.detail)))

    async def invalid(_: Request, __: Exception) -> Response:
        return error_response(BadRequest("the path or query is not valid"))

    async def unknown(request: Request, error: Exception) -> Response:
        log.error(
            "an unexpected error on %s", request.scope.get("path", "")[:100].encode("unicode_escape"), exc_info=error
        )
        return error_response(LlmdError("an internal error; the server's log holds the cause"))

    async def left(_: Request, __: Exception) -> Response:
        return Response(status_code=499)  # nobody reads it

    app.add_exception_handler(ClientDisconnect, left)
    app.add_exception_handler(LlmdError, known)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(Exception, unknown)
    return app


def client_app(parts: Parts, identity: Identity) -> FastAPI:
    """What answers on the TLS listener."""
    app = bare_app()

    def route(method: str, path: str, handler: Handler) -> None:
        async def endpoint(request: Request) -> Response:
            return await handler(request, parts, identity.principal(request))

        app.add_api_route(path, endpoint, methods=[method], response_model=None)

    route("POST", "/v1/chat/completions", chat.chat)
    route("POST", "/v1/completions", chat.completions)
    route("POST", "/tokenize", chat.tokenize)
    route("POST", "/detokenize", chat.detokenize)
    route("GET", "/v1/models", models)
    route("GET", "/v1/models/{model}", model)
    route("GET", "/livez", livez)
    route("GET", "/readyz", readyz)
    route("GET", "/metrics", metrics)
    return app


def _card(deployment: Deployment) -> dict[str, Any]:
    worker = deployment.worker
    info = worker.info if worker else {}
    return {
        "id": deployment.model, "object": "model", "created": int(deployment.since), "owned_by": "llmd",
        "ready": deployment.ready, "max_model_len": info.get("context"), "digest": f"sha256:{deployment.digest}",
    }  # fmt: skip


async def models(_: Request, parts: Parts, __: Principal) -> Response:
    """GET /v1/models"""
    return JSONResponse({"object": "list", "data": [_card(d) for d in parts.pool.all()]})


async def model(request: Request, parts: Parts, _: Principal) -> Response:
    """GET /v1/models/{model}"""
    return JSONResponse(_card(parts.pool.find(request.path_params["model"])))


async def livez(_: Request, __: Parts, ___: Principal) -> Response:
    """GET /livez: the event loop answers."""
    return JSONResponse({"status": "ok"})


async def readyz(_: Request, parts: Parts, __: Principal) -> Response:
    """GET /readyz: 200 when every deployed model answers and the audit log can be written, else 503 with the
    reasons."""
    health = [await parts.pool.health(d.model) for d in parts.pool.all()]
    reasons = [f"{h['model']}: {h.get('reason') or h.get('state')}" for h in health if not h["ready"]]
    if not health:
        reasons.append("no model is deployed")
    if parts.pool.draining:
        reasons.append("the server is stopping")
    if not parts.audit.writable and not parts.serve_unaudited:
        reasons.append("the audit log cannot be written")
    return JSONResponse(
        {"ready": not reasons, "reasons": reasons, "models": health}, status_code=503 if reasons else 200
    )


async def metrics(_: Request, parts: Parts, __: Principal) -> Response:
    """GET /metrics"""
    return Response(parts.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")
