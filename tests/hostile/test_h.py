"""H: what comes over HTTP and TCP. A row that a test elsewhere covers names it."""

import re
import socket
import ssl
import struct
from pathlib import Path

import pytest
from real_daemon import Llmd

ROOT = Path(__file__).parents[2]
HEAD = b"Host: localhost\r\nContent-Type: application/json\r\n"
POST = b"POST /tokenize HTTP/1.1\r\n" + HEAD
GET = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n"
BODY = b'{"prompt": "a"}'
LENGTH = b"Content-Length: 15\r\n"
SECOND = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n"

# what is sent, and the statuses that may answer it; 0: the connection ends without a word
ROWS: dict[str, tuple[bytes, set[int]]] = {
    "H8 a length and chunks": (POST + LENGTH + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + SECOND, {400}),
    "H9 two equal lengths": (POST + LENGTH * 2 + b"\r\n" + BODY + SECOND, {400}),
    "H9 two lengths": (POST + LENGTH + b"Content-Length: 16\r\n\r\n" + BODY + SECOND, {400}),
    "H10 length +5": (POST + b"Content-Length: +15\r\n\r\n" + BODY, {400}),
    "H10 length -1": (POST + b"Content-Length: -1\r\n\r\n" + BODY, {400}),
    "H10 length 0x10": (POST + b"Content-Length: 0x0f\r\n\r\n" + BODY, {400}),
    "H10 length of 25 digits": (POST + b"Content-Length: " + b"9" * 25 + b"\r\n\r\n" + BODY, {400}),
    "H10 length in Arabic digits": (POST + "Content-Length: ١٥\r\n\r\n".encode() + BODY, {400}),
    "H11 xchunked": (POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n" + SECOND, {400}),
    "H11 chunked, identity": (POST + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n" + SECOND, {400}),
    "H11 chunked twice": (POST + b"Transfer-Encoding: chunked\r\n" * 2 + b"\r\n0\r\n\r\n" + SECOND, {400}),
    "H12 a space before the colon": (POST + b"X-A : b\r\n" + LENGTH + b"\r\n" + BODY, {400}),
    "H13 bare line feeds": (GET.replace(b"\r\n", b"\n") + b"\n", {400}),
    "H13 carriage returns only": (GET.replace(b"\r\n", b"\r") + b"\r", {400}),
    "H14 a folded header": (GET + b"X-A: b\r\n c\r\n\r\n", {400}),
    "H16 no Host": (b"GET /livez HTTP/1.1\r\n\r\n", {400}),
    "H16 two Hosts": (GET + b"Host: localhost\r\n\r\n", {400}),
    "H16 a Host with a path": (b"GET /livez HTTP/1.1\r\nHost: a/?x=\r\n\r\n", {400}),
    "H17 a header of 16 KiB and one byte": (GET + b"X-A: " + b"a" * 16385 + b"\r\n\r\n", {431}),
    "H18 65 headers": (GET + b"X-A: b\r\n" * 64 + b"\r\n", {431}),
    "H18 5,000 headers": (GET + b"X-A: b\r\n" * 5000 + b"\r\n", {431}),
    "H18 65 headers with the trailers": (
        POST + b"Transfer-Encoding: chunked\r\n\r\nf\r\n" + BODY + b"\r\n0\r\n" + b"X: b\r\n" * 70 + b"\r\n",
        {400, 431},
    ),
    "H19 an address of 100 KB": (b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", {414, 431}),
    "H21 encoded dots": (
        b"GET /v1/models/%2e%2e%2f%2e%2e%2fetc%2fpasswd HTTP/1.1\r\nHost: localhost\r\n\r\n",
        {400, 404},
    ),
    "H21 an encoded NUL": (b"GET /v1/models/a%00b HTTP/1.1\r\nHost: localhost\r\n\r\n", {400, 404}),
    "H21 overlong UTF-8": (b"GET /v1/models/%c0%ae HTTP/1.1\r\nHost: localhost\r\n\r\n", {400, 404}),
    "H22 TRACE": (GET.replace(b"GET", b"TRACE") + b"\r\n", {405, 400}),
    "H22 FOO": (GET.replace(b"GET", b"FOO") + b"\r\n", {405, 400}),
    "H22 __INIT__": (GET.replace(b"GET", b"__INIT__") + b"\r\n", {405, 400}),
    "H23 HTTP/0.9": (b"GET /livez\r\n\r\n", {0, 400}),
    "H23 HTTP/9.9": (GET.replace(b"1.1", b"9.9") + b"\r\n", {400}),
    "H23 the preface of HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", {400}),
    "H25 a body over the limit by its length": (POST + b"Content-Length: 5000000\r\n\r\n", {413}),
    "H25 a body over the limit in chunks": (
        POST + b"Transfer-Encoding: chunked\r\n\r\n" + (b"10000\r\n" + b" " * 65536 + b"\r\n") * 80,
        {413},
    ),
    "H28 gzip": (POST + b"Content-Encoding: gzip\r\n" + LENGTH + b"\r\n" + BODY, {415}),
    "H29 another type": (POST.replace(b"application/json", b"text/plain") + LENGTH + b"\r\n" + BODY, {415}),
    "H29 another charset": (POST.replace(b"json", b"json; charset=utf-16") + LENGTH + b"\r\n" + BODY, {415}),
    "H34 an upgrade": (GET + b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n", {400, 426}),
    "chunk extensions without end": (POST + b"Transfer-Encoding: chunked\r\n\r\n1;" + b"a" * 1_000_000, {400}),
    "a long extension on each chunk": (
        POST + b"Transfer-Encoding: chunked\r\n\r\n" + (b"1;" + b"a" * 2000 + b"\r\n \r\n") * 500,
        {400},
    ),
    "trailers without end": (
        POST + b"Transfer-Encoding: chunked\r\n\r\nf\r\n" + BODY + b"\r\n0\r\nX-A: " + b"a" * 1_000_000,
        {400, 431},
    ),
    "many small chunks are a body": (
        POST + b"Transfer-Encoding: chunked\r\n\r\n" + b"1\r\n \r\n" * 50_000 + b"f\r\n" + BODY + b"\r\n0\r\n\r\n",
        {200},
    ),
}

PROTOCOL = "tests/api/http/test_protocol.py"
ELSEWHERE = {
    "H1 connect, send nothing": (PROTOCOL, "test_a_head_that_does_not_come_is_not_waited_for"),
    "H2 half a request line": (PROTOCOL, "test_a_head_that_does_not_come_is_not_waited_for"),
    "H3 a head byte by byte": (PROTOCOL, "test_a_head_that_does_not_come_is_not_waited_for"),
    "H4 a body byte by byte": (PROTOCOL, "test_a_body_that_does_not_come_is_not_waited_for"),
    "H16 a Host that is not allowed": (PROTOCOL, "test_only_the_named_hosts_are_answered"),
    "H26 Expect, then silence": (PROTOCOL, "test_a_body_that_does_not_come_is_not_waited_for"),
    "H32 many connections": (PROTOCOL, "test_many_silent_connections_do_not_hold_up_a_good_one"),
}


@pytest.mark.parametrize("row", ROWS)
def test_h(llmd: Llmd, row: str) -> None:
    data, statuses = ROWS[row]
    answer = send(llmd, data)
    assert (int(answer.split(b" ", 2)[1]) if answer else 0) in statuses, answer[:300]
    assert len(re.findall(rb"HTTP/1.1 \d", answer)) <= 1  # a second request was not carried out


@pytest.mark.parametrize("row", ELSEWHERE)
def test_h_elsewhere(row: str) -> None:
    file, name = ELSEWHERE[row]
    assert f"def {name}(" in (ROOT / file).read_text()


def test_h6_reset_in_the_middle_of_a_body(llmd: Llmd) -> None:
    for _ in range(20):
        with connected(llmd) as client:
            client.sendall(POST + LENGTH + b"\r\n{")
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def test_h5_a_client_that_has_said_all(llmd: Llmd) -> None:
    """TLS 1.3 lets one side end; the request was whole."""
    with connected(llmd) as client:
        client.sendall(POST + LENGTH + b"Connection: close\r\n\r\n" + BODY)
        assert client.recv(65536).startswith(b"HTTP/1.1 200")
        client.shutdown(socket.SHUT_WR)


def test_h32_thousands_of_silent_connections_keep_nobody_out(llmd: Llmd) -> None:
    held = [socket.create_connection(("127.0.0.1", llmd.port), timeout=10) for _ in range(2000)]
    for _ in range(20):
        assert llmd.get("/livez")[0] == 200
    for client in held:
        client.close()


def test_h31_plain_http_to_the_tls_port(llmd: Llmd) -> None:
    with socket.create_connection(("127.0.0.1", llmd.port), timeout=10) as client:
        client.sendall(GET + b"\r\n")
        assert not client.recv(1000).startswith(b"HTTP/1.1 2")


def connected(llmd: Llmd) -> ssl.SSLSocket:
    plain = socket.create_connection(("127.0.0.1", llmd.port), timeout=15)
    return llmd.tls().wrap_socket(plain, server_hostname="localhost")


def send(llmd: Llmd, data: bytes) -> bytes:
    """What comes back: until the connection ends, or one answer on a connection that stays."""
    answer = b""
    with connected(llmd) as client:
        try:
            client.sendall(data)
        except OSError:
            pass  # it was refused before it was whole
        try:
            while part := client.recv(65536):
                answer += part
                head, _, body = answer.partition(b"\r\n\r\n")
                length = [
                    line.split(b":")[1] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")
                ]
                if length and len(body) >= int(length[0]):
                    break
        except OSError:
            pass
    return answer
