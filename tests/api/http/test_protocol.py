"""A real listener with real mutual TLS: who gets in, who is put out, and what a connection may do."""

import asyncio
import os
import socket
import ssl
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trustme
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.types import Receive, Scope, Send

from llmd.api.http import protocol
from llmd.api.http.listener import Listener
from llmd.api.http.streams import EventStream, Opened, WholeJson, event
from llmd.daemon import limits
from llmd.daemon.errors import Conflict
from llmd.daemon.identity.connections import Connections
from llmd.daemon.identity.pki import Authority, IssuedClient
from llmd.daemon.identity.tls import ServerTls

GET = b"GET /echo HTTP/1.1\r\nHost: localhost\r\n\r\n"


async def echo(request: Request) -> Response:
    tls_info = request.scope["extensions"]["tls"]["peer"]
    return JSONResponse({"uri": tls_info.uri, "body": (await request.body()).decode(), "path": request.url.path})


async def stream(request: Request) -> Response:
    async def parts() -> AsyncIterator[bytes]:
        for i in range(1000):
            yield b"data: %d%s\n\n" % (i, b"x" * int(request.query_params.get("size", "0")))
            await asyncio.sleep(0.01)

    return StreamingResponse(parts(), media_type="text/event-stream")


async def large(request: Request) -> Response:
    return WholeJson([b"x" * 65536] * 200, {})


async def short(request: Request) -> Response:
    async def events() -> AsyncIterator[bytes]:
        for i in range(3):
            yield event(str(i))

    @asynccontextmanager
    async def opening() -> AsyncIterator[Opened]:
        yield Opened({}, events())

    return EventStream(opening())


async def half(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"9")]})


@dataclass
class Server:
    folder: Path
    authority: Authority
    tls: ServerTls
    connections: Connections
    listener: Listener

    def client(self, issued: IssuedClient | None = None) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(self.folder / "ca.crt"))
        if issued:
            file = self.folder / f"test-{issued.serial}.pem"
            file.write_bytes(issued.key_pem + issued.certificate_pem)
            context.load_cert_chain(file)
        return context

    async def open(self, context: ssl.SSLContext | None = None) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        context = context or self.client(self.authority.issue_client("alice"))
        return await asyncio.open_connection("127.0.0.1", self.listener.port, ssl=context, server_hostname="localhost")


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    authority = Authority.open(tmp_path, "node")
    tls = ServerTls(authority, tmp_path)
    connections = Connections(revoked=lambda: authority.revoked)
    app = Starlette(
        routes=[
            Route("/echo", echo, methods=["GET", "POST"]),
            Route("/stream", stream),
            Route("/short", short),
            Route("/large", large),
            Mount("/half", half),
        ]
    )
    listener = Listener(app, ssl=lambda: tls.context, connections=connections)
    await listener.start("127.0.0.1", 0)
    yield Server(tmp_path, authority, tls, connections, listener)
    await listener.stop(0)


async def ask(server: Server, data: bytes, context: ssl.SSLContext | None = None, seconds: float = 5.0) -> bytes:
    """All that comes back until the server closes, or the first answer of one that stays open."""
    async with asyncio.timeout(seconds):
        reader, writer = await server.open(context)
        try:
            writer.write(data)
            out = b""
            while not (out.count(b"\r\n\r\n") and b"connection: close" not in out.lower() and out.endswith(b"}")):
                part = await reader.read(65536)
                if not part:
                    break
                out += part
            return out
        finally:
            writer.close()


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1]) if answer else 0


