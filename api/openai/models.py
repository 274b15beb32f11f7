"""The models that a client can ask, as OpenAI's API lists them."""

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from llmd.api.http.routes import INFER, Route
from llmd.daemon.identity.principal import Principal
from llmd.daemon.serving.answer import Serving
from llmd.daemon.serving.pool import Deployment


def _card(deployment: Deployment) -> dict[str, Any]:
    info = deployment.worker.info if deployment.worker else None
    return {
        "id": deployment.model, "object": "model", "created": int(deployment.since), "owned_by": "llmd",
        "ready": deployment.ready, "max_model_len": info.context if info else None,
        "digest": f"sha256:{deployment.digest}",
    }  # fmt: skip


async def models(_: Request, serving: Serving, __: Principal) -> Response:
    """GET /v1/models"""
    return JSONResponse({"object": "list", "data": [_card(d) for d in serving.pool.all()]})


async def model(request: Request, serving: Serving, _: Principal) -> Response:
    """GET /v1/models/{model}"""
    return JSONResponse(_card(serving.pool.find(request.path_params["model"])))


ROUTES = (
    Route("GET", "/v1/models", models, INFER),
    Route("GET", "/v1/models/{model}", model, INFER),
)
