"""What `state.db` holds, a row each. Times are Unix seconds."""

from dataclasses import dataclass
from typing import Any

import msgspec


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


@dataclass(slots=True)
class Used:
    """What a client, then in these groups (their names, joined by commas), used of a model on a day. `seconds` of each
    GPU or core, energy in `joules`. A client and model of "" are nobody's."""

    day: str
    client: str
    groups: str
    model: str
    requests: int = 0
    prompt: int = 0  # tokens
    cached: int = 0  # of those, found in shared prefixes
    output: int = 0
    seconds: float = 0.0
    joules: float = 0.0


class Proof(msgspec.Struct, frozen=True, omit_defaults=True):
    """How the first `tokens` logits of a converted file differ from its original's: `difference` as a share of theirs,
    `kl` in nats; `same_tokens`: its tokenizer cuts a sample as the original's. Or why it is `unproven`."""

    difference: float | None = None
    kl: float | None = None
    tokens: int | None = None
    same_tokens: bool | None = None
    unproven: str = ""


class Converted(msgspec.Struct, frozen=True, omit_defaults=True, rename={"of": "from"}):
    """From which architecture a file was converted, by which versions; `method`: how its weights were packed there."""

    of: str
    method: str = ""
    llama_cpp: str = ""
    llmd: str = ""


class Made(msgspec.Struct, frozen=True, rename={"of": "from"}):
    """From which file (a digest) a form was made, as what, by which versions."""

    of: str
    type: str
    llama_cpp: str
    llmd: str


class Info(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is known of a model's file. The fields down to `shape` are what its check tells (`quantize/check.py`:
    INFO_FIELDS), those down to `tried` its trial (`models/checking.py`: None where it was never tried, as before there
    were trials); an admin says `syntax_said`; the others tell where it comes from."""

    architecture: str = ""
    name: str = ""
    parameters: int = 0
    file_type: str = ""
    context_length: int = 0  # tokens
    embedding_length: int = 0
    block_count: int = 0
    vocab: int = 0
    chat_template: bool = False
    size: int = 0  # bytes
    generation: dict[str, int | float] = {}
    shape: dict[str, Any] | None = None
    conversations: dict[str, str] | None = None
    laid: dict[str, str] | None = None
    syntax: str | None = None
    ends: list[str] | None = None
    tried: bool | None = None
    syntax_said: str = ""
    proof: Proof | None = None
    converted: Converted | None = None
    made: Made | None = None

    def but(self, **changes: Any) -> "Info":
        return msgspec.structs.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """As JSON; without what nobody said."""
        told: dict[str, Any] = msgspec.to_builtins(self)
        return told


@dataclass(frozen=True, slots=True)
class Model:
    """A name for a model file. `digest` is its SHA-256 in hex, `size` is in bytes, `source` is the file it came
    from."""

    name: str
    digest: str
    size: int
    source: str
    imported: float
    info: Info


def of_form(name: str) -> tuple[str, str | None]:
    """A model's name, and the type of the form where one is named: `MODEL@TYPE`, in whatever case."""
    model, _, kind = name.partition("@")
    return (model, kind.upper()) if model and kind else (name, None)


def type_of(name: str) -> str:
    """The type that a form's name ends with; "" where it has none."""
    return of_form(name)[1] or ""


@dataclass(frozen=True, slots=True)
class Form:
    """A file of a model: as it was imported, or quantized otherwise. `type` is what its weights are, as Q4_K_M."""

    model: str
    type: str
    digest: str
    size: int
    info: Info

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
class PolicyText:
    """A policy that held from `created` on until the next one; `text` is as `identity/policy_text.py` reads it, "":
    there was none. `actor` is who set it."""

    version: int
    created: float
    actor: str
    text: str


@dataclass(frozen=True, slots=True)
class Job:
    """Work on a model that takes a while. `state` is queued, running, done, failed or cancelled; its `kind` says what
    `asked` and `result` are (`jobs/`); `log` is what it said last. `started` and `ended` are None before."""

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
