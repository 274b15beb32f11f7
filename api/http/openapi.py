"""/openapi.json: what the caller may ask of this server, made from the routes themselves."""

import asyncio
from importlib.metadata import version
from typing import Any, Literal

from fastapi import FastAPI, Request
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.responses import JSONResponse, Response

from llmd.api.http.routes import ANYBODY, Caller, GuardedRoute, Route


def described(app: FastAPI, role: str) -> dict[str, Any]:
    """The OpenAPI document of the routes that `role` may call."""
    routes = [r for r in app.routes if isinstance(r, GuardedRoute) and r.granted_to(role)]
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
    made: dict[str, asyncio.Task[bytes]] = request.app.state.described
    role, found = principal.role, made.get(principal.role)
    if found is None or (found.done() and found.exception()):
        # it takes a tenth of a second, and is the same for all of a role
        found = made[role] = asyncio.create_task(asyncio.to_thread(_document, request.app, role))
    return Response(await asyncio.shield(found), media_type="application/json")


def _document(app: FastAPI, role: str) -> bytes:
    return bytes(JSONResponse(described(app, role)).body)


ROUTES = (Route("GET", "/openapi.json", openapi, ANYBODY),)
