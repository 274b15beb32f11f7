"""An application of routes, and what is answered where they raise."""

import logging
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llmd.api.http import error_answers
from llmd.api.http.body import LARGE_AT_ONCE, explain
from llmd.api.http.routes import GuardedRoute, Judge, Refused, Route, Who, matching, no_route, table
from llmd.daemon.audit.refusals import Refusals
from llmd.daemon.errors import BadRequest, LlmdError, MethodNotAllowed
from llmd.daemon.gate import Aside, Gate
from llmd.daemon.identity.policy import InForce
from llmd.daemon.identity.principal import Identity, Principal

log = logging.getLogger("llmd.api")


def application(routes: Sequence[Route], who: Who, refused: Refused = lambda *_: None, **state: Any) -> FastAPI:
    """What answers on a listener: `routes`, and nothing else. `who` says who calls, `refused` is told who may not;
    `state` is what endpoints ask for: with `serving`, its policy says which routes are there for them.

    Every error is written as its route says (`error_answers.py`).
    """
    # the interactive pages load scripts from the internet; /openapi.json is a route of ours. A redirect would go where
    # the client's own Host header says
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False)
    app.add_middleware(Head)
    serving = state.get("serving")
    app.state.described, app.state.reading, app.state.middling = {}, Gate(0, LARGE_AT_ONCE), Gate(1)
    app.state.aside = serving.aside if serving else Aside()
    for name, value in state.items():
        setattr(app.state, name, value)
    granted, judge = table(routes), _judge(serving.policy) if serving else _anybody
    app.router.routes += [GuardedRoute(route, who, granted, refused, judge) for route in routes]
    app.state.who = who
    for kind, render in _RENDERED.items():
        app.add_exception_handler(kind, render)
    return app


class Head:
    """HEAD is answered as GET is, without a body; a stream ends before its first event."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            return await self._app(scope, receive, send)
        done = False

        async def headers(message: Message) -> None:
            nonlocal done
            if message["type"] == "http.response.start":
                await send(message)
            elif not done:
                done = True  # the server says to `receive` that the client has left
                await send({"type": "http.response.body"})

        await self._app({**scope, "method": "GET"}, receive, headers)


def client(identity: Identity) -> Who:
    """Who calls over mutual TLS."""

    def who(request: Request) -> Principal:
        peer = request.scope.get("extensions", {}).get("tls", {}).get("peer")
        return identity.principal(peer, request.client.host if request.client else "")

    return who


def _judge(policy: InForce) -> Judge:
    def hidden(principal: Principal, route: str) -> str:
        rights = policy.of(principal)
        return "" if rights.may_call(route) else rights.no_grant(route)

    return hidden


def _anybody(principal: Principal, route: str) -> str:
    return ""


def noted(refusals: Refusals) -> Refused:
    """A client that is refused stands in the audit log."""

    def refused(request: Request, route: str, error: LlmdError) -> None:
        peer = request.scope.get("extensions", {}).get("tls", {}).get("peer")
        refusals.note(
            error,
            peer.name if peer else "",
            request.client.host if request.client else "",
            serial=f"{peer.serial:x}" if peer else "",
            route=route,
        )

    return refused


async def _known(request: Request, error: Exception) -> Response:
    assert isinstance(error, LlmdError)
    return error_answers.response(error, request)


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    methods = {method for route in matching(request, request.url.path) for method in route.methods or ()}
    if error.status_code == 404 or (error.status_code == 405 and not methods):
        return error_answers.response(no_route(request))
    if error.status_code == 405:
        allowed = ", ".join(sorted(methods | ({"HEAD"} if "GET" in methods else set())))
        response = error_answers.response(MethodNotAllowed(f"this route does not take that method; it takes {allowed}"))
        response.headers["Allow"] = allowed
        return response
    return error_answers.response(BadRequest(str(error.detail)), request)


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    # FastAPI begins with where it was: query or path
    return error_answers.response(explain([{**e, "loc": e["loc"][1:]} for e in error.errors()]), request)


async def _unknown(request: Request, error: Exception) -> Response:
    log.error("an unexpected error on %s", request.scope.get("path", "")[:100].encode("unicode_escape"), exc_info=error)
    return error_answers.response(LlmdError("an internal error; the server's log holds the cause"), request)


async def _left(_: Request, __: Exception) -> Response:
    return Response(status_code=499)  # nobody reads it


_RENDERED = {
    ClientDisconnect: _left, LlmdError: _known, HTTPException: _http, RequestValidationError: _invalid,
    Exception: _unknown,
}  # fmt: skip
