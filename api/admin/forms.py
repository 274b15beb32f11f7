"""The routes of models' forms and of jobs."""

from typing import Annotated, Any

from pydantic import Field
from starlette.responses import Response

from llmd.api.admin.service import Admin
from llmd.api.http.body import Body
from llmd.api.http.routes import ADMIN, Caller, Route
from llmd.api.http.streams import progress
from llmd.daemon.models.making import Asked

_Number = Annotated[int, Field(ge=1, le=1 << 62)]


class FormBody(Body):
    type: Annotated[str, Field(min_length=1, max_length=32)]
    bytes: _Number


class FolderBody(Body):
    path: Annotated[str, Field(min_length=1, max_length=4096)]
    name: Annotated[str, Field(min_length=1, max_length=256)] | None = None
    form: FormBody | None = None


class QuantizeBody(Body):
    type: Annotated[str, Field(min_length=1, max_length=32)] | None = None
    budget: _Number | None = None  # bytes
    bpw: Annotated[float, Field(gt=0, le=64)] | None = None
    requantize: bool = False


async def sizes(name: str, service: Admin) -> dict[str, Any]:
    return {"model": name, "sizes": await service.forms.sizes(name)}


async def import_folder(body: FolderBody, service: Admin, caller: Caller) -> dict[str, Any]:
    form = body.form.model_dump() if body.form else None
    return service.forms.shown(await service.forms.import_folder(body.path, body.name, form, caller.name))


async def quantize(name: str, body: QuantizeBody, service: Admin, caller: Caller) -> dict[str, Any]:
    asked = Asked(body.type, body.budget, body.bpw, body.requantize)
    return service.forms.shown(await service.forms.quantize(name, asked, caller.name))


async def remove_form(name: str, kind: str, service: Admin, caller: Caller) -> dict[str, Any]:
    return {"removed": await service.forms.remove(name, kind, caller.name)}


async def jobs(service: Admin) -> dict[str, Any]:
    return {"jobs": await service.forms.all()}


async def show(number: int, service: Admin) -> dict[str, Any]:
    return await service.forms.show(number)


async def log(number: int, service: Admin) -> dict[str, Any]:
    return {"job": number, "lines": await service.forms.log(number)}


async def follow(number: int, service: Admin) -> Response:
    """Events {"job"}, until it has ended. It goes on when the client goes away."""
    await service.forms.show(number)
    return progress(service.forms.follow(number))


async def cancel(number: int, service: Admin, caller: Caller) -> dict[str, Any]:
    return await service.forms.cancel(number, caller.name)


ROUTES = (
    Route("POST", "/models/folders", import_folder, ADMIN),
    Route("GET", "/models/{name}/sizes", sizes, ADMIN),
    Route("POST", "/models/{name}/quantize", quantize, ADMIN),
    Route("DELETE", "/models/{name}/forms/{kind}", remove_form, ADMIN),
    Route("GET", "/jobs", jobs, ADMIN),
    Route("GET", "/jobs/{number}", show, ADMIN),
    Route("GET", "/jobs/{number}/log", log, ADMIN),
    Route("POST", "/jobs/{number}/follow", follow, ADMIN),
    Route("DELETE", "/jobs/{number}", cancel, ADMIN),
)