async def refused(server: Server, context: ssl.SSLContext, alert: str) -> None:
    """With TLS 1.3 a client's handshake ends before the server has looked at its certificate: the refusal comes when it
    reads, also where it has sent more meanwhile than anybody reads."""
    for data in (GET, b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 15000\r\n\r\n" + bytes(15000)):
        with pytest.raises(ssl.SSLError) as e:
            await ask(server, data, context)
        assert alert in str(e.value.reason)


async def test_the_identity_reaches_the_application(server: Server) -> None:
    answer = await ask(server, GET)
    assert status(answer) == 200 and b"llmd://node/client/alice" in answer
    assert b"date: " in answer and b"server: " not in answer


async def test_who_has_no_certificate_of_ours_is_refused(server: Server, tmp_path: Path) -> None:
    await refused(server, server.client(), "CERTIFICATE_REQUIRED")
    foreign = trustme.CA()
    context = server.client()
    foreign.issue_cert("alice.example").configure_cert(context)
    await refused(server, context, "UNKNOWN_CA")
    other = Authority.open(tmp_path / "other", "node").issue_client("alice")
    await refused(server, server.client(other), "UNKNOWN_CA")
    context = server.client()
    context.load_cert_chain(server.folder / "server.key")  # ours, but a server's
    await refused(server, context, "UNSUPPORTED_CERTIFICATE")
    assert status(await ask(server, GET)) == 200


async def test_who_sends_no_tls_keeps_nobody_of_the_same_address_out(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "HANDSHAKE_BURST", 3)
    monkeypatch.setattr(limits, "HANDSHAKES_PER_SECOND", 0)
    for data in (b"GET / HTTP/1.1\r\n\r\n", bytes(100), b"\x16\x03\x01\x00\x05aaaaa", b""):
        for _ in range(5):
            reader, writer = await asyncio.open_connection("127.0.0.1", server.listener.port)
            writer.write(data)
            writer.close()
    await refused(server, server.client(), "CERTIFICATE_REQUIRED")  # two handshakes
    assert status(await ask(server, GET)) == 200
    with pytest.raises(ConnectionError):  # more would cost more than an address may have
        await ask(server, GET)


async def test_silent_connections_leave_room(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_CONNECTIONS", 4)
    silent = [await asyncio.open_connection("127.0.0.1", server.listener.port) for _ in range(12)]
    await asyncio.sleep(0.1)
    for _ in range(6):
        assert status(await ask(server, GET)) == 200
    for _, writer in silent:
        writer.close()


def _moved(shift: timedelta) -> datetime:
    return datetime.now(UTC) + shift


async def test_expired_and_not_yet_valid_certificates_are_refused(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = server.authority
    issuer = authority._issuer(datetime.now(UTC))
    monkeypatch.setattr(authority, "_issuer", lambda _: issuer)
    for shift, days, wanted in (
        (timedelta(days=-20), 10, "CERTIFICATE_EXPIRED"),
        (timedelta(minutes=6), 10, "BAD_CERTIFICATE"),
        (timedelta(minutes=4), 10, ""),
    ):
        monkeypatch.setattr(authority, "_now", partial(_moved, shift))
        issued = server.client(authority.issue_client("alice", days))
        if wanted:
            await refused(server, issued, wanted)
        else:
            assert status(await ask(server, GET, issued)) == 200


async def test_older_tls_is_refused(server: Server) -> None:
    context = server.client(server.authority.issue_client("alice"))
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises((ssl.SSLError, ConnectionError)):
        await ask(server, GET, context)


async def test_no_session_can_be_resumed(server: Server) -> None:
    context = server.client(server.authority.issue_client("alice"))
    reader, writer = await server.open(context)
    writer.write(GET)
    await reader.readuntil(b"}")
    session = writer.get_extra_info("ssl_object").session
    assert session is None or not session.has_ticket
    writer.close()


async def test_a_revoked_client_is_refused_and_cut_off(server: Server) -> None:
    alice, bob = server.authority.issue_client("alice"), server.authority.issue_client("bob")
    idle_reader, idle_writer = await server.open(server.client(alice))
    idle_writer.write(GET)
    await idle_reader.readuntil(b"}")
    reader, writer = await server.open(server.client(alice))
    writer.write(b"GET /stream HTTP/1.1\r\nHost: localhost\r\n\r\n")
    await reader.readuntil(b"data: 3\n\n")
    server.authority.revoke({alice.serial: alice.not_after})
    assert server.connections.abort(alice.serial) == 2
    for open_reader in (idle_reader, reader):
        async with asyncio.timeout(2):
            with pytest.raises((ConnectionError, asyncio.IncompleteReadError, ssl.SSLError)):
                await open_reader.readuntil(b"data: 900\n\n")
    answer = await ask(server, GET, server.client(alice))
    assert status(answer) == 403 and b"certificate_revoked" in answer and b"connection: close" in answer
    assert status(await ask(server, GET, server.client(bob))) == 200
    for open_writer in (idle_writer, writer):
        open_writer.close()


async def test_connections_are_counted_and_bounded(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_CONNECTIONS_PER_CLIENT", 2)
    context = server.client(server.authority.issue_client("alice"))
    open_ones = [await server.open(context) for _ in range(2)]
    for reader, writer in open_ones:
        writer.write(GET)
        await reader.readuntil(b"}")
    assert server.connections.count == 2
    with pytest.raises((ConnectionError, ssl.SSLError)):
        if not await ask(server, GET, context):
            raise ConnectionResetError
    assert status(await ask(server, GET)) == 200  # another certificate
    for _, writer in open_ones:
        writer.close()
    async with asyncio.timeout(2):
        while server.connections.count:
            await asyncio.sleep(0.01)


HEAD = b"GET /echo HTTP/1.1\r\nHost: localhost\r\n"
POST = b"POST /echo HTTP/1.1\r\nHost: localhost\r\n"


@pytest.mark.parametrize(
    ("data", "wanted"),
    [
        (b"GET /echo HTTP/1.1\r\n\r\n", 400),
        (HEAD + b"Host: localhost\r\n\r\n", 400),
        (b"GET /echo HTTP/1.1\r\nHost: a/?x=\r\n\r\n", 400),
        (b"GET /echo HTTP/1.1\r\nHost: [zz]\r\n\r\n", 400),
        (b"GET http://evil/a HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
        (b"CONNECT evil:443 HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
        (b"GET /echo HTTP/9.9\r\nHost: localhost\r\n\r\n", 400),
        (b"GET /echo\r\n\r\n", 400),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
        (b"__INIT__ / HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
        (HEAD + b"Upgrade: websocket\r\nConnection: Upgrade\r\n\r\n", 400),
        (HEAD + b"Upgrade: h2c\r\nConnection: Upgrade\r\n\r\n", 400),
        (HEAD + b"A : b\r\n\r\n", 400),
        (HEAD + b"A: b\r\n c\r\n\r\n", 400),
        (b"GET /echo HTTP/1.1\nHost: localhost\n\n", 400),
        (POST + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (POST + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd", 400),
        (POST + b"Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc", 400),
        (POST + b"Content-Length: +3\r\n\r\nabc", 400),
        (POST + b"Content-Length: -1\r\n\r\n", 400),
        (POST + b"Content-Length: 0x10\r\n\r\n", 400),
        (POST + b"Content-Length: " + b"9" * 25 + b"\r\n\r\n", 400),
        (POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", 400),
        (POST + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n", 400),
        (POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (POST + b"Transfer-Encoding: chunked\r\n\r\n" + b"1" * 17 + b"\r\n", 400),
        (b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", 414),
        (HEAD + b"A: " + b"b" * (16 * 1024 + 1) + b"\r\n\r\n", 431),
        (HEAD + b"A: " + b"b" * 1_000_000, 431),
        (HEAD + b"".join(b"A%d: b\r\n" % i for i in range(64)) + b"\r\n", 431),
        (HEAD + b"A: b\r\n" * 5000 + b"\r\n", 431),
    ],
)
async def test_a_head_that_breaks_a_rule_is_refused(server: Server, data: bytes, wanted: int) -> None:
    answer = await ask(server, data)
    assert status(answer) == wanted, answer[:200]
    assert answer.count(b"HTTP/1.1 4") == 1 and b'{"error": {"message"' in answer
    assert status(await ask(server, GET)) == 200


async def test_a_chunked_trailer_cannot_grow_without_bound(server: Server) -> None:
    trailers = b"".join(b"T%d: x\r\n" % i for i in range(5000))
    answer = await ask(server, POST + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n" + trailers + b"\r\n")
    assert status(answer) in (0, 400, 431)
    assert status(await ask(server, GET)) == 200


async def test_encoded_paths_are_not_other_routes(server: Server) -> None:
    for path in (b"/v1%2f..%2fecho", b"/%2e%2e%2fecho", b"/echo%00", b"/%c0%af"):
        head = b"GET " + path + b" HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        assert status(await ask(server, head)) in (400, 404)


async def test_keep_alive_and_pipelining(server: Server) -> None:
    reader, writer = await server.open()
    for _ in range(3):
        writer.write(POST + b"Content-Length: 3\r\n\r\nabc")
        assert b'"body":"abc"' in await reader.readuntil(b"}")
    writer.write(GET + GET)
    assert b"/echo" in await reader.readuntil(b"}")
    assert b"/echo" in await reader.readuntil(b"}")
    writer.close()


async def test_a_body_that_comes_with_its_head_is_no_large_head(server: Server) -> None:
    body = b"a" * 60_000
    assert status(await ask(server, POST + b"Content-Length: %d\r\n\r\n%s" % (len(body), body))) == 200
    reader, writer = await server.open()
    writer.write(POST + b"Content-Length: %d\r\n\r\n" % len(body))
    await asyncio.sleep(0.05)
    writer.write(body)
    assert b"200 OK" in await reader.readline()
    writer.close()


async def test_only_the_named_hosts_are_answered(tmp_path: Path, server: Server) -> None:
    listener = Listener(Starlette(), ssl=lambda: server.tls.context, hosts=lambda: ["llm.example", "[::1]"])
    await listener.start("127.0.0.1", 0)
    other = Server(server.folder, server.authority, server.tls, server.connections, listener)
    wanted = {b"llm.example": 404, b"LLM.example:8443": 404, b"[::1]:1": 404, b"localhost": 400, b"evil.example": 400}
    for host, code in wanted.items():
        async with asyncio.timeout(5):
            reader, writer = await other.open()
            writer.write(b"GET / HTTP/1.1\r\nHost: " + host + b"\r\n\r\n")
            assert status(await reader.readline()) == code
            writer.close()
    await listener.stop(0)


async def test_it_takes_the_sockets_that_it_is_given(server: Server) -> None:
    given = socket.create_server(("127.0.0.1", 0))
    host, port = given.getsockname()
    listener = Listener(Starlette(), ssl=lambda: server.tls.context)
    with pytest.raises(
        Conflict, match=f"listen is 0.0.0.0:{port}, and systemd listens on 127.0.0.1:{port}.*daemon-rel"
    ):
        await listener.start("0.0.0.0", port, [given])
    await listener.start(host, port, [given])
    other = Server(server.folder, server.authority, server.tls, server.connections, listener)
    async with asyncio.timeout(5):
        reader, writer = await other.open()
        writer.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert status(await reader.readline()) == 404
    writer.close()
    await listener.stop(0)


@pytest.mark.parametrize("start", [b"", b"GET /ec", HEAD + b"A: ", b"drip"])
async def test_a_head_that_does_not_come_is_not_waited_for(
    server: Server, monkeypatch: pytest.MonkeyPatch, start: bytes
) -> None:
    monkeypatch.setattr(limits, "HEADER_SECONDS", 0.3)
    reader, writer = await server.open()
    if start == b"drip":
        for byte in range(20):
            writer.write(HEAD[byte : byte + 1])
            await asyncio.sleep(0.05)
            if reader.at_eof():
                break
    else:
        writer.write(start)
    async with asyncio.timeout(2):
        answer = await reader.read()
    assert b"408" in answer
    writer.close()


async def test_a_second_head_on_a_kept_connection_has_the_same_deadline(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "HEADER_SECONDS", 0.3)
    reader, writer = await server.open()
    writer.write(GET)
    await reader.readuntil(b"}")
    await asyncio.sleep(0.5)  # idle is no head
    writer.write(b"GET /e")
    async with asyncio.timeout(2):
        assert b"408" in await reader.read()
    writer.close()


async def test_a_body_that_does_not_come_is_not_waited_for(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "BODY_SECONDS", 0.3)
    reader, writer = await server.open()
    writer.write(POST + b"Content-Length: 100\r\n\r\n")
    for _ in range(20):
        writer.write(b"a")
        await asyncio.sleep(0.05)
        if reader.at_eof():
            break
    async with asyncio.timeout(2):
        answer = await reader.read()
    assert b"408" in answer and answer.count(b"HTTP/1.1") == 1
    writer.close()


async def test_a_long_stream_outlives_every_deadline(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "HEADER_SECONDS", 0.2)
    monkeypatch.setattr(limits, "BODY_SECONDS", 0.2)
    reader, writer = await server.open()
    writer.write(b"GET /stream HTTP/1.1\r\nHost: localhost\r\n\r\n")
    async with asyncio.timeout(5):
        await reader.readuntil(b"data: 60\n\n")
    writer.close()


async def test_many_silent_connections_do_not_hold_up_a_good_one(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    silent = [await asyncio.open_connection("127.0.0.1", server.listener.port) for _ in range(100)]
    assert status(await ask(server, GET)) == 200
    for _, writer in silent:
        writer.close()


async def test_certificates_are_reloaded_under_load(server: Server) -> None:
    context = server.client(server.authority.issue_client("alice"))
    for _ in range(5):
        server.authority._server = None
        assert "server certificate" in server.authority.maintain()
        server.authority.revoke({1: None})
        server.tls.renewed()
        answers = await asyncio.gather(*(ask(server, GET, context) for _ in range(5)))
        assert [status(a) for a in answers] == [200] * 5


async def test_the_admin_socket_knows_who_asks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def who(request: Request) -> Response:
        return JSONResponse(request.scope["extensions"]["peer"])

    listener = Listener(Starlette(routes=[Route("/who", who)]))
    path = tmp_path / "admin.sock"
    await listener.start_unix(path, 0o660)
    with pytest.raises(Conflict):
        await Listener(Starlette()).start_unix(path, 0o660)

    async def get() -> bytes:
        reader, writer = await asyncio.open_unix_connection(str(path))
        writer.write(b"GET /who HTTP/1.1\r\nHost: llmd\r\nConnection: close\r\n\r\n")
        answer: Any = await reader.read()
        writer.close()
        return bytes(answer)

    assert b'"uid":' in await get()
    monkeypatch.setattr(protocol, "may_administer", lambda uid, gid: False)
    answer = await get()
    assert status(answer) == 403 and b"llmd-admin" in answer
    await listener.stop(0)
    again = Listener(Starlette())
    await again.start_unix(path, 0o660, os.getgid())
    assert (path.stat().st_gid, stat.S_IMODE(path.stat().st_mode)) == (os.getgid(), 0o660)
    await again.stop(0)


def heads(answer: bytes, name: bytes) -> list[bytes]:
    lines = answer.partition(b"\r\n\r\n")[0].split(b"\r\n")[1:]
    return [value.strip() for key, _, value in (line.partition(b":") for line in lines) if key.lower() == name]


async def test_a_client_of_http_1_0_gets_no_chunks(server: Server) -> None:
    whole = await ask(server, b"GET /echo HTTP/1.0\r\n\r\n")
    assert heads(whole, b"connection") == [b"close"] and whole.endswith(b"}")
    asked = b"GET /short HTTP/1.0\r\nHost: localhost\r\nConnection: keep-alive\r\n\r\n"
    streamed = await ask(server, asked)
    assert status(streamed) == 200 and heads(streamed, b"connection") == [b"close"]
    assert not heads(streamed, b"transfer-encoding") and not heads(streamed, b"content-length")
    assert streamed.partition(b"\r\n\r\n")[2] == b"data: 0\n\ndata: 1\n\ndata: 2\n\n"


async def records(server: Server, data: bytes) -> list[bytes]:
    """What each record of the answer holds, until the server closes."""
    context = server.client(server.authority.issue_client("alice"))

    def ask() -> list[bytes]:
        with socket.create_connection(("127.0.0.1", server.listener.port), 5) as plain:
            with context.wrap_socket(plain, server_hostname="localhost", suppress_ragged_eofs=True) as tls:
                tls.sendall(data)
                return list(iter(partial(tls.recv, 65536), b""))

    return await asyncio.to_thread(ask)


@pytest.mark.parametrize(
    "path, wanted",
    [
        ("echo", [b'"path":"/echo"']),
        ("short", [b"transfer-encoding: chunked", b"data: 0", b"data: 1", b"data: 2", b"0\r\n\r\n"]),
        ("half/", [b"content-length: 9"]),
    ],
    ids=["known length", "a stream", "a body that does not come"],
)
async def test_a_head_goes_out_with_the_body_that_it_tells_the_length_of(
    server: Server, path: str, wanted: list[bytes]
) -> None:
    got = await records(server, b"GET /%s HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n" % path.encode())
    assert got[0].startswith(b"HTTP/1.1 200")
    assert len(got) == len(wanted) and all(text in record for text, record in zip(wanted, got, strict=True))


async def test_a_head_alone_is_not_held_back(server: Server) -> None:
    (head,) = await records(server, b"HEAD /echo HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    assert b"content-length: " in head and head.endswith(b"\r\n\r\n")


async def test_one_connection_header_and_the_right_one(server: Server) -> None:
    for path in (b"/echo", b"/short"):
        asked = b"GET " + path + b" HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        assert heads(await ask(server, asked), b"connection") == [b"close"]


async def connections(server: Server, count: int, seconds: float = 5.0) -> None:
    """Until the server has so many."""
    async with asyncio.timeout(seconds):
        while server.connections.count != count:
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("path", [b"/large", b"/stream?size=100000"])
async def test_a_client_that_takes_nothing_is_cut_on_every_route(
    server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, path: bytes
) -> None:
    monkeypatch.setattr(limits, "WRITE_SECONDS", 0.3)
    raw = socket.create_connection(("127.0.0.1", server.listener.port))
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    raw.setblocking(False)
    context = server.client(server.authority.issue_client("alice"))
    _, writer = await asyncio.open_connection(sock=raw, ssl=context, server_hostname="localhost", limit=1024)
    writer.write(b"GET " + path + b" HTTP/1.1\r\nHost: localhost\r\n\r\n")
    async with asyncio.timeout(10):
        while "took nothing" not in caplog.text:
            await asyncio.sleep(0.02)
    await connections(server, 0)
    writer.transport.abort()


async def test_a_client_that_is_done_writing_ends_its_connection(server: Server) -> None:
    _, writer = await server.open()
    await connections(server, 1)
    writer.close()
    await connections(server, 0)
    assert not server.listener._state.connections


async def test_a_half_closed_connection_ends(server: Server) -> None:
    _, writer = await server.open()
    await connections(server, 1)
    writer.get_extra_info("socket").shutdown(socket.SHUT_WR)
    await connections(server, 0)
    assert not server.listener._state.connections
    writer.transport.abort()


async def test_a_peer_that_is_gone_is_probed_for(server: Server) -> None:
    _, writer = await server.open()
    await connections(server, 1)
    (transport,) = server.listener._state.connections
    sock = transport.transport.get_extra_info("socket")
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 1000 * limits.PEER_SECONDS
    writer.close()
