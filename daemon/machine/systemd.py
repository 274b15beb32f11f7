"""What systemd is told: that llmd serves, how it does, and again and again that it lives.

The package has systemd's own bindings (systemd-python). A checkout need not have them, and started by hand nobody
listens: then nothing is told.
"""

import asyncio
import logging
import os
import socket
from collections.abc import Awaitable, Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from llmd.daemon.timers import LATE_SECONDS

log = logging.getLogger("llmd.systemd")

STATUS_SECONDS = 10.0  # where no watchdog asks


def bindings(part: str) -> Any:
    """A part of systemd's bindings; None: they are not installed."""
    try:
        return import_module(f"systemd.{part}")
    except ImportError:
        return None


def notify(**told: object) -> bool:
    """As sd_notify(3) names it: `notify(READY=1, STATUS="…")`. Whether somebody listens."""
    daemon = bindings("daemon") if os.environ.get("NOTIFY_SOCKET") else None
    return bool(daemon and daemon.notify("\n".join(f"{name}={value}" for name, value in told.items())))


def sockets() -> list[socket.socket]:
    """What systemd listens on for this process (llmd.socket). It is given once."""
    daemon = bindings("daemon") if os.environ.get("LISTEN_PID") == str(os.getpid()) else None
    return [socket.socket(fileno=fd) for fd in daemon.listen_fds()] if daemon else []


def credential(name: str) -> Path | None:
    """A file that systemd hands in for this service alone (LoadCredential=); None: it does not."""
    folder = os.environ.get("CREDENTIALS_DIRECTORY")
    file = Path(folder, name) if folder else None
    return file if file and file.exists() else None


def deadline() -> float:
    """Seconds in which systemd wants to hear from this process again; 0: it does not."""
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return 0.0
    return int(os.environ.get("WATCHDOG_USEC") or 0) / 1e6


class Watchdog:
    """`await run()`, for as long as the daemon serves. It runs in the daemon's event loop, which is thereby alive;
    `dead` names another part that nothing works without and that is not alive, "": all are. While one does not answer,
    systemd is not told, and once its deadline is over it ends the daemon and starts it again."""

    def __init__(self, dead: Callable[[], Awaitable[str]], status: Callable[[], str]) -> None:
        self._ask, self._status = dead, status
        self._dead = ""

    async def run(self) -> None:
        every = deadline() / 3 or STATUS_SECONDS
        while True:
            await self.tell(every)
            await asyncio.sleep(every)

    async def tell(self, patience: float) -> None:
        dead = await self._found(patience)
        if dead and dead != self._dead:
            log.critical("systemd is not told any more that llmd lives: %s", dead)
        self._dead = dead
        if dead:
            notify(STATUS=f"failing: {dead}")
        else:
            notify(WATCHDOG=1, STATUS=self._status())

    async def _found(self, patience: float) -> str:
        """What is dead. Where this process itself stood still, what has answered meanwhile is read before."""
        clock = asyncio.get_running_loop().time
        while True:
            late = clock() + patience + LATE_SECONDS
            try:
                async with asyncio.timeout(patience):
                    return await self._ask()
            except TimeoutError:
                if clock() < late:
                    return "a part that does not answer"
