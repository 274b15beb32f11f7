"""What somebody does to the daemon, in the log: a row before it takes effect, and one with its result.

Both rows have the act's kind and its id, `act-…`, as their request. One that a crash interrupts gets the result `lost`
at the next start.
"""

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from llmd.daemon.audit.chain import Value
from llmd.daemon.audit.log import AuditLog
from llmd.daemon.errors import AuditUnavailable, LlmdError


class Acts:
    """`unlogged` tells whether the configuration lets acts happen that cannot be logged."""

    def __init__(self, log: AuditLog, *, unlogged: Callable[[], bool] = lambda: False) -> None:
        self.log, self._unlogged = log, unlogged

    @asynccontextmanager
    async def __call__(
        self, kind: str, actor: str, *, takes_away: bool = False, **fields: Value
    ) -> AsyncIterator[dict[str, Value]]:
        """`async with acts("admin.deploy", actor, model=…) as result`: what is put into `result` stands in the second
        row.

        Raises AuditUnavailable, before anything is done, where the log cannot be written; unless it `takes_away`:
        revoking, and removing what fills the disk, must be possible then too. Its rows wait for the disk.
        """
        request = "act-" + secrets.token_hex(12)
        fields = {"actor": actor, **fields}
        try:
            await self.log.event_durable(kind, request=request, **{**fields, "result": "begun"})
        except AuditUnavailable:
            if not (self._unlogged() or takes_away):
                raise
            self.log.event(kind, request=request, **{**fields, "result": "begun"})
        result: dict[str, Value] = {}
        try:
            yield result
        except BaseException as e:
            self.log.event(kind, request=request, **{**fields, **result, "result": "failed", "error": _code(e)})
            raise
        self.log.event(kind, request=request, **{**fields, **result, "result": "done"})


def _code(error: BaseException) -> str:
    if isinstance(error, asyncio.CancelledError | GeneratorExit):
        return "cancelled"
    return error.code if isinstance(error, LlmdError) else LlmdError.code
