"""What is written and counted of requests: the audit log's rows, the refusals, the metrics. One place, for whatever
follows from a request."""

import asyncio
import logging
import secrets
from collections.abc import Callable, Hashable
from dataclasses import dataclass

from llmd.daemon.audit.log import AuditLog
from llmd.daemon.audit.refusals import Refusals
from llmd.daemon.errors import AuditUnavailable, GpuLost, GpuOutOfMemory, LlmdError, WorkerLost
from llmd.daemon.gate import Aside
from llmd.daemon.identity.principal import Principal
from llmd.daemon.metrics import Metrics
from llmd.daemon.serving.ask import Ask
from llmd.daemon.serving.metering import Meter

log = logging.getLogger("llmd.requests")

OUR_FAULTS = frozenset({LlmdError.code, WorkerLost.code, GpuLost.code, GpuOutOfMemory.code})


@dataclass(frozen=True, slots=True)
class Usage:
    """What a request took. `first`: when its first token came, on the loop's clock; None: none did."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    first: float | None = None


NOTHING = Usage()


class Books:
    """Made once, by `Serving`. `digest` tells the SHA-256 of a deployed model's file, "" for any other name;
    `unaudited` whether requests are answered that cannot be logged, as the configuration says now."""

    def __init__(
        self,
        audit: AuditLog,
        metrics: Metrics,
        aside: Aside,
        digest: Callable[[str], str],
        unaudited: Callable[[], bool],
        meter: Meter,
    ) -> None:
        self.audit, self.metrics, self.aside, self.meter = audit, metrics, aside, meter
        self.digest, self.unaudited = digest, unaudited
        self.refusals = Refusals(audit)

    def denied(self, error: LlmdError, by: Principal, route: str) -> None:
        """One that asked no model, where the policy is why."""
        if error.rule:
            self.refusals.note(error, by.name, by.address, serial=by.serial, route=route)

    def open(self, principal: Principal, ask: Ask) -> "Entry":
        return Entry(self, principal, ask)


class Entry:
    """One request's. `ask` names its model."""

    def __init__(self, books: Books, principal: Principal, ask: Ask) -> None:
        self.request_id = "req-" + secrets.token_hex(12)
        self._books, self._principal, self._ask, self._model = books, principal, ask, ask.model or ""
        self._asked = self._written = False
        self.rule = ""  # of the policy, that ended it
        self._read = (0, "", "")  # the prompt's bytes and keyed hash, and the parameters' hash
        self._began = asyncio.get_running_loop().time()

    @property
    def digest(self) -> Hashable:
        """What a client's equal requests have in common, once they are read."""
        return (self._principal.name, self._model, self._ask.route, *self._read[1:])

    async def read(self) -> bytes:
        """The prompt, of which the log has a hash."""
        if self._ask.large:
            prompt, self._read = await self._books.aside.run(self._principal.name, self._digested)
        else:
            prompt, self._read = self._digested()
        return prompt

    async def admit(self) -> None:
        """The `admit` row is on disk when this returns. Raises AuditUnavailable."""
        by, ask = self._principal, self._ask
        size, mac, parameters = self._read
        try:
            await self._books.audit.admit(
                self.request_id,
                principal=by.name,
                serial=by.serial,
                address=by.address,
                route=ask.route,
                dialect=ask.dialect,
                model=self._model,
                digest=self._books.digest(self._model),
                params=parameters,
                prompt_mac=mac,
                prompt_bytes=size,
            )
            self._written = True
        except AuditUnavailable:
            if not self._books.unaudited():
                raise
        self._asked, self._began = True, asyncio.get_running_loop().time()

    def refused(self, error: LlmdError) -> None:
        """Of one that has no `admit` row it is noted; the `finish` row says of the others."""
        by, self.rule = self._principal, error.rule or self.rule
        if not self._asked:
            self._books.refusals.note(
                error, by.name, by.address, serial=by.serial, route=self._ask.route, model=self._model
            )

    def finish(self, outcome: str, error: str | None, used: Usage = NOTHING) -> None:
        """Exactly once."""
        books = self._books
        if error in OUR_FAULTS:
            about = {"request_id": self.request_id, "principal": self._principal.name, "model": self._model}
            log.warning("a request to %s ended with %s", self._model, error, extra=about)
        now = asyncio.get_running_loop().time()
        # a label that a client may choose freely would grow the metrics without bound
        known = self._model if books.digest(self._model) else ""
        books.metrics.outcome(known, outcome)
        if error == LlmdError.code:
            books.metrics.model(known).faults()
        if self._asked:
            tokens = used.prompt_tokens, used.cached_tokens, used.completion_tokens
            books.meter.used(self._principal.name, self._model, *tokens)
        if self._written:
            books.audit.finish(
                self.request_id,
                outcome,
                error=error,
                prompt_tokens=used.prompt_tokens,
                cached_tokens=used.cached_tokens,
                completion_tokens=used.completion_tokens,
                queue_ms=round(1000 * ((used.first or now) - self._began), 3),
                generate_ms=round(1000 * (now - used.first), 3) if used.first is not None else 0.0,
                **({"rule": self.rule} if self.rule else {}),
            )

    def _digested(self) -> tuple[bytes, tuple[int, str, str]]:
        prompt = self._ask.prompt()
        return prompt, (len(prompt), self._books.audit.prompt_mac(prompt), self._ask.parameters())
