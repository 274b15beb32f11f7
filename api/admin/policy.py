"""The routes of the policy: who may use what."""

from datetime import datetime
from typing import Annotated

from fastapi import Query
from pydantic import Field

from llmd.api.admin.parts import Admin, Answer, Name
from llmd.api.http.body import Body
from llmd.api.http.routes import ADMIN, Caller, Route
from llmd.daemon.admin.policies import Wanted
from llmd.daemon.errors import BadRequest

# clients of one change
MAX_NAMES = 4096
Names = Annotated[list[Name], Field(fail_fast=True, max_length=MAX_NAMES)]


class ChangeBody(Body):
    """One of `text`, `revert` and `group`. `dry`: what would happen is told, and nothing is done; `base`: the version
    that it changes."""

    text: str | None = None
    revert: Annotated[int, Field(ge=0)] | None = None
    group: Name | None = None
    add: Names = []
    remove: Names = []
    gone: bool = False
    base: int | None = None
    dry: bool = False

    def wanted(self) -> Wanted:
        """Raises BadRequest."""
        if sum(one is not None for one in (self.text, self.revert, self.group)) != 1:
            raise BadRequest("give one of text, revert and group")
        return Wanted(self.text, self.revert, self.group, tuple(self.add), tuple(self.remove), self.gone)


class TestBody(Body):
    """`at`: RFC 3339; now without it."""

    client: Name
    model: Name
    route: Name
    at: Name | None = None


# --- what is answered


class Version(Answer):
    """`holds`: it is the one that does. `text` "": there was no policy. The first one is 1; 0 where there was none."""

    version: int
    created: str
    actor: str
    text: str
    holds: bool


class Beginning(Answer):
    """What a first policy begins as: it takes nothing from anybody."""

    text: str


class Held(Answer):
    """`exists` false: there was no policy."""

    version: int
    created: str
    actor: str
    holds: bool
    exists: bool


class Versions(Answer):
    versions: list[Held]


class Change(Answer):
    clients: list[str]
    takes: list[str]
    gives: list[str]


class Changed(Answer):
    """`version` holds now, or would; `before` held. `ended`: running answers that this has ended."""

    version: int
    before: int
    text: str
    changes: list[Change]
    remarks: list[str]
    ended: int


class Left(Answer):
    """Of a limit that counts, now."""

    limit: int
    name: str
    most: int
    left: int


class Tested(Answer):
    """`rule`: the one that forbids; `forms` may answer; `context`, `output`: tokens, null without a limit; `weight`:
    among those who wait; `deadline`: seconds of a whole answer; `left`: of what is counted."""

    allowed: bool
    rule: str
    forms: list[str]
    context: int | None
    output: int | None
    note: str
    weight: float
    deadline: int | None
    left: list[Left]


class Group(Answer):
    name: str
    clients: list[str]


class Groups(Answer):
    groups: list[Group]


# --- the routes


async def show(service: Admin, version: Annotated[int | None, Query(ge=0)] = None) -> Version:
    return Version(**await service.policies.show(version))


async def begin(service: Admin) -> Beginning:
    return Beginning(text=service.policies.begin)


async def history(service: Admin) -> Versions:
    return Versions(versions=[Held(**one) for one in await service.policies.history()])


async def change(body: ChangeBody, service: Admin, caller: Caller) -> Changed:
    return Changed.model_validate(
        await service.policies.change(body.wanted(), caller.name, base=body.base, dry=body.dry)
    )


async def test(body: TestBody, service: Admin) -> Tested:
    try:
        at = datetime.fromisoformat(body.at).astimezone() if body.at else None
    except (ValueError, OverflowError) as e:
        raise BadRequest("at takes a time, as in 2026-11-23T18:00:00+01:00", param="at") from e
    return Tested(**await service.policies.test(body.client, body.model, body.route, at))


async def groups(service: Admin) -> Groups:
    return Groups(groups=[Group(name=name, clients=list(of)) for name, of in service.policies.groups.items()])


ROUTES = (
    Route("GET", "/policy", show, ADMIN),
    Route("GET", "/policy/begin", begin, ADMIN),
    Route("GET", "/policy/history", history, ADMIN),
    Route("POST", "/policy", change, ADMIN),
    Route("POST", "/policy/test", test, ADMIN),
    Route("GET", "/groups", groups, ADMIN),
)
