"""The routes of deployments: where a model would go, what would fit, serve it and stop."""

from dataclasses import replace
from typing import Annotated, Literal

from pydantic import Field
from starlette.responses import Response

from llmd.api.admin.forms import FormBody, Job
from llmd.api.admin.parts import Admin, Answer, Name
from llmd.api.http.body import Body
from llmd.api.http.routes import ADMIN, Caller, Route
from llmd.api.http.streams import progress
from llmd.daemon.admin.fitting import Deploying
from llmd.daemon.models.making import Asked
from llmd.daemon.planning.plan import Placement


class DeployBody(Body):
    model: Name
    ctx: Annotated[int, Field(ge=0, le=1 << 24)] | None = None  # 0: as long as the model was trained for
    slots: Annotated[int, Field(ge=1, le=256)] | None = None
    gpus: Annotated[list[Name], Field(fail_fast=True, max_length=64)] = []
    split: Literal["none", "layer", "tensor"] | None = None
    kv: Literal["f16", "q8_0", "q4_0"] | None = None
    ubatch: Annotated[int, Field(ge=64, le=16384)] | None = None
    form: Name | None = None

    def asked(self) -> Deploying:
        placement = Placement(tuple(self.gpus), self.split, self.kv, self.ubatch, self.form)
        return Deploying(self.ctx, self.slots, placement)


class ReplicasBody(DeployBody):
    replicas: Annotated[int, Field(ge=1, le=64)] | Literal["auto"] = 1
    evict: bool | None = None

    def asked(self) -> Deploying:
        count = 0 if self.replicas == "auto" else self.replicas
        return replace(super().asked(), replicas=count, evict=self.evict)


class FittingBody(ReplicasBody):
    """`model` is a Hugging Face folder."""

    model: Annotated[str, Field(min_length=1, max_length=4096)]
    name: Name | None = None


class FolderBody(FittingBody):
    """`made`: the form to make of it; null: it serves as it is."""

    made: FormBody | None = None


class MakingBody(ReplicasBody):
    """`type`: of the form to make; `requantize`: of a file that is quantized already."""

    type: Annotated[str, Field(min_length=1, max_length=32)]
    requantize: bool = False


class UndeployBody(Body):
    model: Name


# --- what is answered


class Need(Answer):
    weights: int
    kv: int
    compute: int
    overhead: int
    total: int


class PlanDevice(Answer):
    uuid: str
    name: str
    free: int
    need: Need


class Step(Answer):
    what: str
    taken: bool
    why: str


class Plan(Answer):
    model: str
    form: str
    split: str
    kv: str
    context: int
    slots: int
    ubatch: int
    gpus: list[str]
    devices: list[PlanDevice]
    steps: list[Step]
    buys: list[str]


class Fitting(Answer):
    """`now`: what it takes as it is; `again`: it is quantized already."""

    model: str
    type: str
    bytes: int
    now: int
    seconds: float
    free: int
    again: bool


class FolderFitting(Answer):
    """`there`: a model was made of it; `type` null: it fits as it is, else `why` not."""

    model: str
    there: bool
    type: str | None
    bytes: int | None = None
    now: int = 0
    read: int = 0
    method: str = ""
    why: str | None = None
    seconds: float = 0.0
    free: int = 0


class Undeployed(Answer):
    undeployed: str


# --- the routes


async def plan(body: DeployBody, service: Admin) -> Plan:
    return Plan(**await service.deployments.plan(body.model, body.asked()))


async def fitting(body: ReplicasBody, service: Admin) -> Fitting:
    asked = body.asked()
    any_form = replace(asked, placement=replace(asked.placement, form=None))
    return Fitting(**await service.fitting.of_model(body.model, any_form))


async def fitting_folder(body: FittingBody, service: Admin) -> FolderFitting:
    return FolderFitting(**await service.fitting.of_folder(body.model, body.name, body.asked()))


async def deploy(body: ReplicasBody, service: Admin, caller: Caller) -> Response:
    """Events {"state"} until the model is ready, has failed to load or was deployed anew by somebody else. It goes on
    when the client goes away."""
    deployment, before = await service.deployments.deploy(body.model, caller.name, body.asked())
    return progress(service.deployments.until_ready(deployment, caller.name, keep=before))


async def deploy_form(body: MakingBody, service: Admin, caller: Caller) -> Job:
    """A job that makes a form of the model, and deploys that."""
    asked = Asked(body.type, again=body.requantize)
    return Job(**service.forms.shown(await service.forms.quantize(body.model, asked, caller.name, body.asked())))


async def deploy_folder(body: FolderBody, service: Admin, caller: Caller) -> Job:
    """A job that converts a Hugging Face folder, makes a form of that, and deploys it."""
    form = body.made.wanted() if body.made else None
    job = await service.forms.import_folder(body.model, body.name, form, caller.name, body.asked())
    return Job(**service.forms.shown(job))


async def undeploy(body: UndeployBody, service: Admin, caller: Caller) -> Undeployed:
    await service.deployments.undeploy(body.model, caller.name)
    return Undeployed(undeployed=body.model)


ROUTES = (
    Route("POST", "/plan", plan, ADMIN),
    Route("POST", "/fitting", fitting, ADMIN),
    Route("POST", "/fitting/folder", fitting_folder, ADMIN),
    Route("POST", "/deploy", deploy, ADMIN),
    Route("POST", "/deploy/form", deploy_form, ADMIN),
    Route("POST", "/deploy/folder", deploy_folder, ADMIN),
    Route("POST", "/undeploy", undeploy, ADMIN),
)
