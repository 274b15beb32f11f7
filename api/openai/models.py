"""The models that a client can ask, as OpenAI's API lists them."""

from typing import Literal

from pydantic import BaseModel

from llmd.api.http.routes import INFER, OPERATOR, Asks, Caller, Route
from llmd.daemon.errors import ModelNotFound
from llmd.daemon.identity.principal import Principal
from llmd.daemon.replicas.deployment import Deployment
from llmd.daemon.serving.answer import Serving

PATH = "/v1/models"


class Model(BaseModel):
    """`created` is in Unix seconds; `max_model_len`: tokens that who asks may have of a prompt with its answer, known
    once it is loaded."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["llmd"] = "llmd"
    ready: bool
    max_model_len: int | None
    digest: str


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[Model]


def _card(deployment: Deployment, serving: Serving, principal: Principal) -> Model:
    info = deployment.worker.info if deployment.worker else None
    context = serving.access.bounds(principal, deployment.model, deployment.forms).context
    return Model(
        id=deployment.model,
        created=int(deployment.since),
        ready=deployment.ready,
        max_model_len=min(info.context, context or info.context) if info else None,
        digest=f"sha256:{deployment.digest}",
    )


async def models(serving: Asks, principal: Caller) -> ModelList:
    """What is deployed, and there for who asks."""
    return ModelList(data=[_card(d, serving, principal) for d in serving.access.seen(principal)])


async def model(model: str, serving: Asks, principal: Caller) -> Model:
    """One of them, by its name or that of the form that serves."""
    try:
        return _card(serving.access.find(principal, model), serving, principal)
    except ModelNotFound as e:
        serving.books.denied(e, principal, PATH)
        raise


ROUTES = (
    Route("GET", PATH, models, INFER | OPERATOR, {200: {"model": ModelList}}, lists=True),
    Route("GET", f"{PATH}/{{model}}", model, INFER | OPERATOR, {200: {"model": Model}}, lists=True),
)
