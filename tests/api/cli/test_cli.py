"""`llmctl` as an admin uses it, against a real daemon."""

import json
import signal
import sqlite3
import ssl
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import datetime
from pathlib import Path

import click
import pytest
from gguf_writer import STR, tiny
from real_daemon import Llmd, llmctl

from llmd.api.cli.connection import Client, DaemonError
from llmd.api.cli.main import main

LLMCTL = str(Path(sys.executable).parent / "llmctl")


def run(llmd: Llmd, *arguments: str, code: int = 0) -> str:
    """Standard output, or standard error where it fails."""
    done = llmctl(llmd.state / "admin.sock", *arguments)
    assert done.exit_code == code, done.stderr
    return done.stdout if code == 0 else done.stderr


def commands(group: click.Group, before: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, (*before, name))
        else:
            yield (*before, name), command


def test_every_command_has_json_and_stands_in_the_docs() -> None:
    page = (Path(__file__).parents[3] / "docs" / "llmctl.md").read_text()
    for path, command in commands(main):
        assert any("--json" in p.opts for p in command.params), path
        assert f"llmctl {' '.join(path)}" in page, path


def test_it_starts_without_the_daemons_libraries() -> None:
    heavy = "('fastapi', 'numpy', 'pydantic', 'cryptography', 'sqlite_utils')"
    code = f"import sys, llmd.api.cli; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]"


def test_status_and_doctor(llmd: Llmd) -> None:
    assert "smol" in run(llmd, "status") and "ready" in run(llmd, "status")
    assert "confined: what reads models, schemas and templates reaches nothing else" in run(llmd, "status")
    assert llmd.model()["replicas"][0]["confined"] is True
    assert "the chain holds" in run(llmd, "doctor")
    assert llmd.llmctl("status")["models"][0]["state"] == "ready"
    assert all(c["ok"] is not False for c in llmd.llmctl("doctor")["checks"])


