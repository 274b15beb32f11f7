"""What somebody wants of a model. A dialect makes it of a body that it has validated; nothing is validated again."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace

from llmd.daemon.identity.policy import UNBOUND, Bounds, Limit
from llmd.daemon.wire.work import Schema, Work


@dataclass(frozen=True, slots=True)
class Ask:
    """`route` is how the audit log names the way it came, `model` None the only model there is. The last ones are set
    as it is taken in (`access.py`): `form`, the type of one of the model's forms, where MODEL@TYPE was asked for;
    `forms`, those that may answer, None all of them; `bounds` of its answers; `weight`, of who asks, among others who
    wait; `counts`, the limits that count it."""

    route: str
    model: str | None
    work: Work
    deadline: float | None = None  # seconds until its last event; None: as long as such work may take
    large: bool = False  # whatever walks over it holds up others
    dialect: str = ""  # whose request it was made of
    form: str | None = None
    forms: frozenset[str] | None = None
    bounds: Bounds = UNBOUND
    weight: float = 1.0
    counts: tuple[tuple[int, Limit], ...] = ()

    @property
    def seconds(self) -> float:
        """Until its last event."""
        return self.work.seconds if self.deadline is None else self.deadline

    def schemas(self) -> list[Schema]:
        """The JSON schemas that it is to be held to."""
        return self.work.schemas()

    def held_to(self, schemas: Mapping[int, str]) -> "Ask":
        """With other ones than `schemas()`, by their number."""
        return replace(self, work=self.work.held_to(schemas)) if schemas else self

    def prompt(self) -> bytes:
        """What the audit log's keyed hash covers."""
        return self.work.spelled()

    def parameters(self) -> str:
        """SHA-256 of everything in it but the prompts themselves: equal ones have equal hashes. "" where that is
        nothing."""
        said = self.work.said()
        return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest() if said else ""
