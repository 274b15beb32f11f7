"""The client application and the errors of both applications."""

import logging
from collections.abc import Iterable

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from llmd.api.http.routes import Route, granted
from llmd.daemon.errors import BadRequest, LlmdError, MethodNotAllowed, NotFound
from llmd.daemon.identity.principal import Identity
from llmd.daemon.serving.answer import Serving

log = logging.getLogger("llmd.api")


def error_response(error: LlmdError) -> JSONResponse:
    """The one renderer of errors before a response has begun."""
    headers = {} if error.retry_after is None else {"Retry-After": str(error.retry_after)}
    return JSONResponse(error.body(), status_code=error.status, headers=headers)


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


def client_app(serving: Serving, identity: Identity, routes: Iterable[Route]) -> FastAPI:
    """What answers on the TLS listener: `routes`, and nothing else."""
    app = bare_app()

    def register(route: Route) -> None:
        async def endpoint(request: Request) -> Response:
            return await route.handler(request, serving, granted(route, identity, request))

        app.add_api_route(route.path, endpoint, methods=[route.method], response_model=None)

    for route in routes:
        register(route)
    return app
