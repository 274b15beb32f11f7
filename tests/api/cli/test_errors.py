"""What `llmctl` says where something is wrong: one line, or JSON where that is asked for, and no more of what was typed
than it is known by."""

import json
import os
import pty
import select
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from real_daemon import Llmd, llmctl

from llmd.api.cli import client as cli_client
from llmd.api.cli.connection import Client
from llmd.api.cli.main import main
from llmd.daemon.config import Config

LLMCTL = str(Path(sys.executable).parent / "llmctl")
LONG = "x" * 5000


def said(llmd: Llmd, *arguments: str) -> str:
    done = llmctl(llmd.state / "admin.sock", *arguments)
    assert done.exit_code in (1, 2), done.output
    return done.stderr


WRONG = [
    ("client", "issue", "a", "--days", "many"),
    ("client", "issue", "a", "--none"),
    ("client", "issue"),
    ("nothing",),
    ("audit", "query", "--limit", "-1"),
    ("model", "quantize", "smol"),
    ("client", "issue", "a", "--out", "/proc/nowhere"),
    ("chat", "smol", ""),
]  # fmt: skip


@pytest.mark.parametrize("arguments", WRONG)
def test_with_json_every_error_is_json(llmd: Llmd, arguments: tuple[str, ...]) -> None:
    plain = said(llmd, *arguments)
    for given in ((*arguments, "--json"), ("--json", *arguments)):
        error = json.loads(said(llmd, *given))["error"]
        assert error["message"] in plain.replace("\n", " ") and error["code"]
    assert CliRunner().invoke(main, ["--none", "--json"]).stderr.startswith('{"error"')


TYPED = [
    ("model", "show", LONG),
    ("model", "rm", LONG),
    ("model", "rename", "smol", LONG),
    ("model", "import", f"/tmp/{LONG}"),
    ("model", "import", "/tmp/" + "long/" * 500),
    ("deploy", LONG),
    ("deploy", f"./{LONG}"),
    ("deploy", f"./{LONG}.gguf"),
    ("deploy", "smol", "--form", LONG),
    ("deploy", "smol", "--gpus", LONG),
    ("deploy", "smol", "--replicas", LONG),
    ("plan", LONG),
    ("chat", LONG, "Hello"),
    ("client", "issue", LONG),
    ("client", "issue", "a", f"--out=/proc/{LONG}"),
    ("client", "role", "demo", LONG),
    ("client", "revoke", "demo", "--serial", LONG),
    ("audit", "query", "--kind", LONG),
    ("audit", "query", "--since", LONG),
    ("audit", "query", f"--format={LONG}"),
    ("jobs", "show", LONG),
    ("gpus", "--use", LONG),
    ("model", "quantize", "smol", "--type", LONG),
    ("model", "quantize", "smol", "--budget", LONG),
    (LONG,),
    (f"--{LONG}",),
    ("status", LONG),
]  # fmt: skip


@pytest.mark.parametrize("arguments", TYPED)
def test_no_error_repeats_more_than_200_characters(llmd: Llmd, arguments: tuple[str, ...]) -> None:
    for json_ in ((), ("--json",)):
        text = said(llmd, *arguments, *json_)
        assert "x" * 201 not in text and "long/" * 41 not in text and len(text) < 1500, text


def test_the_daemon_itself_repeats_no_more(llmd: Llmd) -> None:
    """Whoever asks it without llmctl."""
    daemon = Client(str(llmd.state / "admin.sock"))
    bodies: list[tuple[str, dict[str, Any]]] = [
        ("/models", {"path": "/tmp/" + "x/" * 2000}), ("/models/folders", {"path": "/tmp/" + "x/" * 2000}),
        ("/models", {"path": "/tmp/" + "x" * 4000}), ("/plan", {"model": "smol", "form": "x" * 256}),
        ("/plan", {"model": "smol", "gpus": ["x" * 256]}), ("/deploy", {"model": "x" * 256}),
        ("/undeploy", {"model": "x" * 256}), ("/models/smol/syntax", {"syntax": "x" * 64}),
        ("/models/smol/rename", {"name": "x" * 256}), ("/gpus/use", {"gpu": "x" * 256}),
    ]  # fmt: skip
    for route, body in bodies:
        with pytest.raises(Exception) as refused:
            daemon.call("POST", route, body)
        assert "x" * 201 not in str(refused.value) and "x/" * 101 not in str(refused.value), route


