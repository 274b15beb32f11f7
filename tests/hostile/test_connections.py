"""What comes over HTTP and TCP. What comes slowly, or not at all, stands in tests/api/http/test_protocol.py."""

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
    "a length and chunks": (POST + LENGTH + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + SECOND, {400}),
    "two equal lengths": (POST + LENGTH * 2 + b"\r\n" + BODY + SECOND, {400}),
    "two lengths": (POST + LENGTH + b"Content-Length: 16\r\n\r\n" + BODY + SECOND, {400}),
    "length +5": (POST + b"Content-Length: +15\r\n\r\n" + BODY, {400}),
    "length -1": (POST + b"Content-Length: -1\r\n\r\n" + BODY, {400}),
    "length 0x10": (POST + b"Content-Length: 0x0f\r\n\r\n" + BODY, {400}),
    "length of 25 digits": (POST + b"Content-Length: " + b"9" * 25 + b"\r\n\r\n" + BODY, {400}),
    "length in Arabic digits": (POST + "Content-Length: ١٥\r\n\r\n".encode() + BODY, {400}),
    "xchunked": (POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n" + SECOND, {400}),
    "chunked, identity": (POST + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n" + SECOND, {400}),
    "chunked twice": (POST + b"Transfer-Encoding: chunked\r\n" * 2 + b"\r\n0\r\n\r\n" + SECOND, {400}),
    "a space before the colon": (POST + b"X-A : b\r\n" + LENGTH + b"\r\n" + BODY, {400}),
    "bare line feeds": (GET.replace(b"\r\n", b"\n") + b"\n", {400}),
    "carriage returns only": (GET.replace(b"\r\n", b"\r") + b"\r", {400}),
    "a folded header": (GET + b"X-A: b\r\n c\r\n\r\n", {400}),
    "no Host": (b"GET /livez HTTP/1.1\r\n\r\n", {400}),
    "two Hosts": (GET + b"Host: localhost\r\n\r\n", {400}),
    "a Host with a path": (b"GET /livez HTTP/1.1\r\nHost: a/?x=\r\n\r\n", {400}),
    "a header of 16 KiB and one byte": (GET + b"X-A: " + b"a" * 16385 + b"\r\n\r\n", {431}),
    "65 headers": (GET + b"X-A: b\r\n" * 64 + b"\r\n", {431}),
    "5,000 headers": (GET + b"X-A: b\r\n" * 5000 + b"\r\n", {431}),
    "65 headers with the trailers": (
        POST + b"Transfer-Encoding: chunked\r\n\r\nf\r\n" + BODY + b"\r\n0\r\n" + b"X: b\r\n" * 70 + b"\r\n",
        {400, 431},
    ),
    "an address of 100 KB": (b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", {414, 431}),
    "encoded dots": (
        b"GET /v1/models/%2e%2e%2f%2e%2e%2fetc%2fpasswd HTTP/1.1\r\nHost: localhost\r\n\r\n",
        {400, 404},
    ),
    "an encoded NUL": (b"GET /v1/models/a%00b HTTP/1.1\r\nHost: localhost\r\n\r\n", {400, 404}),
    "overlong UTF-8": (b"GET /v1/models/%c0%ae HTTP/1.1\r\nHost: localhost\r\n\r\n", {400, 404}),
    "TRACE": (GET.replace(b"GET", b"TRACE") + b"\r\n", {405, 400}),
    "FOO": (GET.replace(b"GET", b"FOO") + b"\r\n", {405, 400}),
    "__INIT__": (GET.replace(b"GET", b"__INIT__") + b"\r\n", {405, 400}),
    "HTTP/0.9": (b"GET /livez\r\n\r\n", {0, 400}),
    "HTTP/9.9": (GET.replace(b"1.1", b"9.9") + b"\r\n", {400}),
    "the preface of HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", {400}),
    "a body over the limit by its length": (POST + b"Content-Length: 5000000\r\n\r\n", {413}),
    "a body over the limit in chunks": (
        POST + b"Transfer-Encoding: chunked\r\n\r\n" + (b"10000\r\n" + b" " * 65536 + b"\r\n") * 80,
        {413},
    ),
    "gzip": (POST + b"Content-Encoding: gzip\r\n" + LENGTH + b"\r\n" + BODY, {415}),
    "another type": (POST.replace(b"application/json", b"text/plain") + LENGTH + b"\r\n" + BODY, {415}),
    "another charset": (POST.replace(b"json", b"json; charset=utf-16") + LENGTH + b"\r\n" + BODY, {415}),
    "an upgrade": (GET + b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n", {400, 426}),
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


@pytest.mark.parametrize("row", ROWS)
def test_what_is_sent_is_answered(llmd: Llmd, row: str) -> None:
    data, statuses = ROWS[row]
    answer = send(llmd, data)
    assert (int(answer.split(b" ", 2)[1]) if answer else 0) in statuses, answer[:300]
    assert len(re.findall(rb"HTTP/1.1 \d", answer)) <= 1  # a second request was not carried out


def test_reset_in_the_middle_of_a_body(llmd: Llmd) -> None:
    for _ in range(20):
        with connected(llmd) as client:
            client.sendall(POST + LENGTH + b"\r\n{")
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def test_a_client_that_has_said_all(llmd: Llmd) -> None:
    """TLS 1.3 lets one side end; the request was whole."""
    with connected(llmd) as client:
        client.sendall(POST + LENGTH + b"Connection: close\r\n\r\n" + BODY)
        assert client.recv(65536).startswith(b"HTTP/1.1 200")
        client.shutdown(socket.SHUT_WR)


def test_thousands_of_silent_connections_keep_nobody_out(llmd: Llmd) -> None:
    held = [socket.create_connection(("127.0.0.1", llmd.port), timeout=60) for _ in range(2000)]
    for _ in range(20):
        assert llmd.get("/livez")[0] == 200
    for client in held:
        client.close()


def test_plain_http_to_the_tls_port(llmd: Llmd) -> None:
    with socket.create_connection(("127.0.0.1", llmd.port), timeout=60) as client:
        client.sendall(GET + b"\r\n")
        assert not client.recv(1000).startswith(b"HTTP/1.1 2")


def connected(llmd: Llmd) -> ssl.SSLSocket:
    plain = socket.create_connection(("127.0.0.1", llmd.port), timeout=60)
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
