"""Timers that judge others: whoever did not speak in time. Where this process itself has stood still, what came
meanwhile is read before."""

import asyncio
from collections.abc import Callable

LATE_SECONDS = 0.5  # a timer that fires so late: the loop has stood still
GRACE_SECONDS = 1.0  # in which it reads what has come


class Judgement:
    """`judge` is called after `seconds`, unless it is cancelled."""

    def __init__(
        self, seconds: float, judge: Callable[[], None], loop: asyncio.AbstractEventLoop | None = None
    ) -> None:
        self._loop, self._judge = loop or asyncio.get_running_loop(), judge
        self._set(seconds)

    def _set(self, seconds: float) -> None:
        self._due = self._loop.time() + seconds
        self._handle = self._loop.call_later(seconds, self._fire)

    def _fire(self) -> None:
        if self._loop.time() > self._due + LATE_SECONDS:
            self._set(GRACE_SECONDS)
        else:
            self._judge()

    def cancel(self) -> None:
        self._handle.cancel()
