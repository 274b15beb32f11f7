"""The routes of clients: who may connect."""

from typing import Annotated

from fastapi import Query
from pydantic import Field

from llmd.api.admin.parts import Admin, Answer, Name
from llmd.api.http import probes
from llmd.api.http.body import Body
from llmd.api.http.routes import ADMIN, Caller, Route
from llmd.api.openai import models
from llmd.daemon.admin.doctor import rfc3339


class IssueBody(Body):
    name: Name
    days: int = 90
    role: Name | None = None
    again: bool = False


class RoleBody(Body):
    role: Name


# --- what is answered


class Certificate(Answer):
    """`known` false: it was shown, and nothing here knows it."""

    serial: str
    not_after: str
    revoked_at: str | None
    known: bool


class Client(Answer):
    name: str
    role: str
    certificates: list[Certificate]


class Clients(Answer):
    clients: list[Client]


class Try(Answer):
    url: str
    host: str | None


class Issued(Answer):
    name: str
    uri: str
    role: str
    serial: str
    not_after: str
    certificate_pem: str
    key_pem: str
    ca_pem: str
    listen: str
    granted: bool  # the policy gives it something
    try_: Annotated[Try, Field(alias="try")]  # a line to try it


class Revoked(Answer):
    client: str
    revoked: list[str]
    connections: int


class RoleSet(Answer):
    client: str
    role: str
    before: str


# --- the routes


async def clients(service: Admin) -> Clients:
    return Clients(clients=[Client(**one) for one in await service.clients.list()])


async def issue(body: IssueBody, service: Admin, caller: Caller) -> Issued:
    issued = await service.clients.issue(body.name, body.days, caller.name, role=body.role, again=body.again)
    role, config = service.clients.roles[issued.name], service.current.now
    # what the role may call and that answers whatever is deployed
    path = next(route.path for route in (*models.ROUTES, *probes.ROUTES) if role in route.roles)
    return Issued.model_validate({
        "name": issued.name, "uri": issued.uri, "role": role, "serial": f"{issued.serial:x}",
        "not_after": rfc3339(issued.not_after.timestamp()), "certificate_pem": issued.certificate_pem.decode(),
        "key_pem": issued.key_pem.decode(), "ca_pem": service.authority.ca_pem.decode(),
        "listen": config.listen, "granted": bool(service.policies.now.of(issued.name).grants),
        "try": {"url": config.url + path, "host": next(iter(config.allowed_hosts), None)},
    })  # fmt: skip


async def revoke(
    name: str, service: Admin, caller: Caller, serial: Annotated[str, Query(max_length=64)] = ""
) -> Revoked:
    return Revoked(**await service.clients.revoke(name, caller.name, serial))


async def role(name: str, body: RoleBody, service: Admin, caller: Caller) -> RoleSet:
    return RoleSet(**await service.clients.set_role(name, body.role, caller.name))


ROUTES = (
    Route("GET", "/clients", clients, ADMIN),
    Route("POST", "/clients", issue, ADMIN),
    Route("DELETE", "/clients/{name}", revoke, ADMIN),
    Route("POST", "/clients/{name}/role", role, ADMIN),
)
