"""HTTP/1.1 on one connection: uvicorn's httptools protocol with what it lacks for a hostile network.

Deadlines for a request's head and body, bounds on the head, one valid Host, no upgrades, and the peer's identity handed
on in `scope["extensions"]`. A request that breaks a rule is answered here, before the application sees it. The send
path is uvicorn's own, but for an answer of known length, whose head goes out with its body: a streamed event costs
nothing here.
"""

import asyncio
import functools
import grp
import ipaddress
import json
import logging
import os
import pwd
import re
import socket
import struct
from collections.abc import Sequence
from functools import partial
from typing import Any

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.server import ServerState

from llmd.api.http.error_answers import openai
from llmd.api.http.outgoing import InOne, unchunked
from llmd.daemon import limits
from llmd.daemon.audit.refusals import Refusals
from llmd.daemon.errors import BadRequest, BodyTimeout, CertificateRevoked, Forbidden, LlmdError, NotFound
from llmd.daemon.identity.connections import Connections
from llmd.daemon.identity.pki import PeerIdentity, peer_identity
from llmd.daemon.timers import Judgement

log = logging.getLogger("llmd.http")

ADMIN_GROUP = "llmd-admin"
# a peer that does not take our last words is cut off after this many seconds
LINGER_SECONDS = 2.0

_HOST = re.compile(rb"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9_.-]{1,253})(:\d{1,5})?")


class HeadTooLarge(BadRequest):
    status, code = 431, "head_too_large"


class UriTooLong(BadRequest):
    status, code = 414, "uri_too_long"


class GuardedProtocol(HttpToolsProtocol):
    """Deadlines and bounds. `hosts`: the Host names that are answered; none: any. `scope["extensions"]["abort"]` cuts
    the connection."""

    def __init__(self, config: Config, state: ServerState, hosts: Sequence[str] = ()) -> None:
        super().__init__(config, state, {})
        self._hosts = frozenset(h.lower().encode() for h in hosts)
        self._deadline: Judgement | None = None
        self._stalled: Judgement | None = None  # runs while the send buffer is full
        self._refusal: LlmdError | None = None
        self._extensions: dict[str, Any] = {}
        self._heads = 0  # that have come whole
        self._head_bytes = 0  # of one that has not
        self._framed = 0  # bytes that came for the running request, and are none of its body
        self._body_bytes = 0
        self._in_head = True

    # --- the connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._extensions["abort"] = transport.abort
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._unset_deadline()
        if self._stalled is not None:
            self._stalled.cancel()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stalled = Judgement(limits.WRITE_SECONDS, self._stall, self.loop)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None

    def _stall(self) -> None:
        log.warning("a client took nothing for %.0f s: cut", limits.WRITE_SECONDS)
        self.transport.abort()

    def data_received(self, data: bytes) -> None:
        if self._refusal is not None:
            return
        before = (self._in_head, self._heads)
        self._framed += len(data)
        super().data_received(data)
        if self._refusal is not None or self.transport.is_closing():
            return
        if not self._in_head and self._framed > limits.MAX_FRAME_BYTES + limits.FRAME_SHARE * self._body_bytes:
            self._refuse(BadRequest("the body's chunks are wrapped in far more bytes than they hold"))
        elif before == (True, self._heads):
            self._head_bytes += len(data)
            if self._head_bytes > limits.MAX_HEADER_BYTES + limits.MAX_URI_BYTES:
                self._refuse(HeadTooLarge(f"the request's head is larger than {limits.MAX_HEADER_BYTES} bytes"))

    def send_400_response(self, msg: str) -> None:
        """uvicorn's way out of a parser error; what a callback of ours refused is the more exact word."""
        self._answer(self._refusal or BadRequest("this is not a valid HTTP/1.1 request"))

    # --- the parser's callbacks

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._framed = self._body_bytes = 0
        self.scope["extensions"] = self._extensions
        if self._deadline is None:
            self._expect_head()

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        if len(self.url) > limits.MAX_URI_BYTES:
            self._stop(UriTooLong(f"the request's address is longer than {limits.MAX_URI_BYTES} bytes"))

    def on_header(self, name: bytes, value: bytes) -> None:
        super().on_header(name, value)
        if len(self.headers) > limits.MAX_HEADERS:
            self._stop(HeadTooLarge(f"the request has more than {limits.MAX_HEADERS} headers"))

    def on_headers_complete(self) -> None:
        self._in_head, self._head_bytes, self._heads = False, 0, self._heads + 1
        self._check_head()
        self._set_deadline(limits.BODY_SECONDS, BodyTimeout("the body did not come in time"))
        super().on_headers_complete()
        self.cycle.transport = InOne(self.cycle, self.transport)
        if self.scope["http_version"] == "1.0":
            self.cycle.send = functools.partial(unchunked, self.cycle, self.cycle.send)  # type: ignore[method-assign]

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        self._framed -= len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._unset_deadline()
        self._in_head = True
        super().on_message_complete()

    # --- the rules

    def _check_head(self) -> None:
        if sum(len(n) + len(v) + 4 for n, v in self.headers) > limits.MAX_HEADER_BYTES:
            self._stop(HeadTooLarge(f"the headers are larger than {limits.MAX_HEADER_BYTES} bytes"))
        if self.parser.get_http_version() not in ("1.0", "1.1"):
            self._stop(BadRequest("use HTTP/1.1"))
        if not self.url.startswith(b"/"):
            self._stop(BadRequest("ask for a path, as in GET /v1/models"))
        if b"%2f" in self.url.partition(b"?")[0].lower():  # it would be decoded, and then be another path
            self._stop(NotFound("there is no such route: write the slashes of a path as they are"))
        names = [name for name, _ in self.headers]
        if b"upgrade" in names or self.parser.should_upgrade():
            self._stop(BadRequest("this server does not change protocols; use plain HTTP/1.1"))
        encodings = [value.lower() for name, value in self.headers if name == b"transfer-encoding"]
        if encodings not in ([], [b"chunked"]):
            self._stop(BadRequest("the only transfer encoding is chunked"))
        self._check_host([value for name, value in self.headers if name == b"host"])

    def _check_host(self, values: list[bytes]) -> None:
        if not values and not self._hosts and self.parser.get_http_version() == "1.0":
            return  # it came with HTTP/1.1; health checks of load balancers send none
        if len(values) != 1:
            self._stop(BadRequest("send exactly one Host header"))
        match = _HOST.fullmatch(values[0])
        if match is None:
            self._stop(BadRequest("the Host header is not valid"))
        host = match[1].lower()  # type: ignore[index]
        if host.startswith(b"["):
            try:
                ipaddress.IPv6Address(host[1:-1].decode())
            except ValueError:
                self._stop(BadRequest("the Host header is not valid"))
        if self._hosts and host not in self._hosts:
            self._stop(BadRequest("this server does not answer for that Host"))

    def _stop(self, error: LlmdError) -> None:
        """Out of a parser's callback: the application is not called, and `send_400_response` follows."""
        self._refusal = error
        raise error

    def _refuse(self, error: LlmdError) -> None:
        self._refusal = error
        self._answer(error)

    def _answer(self, error: LlmdError) -> None:
        self._unset_deadline()
        self._unset_keepalive_if_required()
        begun = self.cycle is not None and self.cycle.response_started and not self.cycle.response_complete
        if self.cycle is not None:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if begun:
            self.transport.abort()
            return
        body = json.dumps(openai(error)).encode()
        head = b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(body)
        self.transport.write(STATUS_LINE[error.status] + head + body)
        self.transport.close()
        self.loop.call_later(LINGER_SECONDS, self.transport.abort)

    # --- deadlines

    def _expect_head(self) -> None:
        self._set_deadline(limits.HEADER_SECONDS, BodyTimeout("the request's head did not come in time"))

    def _set_deadline(self, seconds: float, error: LlmdError) -> None:
        self._unset_deadline()
        self._deadline = Judgement(seconds, partial(self._late, error), self.loop)

    def _unset_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _late(self, error: LlmdError) -> None:
        self._deadline = None
        if not self.transport.is_closing():
            self._refuse(error)


