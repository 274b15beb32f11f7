"""The routes of models' forms and of jobs."""

from typing import Annotated, Any

from pydantic import Field
from starlette.responses import Response

from llmd.api.admin.imported import Removed
from llmd.api.admin.parts import Admin, Answer, Name
from llmd.api.http.body import Body
from llmd.api.http.routes import ADMIN, Caller, Route
from llmd.api.http.streams import progress
from llmd.daemon.models.importing import Wanted
from llmd.daemon.models.making import Asked

_Number = Annotated[int, Field(ge=1, le=1 << 62)]


class FormBody(Body):
    type: Annotated[str, Field(min_length=1, max_length=32)]
    bytes: _Number

    def wanted(self) -> Wanted:
        return Wanted(self.type, self.bytes)


class FolderBody(Body):
    path: Annotated[str, Field(min_length=1, max_length=4096)]
    name: Name | None = None
    form: FormBody | None = None


class QuantizeBody(Body):
    type: Annotated[str, Field(min_length=1, max_length=32)] | None = None
    budget: _Number | None = None  # bytes
    bpw: Annotated[float, Field(gt=0, le=64)] | None = None
    requantize: bool = False


# --- what is answered


class Size(Answer):
    type: str
    bytes: int
    bits: float  # of each weight
    fallbacks: int


class Sizes(Answer):
    model: str
    sizes: list[Size]


class Job(Answer):
    """`asked` and `result` are as its kind has them; `done` and `total` are there while it runs."""

    id: int
    kind: str
    model: str
    asked: dict[str, Any]
    actor: str
    created: str
    state: str
    started: str | None
    ended: str | None
    error: str
    result: dict[str, Any]
    done: int = 0
    total: int = 0
    seconds_left: float | None = None


class Jobs(Answer):
    jobs: list[Job]


class JobLog(Answer):
    job: int
    lines: list[str]


# --- the routes


async def sizes(name: str, service: Admin) -> Sizes:
    return Sizes(model=name, sizes=[Size(**size) for size in await service.forms.sizes(name)])


async def import_folder(body: FolderBody, service: Admin, caller: Caller) -> Job:
    form = body.form.wanted() if body.form else None
    return Job(**service.forms.shown(await service.forms.import_folder(body.path, body.name, form, caller.name)))


async def quantize(name: str, body: QuantizeBody, service: Admin, caller: Caller) -> Job:
    asked = Asked(body.type, body.budget, body.bpw, body.requantize)
    return Job(**service.forms.shown(await service.forms.quantize(name, asked, caller.name)))


async def remove_form(name: str, kind: str, service: Admin, caller: Caller) -> Removed:
    return Removed(removed=await service.forms.remove(name, kind, caller.name))


async def jobs(service: Admin) -> Jobs:
    return Jobs(jobs=[Job(**one) for one in await service.forms.all()])


async def show(number: int, service: Admin) -> Job:
    return Job(**await service.forms.show(number))


async def log(number: int, service: Admin) -> JobLog:
    return JobLog(job=number, lines=await service.forms.log(number))


async def follow(number: int, service: Admin) -> Response:
    """Events {"job"}, until it has ended. It goes on when the client goes away."""
    await service.forms.show(number)
    return progress(service.forms.follow(number))


async def cancel(number: int, service: Admin, caller: Caller) -> Job:
    return Job(**await service.forms.cancel(number, caller.name))


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
