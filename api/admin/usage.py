"""The route of what clients have used."""

from typing import Annotated, Any

from fastapi import Query

from llmd.api.admin.parts import Admin, Answer
from llmd.api.http.routes import ADMIN, Route


class Figures(Answer):
    """Tokens of prompts, found in shared prefixes of those, and generated; `seconds` of each GPU or core."""

    requests: int
    prompt: int
    cached: int
    output: int
    seconds: float
    joules: float


class Row(Figures):
    """Of one of them; a `group` "" has the clients that are in none."""

    principal: str | None = None
    model: str | None = None
    group: str | None = None
    day: str | None = None


class Usage(Answer):
    """`since` is a day of the server's. A client in several groups counts in each. `idle_joules`: what GPUs drew while
    they computed nothing."""

    since: str
    by: str
    rows: list[Row]
    total: Figures
    idle_joules: float


async def usage(
    service: Admin,
    by: Annotated[str, Query(max_length=16)] = "principal",
    since: Annotated[str, Query(max_length=16)] = "30d",
) -> Any:
    return Usage.model_validate(await service.usage.told(by, since))


ROUTES = (Route("GET", "/usage", usage, ADMIN),)
