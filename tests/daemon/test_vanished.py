"""Clients whose machine is gone without a word: two network namespaces, and a wire that is cut."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from real_daemon import Llmd

from llmd.daemon import limits

SERVER, CLIENT = "10.203.7.1", "10.203.7.2"

# one connection that idles, one that streams, one that waits for a whole answer
HOLD = """
import json, socket, ssl, sys
pki, host, port = sys.argv[1:]
tls = ssl.create_default_context(cafile=pki + "/ca.crt")
tls.load_cert_chain(pki + "/clients/demo.crt", pki + "/clients/demo.key")
kept = []
for body in (None, {"stream": True}, {"stream": False}):
    c = tls.wrap_socket(socket.create_connection((host, int(port))), server_hostname="localhost")
    kept.append(c)
    if body is None:
        c.sendall(b"GET /livez HTTP/1.1\\r\\nHost: localhost\\r\\n\\r\\n")
        c.recv(1000)
        continue
    data = json.dumps({"prompt": "a", "max_tokens": -1, "ignore_eos": True, **body}).encode()
    head = "POST /v1/completions HTTP/1.1\\r\\nHost: localhost\\r\\nContent-Length: %d\\r\\n\\r\\n"
    c.sendall((head % len(data)).encode() + data)
print("held", flush=True)
sys.stdin.read()
"""


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, timeout=20)


@pytest.fixture
def spaces() -> Iterator[tuple[str, str]]:
    """Two network namespaces that reach each other and nothing else: the server's and the client's."""
    names = (f"llmd-s{os.getpid()}", f"llmd-c{os.getpid()}")
    try:
        for name in names:
            ip("netns", "add", name)
    except (OSError, subprocess.CalledProcessError) as e:
        pytest.skip(f"network namespaces need root and iproute2: {e}")
    try:
        ip("link", "add", "llmd0", "netns", names[0], "type", "veth", "peer", "name", "llmd0", "netns", names[1])
        for name, address in zip(names, (SERVER, CLIENT), strict=True):
            ip("-n", name, "address", "add", f"{address}/30", "dev", "llmd0")
            ip("-n", name, "link", "set", "llmd0", "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield names
    finally:
        for name in names:
            ip("netns", "delete", name)


@pytest.mark.slow
def test_a_client_that_vanished_holds_nothing(spaces: tuple[str, str], model_file: Path, tmp_path: Path) -> None:
    state = tmp_path / "state"
    inside = ["ip", "netns", "exec", spaces[0]]
    command = [*inside, str(Path(sys.executable).parent / "llmd"), "serve", "--state-dir", str(state),
               "--listen", f"{SERVER}:9443", "--default-model", f"smol={model_file}"]  # fmt: skip
    daemon = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, text=True)
    holding = ["ip", "netns", "exec", spaces[1], sys.executable, "-c", HOLD, str(state / "pki"), SERVER, "9443"]
    client: subprocess.Popen[str] | None = None
    try:
        llmd = Llmd(state, daemon, 9443, "")
        until(lambda: (state / "admin.sock").exists(), 20)
        until(lambda: [m["state"] for m in llmd.llmctl("status")["models"]] == ["ready"], 60)
        client = subprocess.Popen(holding, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert client.stdout is not None and client.stdout.readline() == "held\n"
        until(lambda: llmd.llmctl("status")["connections"] == 3 and llmd.model()["running"] == 2, 20)
        ip("-n", spaces[1], "link", "set", "llmd0", "down")
        until(lambda: llmd.llmctl("status")["connections"] == 0, limits.PEER_SECONDS + 3 * limits.PROBE_SECONDS)
        until(lambda: llmd.model()["running"] == 0, 5)
        daemon.terminate()
        assert daemon.wait(20) == 0
    finally:
        for process in (daemon, client):
            if process:
                process.kill()
                process.communicate()


def until(what: object, seconds: float) -> None:
    assert callable(what)
    for _ in range(int(seconds / 0.2)):
        if what():
            return
        time.sleep(0.2)
    raise AssertionError("it did not come in time")
