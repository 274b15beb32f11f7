"""Which daemon `llmctl` speaks to, and answers that end before their end."""

import json
import os
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner

from llmd.api.cli import connection
from llmd.api.cli.connection import Client, NoDaemon
from llmd.api.cli.main import main

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


@contextmanager
def answering(path: Path, answer: bytes) -> Iterator[Client]:
    """A daemon that says this and is gone."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()

        def serve() -> None:
            peer, _ = listening.accept()
            with peer:
                asked = b""
                while not _whole(asked):  # what is left unread when it closes would reset the connection
                    asked += peer.recv(65536) or pytest.fail("the client left")
                peer.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        yield Client(str(path))
        thread.join(10)


def _whole(asked: bytes) -> bool:
    head, end, body = asked.partition(b"\r\n\r\n")
    length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
    return bool(end) and len(body) >= int(length[1] if length else 0)


def event(data: bytes) -> bytes:
    line = b"data: %s\n\n" % data
    return b"%x\r\n%s\r\n" % (len(line), line)


# what any of the commands below may be told before the end
STEP = {
    "done": 1,
    "total": 2,
    "state": "loading",
    "choices": [],
    "seq": 1,
    "ts": "",
    "kind": "",
    "request": "",
    "body": {},
}
CUT = [HEAD, HEAD + event(json.dumps(STEP).encode()), HEAD + b"ff\r\ndata: {", HEAD + event(b"{") + b"0\r\n\r\n",
       HEAD + b"0\r\n\r\n", b"HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\n{", b"HTTP/1.1 2", b""]  # fmt: skip


@pytest.mark.parametrize("answer", CUT, ids=lambda a: ascii(a[-20:]))
@pytest.mark.parametrize(
    "command", ["model import FILE", "deploy m", "chat m hello", "audit tail -f", "status", "client list"]
)
def test_an_answer_that_is_cut_off_is_a_sentence(tmp_path: Path, command: str, answer: bytes) -> None:
    (tmp_path / "FILE").touch()
    with answering(tmp_path / "s", answer):
        done = CliRunner().invoke(main, ["--socket", str(tmp_path / "s"), *command.split()])
    assert done.exit_code == 3 and "broke off" in done.stderr
    assert done.exception is None or isinstance(done.exception, SystemExit)


def test_a_whole_answer_ends_with_its_mark(tmp_path: Path) -> None:
    with answering(tmp_path / "s", HEAD + event(b'{"a": 1}') + event(b"[DONE]") + b"0\r\n\r\n") as client:
        assert list(client.events("GET", "/x")) == [{"a": 1}]


@pytest.fixture
def listening(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[Path]]:
    """The sockets that are listened on, as this test's folder has them."""
    monkeypatch.chdir(tmp_path)
    paths: list[Path] = []
    monkeypatch.setattr(connection, "_listening", lambda: {str(p) for p in paths})
    monkeypatch.setattr(connection, "SOCKETS", (".llmd/admin.sock", str(tmp_path / "run/admin.sock")))
    yield paths


def made(path: Path) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.touch()
    return path


def test_the_first_of_the_usual_places_where_somebody_listens(listening: list[Path], tmp_path: Path) -> None:
    made(tmp_path / ".llmd/admin.sock")
    assert connection.find() == ".llmd/admin.sock"  # nobody listens: the error names it
    listening.append(made(tmp_path / "run/admin.sock"))
    assert connection.find() == str(tmp_path / "run/admin.sock")
    listening.append(tmp_path / ".llmd/admin.sock")
    assert connection.find() == ".llmd/admin.sock"


def test_one_daemon_elsewhere_is_found_and_several_are_named(listening: list[Path], tmp_path: Path) -> None:
    listening += [made(tmp_path / "a/admin.sock"), made(tmp_path / "b/other.sock"), tmp_path / "gone/admin.sock"]
    assert connection.find() == str(tmp_path / "a/admin.sock")
    listening.append(made(tmp_path / "b/admin.sock"))
    with pytest.raises(NoDaemon, match=f"--socket: {tmp_path}/a/admin.sock, {tmp_path}/b/admin.sock"):
        connection.find()


def test_another_users_socket_is_none(listening: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listening.append(made(tmp_path / "a/admin.sock"))
    owner = os.stat(listening[0]).st_uid
    monkeypatch.setattr(os, "getuid", lambda: owner + 1)
    if owner != 0:
        assert connection.find() == str(tmp_path / "run/admin.sock")
    os.chown(listening[0], 12345, -1) if owner == 0 else None
    assert connection.find() == str(tmp_path / "run/admin.sock")


def test_the_kernel_says_who_listens(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(tmp_path / "a b"))
        assert str(tmp_path / "a b") not in connection._listening()
        one.listen()
        assert str(tmp_path / "a b") in connection._listening()


def test_a_terminal_shows_thoughts_beside_the_answer(tmp_path: Path) -> None:
    deltas: list[dict[str, str]] = [
        {"role": "assistant"}, {"reasoning_content": "Hm\x1b[31m, "}, {"reasoning_content": "so"}, {"content": "Hello"},
        {"content": "\tyou"},
    ]  # fmt: skip
    said = b"".join(event(json.dumps({"choices": [{"delta": delta}]}).encode()) for delta in deltas)
    with answering(tmp_path / "s", HEAD + said + event(b"[DONE]") + b"0\r\n\r\n"):
        done = CliRunner().invoke(main, ["--socket", str(tmp_path / "s"), "chat", "m", "Hi"])
    assert done.exit_code == 0 and done.stdout == "Hello    you\n" and done.stderr == "Hm\\x1b[31m, so\n\n"
