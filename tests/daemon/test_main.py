"""The daemon under what happens to it: kills, hangs, signals, revocations, a full queue, a second daemon, bad
settings."""

import asyncio
import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest
import small_models
from forked import forker
from real_daemon import Llmd, llmctl, start_llmd

from llmd.daemon import atomic, composition
from llmd.daemon import config as config_module
from llmd.daemon.admin import upkeep as upkeep_module
from llmd.daemon.audit.offline import verify_file
from llmd.daemon.config import ConfigError
from llmd.daemon.errors import QueueFull
from llmd.daemon.identity.pki import Authority
from llmd.daemon.machine import memory
from llmd.daemon.replicas.deployment import Capacity
from llmd.daemon.serving.ask import Ask
from llmd.daemon.state.database import StateFile
from llmd.daemon.state.records import Info
from llmd.daemon.wire.work import Tokenize


def client(llmd: Llmd, tls: Any = None) -> openai.OpenAI:
    http = openai.DefaultHttpxClient(verify=tls or llmd.tls())
    return openai.OpenAI(base_url=f"{llmd.url}/v1", api_key="none", max_retries=0, http_client=http)


def stream(c: openai.OpenAI, max_tokens: int = 450) -> Iterator[Any]:
    return iter(c.chat.completions.create(
        model="smol", messages=[{"role": "user", "content": "Tell me a story."}], max_tokens=max_tokens, stream=True,
        extra_body={"ignore_eos": True}))  # fmt: skip


def finish_of(llmd: Llmd, request: str) -> dict[str, Any]:
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        for row in llmd.llmctl("audit", "query", "--request", request):
            if row["kind"] == "finish":
                body: dict[str, Any] = row["body"]
                return body
        time.sleep(0.05)
    raise AssertionError("no finish row")


def until_ready(llmd: Llmd, restarts: int, seconds: float = 15.0) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        model = llmd.model()
        if model["state"] == "ready" and model["restarts"] >= restarts:
            return
        time.sleep(0.1)
    raise AssertionError("the model did not come back")


def test_a_killed_worker_ends_its_streams_with_an_error_and_comes_back(own_llmd: Llmd) -> None:
    with client(own_llmd) as c:
        parts = stream(c)
        first = next(parts)
        os.kill(own_llmd.model()["pid"], signal.SIGKILL)
        began = time.monotonic()
        with pytest.raises(openai.APIError, match="process was lost"):
            for _ in parts:
                pass
        assert time.monotonic() - began < 2
        assert finish_of(own_llmd, first.id.replace("chatcmpl-", "req-"))["outcome"] == "error"
        until_ready(own_llmd, 1)
        assert list(stream(c, 2))


@pytest.mark.slow
def test_a_stopped_worker_is_replaced_within_twelve_seconds(own_llmd: Llmd) -> None:
    with client(own_llmd) as c:
        parts = stream(c)
        next(parts)
        os.kill(own_llmd.model()["pid"], signal.SIGSTOP)
        began = time.monotonic()
        with pytest.raises(openai.APIError, match="process was lost"):
            for _ in parts:
                pass
        assert time.monotonic() - began < 12
        assert own_llmd.process.poll() is None


def test_a_revoked_clients_stream_ends_and_it_stays_out(own_llmd: Llmd, tmp_path: Path) -> None:
    tls = own_llmd.issue("alice", tmp_path)
    with client(own_llmd, tls) as c, client(own_llmd) as other:
        parts = stream(c)
        first = next(parts)
        unharmed = stream(other, 30)
        next(unharmed)
        began = time.monotonic()
        assert own_llmd.llmctl("client", "revoke", "alice")["connections"] == 1
        with pytest.raises(Exception, match="."):
            for _ in parts:
                pass
        assert time.monotonic() - began < 5
        assert finish_of(own_llmd, first.id.replace("chatcmpl-", "req-"))["outcome"] == "cancelled"
        with pytest.raises(openai.PermissionDeniedError, match="this client certificate is revoked"):
            c.models.list()
        assert list(unharmed)
    assert own_llmd.llmctl("client", "revoke", "nobody", code=1)["error"]["code"] == "not_found"


