"""The tasks that live as long as the daemon. One that fails is told of: the daemon is then not ready, and says why."""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

Work = Callable[[], Coroutine[Any, Any, None]]

log = logging.getLogger("llmd.tasks")


class Tasks:
    """`failed`: the names of the tasks that ended, or last failed, in a way that nobody expected; `dead`: those among
    them that nothing starts again, and without which there is no service."""

    def __init__(self) -> None:
        self.failed: set[str] = set()
        self.dead: set[str] = set()

    def start(self, name: str, work: Work, *, vital: bool = False) -> asyncio.Task[None]:
        """Run `work()` as a task; whoever asked for it cancels it. `vital`: without it there is no service."""
        return asyncio.create_task(self._run(name, work, vital), name=name)

    def unexpected(self, name: str, error: BaseException) -> None:
        """Its cause goes to the log, and the daemon is not ready until `name` works again."""
        self.failed.add(name)
        log.critical(
            "%s failed; this server is not ready until it works again or llmd is restarted", name, exc_info=error
        )

    async def _run(self, name: str, work: Work, vital: bool) -> None:
        try:
            await work()
        except asyncio.CancelledError:
            raise
        except Exception as e:
            self.dead |= {name} if vital else set()
            self.unexpected(name, e)
