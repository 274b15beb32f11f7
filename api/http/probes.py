"""What machines ask: is it alive, does it serve, how much does it do."""

from typing import Literal

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from llmd.api.http.routes import ANYBODY, OPERATOR, Asks, Caller, Route
from llmd.daemon.errors import AuditUnavailable, ModelNotReady, ShuttingDown, Unavailable
from llmd.daemon.replicas import trials
from llmd.daemon.serving.answer import Serving

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Alive(BaseModel):
    status: Literal["ok"]


class ModelHealth(BaseModel):
    """`beat_age` and `token_age`: seconds since its process said that it lives, and since its last token."""

    model: str
    ready: bool
    state: str
    reason: str | None = None
    beat_age: float | None = None
    token_age: float | None = None


class Readiness(BaseModel):
    ready: bool
    reasons: list[str]
    models: list[ModelHealth]


async def livez() -> Response:
    """The daemon answers."""
    return JSONResponse({"status": "ok"})


async def health(serving: Asks, principal: Caller) -> Response:
    """What load balancers ask: 200 while a request would be taken, else 503. It asks no model; /readyz does."""
    if serving.pool.draining:
        raise ShuttingDown("this server is stopping")
    if not _audited(serving):
        raise AuditUnavailable("the audit log cannot be written")
    if serving.tasks.failed:
        raise Unavailable("a part of this server has failed; its log holds the cause")
    if not any(d.ready for d in serving.access.seen(principal)):
        raise ModelNotReady("no model is ready")
    return JSONResponse({"status": "ok"})


async def readyz(serving: Asks, principal: Caller) -> Response:
    """200 when every deployed model that is there for who asks answers and the audit log can be written, else 503 with
    the reasons."""
    health = [await trials.health(d) for d in serving.access.seen(principal)]
    reasons = [f"{h['model']}: {h.get('reason') or h.get('state')}" for h in health if not h["ready"]]
    if not health:
        reasons.append("no model is deployed")
    if serving.pool.draining:
        reasons.append("the server is stopping")
    if not _audited(serving):
        reasons.append("the audit log cannot be written")
    reasons += [f"{name} failed; the server's log holds the cause" for name in sorted(serving.tasks.failed)]
    answer = {"ready": not reasons, "reasons": reasons, "models": health}
    return JSONResponse(answer, status_code=503 if reasons else 200)


async def metrics(request: Request, serving: Asks) -> Response:
    """Prometheus' text format."""
    ends = await request.app.state.doctor.endings()
    serving.metrics.certificates((e.kind, e.client, e.serial, e.not_after) for e in ends)
    return Response(serving.metrics.text(), media_type=METRICS_TYPE)


def _audited(serving: Serving) -> bool:
    return serving.audit.writable or serving.books.unaudited()


ROUTES = (
    Route("GET", "/livez", livez, ANYBODY, {200: {"model": Alive}}),
    Route("GET", "/health", health, ANYBODY, {200: {"model": Alive}}),
    Route("GET", "/readyz", readyz, ANYBODY, {200: {"model": Readiness}, 503: {"model": Readiness}}),
    Route("GET", "/metrics", metrics, OPERATOR, {200: {"content": {METRICS_TYPE: {"schema": {"type": "string"}}}}}),
)