# --- certificates


@pytest.mark.parametrize("role", ["infer", "operator", "admin", "auditor"])
def test_the_printed_curl_works_for_every_role(llmd: Llmd, tmp_path: Path, role: str) -> None:
    folder = tmp_path / "of the client"
    printed = llmctl(llmd.state / "admin.sock", "client", "issue", f"try-{role}", "--role", role, "--out", str(folder))
    (line,) = [line for line in printed.stdout.splitlines() if line.startswith("try it: ")]
    words = shlex.split(line.removeprefix("try it: "))
    status = subprocess.run([*words, "-sS", "-o", "/dev/null", "-w", "%{http_code}"], capture_output=True, text=True)
    assert status.stdout == "200", status.stderr


@pytest.mark.parametrize(
    ("listen", "url"),
    [
        ("127.0.0.1:8443", "https://127.0.0.1:8443"),
        ("0.0.0.0:8443", "https://127.0.0.1:8443"),
        ("[::]:8443", "https://[::1]:8443"),
        ("[::1]:443", "https://[::1]:443"),
        ("10.1.2.3:8443", "https://10.1.2.3:8443"),
        ("llm.example:8443", "https://llm.example:8443"),
    ],
)
def test_where_this_machine_finds_the_daemon(listen: str, url: str) -> None:
    assert Config(listen=listen).url == url


def test_where_another_host_name_is_asked_for_the_curl_names_it(llmd: Llmd, tmp_path: Path) -> None:
    file = llmd.state / "llmd.toml"
    before = file.read_text()
    try:
        file.write_text(before + 'allowed_hosts = ["llm.example"]\n')
        llmd.llmctl("reload")
        done = llmctl(llmd.state / "admin.sock", "client", "issue", "try-host", "--out", str(tmp_path))
        line = next(line for line in done.stdout.splitlines() if line.startswith("try it: "))
        words = [*shlex.split(line.removeprefix("try it: ")), "-sS", "-o", "/dev/null", "-w", "%{http_code}"]
        assert subprocess.run(words, capture_output=True, text=True).stdout == "200"
    finally:
        file.write_text(before)
        llmd.llmctl("reload")


def certificates(llmd: Llmd, name: str) -> list[dict[str, Any]]:
    return [cert for c in llmd.llmctl("client", "list") if c["name"] == name for cert in c["certificates"]]


