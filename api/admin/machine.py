"""The routes of the machine and its daemon: how it does, its GPUs, its certificates."""

from typing import Any, Literal

from pydantic import ConfigDict

from llmd.api.admin.parts import Admin, Answer, Name
from llmd.api.http.body import Body
from llmd.api.http.routes import ADMIN, Caller, Route


class GpuBody(Body):
    gpu: Name


# --- what is answered


class Replica(Answer):
    """Those with `slots` serve."""

    number: int
    state: str
    reason: str
    note: str
    threads: int = 0
    share: int = 0  # cores
    pid: int = 0
    form: str = ""
    context: int = 0
    slots: int = 0
    running: int = 0
    waiting: int = 0
    gpus: list[str] = []
    split: str = ""
    kv: str = ""
    kv_used: float = 0.0  # share
    token_age: float = 0.0  # seconds
    confined: bool = False


class Deployed(Answer):
    """A model that is to serve; those with `slots` do."""

    model: str
    state: str
    reason: str
    restarts: int
    digest: str
    wanted_replicas: int | Literal["auto"]
    replicas: list[Replica]
    pid: int = 0
    context: int = 0
    split: str = ""
    kv: str = ""
    slots: int = 0
    running: int = 0
    waiting: int = 0
    gpus: list[str] = []
    kv_used: float = 0.0
    token_age: float = 0.0


class Damaged(Answer):
    form: str
    reason: str
    do: str


class Evicted(Answer):
    model: str
    reason: str


class AuditState(Answer):
    writable: bool
    seq: int


class PolicyState(Answer):
    """`exists` false: roles alone decide."""

    version: int
    exists: bool


class Confinement(Answer):
    """`landlock`: the kernel's version of it, 0 without; `lacks`: what it has not."""

    landlock: int
    lacks: list[str]
    required: bool


class Ending(Answer):
    kind: str
    not_after: str
    client: str
    serial: str


class Status(Answer):
    version: str
    node: str
    listen: str
    uptime: float  # seconds
    models: list[Deployed]
    damaged: list[Damaged]
    evicted: list[Evicted]
    audit: AuditState
    connections: int
    policy: PolicyState
    confinement: Confinement
    server_certificate_until: str
    revocation_list_until: str
    certificates_ending_soon: list[Ending]


class Check(Answer):
    """`ok` null: for information."""

    name: str
    ok: bool | None
    message: str
    fix: str


class Checks(Answer):
    checks: list[Check]


class Device(Answer):
    """A GPU or MIG instance, with all that is known of it (`gpus/inventory.py`: Gpu), and its health (`gpus/watch.py`:
    Health)."""

    model_config = ConfigDict(extra="allow")

    uuid: str
    name: str
    index: int | None
    health: dict[str, Any]
    no_code: str = ""  # why the engine does not run on it


class Link(Answer):
    between: list[str]
    kind: str
    level: str
    rank: int


class Gpus(Answer):
    gpus: list[Device]
    gone: list[Device]
    links: list[Link]
    driver: str
    cuda: str
    reason: str
    lost: list[str]
    answered: bool
    absent: bool
    at: str
    ignored: list[str]


class GpuUse(Answer):
    gpu: str
    ignored: bool
    state: str = ""


class Authority(Answer):
    ca_pem: str


class Reloaded(Answer):
    reloaded: bool
    server_certificate_until: str
    revoked_certificates: int
    changed: list[str]
    next_start: list[str]


# --- the routes


async def status(service: Admin) -> Status:
    return Status(**await service.status())


async def doctor(service: Admin) -> Checks:
    return Checks(checks=[Check(**one) for one in await service.doctor.checks()])


async def gpus(service: Admin) -> Gpus:
    return Gpus(**service.cards.shown())


async def use_gpu(body: GpuBody, service: Admin, caller: Caller) -> GpuUse:
    return GpuUse(**await service.cards.use(body.gpu, caller.name))


async def ignore_gpu(body: GpuBody, service: Admin, caller: Caller) -> GpuUse:
    return GpuUse(**await service.cards.ignore(body.gpu, caller.name))


async def ca(service: Admin) -> Authority:
    return Authority(ca_pem=service.authority.ca_pem.decode())


async def reload(service: Admin, caller: Caller) -> Reloaded:
    return Reloaded(reloaded=True, **await service.reload(caller.name))


ROUTES = (
    Route("GET", "/status", status, ADMIN),
    Route("GET", "/doctor", doctor, ADMIN),
    Route("GET", "/gpus", gpus, ADMIN),
    Route("POST", "/gpus/use", use_gpu, ADMIN),
    Route("POST", "/gpus/ignore", ignore_gpu, ADMIN),
    Route("GET", "/ca", ca, ADMIN),
    Route("POST", "/reload", reload, ADMIN),
)