def test_sigterm_lets_running_requests_finish(own_llmd: Llmd) -> None:
    with client(own_llmd) as c:
        parts = stream(c, 60)
        next(parts)
        own_llmd.process.send_signal(signal.SIGTERM)
        time.sleep(0.2)
        status, headers, answer = own_llmd.post("/v1/completions", {"prompt": "a", "max_tokens": 1})
        assert (status, answer["error"]["code"]) == (503, "shutting_down")
        assert headers["connection"] == "close" and int(headers["retry-after"]) > 0
        status, _, answer = own_llmd.get("/readyz")
        assert status == 503 and "the server is stopping" in answer["reasons"]
        finishes = [p.choices[0].finish_reason for p in parts if p.choices]
        assert finishes[-1] == "length"
    assert own_llmd.process.wait(20) == 0
    assert (own_llmd.state / "log").read_text().splitlines()[-1].endswith("stopped: running answers that were cut: 0")


def test_sigterm_is_heard_during_the_first_import(tmp_path: Path) -> None:
    """A file that takes long to copy: mostly a hole."""
    file = tmp_path / "large.gguf"
    with file.open("wb") as out:
        out.write(b"GGUF")
        out.truncate(4 << 30)
    arguments = ["--state-dir", tmp_path / "state", "--listen", "127.0.0.1:0", "--default-model", f"large={file}"]
    staging = tmp_path / "state" / "models" / "staging"
    daemon = forker().start("serve", *arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    for _ in range(400):
        if staging.exists() and any(staging.glob("*/model.gguf")):
            break
        time.sleep(0.02)
    daemon.send_signal(signal.SIGTERM)
    _, said = daemon.communicate(timeout=60)
    assert daemon.returncode == 0 and "stopped while starting" in said
    assert list(staging.iterdir()) == []


def test_a_second_sigterm_does_not_wait(own_llmd: Llmd) -> None:
    with client(own_llmd) as c:
        parts = stream(c)
        next(parts)
        own_llmd.process.send_signal(signal.SIGINT)
        time.sleep(0.3)
        own_llmd.process.send_signal(signal.SIGINT)
        assert own_llmd.process.wait(60) == 0
        assert (
            (own_llmd.state / "log").read_text().splitlines()[-1].endswith("stopped: running answers that were cut: 1")
        )
        with pytest.raises(Exception, match="."):
            for _ in parts:
                pass


@pytest.mark.slow
def test_a_killed_daemon_leaves_no_worker_and_its_open_request_is_lost(own_llmd: Llmd, model_file: Path) -> None:
    worker = psutil.Process(own_llmd.model()["pid"])
    with client(own_llmd) as c:
        parts = stream(c)
        request = next(parts).id.replace("chatcmpl-", "req-")
        own_llmd.process.kill()
        own_llmd.process.wait()
        worker.wait(60)
        with pytest.raises(Exception, match="."):
            for _ in parts:
                pass
    again = start_llmd(own_llmd.state, model_file)
    try:
        assert finish_of(again, request)["outcome"] == "lost"
        assert again.llmctl("audit", "verify")["ok"]
        with client(again) as c:
            assert list(stream(c, 2))
    finally:
        assert again.stop() == 0


def test_a_full_queue_is_503_with_retry_after(own_llmd: Llmd) -> None:
    with client(own_llmd) as c:
        running = [stream(c) for _ in range(2)]
        for parts in running:
            next(parts)
        waiting = threading.Thread(target=own_llmd.post, args=("/v1/completions", {"prompt": "y", "max_tokens": 1}))
        waiting.start()
        deadline = time.monotonic() + 5
        while own_llmd.model()["waiting"] < 1 and time.monotonic() < deadline:
            time.sleep(0.02)
        status, headers, answer = own_llmd.post("/v1/completions", {"prompt": "x"})
        assert (status, answer["error"]["code"]) == (503, "queue_full") and int(headers["retry-after"]) >= 1
        assert own_llmd.get("/livez")[0] == 200 and own_llmd.get("/readyz")[0] == 200
    waiting.join(20)  # the client's end frees both slots
    assert not waiting.is_alive()


def test_a_long_prompt_does_not_stall_another_stream(own_llmd: Llmd) -> None:
    with client(own_llmd) as c:
        parts = stream(c, 120)
        next(parts)
        reader = threading.Thread(
            target=own_llmd.post, args=("/v1/completions", {"prompt": "word " * 480, "max_tokens": 1})
        )
        reader.start()
        came = 0
        for part in parts:
            came += bool(part.choices and part.choices[0].delta.content)
            if not reader.is_alive():
                break
        assert came >= 2, "the stream went on while 480 tokens were read in chunks of 256"
        reader.join()


def test_init_makes_the_ca_once_and_ends(tmp_path: Path) -> None:
    state = tmp_path / "state"
    for _ in range(2):
        assert forker().run("init", "--state-dir", state).returncode == 0
        first = (state / "pki/ca.crt").read_bytes(), (state / "audit.key").read_bytes()
    assert first == ((state / "pki/ca.crt").read_bytes(), (state / "audit.key").read_bytes())
    assert (state / "pki/server.crt").exists() and not (state / "admin.sock").exists()
    assert not list((state / "pki").glob("clients/*"))


def test_a_second_daemon_on_the_same_state_is_refused(llmd: Llmd) -> None:
    done = forker().run("serve", "--state-dir", llmd.state, "--listen", "127.0.0.1:1")
    assert done.returncode == 1 and "another llmd runs" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("slots = ", ":1"), ("\nslotz = 4", ":2: there is no setting 'slotz'"),
        ('slots = "4"', ":1: slots takes a whole number"),
        ("slots = 0", "slots is 0"), ('listen = "nowhere"', "listen"), ('listen = "127.0.0.1:-1"', "listen"),
        ('listen = "127.0.0.1:８４４３"', "listen"),
        ('audit_on_failure = "ignore"', "refuse"), ("slots = true", "whole number"), ('node = "A B"', "node"),
        ("require_confinement = 1", "require_confinement takes true or false"),
    ],
)  # fmt: skip
def test_bad_settings_are_one_line_with_file_and_line(tmp_path: Path, text: str, wanted: str) -> None:
    file = tmp_path / "llmd.toml"
    file.write_text(text)
    done = forker().run("serve", "--config", file, "--state-dir", tmp_path / "s")
    assert done.returncode == 1 and wanted in done.stderr and len(done.stderr.strip().splitlines()) <= 2
    assert "Traceback" not in done.stderr


