"""What could lock everybody out, or let somebody in, on a real daemon: damaged files, open permissions, a renamed host;
and that who is refused stands in the audit log."""

import http.client
import json
import os
import shutil
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from forked import Forked, forker
from real_daemon import Llmd

from llmd.api.cli.connection import Client

LLMD = str(Path(sys.executable).parent / "llmd")
Start = Callable[..., Llmd]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start a daemon without a model on `tmp_path/state`; `before`: a command that it runs under."""
    running: list[Llmd] = []

    def starting(*before: str, config: str = "", node: str = "test") -> Llmd:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        file, log = tmp_path / "llmd.toml", tmp_path / "log"
        file.write_text(f'node = "{node}"\n{config}')
        arguments = ["serve", "--config", file, "--state-dir", tmp_path / "state", "--listen", f"127.0.0.1:{port}"]
        log.write_text("")
        process: Forked | subprocess.Popen[str]
        with log.open("a") as out:
            if before:
                command = [*before, LLMD, *map(str, arguments)]
                process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=out, text=True)
            else:
                process = forker().start(*arguments, stdout=subprocess.PIPE, stderr=out)
        llmd = Llmd(tmp_path / "state", process, port, "")
        running.append(llmd)
        deadline = time.monotonic() + 20
        while "clients on" not in log.read_text():
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.02)
        return llmd

    yield starting
    for llmd in running:
        llmd.process.kill()
        llmd.stop()


def refusal(tmp_path: Path) -> str:
    """What a start says that does not come about."""
    done = forker().run("serve", "--state-dir", tmp_path / "state", "--listen", "127.0.0.1:0")
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    return done.stderr


def rows(llmd: Llmd, kind: str) -> list[dict[str, Any]]:
    found = Client(str(llmd.state / "admin.sock")).call("GET", "/audit/query", kind=kind)["rows"]
    return [row["body"] for row in found]


def checks(llmd: Llmd) -> dict[str, dict[str, Any]]:
    found = llmd.llmctl("doctor", code=1)  # no model is deployed
    return {check["name"]: check for check in found["checks"]}


def test_what_others_may_read_or_write_is_refused_with_the_chmod_to_type(start: Start, tmp_path: Path) -> None:
    llmd = start()
    assert llmd.stop() == 0
    state = tmp_path / "state"
    for name in ("pki/root.key", "pki/issuers.key", "pki/server.key", "audit.key"):
        for mode in (0o640, 0o604, 0o620):
            (state / name).chmod(mode)
            said = refusal(tmp_path)
            assert "may be read or written by others" in said
            subprocess.run(said[said.index("chmod 600") :].split()[:3], check=True)
    config = tmp_path / "llmd.toml"
    config.chmod(0o666)
    done = forker().run("serve", "--config", config)
    assert done.returncode == 1 and f"chmod go-w {config}" in done.stderr
    config.chmod(0o644)
    start()


def test_a_log_whose_key_is_lost_or_another_does_not_go_on_silently(start: Start, tmp_path: Path) -> None:
    llmd = start()
    assert llmd.stop() == 0
    key = tmp_path / "state" / "audit.key"
    good = key.read_bytes()
    for damage, said in (
        (b"", "is damaged"),
        (good[:31], "is damaged"),
        (bytes(32), "not the key that it was written"),
    ):
        key.write_bytes(damage)
        assert said in refusal(tmp_path) and key.read_bytes() == damage
    key.unlink()
    assert "is missing" in refusal(tmp_path) and not key.exists()
    key.write_bytes(good)
    key.chmod(0o600)
    assert start().llmctl("audit", "verify")["verdict"] == "holds"


def test_a_damaged_server_certificate_is_kept_out_at_a_reload_and_replaced_at_a_start(
    start: Start, tmp_path: Path
) -> None:
    llmd = start()
    key = tmp_path / "state" / "pki" / "server.key"
    good = key.read_bytes()
    key.write_bytes(good[: len(good) // 2])
    assert "server.key is damaged: restart llmd" in llmd.llmctl("reload", code=1)["error"]["message"]
    assert llmd.get("/livez")[0] == 200, "with what was loaded before"
    assert checks(llmd)["server.key"]["ok"] is False
    assert [row["result"] for row in rows(llmd, "reload")] == ["begun", "failed"]
    assert llmd.stop() == 0
    llmd = start()
    assert llmd.get("/livez")[0] == 200 and "server.key" not in checks(llmd)
    assert "pki/server.key is damaged: made anew" in (tmp_path / "log").read_text()
    assert rows(llmd, "pki.damaged") == [{"file": "server.key", "what": "is damaged", "made_anew": True}]


def test_who_is_refused_stands_in_the_audit_log(start: Start, tmp_path: Path) -> None:
    llmd = start()
    alice = llmd.issue("alice", tmp_path)
    assert llmd.get("/metrics", alice)[0] == 403
    assert llmd.post("/tokenize", b'{"prompt": "the secret"', alice)[0] == 400
    assert llmd.post("/tokenize", {"secret": 1}, alice)[0] == 400
    assert llmd.post("/v1/chat/completions", {"messages": [{"role": "secret"}]}, alice)[0] == 400
    connection = http.client.HTTPSConnection("127.0.0.1", llmd.port, context=alice, timeout=60)
    connection.putrequest("GET", "/" + "a" * 9000)
    connection.endheaders()
    assert connection.getresponse().status == 414
    connection.close()
    llmd.llmctl("client", "revoke", "alice")
    for _ in range(15):
        status, headers, answer = llmd.get("/v1/models", alice)
        assert (status, answer["error"]["message"]) == (403, "this client certificate is revoked")
        assert headers["connection"] == "close"
    assert llmd.stop() == 0
    llmd = start()
    found = rows(llmd, "refused")
    serial = llmd.llmctl("client", "list")[0]["certificates"][0]["serial"]
    assert {(row["principal"], row.get("serial", serial)) for row in found} == {("alice", serial)}
    assert [(row["reason"], row.get("route")) for row in found[:5]] == [
        ("forbidden", "GET /metrics"), ("invalid_request", "POST /tokenize"), ("invalid_request", "POST /tokenize"),
        ("invalid_request", "POST /v1/chat/completions"), ("uri_too_long", ""),
    ]  # fmt: skip
    assert [row.get("more") for row in found[5:]] == [None] * 10 + [5]
    assert "secret" not in json.dumps(found)


def test_a_request_that_has_rows_of_its_own_is_not_refused_twice(llmd: Llmd, tmp_path: Path) -> None:
    tls = llmd.issue("only-once", tmp_path)
    assert llmd.post("/v1/completions", {"model": "smol", "prompt": "x " * 5000}, tls)[0] == 400
    assert llmd.post("/v1/completions", {"model": "none", "prompt": "x"}, tls)[0] == 404
    kinds = [row["kind"] for row in llmd.llmctl("audit", "query", "--principal", "only-once")]
    assert kinds == ["admit", "finish", "refused"]


@pytest.mark.skipif(os.geteuid() != 0, reason="a host name of its own needs root")
def test_a_renamed_host_keeps_its_clients(start: Start, tmp_path: Path) -> None:
    llmd = start("unshare", "--uts", "sh", "-c", 'hostname first-host && exec "$@"', "sh", node="")
    assert llmd.llmctl("status")["node"] == "first-host"
    demo = llmd.tls()
    assert llmd.get("/livez", demo)[0] == 200 and names(llmd, demo) >= {"first-host", "localhost"}
    assert llmd.stop() == 0
    llmd = start("unshare", "--uts", "sh", "-c", 'hostname Second-Host && exec "$@"', "sh", node="")
    assert llmd.get("/livez", demo)[0] == 200 and names(llmd, demo) >= {"second-host", "localhost"}
    found = checks(llmd)
    assert found["node"]["message"] == "first-host" and "host name" not in found
    subprocess.run(["nsenter", "--uts", "-t", str(llmd.process.pid), "hostname", "third-host"], check=True)
    told = checks(llmd)["host name"]
    assert told["ok"] is False and "third-host" in told["message"] and "restart llmd" in told["fix"]
    assert llmd.get("/livez", demo)[0] == 200


def names(llmd: Llmd, tls: ssl.SSLContext) -> set[str]:
    """In the server's certificate."""
    raw = socket.create_connection(("127.0.0.1", llmd.port))
    with tls.wrap_socket(raw, server_hostname="localhost") as wrapped:
        found: Any = wrapped.getpeercert()
    return {value for _, value in found["subjectAltName"]}


