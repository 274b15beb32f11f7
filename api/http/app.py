"""An application of routes, and how errors look."""

import logging
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from llmd.api.http.body import explain
from llmd.api.http.routes import GuardedRoute, Route, Who, table
from llmd.daemon.errors import BadRequest, LlmdError, MethodNotAllowed, NotFound
from llmd.daemon.identity.principal import Identity, Principal

log = logging.getLogger("llmd.api")


def application(routes: Sequence[Route], who: Who, **state: Any) -> FastAPI:
    """What answers on a listener: `routes`, and nothing else. `who` says who calls; `state` is what endpoints ask for.

    Every error is an OpenAI-style body.
    """
    # the interactive pages load scripts from the internet; /openapi.json is a route of ours
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    for name, value in state.items():
        setattr(app.state, name, value)
    granted = table(routes)
    app.router.routes += [GuardedRoute(route, who, granted) for route in routes]
    for kind, render in _RENDERED.items():
        app.add_exception_handler(kind, render)
    return app


def client(identity: Identity) -> Who:
    """Who calls over mutual TLS."""

    def who(request: Request) -> Principal:
        peer = request.scope.get("extensions", {}).get("tls", {}).get("peer")
        return identity.principal(peer, request.client.host if request.client else "")

    return who


def error_response(error: LlmdError) -> JSONResponse:
    """The one renderer of errors before a response has begun."""
    headers = {} if error.retry_after is None else {"Retry-After": str(error.retry_after)}
    return JSONResponse(error.body(), status_code=error.status, headers=headers)


async def _known(_: Request, error: Exception) -> Response:
    assert isinstance(error, LlmdError)
    return error_response(error)


async def _http(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    kind: type[LlmdError] = {404: NotFound, 405: MethodNotAllowed}.get(error.status_code, BadRequest)
    text = {404: "there is no such route", 405: "this route does not take that method"}.get(error.status_code)
    return error_response(kind(text or str(error.detail)))


async def _invalid(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return error_response(explain(error.errors()))


async def _unknown(request: Request, error: Exception) -> Response:
    log.error("an unexpected error on %s", request.scope.get("path", "")[:100].encode("unicode_escape"), exc_info=error)
    return error_response(LlmdError("an internal error; the server's log holds the cause"))


async def _left(_: Request, __: Exception) -> Response:
    return Response(status_code=499)  # nobody reads it


_RENDERED = {
    ClientDisconnect: _left, LlmdError: _known, HTTPException: _http, RequestValidationError: _invalid,
    Exception: _unknown,
}  # fmt: skip