# llmd where landlock_create_ruleset(2) is no system call
WITHOUT_LANDLOCK = """
import sys
from llmd.daemon import main
from llmd.daemon.machine import confined
confined._libc.prctl(confined.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
confined._install([(0x20, 0, 0, 0), (0x15, 0, 1, 444), (0x06, 0, 0, 0x00050026), (0x06, 0, 0, 0x7FFF0000)])
main.main(sys.argv[1:])
"""


def test_a_state_folder_among_the_systems_files_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What reads models may read these."""
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    done = forker().run("serve", "--state-dir", tmp_path / "s", "--listen", "127.0.0.1:0")
    assert done.returncode == 1 and f"{tmp_path / 's'} lies below {tmp_path}" in done.stderr
    assert not (tmp_path / "s").exists()


def test_where_the_kernel_cannot_confine_it_says_so_and_does_not_start_if_that_is_required(tmp_path: Path) -> None:
    (tmp_path / "llmd.toml").write_text("require_confinement = true")
    command = [sys.executable, "-P", "-c", WITHOUT_LANDLOCK, "serve", "--listen", "127.0.0.1:0"]
    given = ["--state-dir", str(tmp_path / "s"), "--config", str(tmp_path / "llmd.toml")]
    done = subprocess.run([*command, *given], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and not (tmp_path / "s" / "admin.sock").exists()
    (line,) = done.stderr.splitlines()
    assert "this kernel has no Landlock, and require_confinement is set: boot one" in line
    (tmp_path / "llmd.toml").write_text("require_confinement = false")
    with subprocess.Popen([*command, *given], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as daemon:
        assert daemon.stderr is not None
        said = daemon.stderr.readline()
        assert "this kernel has no Landlock: what reads models" in said
        while "clients on" not in daemon.stderr.readline():
            pass
        told = llmctl(tmp_path / "s" / "admin.sock", "status").stdout
        daemon.terminate()
        assert daemon.wait(20) == 0
    assert "NOT CONFINED: this kernel has no Landlock" in told


def test_every_setting_stands_in_the_docs() -> None:
    page = (Path(__file__).parents[2] / "docs" / "configuration.md").read_text()
    names = [f.name for f in dataclasses.fields(config_module.Config)]
    assert len(names) <= 30
    for name in names:
        assert f"`{name}`" in page


def test_what_a_reload_can_use_and_what_it_cannot() -> None:
    used = config_module.Config(queue=5, listen="127.0.0.1:1", drain_seconds=7)
    assert config_module.changes(used, used) == (used, [], [])
    new = dataclasses.replace(used, queue=6, evict=True, listen="0.0.0.0:1", node="other")
    usable = dataclasses.replace(used, queue=6, evict=True)
    assert config_module.changes(used, new) == (usable, ["queue", "evict"], ["listen", "node"])


def test_a_reload_uses_what_the_file_says_now(llmd: Llmd) -> None:
    file = llmd.state / "llmd.toml"
    before = file.read_text()
    try:
        file.write_text(before + 'allowed_hosts = ["llm.example"]\nserver_names = ["llm.example"]\n')
        done = llmd.llmctl("reload")
        assert done["changed"] == ["allowed_hosts"] and done["next_start"] == ["server_names"]
        assert llmd.get("/livez")[0] == 400, "another Host is asked for"
        file.write_text(before + "quue = 7\n")
        refused = llmd.llmctl("reload", code=1)["error"]["message"]
        assert "there is no setting 'quue'; what was read before stays" in refused
        assert llmd.get("/livez")[0] == 400
        rows = [row["body"] for row in llmd.llmctl("audit", "query", "--kind", "reload")[-3:]]
        assert [(row["result"], row.get("changed")) for row in rows] == [
            ("done", "allowed_hosts"), ("begun", None), ("failed", None),
        ]  # fmt: skip
    finally:
        file.write_text(before)
    assert llmd.llmctl("reload")["changed"] == ["allowed_hosts"] and llmd.get("/livez")[0] == 200


async def test_what_a_reload_has_read_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available", lambda: 100 << 30)
    new = [config_module.Config(state_dir=str(tmp_path))]
    daemon = composition.Daemon(new[0], lambda: new[0])
    new[0] = dataclasses.replace(
        new[0], queue=1, drain_seconds=3, slots=2, context=512, batch=128, chunk=64, threads=1, audit_on_failure="serve"
    )
    changed = (await daemon.service.reload("test"))["changed"]
    assert sorted(changed) == [
        "audit_on_failure", "batch", "chunk", "context", "drain_seconds", "queue", "slots", "threads",
    ]  # fmt: skip
    assert "configuration" not in {check["name"] for check in await daemon.service.doctor.checks()}
    daemon.store.add_model("m", "0" * 64, 1 << 20, "m.gguf", Info(context_length=4096))
    small_models.stored(tmp_path / "models", "0" * 64, 1 << 20)
    wish = (await daemon.service.deployments.deploy("m", "me"))[0].wanted
    assert wish and (wish.slots, wish.context, wish.batch, wish.chunk, wish.threads) == (2, 512, 128, 64, 1)
    assert daemon.seats.total == daemon.service.forms.maker._threads() == 1
    daemon.serving.admission._capacity = lambda model: Capacity(2, 2)
    daemon.serving.admission.enter("alice", 1.0, Ask("/there", "m", Tokenize("hello")))
    with pytest.raises(QueueFull, match="as many requests wait for this model as it takes"):
        daemon.serving.admission.enter("alice", 1.0, Ask("/there", "m", Tokenize("hello")))
    daemon.audit._writer._write = lambda db, entries: 1 / 0  # type: ignore[assignment, method-assign]
    async with daemon.acts("admin.deploy", "me"):
        assert daemon.serving.books.unaudited()
    del daemon.audit._writer._write
    kinds = [(row["kind"], row["body"].get("value")) for row in await daemon.audit.tail(9)]
    assert ("audit.on_failure", "serve") in kinds
    await daemon.pool.close(0)
    await daemon.close()


def test_a_port_that_is_taken_is_said(llmd: Llmd, tmp_path: Path) -> None:
    done = forker().run("serve", "--state-dir", tmp_path, "--listen", f"127.0.0.1:{llmd.port}")
    assert done.returncode == 1 and "in use" in done.stderr and "Traceback" not in done.stderr
    rows = verify_file(tmp_path / "audit.db").rows
    for _ in range(2):  # systemd tries again, without an end
        assert forker().run("serve", "--state-dir", tmp_path, "--listen", f"127.0.0.1:{llmd.port}").returncode == 1
    assert verify_file(tmp_path / "audit.db").rows == rows


def test_the_daemon_imports_no_engine(llmd: Llmd) -> None:
    maps = Path(f"/proc/{llmd.process.pid}/maps").read_text()
    assert "libllama" not in maps and "libggml" not in maps and "/torch/" not in maps


def test_a_reload_by_signal_keeps_serving(llmd: Llmd) -> None:
    before = llmd.llmctl("audit", "query", "--kind", "reload")
    llmd.process.send_signal(signal.SIGHUP)
    deadline = time.monotonic() + 3
    while len(llmd.llmctl("audit", "query", "--kind", "reload")) == len(before) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert llmd.get("/livez")[0] == 200


def test_no_process_of_it_leaves_its_memory_where_it_crashes(llmd: Llmd) -> None:
    """Neither on a disk nor to a crash handler, which gets a dump whatever the limit is."""
    daemon = psutil.Process(llmd.process.pid)
    processes = [daemon, *daemon.children(recursive=True)]
    assert {"llmd-nursery", "llmd-render"} <= {one.name() for one in processes} and len(processes) > 4
    for one in processes:
        assert Path(f"/proc/{one.pid}/coredump_filter").read_text().strip() == "00000000", one
        assert one.rlimit(psutil.RLIMIT_CORE) == (0, 0)


async def test_two_hundred_streams_opened_and_left_leave_nothing(llmd: Llmd) -> None:
    body = json.dumps({"prompt": "x", "max_tokens": 50, "stream": True}).encode()
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    head += b"Content-Length: %d\r\n\r\n" % len(body)
    tls = llmd.tls()
    files = len(os.listdir(f"/proc/{llmd.process.pid}/fd"))

    async def open_and_leave() -> None:
        _, writer = await asyncio.open_connection("127.0.0.1", llmd.port, ssl=tls, server_hostname="localhost")
        writer.write(head + body)
        await writer.drain()
        writer.transport.abort()

    for _ in range(10):
        await asyncio.gather(*(open_and_leave() for _ in range(20)))
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        status = await asyncio.to_thread(llmd.llmctl, "status")
        if status["connections"] == 0 and status["models"][0]["running"] == 0:
            break
        await asyncio.sleep(0.1)
    assert status["models"][0]["running"] == 0 and status["connections"] == 0
    assert len(os.listdir(f"/proc/{llmd.process.pid}/fd")) <= files + 5
    assert (await asyncio.to_thread(llmd.post, "/v1/completions", {"prompt": "x", "max_tokens": 1}))[0] == 200


async def test_upkeep_that_fails_is_tried_again_and_told_of_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The task that renews certificates ended at its first unexpected exception, and nobody was told."""
    monkeypatch.setattr(upkeep_module, "RETRY_SECONDS", 0.05)
    daemon = composition.Daemon(config_module.Config(state_dir=str(tmp_path)))
    calls = 0

    def maintain() -> list[str]:
        nonlocal calls
        calls += 1
        if calls < 3:
            assert (calls == 2) == bool(daemon.tasks.failed)
            raise ZeroDivisionError
        return []

    monkeypatch.setattr(daemon.authority, "maintain", maintain)
    upkeep = daemon.upkeep.start()
    async with asyncio.timeout(5):
        while calls < 3:
            await asyncio.sleep(0.01)
    await asyncio.sleep(0)
    assert not daemon.tasks.failed
    assert [check["name"] for check in daemon.service.doctor.tasks()] == []
    daemon.tasks.failed.add("upkeep")
    assert daemon.service.doctor.tasks()[0]["ok"] is False
    upkeep.cancel()
    await asyncio.gather(upkeep, return_exceptions=True)
    daemon.state.close()
    daemon.store.close()
    daemon.audit.close()
    os.close(daemon._lock)


