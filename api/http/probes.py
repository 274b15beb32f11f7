"""What machines ask: is it alive, does it serve, how much does it do."""

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from llmd.api.http.routes import INFER, Route
from llmd.daemon.identity.principal import Principal
from llmd.daemon.serving.answer import Serving


async def livez(_: Request, __: Serving, ___: Principal) -> Response:
    """GET /livez: the event loop answers."""
    return JSONResponse({"status": "ok"})


async def readyz(_: Request, serving: Serving, __: Principal) -> Response:
    """GET /readyz: 200 when every deployed model answers and the audit log can be written, else 503 with the
    reasons."""
    health = [await serving.pool.health(d.model) for d in serving.pool.all()]
    reasons = [f"{h['model']}: {h.get('reason') or h.get('state')}" for h in health if not h["ready"]]
    if not health:
        reasons.append("no model is deployed")
    if serving.pool.draining:
        reasons.append("the server is stopping")
    if not serving.audit.writable and not serving.serve_unaudited:
        reasons.append("the audit log cannot be written")
    answer = {"ready": not reasons, "reasons": reasons, "models": health}
    return JSONResponse(answer, status_code=503 if reasons else 200)


async def metrics(_: Request, serving: Serving, __: Principal) -> Response:
    """GET /metrics"""
    return Response(serving.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


ROUTES = (
    Route("GET", "/livez", livez, INFER),
    Route("GET", "/readyz", readyz, INFER),
    Route("GET", "/metrics", metrics, INFER),
)