def test_another_node_in_the_configuration_changes_nothing_and_is_told(start: Start) -> None:
    llmd = start(node="old-name")
    demo = llmd.tls()
    assert llmd.stop() == 0
    llmd = start(node="new-name")
    assert llmd.get("/livez", demo)[0] == 200 and llmd.llmctl("status")["node"] == "old-name"
    told = checks(llmd)["node"]
    assert told["ok"] is None and "old-name" in told["message"] and 'node = "old-name"' in told["fix"]


def issued(llmd: Llmd, name: str, folder: Path, *more: str) -> ssl.SSLContext:
    llmd.llmctl("client", "issue", name, "--out", str(folder), *more)
    return llmd.tls(name, folder)


def asked(llmd: Llmd, tls: ssl.SSLContext) -> tuple[int, str]:
    status, _, answer = llmd.get("/v1/models", tls)
    return status, answer.get("error", {}).get("code", "")


def test_an_older_state_database_knows_again_what_the_audit_log_does(start: Start, tmp_path: Path) -> None:
    """Certificates, roles and revocations since: who was let in stays so, and is found by whoever revokes."""
    llmd, state = start(), tmp_path / "state"
    first = issued(llmd, "alice", tmp_path / "1")
    llmd.stop()
    older = (state / "state.db").read_bytes()
    llmd = start()
    second, bob = issued(llmd, "alice", tmp_path / "2", "--again"), issued(llmd, "bob", tmp_path / "3")
    carol = issued(llmd, "carol", tmp_path / "4")
    llmd.llmctl("client", "role", "bob", "auditor")
    llmd.llmctl("client", "revoke", "carol")
    llmd.stop()
    for name in ("state.db-wal", "state.db-shm"):
        (state / name).unlink(missing_ok=True)
    (state / "state.db").write_bytes(older)
    (state / "pki" / "crl.pem").unlink()  # not even the list is there: the log alone says who was revoked
    llmd = start()
    assert [row["certificates"] for row in rows(llmd, "state.completed")] == [3]
    assert asked(llmd, first) == asked(llmd, second) == (200, "")
    assert asked(llmd, bob) == (403, "forbidden") and llmd.get("/livez", bob)[0] == 200
    assert asked(llmd, carol) == (403, "certificate_revoked")
    assert len(llmd.llmctl("client", "revoke", "alice")["revoked"]) == 2
    assert asked(llmd, first) == asked(llmd, second) == (403, "certificate_revoked")
    assert asked(llmd, issued(llmd, "alice", tmp_path / "5", "--again")) == (200, "")
    llmd.stop()
    assert not rows(start(), "state.completed")[1:]  # it knows them now