def test_nothing_is_issued_that_cannot_be_written(llmd: Llmd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    for out in ("/proc/nowhere", str(tmp_path / "file" / "below"), "/dev/full/below"):
        assert "nothing was made" in said(llmd, "client", "issue", "lost", "--out", out)
    (tmp_path / "lost.crt").mkdir()
    assert "another --out" in said(llmd, "client", "issue", "lost", "--force", "--out", str(tmp_path))
    monkeypatch.setattr(cli_client._Room, "BYTES", 1 << 60)  # a disk that has no room for it
    assert "nothing was made" in said(llmd, "client", "issue", "lost", "--out", str(tmp_path / "new" / "folder"))
    monkeypatch.undo()
    assert certificates(llmd, "lost") == [] and not (tmp_path / "new").exists()
    assert "lower-case" in said(llmd, "client", "issue", "../Lost", "--out", str(tmp_path / "new" / "folder"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "lost.crt"]


def test_a_certificate_whose_file_fails_at_last_is_revoked(
    llmd: Llmd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(room: Any, path: Path, text: str, mode: int) -> None:
        if path.suffix == ".key":
            raise error
        keep(room, path, text, mode)

    keep = cli_client._Room.keep
    monkeypatch.setattr(cli_client._Room, "keep", fails)
    error: BaseException = OSError(5, "Input/output error", "late.key")
    assert "late.key: Input/output error; the certificate that was made is revoked again" in said(
        llmd, "client", "issue", "late", "--out", str(tmp_path)
    )
    error = KeyboardInterrupt()
    done = llmctl(llmd.state / "admin.sock", "client", "issue", "late", "--again", "--out", str(tmp_path))
    assert done.exit_code == 130
    monkeypatch.undo()
    assert len(certs := certificates(llmd, "late")) == 2 and all(cert["revoked_at"] for cert in certs)
    assert [*tmp_path.iterdir()] == []


# --- interrupts, and nothing to say


def on_a_terminal(*command: str, interrupt_after: str) -> tuple[int, str]:
    """Its exit code and output; Ctrl-C is pressed once that was printed."""
    pid, fd = pty.fork()
    if pid == 0:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.execvp(command[0], command)
    out, sent = b"", False
    while select.select([fd], [], [], 30)[0]:
        try:
            data = os.read(fd, 65536)
        except OSError:
            break
        if not data:
            break
        out += data
        if not sent and interrupt_after in out.decode(errors="replace"):
            os.write(fd, b"\x03")
            sent = True
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), out.decode(errors="replace")


def test_an_answer_that_is_interrupted_is_130(llmd: Llmd) -> None:
    ask = "Write the numbers from one to one thousand in words."
    command = (LLMCTL, "--socket", str(llmd.state / "admin.sock"), "chat", "smol", ask)
    for _ in range(8):  # an answer may be over before it is interrupted
        code, out = on_a_terminal(*command, interrupt_after=" ")
        if code:
            break
    assert code == 130 and "Traceback" not in out and out.endswith("\n")


def test_without_a_message_nothing_is_asked(llmd: Llmd) -> None:
    command = [LLMCTL, "--socket", str(llmd.state / "admin.sock"), "chat", "smol"]
    before = len(llmd.llmctl("audit", "query", "--kind", "admit", "--limit", "0"))
    for text in ("", " \n"):
        done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=30, check=False)
        assert done.returncode == 2 and "there is no message" in done.stderr and done.stdout == ""
    assert len(llmd.llmctl("audit", "query", "--kind", "admit", "--limit", "0")) == before


def test_h_is_help_everywhere() -> None:
    for words in ((), ("audit",), ("audit", "query"), ("deploy",)):
        done = CliRunner().invoke(main, [*words, "-h"])
        assert done.exit_code == 0 and done.stdout.startswith("Usage: ")


def completed(llmd: Llmd, *words: str) -> list[str]:
    """What the shell offers for the last word."""
    line = ["llmctl", "--socket", str(llmd.state / "admin.sock"), *words]
    variables = {"_LLMCTL_COMPLETE": "bash_complete", "COMP_WORDS": shlex.join(line), "COMP_CWORD": str(len(line) - 1)}
    done = CliRunner().invoke(main, [], prog_name="llmctl", env=variables)
    return [line.partition(",")[2] for line in done.stdout.splitlines() if line]


def test_names_of_models_and_clients_are_completed(llmd: Llmd) -> None:
    assert completed(llmd, "deploy", "sm") == ["smol"] and completed(llmd, "model", "show", "") == ["smol"]
    assert completed(llmd, "deploy", "smol@") == ["smol@Q4_1"]
    assert completed(llmd, "undeploy", "s") == ["smol"] and completed(llmd, "chat", "") == ["smol"]
    assert "demo" in completed(llmd, "client", "revoke", "") and completed(llmd, "client", "role", "de") == ["demo"]
    assert completed(llmd, "deploy", "zzz") == [] and completed(llmd, "deploy", "./m") == ["./m"]
    assert "reload" in completed(llmd, "re")
    command = ("--socket", "/nowhere/admin.sock", "deploy", "s")
    variables = {"_LLMCTL_COMPLETE": "bash_complete", "COMP_WORDS": shlex.join(("llmctl", *command)), "COMP_CWORD": "4"}
    assert CliRunner().invoke(main, [], prog_name="llmctl", env=variables).stdout.strip() == ""
