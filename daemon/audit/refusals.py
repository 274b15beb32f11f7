"""Who was refused before there was a request to a model, in the log, and without filling the disk.

The first ten of a minute, for each client and reason, have a row each; the others of that minute are counted in one
row with `more`.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

from llmd.daemon.audit.log import AuditLog
from llmd.daemon.errors import LlmdError

WINDOW_SECONDS = 60.0
ROWS_A_WINDOW = 10
# clients and reasons at a time; the next ones share one window
MAX_WINDOWS = 4096


@dataclass(slots=True)
class _Window:
    began: float
    count: int = 0


class Refusals:
    """The event loop owns it. `clock` gives seconds that only grow."""

    def __init__(self, log: AuditLog, clock: Callable[[], float] = time.monotonic) -> None:
        self._log, self._clock = log, clock
        self._windows: dict[tuple[str, str], _Window] = {}

    def note(self, error: LlmdError, principal: str, address: str, *, serial: str = "", route: str = "") -> None:
        """`principal`: the name that the certificate claims."""
        client = principal or address
        key = (client, error.code)
        if key not in self._windows and len(self._windows) >= MAX_WINDOWS:
            self.flush()
            key = key if len(self._windows) < MAX_WINDOWS else ("", "")
        window = self._windows.get(key)
        if window is not None and self._over(window):
            self._close(key)
            window = None
        if window is None:
            window = self._windows[key] = _Window(self._clock())
        window.count += 1
        if window.count <= ROWS_A_WINDOW:
            self._log.event("refused", principal=principal, serial=serial, address=address, route=route,
                            reason=error.code, status=error.status)  # fmt: skip

    def flush(self, *, all_: bool = False) -> None:
        """Count what the minutes that are over left out; called now and then, and with `all_` at the end."""
        for key in [key for key, window in self._windows.items() if all_ or self._over(window)]:
            self._close(key)

    def _over(self, window: _Window) -> bool:
        return self._clock() - window.began >= WINDOW_SECONDS

    def _close(self, key: tuple[str, str]) -> None:
        more = self._windows.pop(key).count - ROWS_A_WINDOW
        if more > 0:
            self._log.event("refused", principal=key[0], reason=key[1], more=more)