def test_a_certificate_that_nothing_here_remembers_is_refused_and_shown(start: Start, tmp_path: Path) -> None:
    """The whole state from a backup that is older than a certificate: nobody could revoke it by its client's name."""
    llmd, state = start(), tmp_path / "state"
    first = issued(llmd, "alice", tmp_path / "1")
    llmd.stop()
    shutil.copytree(state, tmp_path / "backup", ignore=shutil.ignore_patterns("*.sock"))
    llmd = start()
    second, bob = issued(llmd, "alice", tmp_path / "2", "--again"), issued(llmd, "bob", tmp_path / "4")
    llmd.stop()
    shutil.rmtree(state)
    shutil.move(tmp_path / "backup", state)
    llmd = start()
    assert asked(llmd, first) == (200, "") and "unknown certificates" not in checks(llmd)
    status, _, answer = llmd.get("/v1/models", second)
    assert (status, answer["error"]["code"]) == (403, "client_unknown")
    assert "llmctl client issue alice --again" in answer["error"]["message"]
    told = checks(llmd)["unknown certificates"]
    assert told["ok"] is None and "alice" in told["message"] and "client issue NAME --again" in told["fix"]
    (alice,) = [one for one in llmd.llmctl("client", "list") if one["name"] == "alice"]
    assert [one["known"] for one in alice["certificates"]] == [True, False]
    _, _, answer = llmd.get("/v1/models", bob)  # a client that the backup has never heard of
    assert "llmctl client issue bob --again" in answer["error"]["message"]
    assert "bob" in checks(llmd)["unknown certificates"]["message"]
    (told,) = [one for one in llmd.llmctl("client", "list") if one["name"] == "bob"]
    assert told["role"] == "" and [one["known"] for one in told["certificates"]] == [False]
    assert asked(llmd, issued(llmd, "bob", tmp_path / "5", "--again")) == (200, "")
    assert asked(llmd, issued(llmd, "alice", tmp_path / "3", "--again")) == (200, "")
    assert asked(llmd, second) == (403, "client_unknown")
