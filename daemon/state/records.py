"""What `state.db` holds, a row each. Times are Unix seconds."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Principal:
    """Someone who may connect. `role` is one of infer, operator, admin, auditor."""

    name: str
    role: str
    created: float


@dataclass(frozen=True, slots=True)
class Certificate:
    """A client certificate that the CA issued. `serial` is lower-case hex, `revoked_at` None while it is good."""

    serial: str
    principal: str
    not_before: float
    not_after: float
    revoked_at: float | None
    issued: float


@dataclass(frozen=True, slots=True)
class Model:
    """A name for a model file. `digest` is its SHA-256 in hex, `size` is in bytes, `source` is the file it came
    from."""

    name: str
    digest: str
    size: int
    source: str
    imported: float
    info: dict[str, Any]


def of_form(name: str) -> tuple[str, str | None]:
    """A model's name, and the type of the form where one is named: `MODEL@TYPE`, in whatever case."""
    model, _, kind = name.partition("@")
    return (model, kind.upper()) if model and kind else (name, None)


@dataclass(frozen=True, slots=True)
class Form:
    """A file of a model: as it was imported, or quantized otherwise. `type` is what its weights are, as Q4_K_M."""

    model: str
    type: str
    digest: str
    size: int
    info: dict[str, Any]

    @property
    def name(self) -> str:
        return f"{self.model}@{self.type}"


@dataclass(frozen=True, slots=True)
class Deployment:
    """A model that serves. `ctx` is tokens a slot; None in `ctx` or `slots` means the configuration's default.
    `placement`: where it was put by hand, as `planning/plan.py` names it; empty: nowhere. `replicas`: how many; 0: one
    on each GPU that holds it whole. `evicted`: for which model it made room (`for`), and when (`at`); empty: it
    serves."""

    model: str
    ctx: int | None
    slots: int | None
    created: float
    placement: dict[str, Any]
    replicas: int
    evicted: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Job:
    """Work on a model that takes a while. `state` is queued, running, done, failed or cancelled; `asked` and `result`
    depend on `kind`; `log` is what it said last. `started` and `ended` are None before."""

    id: int
    kind: str
    model: str
    asked: dict[str, Any]
    actor: str
    created: float
    state: str
    started: float | None
    ended: float | None
    error: str
    result: dict[str, Any]
    log: str