def test_without_a_daemon_it_says_so(tmp_path: Path) -> None:
    for arguments in (["status"], ["doctor"], ["model", "list"]):
        command = [LLMCTL, "--socket", str(tmp_path / "none.sock"), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode == 3 and "does not exist" in done.stderr + done.stdout
    done = subprocess.run(
        [LLMCTL, "--socket", str(tmp_path / "none.sock"), "status", "--json"], capture_output=True, text=True
    )
    assert '"code": "no_daemon"' in done.stderr and done.stdout == ""


def test_wrong_usage_is_code_two(llmd: Llmd) -> None:
    assert "No such command" in run(llmd, "frobnicate", code=2)
    run(llmd, "deploy", "smol", "--ctx", "many", code=2)


def test_what_a_template_does_not_take_is_said_and_what_is_done(llmd: Llmd, tmp_path: Path) -> None:
    file = tiny()
    insists = (
        "{% if m.role == 'system' and not loop.first %}{{ raise_exception('a system message comes first') }}{% endif %}"
    )
    file.keys["tokenizer.chat_template"] = (STR, "{% for m in messages %}" + insists + "{{ m.content }}{% endfor %}")
    path = tmp_path / "insists.gguf"
    path.write_bytes(file.bytes())
    told = run(llmd, "model", "import", str(path))
    assert (
        "its chat template does not take two system messages as it comes: messages of one role in a row are joined\n"
        in told
    )
    line = "does not take a system message in the middle as it comes: later system messages go to the first one, and "
    assert line in told and line in run(llmd, "model", "show", "insists")
    assert llmd.llmctl("model", "show", "insists")["info"]["laid"].keys() == {
        "two system messages", "a system message in the middle"
    }  # fmt: skip
    prompt = run(llmd, "model", "template", "insists", "--conversation", str(conversation(tmp_path)))
    assert "Be brief.\n\nIn French.One?Yes.Two?" in prompt
    run(llmd, "model", "rm", "insists")


def conversation(folder: Path) -> Path:
    said = (
        ("system", "Be brief."),
        ("user", "One?"),
        ("assistant", "Yes."),
        ("system", "In French."),
        ("user", "Two?"),
    )
    path = folder / "conversation.json"
    path.write_text(json.dumps([{"role": role, "content": text} for role, text in said]))
    return path


def test_a_model_comes_serves_and_goes(llmd: Llmd, model_file: Path) -> None:
    assert "imported second" in run(llmd, "model", "import", str(model_file), "--name", "second")
    assert "second" in run(llmd, "model", "list")
    shown = [line.partition(":") for line in run(llmd, "model", "show", "second").splitlines()]
    facts = {name: value.strip() for name, _, value in shown}
    assert facts["context length"] == "8192" and facts["deployed"] == "no" and facts["chat template"] == "yes"
    assert len({len(name) + 1 + len(value) - len(value.lstrip()) for name, _, value in shown if value}) == 1
    assert "as it was imported" in run(llmd, "model", "verify", "second")
    assert "tool calls" in facts["conversations"] and facts["tried"] == "yes"
    assert run(llmd, "model", "rename", "second", "first") == "second is first now\n"
    assert "there is no imported model" in run(llmd, "model", "rename", "second", "third", code=1)
    run(llmd, "model", "rename", "first", "second")
    assert "is deployed" in run(llmd, "model", "rename", "smol", "third", code=1)
    assert "second is ready" in run(llmd, "deploy", "second", "--ctx", "256", "--slots", "1")
    assert "undeploy" in run(llmd, "model", "rm", "second", code=1)
    assert run(llmd, "chat", "second", "Say hello.", "--max-tokens", "5", "--temperature", "0").strip()
    assert llmd.llmctl("chat", "second", "Hi", "--max-tokens", "2")["usage"]["completion_tokens"] <= 2
    run(llmd, "undeploy", "second")
    assert "are for GPUs" in run(llmd, "deploy", "second", "--gpus", "GPU-a", "--ubatch", "512", code=1)
    assert "are for GPUs" in run(llmd, "deploy", "second", "--split", "layer", code=1)
    assert "split: " in run(llmd, "deploy", "second", "--split", "rows", code=1)
    assert "second is ready" in run(llmd, "deploy", "second", "--ctx", "256", "--slots", "1", "--kv", "q8_0")
    run(llmd, "undeploy", "second")
    run(llmd, "model", "rm", "second")
    for command in (("model", "show"), ("model", "template"), ("model", "rm"), ("model", "verify"), ("deploy",)):
        said = run(llmd, *command, "second", code=1)
        assert said == "llmctl: there is no imported model of that name; there is smol\n"
    said = run(llmd, "undeploy", "second", code=1)
    assert said == "llmctl: there is no deployed model of that name; there is smol\n"
    assert [m["name"] for m in llmd.llmctl("model", "list")] == ["smol"]


def test_how_a_model_writes_is_found_shown_and_said_otherwise(llmd: Llmd, model_file: Path) -> None:
    """Its template knows neither tools nor thoughts; where an admin says that it thinks, it is read so."""
    run(llmd, "model", "import", str(model_file), "--name", "writer")
    assert "tools are explained to it" in run(llmd, "model", "show", "writer")
    assert "there is no such format: give hermes" in run(llmd, "model", "syntax", "writer", "wizard", code=1)
    assert "writer writes mistral+think" in run(llmd, "model", "syntax", "writer", "mistral+think")
    assert "mistral+think (its chat template: no calls" in run(llmd, "model", "show", "writer")
    run(llmd, "deploy", "writer", "--ctx", "512", "--slots", "1")
    tool = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
    # a model of this size would not think by itself: here its grammar lets it end at once
    asked = {"model": "writer", "messages": [{"role": "user", "content": "<think>"}], "seed": 1, "max_tokens": 200}
    status, _, answer = llmd.post("/v1/chat/completions", asked | {"tools": [tool], "tool_choice": "required"})
    assert status == 200
    message = answer["choices"][0]["message"]
    assert message.get("tool_calls") or message.get("reasoning_content")
    assert "explained" in run(llmd, "model", "syntax", "writer", "auto")
    run(llmd, "undeploy", "writer")
    run(llmd, "model", "rm", "writer")


def test_the_prompt_of_a_conversation_is_shown(llmd: Llmd, tmp_path: Path) -> None:
    shown = run(llmd, "model", "template", "smol")
    assert "<|im_start|>user\nName a colour.<|im_end|>\n<|im_start|>assistant\n" in shown
    file = tmp_path / "conversation.json"
    for given in (
        [{"role": "user", "content": "Hi \x1b[31m"}],
        {"messages": [{"role": "user", "content": "Hi \x1b[31m"}]},
    ):
        file.write_text(json.dumps(given))
        assert "Hi \\x1b[31m" in run(llmd, "model", "template", "smol", "--conversation", str(file))
        assert "Hi \x1b[31m" in llmd.llmctl("model", "template", "smol", "--conversation", str(file))["prompt"]
    file.write_text("no JSON")
    assert "is not JSON" in run(llmd, "model", "template", "smol", "--conversation", str(file), code=2)
    file.write_text('[{"role": "wizard", "content": "a"}]')
    assert "messages.0.role" in run(llmd, "model", "template", "smol", "--conversation", str(file), code=1)


def test_damaged_and_foreign_files_are_refused_with_the_reason(llmd: Llmd, model_file: Path, tmp_path: Path) -> None:
    whole = model_file.read_bytes()
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(whole[:50_000_000])
    assert "truncated" in run(llmd, "model", "import", str(cut), code=1)
    pickle = tmp_path / "model.bin"
    pickle.write_bytes(b"\x80\x04" + b"x" * 1000)
    assert "GGUF" in run(llmd, "model", "import", str(pickle), code=1)
    run(llmd, "model", "import", str(tmp_path / "none.gguf"), code=1)
    pointer = tmp_path / "pointer.gguf"
    pointer.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:5c\nsize 5\n")
    assert "this is what Git LFS leaves" in run(llmd, "model", "import", str(pointer), code=1)
    for name, head in (("model.safetensors", bytes(8) + b"{"), ("config.json", b"{}"), ("x", bytes(8) + b"{")):
        (tmp_path / name).write_bytes(head + b" " * 64)
        assert "name the folder that it lies in" in run(llmd, "model", "import", str(tmp_path / name), code=1)
        assert "name the folder that it lies in" in run(llmd, "deploy", str(tmp_path / name), code=1)
        (tmp_path / name).unlink()
    for head, words in ((b"<!DOCTYPE html><html>", "web page"), (b"\x1f\x8b\x08", "archive"), (b"tjgg", "GGML file")):
        (tmp_path / "x.gguf").write_bytes(head + bytes(64))
        assert words in run(llmd, "model", "import", str(tmp_path / "x.gguf"), code=1)
    assert "there is no file" in run(llmd, "deploy", str(tmp_path / "none.gguf"), code=1)
    assert "there is no folder" in run(llmd, "deploy", str(tmp_path / "none"), code=1)
    run(llmd, "model", "import", str(tmp_path), code=1)
    assert "smol" in run(llmd, "model", "import", str(_other(model_file, tmp_path)), "--name", "smol", code=1)
    assert list((llmd.state / "models" / "staging").iterdir()) == []


def _other(model_file: Path, tmp_path: Path) -> Path:
    file = tmp_path / "other.gguf"
    data = bytearray(model_file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    return file


def test_an_import_whose_llmctl_is_killed_leaves_nothing(llmd: Llmd, model_file: Path) -> None:
    command = [
        LLMCTL,
        "--socket",
        str(llmd.state / "admin.sock"),
        "model",
        "import",
        str(model_file),
        "--name",
        "killed",
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    time.sleep(0.35)
    process.send_signal(signal.SIGKILL)
    process.wait()
    time.sleep(1.0)
    names = [m["name"] for m in llmd.llmctl("model", "list")]
    if "killed" in names:  # it was quicker than the kill
        run(llmd, "model", "rm", "killed")
    assert list((llmd.state / "models" / "staging").iterdir()) == []


def test_clients_are_issued_listed_and_revoked(llmd: Llmd, tmp_path: Path) -> None:
    text = run(llmd, "client", "issue", "carol", "--days", "30", "--out", str(tmp_path))
    assert "curl --cacert" in text and "llmd://test/client/carol" in text
    assert stat.S_IMODE((tmp_path / "carol.key").stat().st_mode) == 0o600
    assert llmd.get("/v1/models", llmd.tls("carol", tmp_path))[0] == 200
    assert "is there already" in run(llmd, "client", "issue", "carol", "--out", str(tmp_path), code=2)
    assert "carol" in run(llmd, "client", "list")
    assert "revoked carol" in run(llmd, "client", "revoke", "carol")
    assert refused(llmd, llmd.tls("carol", tmp_path))
    assert "lower-case" in run(llmd, "client", "issue", "Bad Name", "--out", str(tmp_path), code=1)
    assert "days" in run(llmd, "client", "issue", "dave", "--days", "0", "--out", str(tmp_path), code=1)


def refused(llmd: Llmd, tls: ssl.SSLContext) -> bool:
    status, _, answer = llmd.get("/v1/models", tls)
    return (status, answer["error"]["code"]) == (403, "certificate_revoked")


def _heed_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_the_audit_log_is_shown_followed_and_verified(llmd: Llmd, tmp_path: Path) -> None:
    assert "start" in run(llmd, "audit", "tail", "-n", "2000")
    command = [LLMCTL, "--socket", str(llmd.state / "admin.sock"), "audit", "tail", "-f", "-n", "0"]
    # a test run in the background inherits an ignored SIGINT, and would hand it on
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, preexec_fn=_heed_interrupts) as follower:
        time.sleep(0.7)
        llmd.post("/v1/completions", {"prompt": "x", "max_tokens": 1})
        assert follower.stdout is not None
        line = follower.stdout.readline()
        follower.send_signal(signal.SIGINT)
        # a signal between a line and the wait for the next one is heeded with that one: it may be a while
        assert follower.wait(60) == 130 and " admit " in line
    held = run(llmd, "audit", "verify")
    assert held.startswith("the chain holds: ") and "read from the running daemon's log" in held
    assert " admit " in run(llmd, "audit", "query", "--principal", "demo", "--kind", "admit", "--limit", "1")
    assert run(llmd, "audit", "query", "--since", "2100-01-01") == ""
    for spelling in ("05", "+5", " 5", "5.0", "5_0", "٥"):
        with pytest.raises(DaemonError, match="n: "):
            Client(str(llmd.state / "admin.sock")).call("GET", "/audit/tail", n=spelling)
    for wrong in ("yesterday", "0001-01-01T00:00+14:00", "9999-12-31T23:59-14:00"):
        assert "date or time" in run(llmd, "audit", "query", "--since", wrong, code=2)
        with pytest.raises(DaemonError, match="since takes a date or time"):
            Client(str(llmd.state / "admin.sock")).call("GET", "/audit/query", since=wrong)
    copy = tmp_path / "copy.db"
    for file in ("audit.db", "audit.db-wal"):
        (tmp_path / file.replace("audit", "copy")).write_bytes((llmd.state / file).read_bytes())
    assert "the chain holds" in run(llmd, "audit", "verify", str(copy))
    live = run(llmd, "audit", "verify", str(llmd.state / "audit.db"))
    assert live.startswith("the chain holds: ") and "as the running daemon has it, with a -wal" in live
    (tmp_path / "bad.db").write_bytes(b"no database")
    assert "NOT CHECKED: " in run(llmd, "audit", "verify", str(tmp_path / "bad.db"), code=2)
    assert "NOT CHECKED: " in run(llmd, "audit", "verify", str(tmp_path / "none.db"), code=2)
    assert llmd.llmctl("audit", "verify", str(tmp_path / "none.db"), code=2)["verdict"] == "unchecked"
    nobody = subprocess.run([LLMCTL, "--socket", str(tmp_path / "s"), "audit", "verify"], timeout=60, check=False)
    assert nobody.returncode == 2
    for file in ("audit.db", "audit.db-wal"):
        (tmp_path / file).write_bytes((llmd.state / file).read_bytes())
    with closing(sqlite3.connect(tmp_path / "audit.db")) as changed:
        changed.execute("UPDATE audit SET ts = '2020' WHERE seq = 3")
        changed.commit()
    broken = subprocess.run([LLMCTL, "audit", "verify", str(tmp_path / "audit.db")], capture_output=True, text=True)
    assert broken.returncode == 1 and broken.stdout.startswith("THE CHAIN IS BROKEN at row 3")
    report = llmd.llmctl("audit", "verify", str(tmp_path / "audit.db"), code=1)
    assert report["verdict"] == "broken" and report["rows"] == 2 and report["earliest"] <= report["latest"]


def test_reload(llmd: Llmd) -> None:
    assert run(llmd, "reload").startswith("reloaded: the server's certificate is good until 20")
    assert llmd.llmctl("reload")["server_certificate_until"].endswith("Z")
    llmd.process.send_signal(signal.SIGHUP)
    until(lambda: "reloaded: the server's certificate is good until 20" in (llmd.state / "log").read_text())


def until(what: Callable[[], bool]) -> None:
    for _ in range(500):
        if what():
            return
        time.sleep(0.01)
    raise AssertionError("it did not come")


@pytest.mark.slow
def test_a_deployed_model_is_measured_as_its_clients_see_it(llmd: Llmd) -> None:
    for _ in range(2):  # a second run has a certificate of its own
        found = llmd.llmctl(
            "bench", "smol", "--streams", "1,3", "--requests", "4", "--max-tokens", "3", "--prompt-words", "5"
        )
    assert set(found["streams"]) == {"1", "3"}
    for level in found["streams"].values():
        assert level["requests"] == 4 and level["failed"] == 0 and level["tokens_per_second"] > 0
        assert 0 < level["ttft_ms"]["p50"] <= level["ttft_ms"]["p99"]
        assert abs(sum(level["share"].values()) - 1) < 0.01 and level["share"]["generate"] > 0
    (client,) = [c for c in llmd.llmctl("client", "list") if c["name"] == "bench"]
    assert len(client["certificates"]) == 2 and all(c["revoked_at"] for c in client["certificates"])
    shown = run(llmd, "bench", "smol", "--streams", "2", "--requests", "2", "--max-tokens", "2", "--prompt-words", "3")
    assert "TOK/S" in shown and "%" in shown
    none = run(llmd, "bench", "none", "--streams", "1", "--requests", "1", code=1)
    assert "1 at a time: ValueError: 404 " in none
    assert "1 to 512" in run(llmd, "bench", "smol", "--streams", "0", code=2)
    assert "as in 1,8,32" in run(llmd, "bench", "smol", "--streams", "x", code=2)


def test_roles_are_given_shown_changed_and_logged(llmd: Llmd, tmp_path: Path) -> None:
    assert "role operator" in run(llmd, "client", "issue", "rita", "--role", "operator", "--out", str(tmp_path))
    tls = llmd.tls("rita", tmp_path)
    assert llmd.post("/tokenize", {"prompt": "x"}, tls)[0] == 403
    assert "rita has the role infer; it was operator" in run(llmd, "client", "role", "rita", "infer")
    assert llmd.post("/tokenize", {"prompt": "x"}, tls)[0] == 200, "from the next request on"
    assert next(c for c in llmd.llmctl("client", "list") if c["name"] == "rita")["role"] == "infer"
    assert "infer, operator, admin or auditor" in run(llmd, "client", "role", "rita", "king", code=1)
    assert "infer, operator, admin or auditor" in run(llmd, "client", "issue", "sam", "--role", "king", code=1)
    assert "there is no client of that name" in run(llmd, "client", "role", "nobody", "infer", code=1)
    again = run(llmd, "client", "issue", "rita", "--again", "--role", "admin", "--out", str(tmp_path / "b"), code=1)
    assert "`llmctl client role rita admin` changes it" in again
    rows = [row["body"] for row in llmd.llmctl("audit", "query", "--kind", "admin.client_role")]
    changed = [(r["before"], r["role"], r["result"]) for r in rows if r["client"] == "rita"]
    assert changed == [("operator", "infer", "begun"), ("operator", "infer", "done")]


def test_a_client_that_there_is_gets_another_certificate_only_on_purpose(llmd: Llmd, tmp_path: Path) -> None:
    old = llmd.issue("erin", tmp_path / "old")
    said = run(llmd, "client", "issue", "erin", "--out", str(tmp_path / "new"), code=1)
    assert "erin already with a certificate until 20" in said and "--again" in said
    assert not (tmp_path / "new").exists()
    run(llmd, "client", "issue", "erin", "--again", "--out", str(tmp_path / "new"))
    new = llmd.tls("erin", tmp_path / "new")
    (erin,) = [c for c in llmd.llmctl("client", "list") if c["name"] == "erin"]
    serials = [c["serial"] for c in erin["certificates"]]
    assert all(c["not_after"].endswith("Z") and c["revoked_at"] is None for c in erin["certificates"])
    assert len(serials) == 2 and serials[0] in run(llmd, "client", "revoke", "erin", "--serial", "not", code=1)
    listed = next(line.split()[2] for line in run(llmd, "client", "list").splitlines() if serials[0][:15] in line)
    assert listed.endswith("…")
    assert "certificates 1" in run(llmd, "client", "revoke", "erin", "--serial", listed)
    assert llmd.get("/v1/models", new)[0] == 200
    assert refused(llmd, old)
    assert "there is no client of that name; there is" in run(llmd, "client", "revoke", "nobody", code=1)


def test_json_before_the_command_is_as_after_it(llmd: Llmd) -> None:
    assert json.loads(run(llmd, "--json", "client", "list")) == json.loads(run(llmd, "client", "list", "--json"))
    assert json.loads(run(llmd, "model", "--json", "list")) == llmd.llmctl("model", "list")
    assert json.loads(run(llmd, "--json", "model", "show", "nope", code=1))["error"]["code"] == "model_not_found"
    assert run(llmd, "chat", "nope", "--", "--json", code=1).startswith("llmctl: ")


def test_moments_in_json_are_rfc_3339(llmd: Llmd) -> None:
    status, (model,), row = llmd.llmctl("status"), llmd.llmctl("model", "list"), llmd.llmctl("audit", "tail")[-1]
    for moment in (status["server_certificate_until"], status["revocation_list_until"], model["imported"], row["ts"]):
        assert datetime.fromisoformat(moment).tzinfo is not None


def test_the_daemon_is_found_wherever_its_state_is(llmd: Llmd, tmp_path: Path) -> None:
    """Only this user's: there may be others on this machine."""
    done = subprocess.run([LLMCTL, "status"], capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert str(llmd.port) in done.stdout or str(llmd.state / "admin.sock") in done.stderr
    # as printed
    line = next(line for line in llmd.banner.splitlines() if "llmctl --socket" in line)
    done = subprocess.run(line, shell=True, capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert done.returncode == 0 and str(llmd.port) in done.stdout


def test_progress_that_no_terminal_shows_is_lines_in_order(llmd: Llmd, model_file: Path) -> None:
    ctl = f"{LLMCTL} --socket {llmd.state}/admin.sock"
    script = f"{ctl} model import {model_file} --name third && {ctl} deploy third --ctx 256; {ctl} undeploy third"
    script = f"({script}) 2>&1 | cat; {ctl} model rm third"
    done = subprocess.run(script, shell=True, capture_output=True, text=True, timeout=60)
    lines = done.stdout.splitlines()
    shares = [int(line.split(":")[1].split("%")[0]) for line in lines if line.startswith("importing ")]
    assert shares == sorted(shares) and shares[-1] == 100
    assert [line for line in lines if not line.startswith("importing ")] == [
        lines[len(shares)], "serve it: llmctl deploy third", "third: loading",
        "third is ready: 4 slots of 256 tokens, keys and values f16, on the CPU", "third is out of service",
        "removed third",
    ]  # fmt: skip
