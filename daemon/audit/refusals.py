"""Who was refused before a model was asked, in the log, and without filling the disk.

The first ten of a minute, for each client and reason, have a row each; the others of that minute are counted in one
row with `more`, which names the models that they were for.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from llmd.daemon.audit.log import AuditLog
from llmd.daemon.errors import LlmdError

WINDOW_SECONDS = 60.0
ROWS_A_WINDOW = 10
# clients and reasons at a time; the next ones share one window
MAX_WINDOWS = 4096
DENIED = "denied by policy"
# models that a row names
MAX_MODELS = 8


@dataclass(slots=True)
class _Window:
    began: float
    count: int = 0
    models: list[str] = field(default_factory=list)  # of those that are only counted

    def named(self) -> str:
        return ", ".join(self.models[:MAX_MODELS]) + (", …" if len(self.models) > MAX_MODELS else "")


class Refusals:
    """The event loop owns it. `clock` gives seconds that only grow."""

    def __init__(self, log: AuditLog, clock: Callable[[], float] = time.monotonic) -> None:
        self._log, self._clock = log, clock
        self._windows: dict[tuple[str, str], _Window] = {}

    def note(
        self, error: LlmdError, principal: str, address: str, *, serial: str = "", route: str = "", model: str = ""
    ) -> None:
        """`principal`: the name that the certificate claims; `model`: the one that was asked for, if it came so far.
        Where the policy forbids, its rule stands there instead of what the client was told."""
        client, reason = principal or address, DENIED if error.rule else error.code
        key = (client, reason)
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
        of = {name: value for name, value in (("model", model), ("rule", error.rule)) if value}
        if window.count <= ROWS_A_WINDOW:
            self._log.event("refused", principal=principal, serial=serial, address=address, route=route,
                            reason=reason, status=error.status, **of)  # fmt: skip
        elif model and model not in window.models and len(window.models) <= MAX_MODELS:
            window.models.append(model)

    def flush(self, *, all_: bool = False) -> None:
        """Count what the minutes that are over left out; called now and then, and with `all_` at the end."""
        for key in [key for key, window in self._windows.items() if all_ or self._over(window)]:
            self._close(key)

    def _over(self, window: _Window) -> bool:
        return self._clock() - window.began >= WINDOW_SECONDS

    def _close(self, key: tuple[str, str]) -> None:
        window = self._windows.pop(key)
        more = window.count - ROWS_A_WINDOW
        if more > 0:
            of = {"model": window.named()} if window.models else {}
            self._log.event("refused", principal=key[0], reason=key[1], more=more, **of)
