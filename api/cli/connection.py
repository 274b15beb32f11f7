"""HTTP over the daemon's admin socket, with the standard library alone: `llmctl` starts quickly and needs nothing
else."""

import http.client
import json
import socket
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlencode


class DaemonError(Exception):
    """What the daemon answered, for the person at the terminal."""

    def __init__(self, message: str, code: str = "") -> None:
        super().__init__(message)
        self.code = code


class NoDaemon(Exception):
    """Nobody answers on the socket; the message says what to do."""


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("llmd")
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(self._path)


class Client:
    """One daemon's admin socket. Raises NoDaemon and DaemonError."""

    def __init__(self, path: str) -> None:
        self.path = path

    def call(self, method: str, route: str, body: Any = None, **query: Any) -> dict[str, Any]:
        """One request, one JSON answer."""
        with self._open(method, route, body, query) as response:
            answer: dict[str, Any] = json.loads(response.read() or b"{}")
        return answer

    def events(self, method: str, route: str, body: Any = None, **query: Any) -> Iterator[dict[str, Any]]:
        """One request that is answered by Server-Sent Events: their data until the end or [DONE]; an error is
        raised."""
        with self._open(method, route, body, query) as response:
            for line in response:
                if not line.startswith(b"data:"):
                    continue
                data = line[5:].strip()
                if data == b"[DONE]":
                    return
                value = json.loads(data)
                if "error" in value:
                    raise DaemonError(value["error"]["message"], value["error"]["code"])
                yield value

    def _open(self, method: str, route: str, body: Any, query: dict[str, Any]) -> http.client.HTTPResponse:
        given = {k: v for k, v in query.items() if v is not None}
        connection = _UnixConnection(self.path)
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
            raise NoDaemon(f"{self.path} may not be used by you; ask to be added to the group llmd-admin") from e
        except ConnectionRefusedError as e:
            raise NoDaemon(f"nobody answers on {self.path}; start llmd") from e
        except (OSError, http.client.HTTPException) as e:
            raise NoDaemon(f"the daemon broke off ({type(e).__name__}); see its log") from e
        if response.status >= 400:
            raise _refusal(response)
        return response


def _refusal(response: http.client.HTTPResponse) -> DaemonError:
    try:
        error = json.loads(response.read())["error"]
        return DaemonError(error["message"], error["code"])
    except (ValueError, KeyError, TypeError):
        return DaemonError(f"the daemon answered {response.status} {response.reason}")
