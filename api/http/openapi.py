"""/openapi.json: what the caller may ask of this server, made from the routes themselves."""

import asyncio
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any, Literal

from fastapi import FastAPI, Request
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.responses import JSONResponse, Response

from llmd.api.http.routes import ANYBODY, Caller, GuardedRoute, Route
from llmd.daemon.identity.principal import Principal

# at a time; a policy may give many kinds of clients other routes
MAX_DOCUMENTS = 32


def callable_by(principal: Principal, app: FastAPI) -> list[GuardedRoute]:
    """The routes that somebody may call."""
    routes = [r for r in app.routes if isinstance(r, GuardedRoute) and r.granted_to(principal.role)]
    return [route for route in routes if not route.hidden(principal)]


def described(routes: Sequence[GuardedRoute]) -> dict[str, Any]:
    """Their OpenAPI document."""
    document = get_openapi(title="llmd", version=version("llmd-appliance"), routes=routes)
    components = document.setdefault("components", {})
    components["securitySchemes"] = {"certificate": {"type": "mutualTLS"}}
    events: list[tuple[type[BaseModel], Literal["serialization"]]] = []
    events += [(route.events, "serialization") for route in routes if route.events]
    _, shown = models_json_schema(events, ref_template="#/components/schemas/{model}")
    components["schemas"] = {**shown.get("$defs", {}), **components.get("schemas", {})}
    document["security"] = [{"certificate": []}]
    return document


async def openapi(request: Request, principal: Caller) -> Response:
    """This document."""
    made: dict[tuple[str, ...], asyncio.Task[bytes]] = request.app.state.described
    routes = callable_by(principal, request.app)
    key = tuple(route.unique_id for route in routes)
    found = made.get(key)
    if found is None or (found.done() and found.exception()):
        if len(made) >= MAX_DOCUMENTS:
            made.clear()
        # it takes a tenth of a second, and is the same for all who may call the same
        found = made[key] = asyncio.create_task(asyncio.to_thread(_document, routes))
    return Response(await asyncio.shield(found), media_type="application/json")


def _document(routes: Sequence[GuardedRoute]) -> bytes:
    return bytes(JSONResponse(described(routes)).body)


ROUTES = (Route("GET", "/openapi.json", openapi, ANYBODY),)
