"""HTTP over the daemon's admin socket, with the standard library alone: `llmctl` starts quickly and needs nothing
else."""

import http.client
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

# where a daemon's socket is looked for first
SOCKETS = (".llmd/admin.sock", "/run/llmd/admin.sock")
LISTENING = "00010000"  # the kernel's flag of a socket that accepts


class DaemonError(Exception):
    """What the daemon answered, for the person at the terminal."""

    def __init__(self, message: str, code: str = "") -> None:
        super().__init__(message)
        self.code = code


class NoDaemon(Exception):
    """Nobody answers on the socket; the message says what to do."""


def find() -> str:
    """The socket of the daemon on this machine:

    1. the first of SOCKETS on which somebody listens;
    2. another admin.sock on which a daemon of this user or of root listens, where there is one; several: NoDaemon;
    3. the first of SOCKETS that is there, for the error that says what is wrong with it.
    """
    live = _listening()
    for path in SOCKETS:
        if os.path.abspath(path) in live:
            return path  # 1
    others = sorted(path for path in live if os.path.basename(path) == "admin.sock" and _trusted(path))
    if len(others) > 1:
        raise NoDaemon(f"several daemons run here; name one with --socket: {', '.join(others)}")
    if others:
        return others[0]  # 2
    return next((path for path in SOCKETS if _there(path)), SOCKETS[-1])  # 3


def _listening() -> set[str]:
    """The paths of the Unix sockets that accept connections."""
    try:
        lines = Path("/proc/net/unix").read_text(errors="surrogateescape").splitlines()[1:]
    except OSError:
        return set()
    fields = (line.split(maxsplit=7) for line in lines)
    return {f[7] for f in fields if len(f) == 8 and f[3] == LISTENING and f[7].startswith("/")}


def _trusted(path: str) -> bool:
    """Anybody may listen on a socket of that name: prompts go to root's and one's own only."""
    try:
        return os.stat(path).st_uid in (0, os.getuid())
    except OSError:
        return False


def _there(path: str) -> bool:
    try:
        os.stat(path)
    except PermissionError:
        return True  # in a folder that this user may not look into: connecting says so
    except OSError:
        return False
    return True


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("llmd")
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(self._path)


class Client:
    """One daemon's admin socket. Raises NoDaemon and DaemonError."""

    def __init__(self, path: str | None = None) -> None:
        self._given = path

    @cached_property
    def path(self) -> str:
        """As it was given, or found; not every command asks a daemon."""
        return self._given or find()

    def call(self, method: str, route: str, body: Any = None, **query: Any) -> dict[str, Any]:
        """One request, one JSON answer."""
        with self._open(method, route, body, query) as response, _whole():
            answer: dict[str, Any] = json.loads(response.read())
        return answer

    def events(self, method: str, route: str, body: Any = None, **query: Any) -> Iterator[dict[str, Any]]:
        """One request that is answered by Server-Sent Events: their data until [DONE]; an error is raised."""
        with self._open(method, route, body, query) as response:
            lines = iter(response)
            while True:
                with _whole():
                    line = next(lines)
                    data = line[5:].strip() if line.startswith(b"data:") else b""
                    if data == b"[DONE]":
                        return
                    value = json.loads(data) if data else None
                if value and "error" in value:
                    raise DaemonError(value["error"]["message"], value["error"]["code"])
                if value:
                    yield value

    @contextmanager
    def _open(self, method: str, route: str, body: Any, query: dict[str, Any]) -> Iterator[http.client.HTTPResponse]:
        connection = _UnixConnection(self.path)
        try:
            yield self._asked(connection, method, route, body, query)
        finally:
            connection.close()

    def _asked(
        self, connection: "_UnixConnection", method: str, route: str, body: Any, query: dict[str, Any]
    ) -> http.client.HTTPResponse:
        given = {k: v for k, v in query.items() if v is not None}
        try:
            connection.request(
                method,
                route + (f"?{urlencode(given)}" if given else ""),
                None if body is None else json.dumps(body),
                {"Content-Type": "application/json"},
            )
            response = connection.getresponse()
        except FileNotFoundError as e:
            raise NoDaemon(
                f"no daemon here: {self.path} does not exist; start llmd, or name its socket with --socket"
            ) from e
        except PermissionError as e:
            raise NoDaemon(
                f"{self.path} may not be used by you; ask to be added to the group llmd-admin, or be root"
            ) from e
        except ConnectionRefusedError as e:
            raise NoDaemon(f"nobody answers on {self.path}; start llmd") from e
        except (OSError, http.client.HTTPException) as e:
            raise NoDaemon(f"the daemon broke off ({type(e).__name__}); see its log") from e
        if response.status >= 400:
            raise _refusal(response)
        return response


@contextmanager
def _whole() -> Iterator[None]:
    """Raises NoDaemon for an answer that ends before its end."""
    try:
        yield
    except (OSError, http.client.HTTPException, ValueError, StopIteration) as e:
        raise NoDaemon("the daemon broke off in the middle of its answer; see its log and `llmctl status`") from e


def _refusal(response: http.client.HTTPResponse) -> DaemonError:
    try:
        error = json.loads(response.read())["error"]
        return DaemonError(error["message"], error["code"])
    except (ValueError, KeyError, TypeError):
        return DaemonError(f"the daemon answered {response.status} {response.reason}")
