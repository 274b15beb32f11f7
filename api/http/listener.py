"""Serves one ASGI application on a TCP or Unix socket, in the daemon's own event loop and without signal handlers of
its own."""

import asyncio
import errno
import functools
import logging
import os
import socket
import ssl as ssl_module
import stat
import time
from collections.abc import Callable, Sequence
from email.utils import formatdate
from pathlib import Path
from typing import Any

from uvicorn.config import Config
from uvicorn.server import ServerState

from llmd.api.http.handshakes import Handshakes
from llmd.api.http.protocol import AdminProtocol, ClientProtocol
from llmd.daemon import limits
from llmd.daemon.audit.refusals import Refusals
from llmd.daemon.errors import Conflict
from llmd.daemon.identity.connections import Connections
from llmd.daemon.tasks import Tasks

log = logging.getLogger("llmd.http")

BACKLOG = 2048
# what to do where an address cannot be had
FIXES = {
    errno.EADDRINUSE: "end what listens there (ss -ltnp shows it), or give another listen",
    errno.EADDRNOTAVAIL: "give an address that this machine has (ip address shows them), or 0.0.0.0 for all",
    errno.EACCES: "ports below 1024 are for root, and for systemd's llmd.socket: give another listen",
}


class Listener:
    """`await start(host, port)` for TLS, or `await start_unix(path, mode)`; then `await stop(grace)`. `ssl` gives the
    context of the next handshake, `hosts` the Host headers that its connection may send; none: any."""

    def __init__(
        self,
        app: Any,
        *,
        ssl: Callable[[], ssl_module.SSLContext] | None = None,
        connections: Connections | None = None,
        refusals: Refusals | None = None,
        hosts: Callable[[], Sequence[str]] = tuple,
        tasks: Tasks | None = None,
    ) -> None:
        # proxy_headers would let any client choose the address that the audit log shows
        self._config = Config(
            app,
            lifespan="off",
            log_config=None,
            access_log=False,
            ws="none",
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=int(limits.KEEP_ALIVE_SECONDS),
        )
        self._config.load()
        self._ssl, self._hosts, self._open = ssl, hosts, connections or Connections()
        self._refusals = refusals
        self._state = ServerState()
        self._server: asyncio.Server | None = None
        self._sockets: list[socket.socket] = []
        self._handshakes: Handshakes | None = None
        self._accepting: list[asyncio.Task[None]] = []
        self._clock: asyncio.Task[None] | None = None
        self._tasks = tasks or Tasks()

    @property
    def port(self) -> int:
        return int(self._sockets[0].getsockname()[1])

    async def start(self, host: str, port: int, given: Sequence[socket.socket] = ()) -> None:
        """Listen with TLS, on sockets that are `given` for that address where there are any. Raises OSError when the
        address cannot be had, Conflict where the given ones are another's."""
        loop = asyncio.get_running_loop()

        def make() -> ClientProtocol:
            return ClientProtocol(self._config, self._state, self._hosts(), self._open, self._refusals)

        async def shake(connection: socket.socket) -> object:
            return await loop.connect_accepted_socket(
                make,
                connection,
                ssl=self._ssl() if self._ssl else None,
                ssl_handshake_timeout=limits.HANDSHAKE_SECONDS,
                ssl_shutdown_timeout=1.0,
            )

        self._sockets = await _taken(given, host, port) if given else await _listening(host, port)
        self._handshakes = handshakes = Handshakes(shake)
        self._accepting = [
            self._tasks.start("accepting", functools.partial(self._accept, listening, handshakes), vital=True)
            for listening in self._sockets
        ]
        self._begin()

    async def _accept(self, listening: socket.socket, handshakes: Handshakes) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, address = await loop.sock_accept(listening)
            except OSError as e:  # no descriptor is left, or the peer is gone already
                log.warning("a connection could not be accepted: %s", e.strerror)
                await asyncio.sleep(0.05)
                continue
            connection.setblocking(False)
            handshakes.begin(connection, address[0], self._open.count + handshakes.count < self._open.most)

    async def start_unix(self, path: Path, mode: int, group: int = -1) -> None:
        """Listen on a Unix socket, which `group` owns (-1: this process' own). A socket that nobody serves any more is
        replaced; raises Conflict when somebody does."""
        _clear(path)
        make = functools.partial(AdminProtocol, self._config, self._state, self._refusals)
        server = await asyncio.get_running_loop().create_unix_server(make, str(path), backlog=64)
        os.chown(path, -1, group)
        path.chmod(mode)
        self._server = server
        self._begin()

    async def stop(self, grace: float) -> None:
        """Stop accepting, let running responses finish for `grace` seconds, then cut what is left."""
        if self._server is None and not self._sockets:
            return
        for accepting in self._accepting:
            accepting.cancel()
        await asyncio.gather(*self._accepting, return_exceptions=True)
        for listening in self._sockets:
            listening.close()
        if self._handshakes:
            self._handshakes.stop()
        if self._server:
            self._server.close()
        for connection in list(self._state.connections):
            connection.shutdown()
        await self._until(lambda: not self._state.connections, grace)
        for connection in list(self._state.connections):
            connection.transport.abort()
        # an application that was cut off still closes its books
        await self._until(lambda: not self._state.tasks, 1.0)
        for task in list(self._state.tasks):
            task.cancel()
        if self._clock:
            self._clock.cancel()

    def _begin(self) -> None:
        self._clock = self._tasks.start("date header", self._date)

    async def _date(self) -> None:
        while True:
            self._state.default_headers = [(b"date", formatdate(time.time(), usegmt=True).encode())]
            await asyncio.sleep(1.0)

    async def _until(self, done: Callable[[], bool], seconds: float) -> None:
        deadline = asyncio.get_running_loop().time() + seconds
        while not done() and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0.02)


async def _addresses(host: str, port: int) -> list[tuple[int, tuple[Any, ...]]]:
    """Family and address, of all that `host` has."""
    found = await asyncio.get_running_loop().getaddrinfo(
        host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    return list(dict.fromkeys((family, address) for family, _, _, _, address in found))


async def _taken(given: Sequence[socket.socket], host: str, port: int) -> list[socket.socket]:
    held = {one.getsockname()[:2] for one in given}
    if held != {address[:2] for _, address in await _addresses(host, port)}:
        on = ", ".join(f"{address}:{number}" for address, number in sorted(held))
        raise Conflict(
            f"listen is {host}:{port}, and systemd listens on {on}: systemctl daemon-reload, then systemctl restart "
            "llmd.socket"
        )
    for one in given:
        one.setblocking(False)
    return list(given)


async def _listening(host: str, port: int) -> list[socket.socket]:
    """A socket for each address of `host`. Raises OSError when one cannot be had, with what to do."""
    sockets: list[socket.socket] = []
    try:
        for family, address in await _addresses(host, port):
            # without a port of its own choice, every address has the first one's
            chosen = (address[0], sockets[0].getsockname()[1] if sockets else address[1], *address[2:])
            listening = socket.create_server(chosen, family=family, backlog=BACKLOG)
            sockets.append(listening)
            listening.setblocking(False)
    except OSError as e:
        for listening in sockets:
            listening.close()
        fix = FIXES.get(e.errno or 0, "give another listen")
        why = e.strerror if isinstance(e, socket.gaierror) else os.strerror(e.errno or 0)
        raise OSError(e.errno, f"{host}:{port}: {why}: {fix}") from e
    return sockets


def _clear(path: Path) -> None:
    if not path.exists() or not stat.S_ISSOCK(path.stat().st_mode):
        return
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            path.unlink()
            return
    raise Conflict("another daemon serves the admin socket")
