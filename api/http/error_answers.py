"""How an error is written, for every dialect: nobody else knows it. Which dialect a route's clients read stands at the
route."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import JSONResponse

from llmd.api.http import rates
from llmd.daemon.errors import LlmdError, RateLimited, ShuttingDown
from llmd.daemon.serving.quotas import Rates

# the body of an error, which is the data of an `error` event in a stream too
Write: TypeAlias = Callable[[LlmdError], dict[str, Any]]


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None
    code: str


class ErrorAnswer(BaseModel):
    """Every error."""

    error: ErrorDetail


def openai(error: LlmdError) -> dict[str, Any]:
    return {"error": {"message": error.message, "type": error.kind, "param": error.param, "code": error.code}}


@dataclass(frozen=True, slots=True)
class Errors:
    """A route's: as `write` gives them, and as `answer` describes them for /openapi.json. `beside`: another dialect has
    the same path, and its clients send this header."""

    write: Write
    answer: type[BaseModel]
    beside: Mapping[str, Write] = field(default_factory=dict)

    def chosen(self, headers: Mapping[str, str]) -> Write:
        return next((write for name, write in self.beside.items() if name in headers), self.write)


OPENAI = Errors(openai, ErrorAnswer)


def response(error: LlmdError, request: Request | None = None) -> JSONResponse:
    """An error before a response has begun, as whoever sent this request reads it."""
    errors: Errors = getattr(request.scope.get("route"), "errors", OPENAI) if request else OPENAI
    write = errors.chosen(request.headers) if request else errors.write
    headers = {} if error.retry_after is None else {"Retry-After": str(error.retry_after)}
    if isinstance(error, RateLimited) and isinstance(error.rates, Rates):
        headers |= rates.headers(error.rates)
    if isinstance(error, ShuttingDown):
        headers["Connection"] = "close"  # the next request goes to another server, or waits for the next start
    return JSONResponse(write(error), status_code=error.status, headers=headers)