class ClientProtocol(GuardedProtocol):
    """A TLS connection: `scope["extensions"]["tls"]` is {"peer": PeerIdentity}."""

    def __init__(
        self,
        config: Config,
        state: ServerState,
        hosts: Sequence[str],
        connections: Connections,
        refusals: Refusals | None,
    ) -> None:
        super().__init__(config, state, hosts)
        self._open_connections, self._refusals = connections, refusals
        self._peer: PeerIdentity | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        _keep_alive(transport.get_extra_info("socket"))
        certificate = transport.get_extra_info("ssl_object").getpeercert(True)
        try:
            peer = peer_identity(certificate or b"")
        except Forbidden:
            transport.abort()
            return
        if not self._open_connections.add(peer.serial, transport):
            transport.abort()
            return
        self._peer = peer
        self._extensions["tls"] = {"peer": peer}
        if peer.serial in self._open_connections.revoked():
            self._refuse(CertificateRevoked("this client certificate is revoked"))  # nothing that it sends is parsed

    def _answer(self, error: LlmdError) -> None:
        if self._peer is not None and self._refusals is not None and isinstance(error, Forbidden | BadRequest):
            address = self.client[0] if self.client else ""
            self._refusals.note(error, self._peer.name, address, serial=f"{self._peer.serial:x}")
        super()._answer(error)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._peer is not None:
            self._open_connections.discard(self._peer.serial, self.transport)
        super().connection_lost(exc)


def _keep_alive(sock: socket.socket) -> None:
    """A peer that is gone without a word is noticed: while nothing is sent by probes, and else by what it does not
    acknowledge."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, limits.PROBE_SECONDS)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, limits.PROBE_SECONDS)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, max(1, limits.PEER_SECONDS // limits.PROBE_SECONDS))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 1000 * limits.PEER_SECONDS)


class AdminProtocol(GuardedProtocol):
    """The admin socket: `scope["extensions"]["peer"]` is {"pid", "uid", "gid"} of the process at the other end, as the
    kernel says. Only root, the daemon's own user and the members of the group llmd-admin are answered."""

    def __init__(self, config: Config, state: ServerState, refusals: Refusals | None) -> None:
        super().__init__(config, state)
        self._refusals = refusals

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        sock: socket.socket = transport.get_extra_info("socket")
        pid, uid, gid = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        self._extensions["peer"] = {"pid": pid, "uid": uid, "gid": gid}
        self._let_in = may_administer(uid, gid)

    def _answer(self, error: LlmdError) -> None:
        if self._refusals is not None and isinstance(error, Forbidden):
            self._refusals.note(error, f"uid:{self._extensions['peer']['uid']}", "local")
        super()._answer(error)

    def _check_head(self) -> None:
        if not self._let_in:
            self._stop(
                Forbidden(
                    f"only root and members of the group {ADMIN_GROUP} may use this socket; ask to be added to it"
                )
            )
        super()._check_head()


def may_administer(uid: int, gid: int) -> bool:
    """Root, this process's own user, and members of the group llmd-admin."""
    if uid in (0, os.getuid()):
        return True
    try:
        group = grp.getgrnam(ADMIN_GROUP)
        return gid == group.gr_gid or pwd.getpwuid(uid).pw_name in group.gr_mem
    except KeyError:
        return False
