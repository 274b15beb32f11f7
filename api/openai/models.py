"""The models that a client can ask, as OpenAI's API lists them."""

from typing import Literal

from pydantic import BaseModel

from llmd.api.http.routes import INFER, OPERATOR, Asks, Route
from llmd.daemon.replicas.deployment import Deployment
from llmd.daemon.state.records import of_form


class Model(BaseModel):
    """`created` is in Unix seconds, `max_model_len` in tokens, known once it is loaded."""

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


def _card(deployment: Deployment) -> Model:
    info = deployment.worker.info if deployment.worker else None
    return Model(
        id=deployment.model,
        created=int(deployment.since),
        ready=deployment.ready,
        max_model_len=info.context if info else None,
        digest=f"sha256:{deployment.digest}",
    )


async def models(serving: Asks) -> ModelList:
    """What is deployed."""
    return ModelList(data=[_card(d) for d in serving.pool.all()])


async def model(model: str, serving: Asks) -> Model:
    """One deployed model, by its name or that of the form that serves."""
    name, form = of_form(model)
    if form:
        serving.pool.serves(name, form=form)
    return _card(serving.pool.find(name))


ROUTES = (
    Route("GET", "/v1/models", models, INFER | OPERATOR, {200: {"model": ModelList}}),
    Route("GET", "/v1/models/{model}", model, INFER | OPERATOR, {200: {"model": Model}}),
)