@pytest.mark.parametrize("error", [ConfigError("llmd.toml:1: it is wrong"), ZeroDivisionError()])
async def test_a_reload_that_fails_takes_nothing_from_what_serves(
    tmp_path: Path, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    def read() -> config_module.Config:
        if reads.pop():
            raise error
        return config_module.Config(state_dir=str(tmp_path))

    reads = [True, False]
    daemon = composition.Daemon(read(), read)
    daemon.upkeep.reload()
    async with asyncio.timeout(5):
        while "reload failed" not in caplog.text:
            await asyncio.sleep(0.01)
    assert not reads and not daemon.tasks.failed
    await daemon.pool.close(0)
    await daemon.close()


async def test_what_an_admin_does_reads_and_writes_the_state_in_its_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A commit or a signature waits for the disk: on the event loop it would hold up every stream."""
    daemon = composition.Daemon(config_module.Config(state_dir=str(tmp_path)))
    threads: set[str] = set()
    for kind, name in ((StateFile, "rows"), (StateFile, "insert"), (StateFile, "write"), (Authority, "issue_client")):
        monkeypatch.setattr(kind, name, _noted(threads, getattr(kind, name)))
    monkeypatch.setattr(atomic, "write", _noted(threads, atomic.write))
    small_models.stored(tmp_path / "models", "d" * 64, 1)
    daemon.store.add_model("m", "d" * 64, 1, "", Info())
    threads.clear()
    service = daemon.service
    await service.clients.issue("alice", 30, "test")
    await service.clients.list()
    await service.clients.set_role("alice", "operator", "test")
    await service.clients.revoke("alice", "test")
    await service.deployments.deploy("m", "test")
    await service.imported()
    await service.show("m")
    await service.deployments.undeploy("m", "test")
    await service.status()
    await service.doctor.checks()
    await service.remove_model("m", "test")
    assert len(threads) == 1 and threads.pop().startswith("state")
    await daemon.pool.close(0)
    daemon.state.close()
    daemon.store.close()
    daemon.audit.close()
    os.close(daemon._lock)


def _noted(threads: set[str], work: Callable[..., Any]) -> Callable[..., Any]:
    def noted(*arguments: Any, **named: Any) -> Any:
        threads.add(threading.current_thread().name)
        return work(*arguments, **named)

    return noted
