"""The routes of the audit log: read, followed, proven."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Collection
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import Query
from pydantic import BeforeValidator, ConfigDict, Field
from starlette.responses import JSONResponse, Response

from llmd.api.admin.parts import Admin, Answer
from llmd.api.http.body import Body
from llmd.api.http.routes import ADMIN, Route
from llmd.api.http.streams import progress
from llmd.daemon.audit.chain import KINDS, OUTCOMES, Break
from llmd.daemon.errors import MAX_GIVEN, BadRequest, quoted
from llmd.daemon.state.records import of_form

FOLLOW_SECONDS = 0.25
MAX_ROWS = 2000

# one spelling a number: what a text is read as, " 5" and "5.0" are too
Digits = BeforeValidator(lambda given: given if re.fullmatch("0|[1-9][0-9]{0,18}", str(given)) else "no number")
Count = Annotated[int, Digits, Query(ge=0, le=10**18)]


# --- what is answered


class Verdict(Answer):
    ok: bool
    verdict: str
    rows: int
    first: int | None
    last: int | None
    head: str
    open: int
    earliest: str
    latest: str
    source: str
    broken: Break | None
    error: str | None


# --- the routes


async def audit_tail(service: Admin, n: Count = 20, after: Count | None = None, follow: bool = False) -> Any:
    """The last rows; with `follow` an event a row, and new ones as they come."""
    audit = service.serving.audit
    rows = await audit.tail(n, after)
    if not follow:
        return JSONResponse({"rows": rows})  # FastAPI would look at every value
    newest = await audit.tail(1)
    at: int = after if after is not None else newest[-1]["seq"] if newest else 0

    async def following() -> AsyncIterator[dict[str, Any]]:
        last, fresh = at, rows
        while True:
            for row in fresh:
                last = row["seq"]
                yield row
            await asyncio.sleep(FOLLOW_SECONDS)
            fresh = await audit.tail(MAX_ROWS, last)

    return progress(following())


_Word = Annotated[str, Field(max_length=256)]


class AuditQuery(Body):
    """`since` and `until`: a date or time, in this server's zone where it names none. `limit` 0: all."""

    model_config = ConfigDict(strict=False)

    principal: _Word | None = None
    model: _Word | None = None
    outcome: _Word | None = None
    kind: _Word | None = None
    request: _Word | None = None
    since: _Word | None = None
    until: _Word | None = None
    after: Count | None = None
    limit: Annotated[int, Digits, Field(ge=0, le=10**18)] = 100


async def audit_query(asked: Annotated[AuditQuery, Query()], service: Admin) -> Response:
    """A page of rows, `older` where more match before it, and `after` for the next one."""
    _one_of(asked.outcome, OUTCOMES, "outcome")
    _one_of(asked.kind, KINDS, "kind")
    given = asked.model_dump() | {name: _moment(getattr(asked, name), name) for name in ("since", "until")}
    given |= {"limit": asked.limit or None, "model": asked.model and of_form(asked.model)[0]}
    found = await service.serving.audit.query(**given)
    # thousands of rows: on the loop they would hold up every stream
    return Response(await asyncio.to_thread(lambda: json.dumps(found.to_dict())), media_type="application/json")


def _one_of(given: str | None, known: Collection[str], name: str) -> None:
    if given is not None and given not in known:
        raise BadRequest(
            f"there is no {name} {quoted(given, MAX_GIVEN)}; there is {', '.join(sorted(known))}", param=name
        )


async def audit_verify(service: Admin) -> Verdict:
    return Verdict(**(await service.serving.audit.verify()).to_dict())


def _moment(text: str | None, name: str) -> datetime | None:
    if text is None:
        return None
    try:
        return datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError) as e:  # a zone can move the first or the last day out of the calendar
        raise BadRequest(f"{name} takes a date or time as in 2026-11-23 or 2026-11-23T18:00", param=name) from e


ROUTES = (
    Route("GET", "/audit/tail", audit_tail, ADMIN),
    Route("GET", "/audit/query", audit_query, ADMIN),
    Route("GET", "/audit/verify", audit_verify, ADMIN),
)
