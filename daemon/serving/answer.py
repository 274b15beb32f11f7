"""One request to a model from its `admit` row to its `finish` row: exactly one of each, whatever happens between."""

import asyncio
import secrets
from dataclasses import dataclass
from typing import Any

from llmd.daemon.audit.log import AuditLog
from llmd.daemon.engine.messages import (
    Detokenize,
    Detokenized,
    Event,
    Failed,
    Finished,
    Generate,
    Started,
    Text,
    Tokenize,
    Tokenized,
)
from llmd.daemon.errors import AuditUnavailable, LlmdError, from_wire
from llmd.daemon.identity.principal import Principal
from llmd.daemon.metrics import Metrics
from llmd.daemon.serving.pool import Pool
from llmd.daemon.serving.worker import Stream


@dataclass(slots=True)
class Parts:
    """What an exchange works with. Made once, by `main`."""

    pool: Pool
    audit: AuditLog
    metrics: Metrics
    serve_unaudited: bool = False


class Exchange:
    """`await admit()`, `await begin()`, then `next()` until `ended`; `close()` in a finally."""

    def __init__(self, parts: Parts, principal: Principal, route: str, model: str, choices: int = 1) -> None:
        self.request_id = "req-" + secrets.token_hex(12)
        self.model = model
        self.choices = choices
        self.prompt_tokens = 0
        self.cached_tokens = 0
        self._parts, self._principal, self._route = parts, principal, route
        self._stream: Stream | None = None
        self._admitted = False
        self._closed = False
        self._rest: list[Event] = []
        self._error: str | None = None
        self._finishes: set[str] = set()
        self._began = asyncio.get_running_loop().time()

    @property
    def ended(self) -> bool:
        """Everything has been read: every choice's finish, or the error."""
        return self._stream is not None and self._stream.read_out and not self._rest

    # --- in order

    async def admit(self, prompt: bytes, params: str = "") -> None:
        """Write the `admit` row; it is on disk when this returns. Raises AuditUnavailable, ModelNotFound."""
        audit = self._parts.audit
        try:
            digest = self._parts.pool.find(self.model).digest
            missing: LlmdError | None = None
        except LlmdError as e:
            digest, missing = "", e
        try:
            await audit.admit(
                self.request_id, principal=self._principal.name, serial=self._principal.serial,
                address=self._principal.address,
                route=self._route, model=self.model, digest=digest, params=params,
                prompt_mac=audit.prompt_mac(prompt), prompt_bytes=len(prompt),
            )  # fmt: skip
            self._admitted = True
        except AuditUnavailable:
            if not self._parts.serve_unaudited:
                raise
        if missing:
            raise missing

    async def begin(self, work: Generate) -> None:
        """Send it to the model and wait until the worker has taken the prompt. Raises the LlmdError that refuses it."""
        self._began = asyncio.get_running_loop().time()
        self._stream = self._parts.pool.open(self.model, self._principal.name, work)
        first, *rest = await self._stream.next()
        self._note([first, *rest])
        if isinstance(first, Failed):
            raise from_wire(first.code, first.message, first.param)
        self._rest = rest

    async def next(self) -> list[Event]:
        """Events since the last call: Text and Finished, or a Failed as the last."""
        if self._rest:
            rest, self._rest = self._rest, []
            return rest
        assert self._stream is not None
        events = await self._stream.next()
        self._note(events)
        return events

    async def reply(self, work: Tokenize | Detokenize) -> Tokenized | Detokenized:
        """Tokenize or detokenize by the model's worker."""
        self._stream = self._parts.pool.open(self.model, self._principal.name, work)
        (event,) = await self._stream.next()
        if isinstance(event, Failed):
            raise from_wire(event.code, event.message, event.param)
        assert isinstance(event, Tokenized | Detokenized)
        self._finishes.add("ok")
        return event

    def fail(self, error: Exception) -> None:
        """It was refused or broke before an event could say so."""
        self._finish("error", error.code if isinstance(error, LlmdError) else LlmdError.code)

    def close(self) -> None:
        """Exactly one `finish` row is written, by the first of `fail` and `close`. Work that still runs is
        cancelled."""
        running = self._stream is not None and not self._stream.ended
        if self._stream is not None:
            self._stream.cancel()
        if self._error:
            self._finish("error", self._error)
        elif running or not self._finishes:
            self._finish("cancelled", None)
        else:
            self._finish("length" if "length" in self._finishes else min(self._finishes), None)

    def usage(self) -> dict[str, Any]:
        completion = sum(self._stream.tokens) if self._stream else 0
        return {
            "prompt_tokens": self.prompt_tokens, "completion_tokens": completion,
            "total_tokens": self.prompt_tokens + completion,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
        }  # fmt: skip

    # --- inside

    def _note(self, events: list[Event]) -> None:
        for event in events:
            match event:
                case Started():
                    self.prompt_tokens = event.prompt_tokens
                case Text():
                    self._cached(event)
                case Finished():
                    self._cached(event)
                    self._finishes.add(event.reason)
                case Failed():
                    self._error = event.code

    def _cached(self, event: Text | Finished) -> None:
        if event.choice == 0:
            self.cached_tokens = max(self.cached_tokens, event.cached)

    def _finish(self, outcome: str, error: str | None) -> None:
        if self._closed:
            return
        self._closed = True
        self._parts.metrics.outcome(self.model if self._known() else "", outcome)
        stream, now = self._stream, asyncio.get_running_loop().time()
        first = stream.first if stream else None
        if first is not None:
            self._parts.pool.took(self.model, now - first)
        if self._admitted:
            self._parts.audit.finish(
                self.request_id, outcome, error=error, prompt_tokens=self.prompt_tokens,
                cached_tokens=self.cached_tokens,
                completion_tokens=sum(stream.tokens) if stream else 0,
                queue_ms=round(1000 * ((first or now) - self._began), 3),
                generate_ms=round(1000 * (now - first), 3) if first is not None else 0.0,
            )  # fmt: skip

    def _known(self) -> bool:
        """A label that a client may choose freely would grow the metrics without bound."""
        try:
            self._parts.pool.find(self.model)
        except LlmdError:
            return False
        return True
