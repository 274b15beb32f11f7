"""`llmctl policy` and `llmctl group`, as an admin types them, and what their clients see then."""

import http.client
import json
import os
import pty
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from real_daemon import Llmd, llmctl, start_llmd
from scripted_admin import LLMCTL

CHAT = {"messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 3}


@pytest.fixture(scope="module")
def policed(model_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Llmd]:
    """A daemon of its own: whom a policy takes something from is who there is."""
    llmd = start_llmd(tmp_path_factory.mktemp("policed"), model_file, "slots = 2\ncontext = 1024\n")
    yield llmd
    assert llmd.stop() == 0


@pytest.fixture
def house(policed: Llmd, tmp_path: Path) -> Iterator[Llmd]:
    """Its clients alice and bob have certificates in `tmp_path`; without a policy, before and after."""
    policed.issue_anew(tmp_path, "alice", "bob")
    yield policed
    policed.llmctl("policy", "revert", "0", "--yes")


def run(house: Llmd, *arguments: str, code: int = 0) -> tuple[str, str]:
    done = llmctl(house.state / "admin.sock", *arguments)
    assert done.exit_code == code, done.stderr
    return done.stdout, done.stderr


def write(folder: Path, text: str) -> str:
    (folder / "policy.toml").write_text(text)
    return str(folder / "policy.toml")


def only(*names: str) -> str:
    return f'[[grants]]\nto = {json.dumps(names)}\nmodels = ["smol"]\n'


def ask(house: Llmd, who: str, folder: Path, model: str = "smol") -> tuple[int, Any]:
    status, _, answer = house.post("/v1/chat/completions", {"model": model, **CHAT}, house.tls(who, folder))
    return status, answer


def test_a_policy_is_set_looked_at_tried_and_taken_away(house: Llmd, tmp_path: Path) -> None:
    out, err = run(house, "policy", "show")
    assert out.strip() == "" and "roles alone decide" in err
    assert ask(house, "bob", tmp_path)[0] == 200
    file = write(tmp_path, only("alice", "demo"))
    out, err = run(house, "policy", "edit", "--file", file, code=1)
    assert "takes from bob" in err and "--yes does that" in err and ask(house, "bob", tmp_path)[0] == 200
    out, err = run(house, "policy", "edit", "--file", file, "--yes")
    assert "takes from bob: " in err and "smol" in err and out.strip().endswith("holds")
    assert run(house, "policy", "show")[0].strip() == only("alice", "demo").strip()
    assert ask(house, "alice", tmp_path)[0] == 200
    hidden, absent = ask(house, "bob", tmp_path), ask(house, "bob", tmp_path, "no-such-model")
    assert hidden == absent and hidden[0] == 404
    assert house.llmctl("policy", "test", "alice", "smol", "/v1/chat/completions")["allowed"]
    out, _ = run(house, "policy", "test", "bob", "smol", "/v1/chat/completions", code=1)
    assert out.startswith("forbidden: policy ") and "no grant gives bob" in out
    run(house, "chat", "smol", "Say hello.")  # the admin socket is never subject to it
    out, _ = run(house, "policy", "revert", "0", "--yes")
    assert ask(house, "bob", tmp_path)[0] == 200
    assert [one["holds"] for one in house.llmctl("policy", "history")][-1] is True
    assert "no policy" in run(house, "policy", "history")[0].splitlines()[-1]


def test_groups_are_made_changed_and_removed(house: Llmd, tmp_path: Path) -> None:
    run(house, "group", "add", "team", "alice", "bob")
    assert run(house, "group", "list")[0] == "team: alice, bob\n"
    grant = house.llmctl("policy", "show")["text"].replace('to = ["*"]', 'to = ["team"]')
    run(house, "policy", "edit", "--file", write(tmp_path, grant), "--yes")
    out, err = run(house, "group", "remove", "team", "bob", code=1)
    assert "takes something away from bob: --yes does that" in err
    run(house, "group", "remove", "team", "bob", "--yes")
    assert (
        house.llmctl("group", "list") == [{"name": "team", "clients": ["alice"]}]
        and ask(house, "bob", tmp_path)[0] == 404
    )
    assert ask(house, "alice", tmp_path)[0] == 200
    _, err = run(house, "group", "remove", "team", code=1)
    assert "there is no client or group 'team'" in err and "line " in err
    _, err = run(house, "group", "add", "team", "nobody", code=1)
    assert "there is no client 'nobody'" in err


def test_who_is_issued_a_certificate_that_the_policy_gives_nothing_is_told_of(house: Llmd, tmp_path: Path) -> None:
    run(house, "policy", "edit", "--file", write(tmp_path, only("alice", "demo")), "--yes")
    _, err = run(house, "client", "issue", "carla", "--out", str(tmp_path / "carla"))
    assert "the policy gives carla nothing yet" in err
    _, err = run(house, "client", "issue", "alice", "--again", "--out", str(tmp_path / "alice"))
    assert "nothing yet" not in err


def test_a_file_that_is_no_text_is_named(house: Llmd, tmp_path: Path) -> None:
    (tmp_path / "policy.toml").write_bytes(b"\xff\xfe")
    _, err = run(house, "policy", "edit", "--file", str(tmp_path / "policy.toml"), code=1)
    assert "policy.toml: this is not UTF-8 text" in err
    _, err = run(house, "policy", "edit", "--file", str(tmp_path / "nothing"), code=1)
    assert "nothing: No such file" in err
    (tmp_path / "policy.toml").write_bytes(b"\xef\xbb\xbf" + only("alice", "bob", "demo").encode())
    run(house, "policy", "edit", "--file", str(tmp_path / "policy.toml"), "--yes")


@pytest.mark.parametrize(
    ("text", "words"),
    [("[[grants]]\nto = [", "line 2: "),
     ('[[grants]]\nto = ["x"]\nmodels = ["m"]', "line 2: there is no client or group 'x'"),
     ("", "the policy is empty"), ("# nothing", "line 1: it grants nobody anything")],
)  # fmt: skip
def test_what_cannot_be_is_refused_in_a_line(house: Llmd, tmp_path: Path, text: str, words: str) -> None:
    _, err = run(house, "policy", "edit", "--file", write(tmp_path, text), "--yes", code=1)
    assert words in err and len(err.splitlines()) == 1
    assert not house.llmctl("policy", "show")["text"]


def _editor(folder: Path, name: str, script: str) -> str:
    file = folder / name
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(file.stat().st_mode | stat.S_IXUSR)
    return str(file)


def _edit(house: Llmd, editor: str, typed: str = "", *, terminal: bool = True) -> tuple[int, str]:
    """What `llmctl policy edit` says to whoever types these lines at a terminal."""
    main, other = pty.openpty() if terminal else (-1, subprocess.DEVNULL)
    process = subprocess.Popen(
        [LLMCTL, "--socket", str(house.state / "admin.sock"), "policy", "edit"], stdin=other,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env={**os.environ, "VISUAL": editor, "EDITOR": editor},
    )  # fmt: skip
    if terminal:
        os.write(main, typed.encode())
    out, _ = process.communicate(timeout=60)
    if terminal:
        os.close(main)
        os.close(other)
    return process.returncode, out.decode()


def test_an_editor_shows_the_policy_and_what_it_takes_is_asked_about(house: Llmd, tmp_path: Path) -> None:
    narrow = _editor(tmp_path, "narrow", 'sed -i \'s/^to = .*/to = ["alice", "demo"]/\' "$1"')
    code, out = _edit(house, narrow, "n\nn\n")
    assert code == 1 and "takes from bob" in out and "Do that?" in out and not house.llmctl("policy", "show")["text"]
    kept = Path(out.rsplit("--file ", 1)[1].strip())
    assert 'to = ["alice", "demo"]' in kept.read_text(), "what was written is not lost"
    kept.unlink()
    code, out = _edit(house, narrow, "y\n")
    assert code == 0 and "holds" in out and ask(house, "bob", tmp_path)[0] == 404
    text = house.llmctl("policy", "show")["text"]
    assert text.startswith("# Who may use what.") and 'to = ["alice", "demo"]' in text
    code, out = _edit(house, _editor(tmp_path, "nothing", "true"))
    assert code == 0 and "nothing was changed" in out


def test_a_mistake_is_told_and_can_be_edited_again(house: Llmd, tmp_path: Path) -> None:
    script = f"""if [ -e {tmp_path}/once ]; then sed -i 's/carol/demo/' "$1"; else
        touch {tmp_path}/once; sed -i 's/^to = .*/to = ["alice", "bob", "carol"]/' "$1"; fi"""
    code, out = _edit(house, _editor(tmp_path, "twice", script), "y\ny\n")
    assert "there is no client or group 'carol'" in out and "Edit it again?" in out
    assert code == 0 and 'to = ["alice", "bob", "demo"]' in house.llmctl("policy", "show")["text"]


def test_without_a_terminal_a_mistake_leaves_what_was_written(house: Llmd, tmp_path: Path) -> None:
    code, out = _edit(house, _editor(tmp_path, "wrong", "echo 'grants = 1' > \"$1\""), terminal=False)
    assert code == 1 and "what you wrote is in " in out
    kept = Path(out.partition("--file ")[2].splitlines()[0])
    assert out.count("grants are written as") == 1
    assert kept.read_text() == "grants = 1\n" and stat.S_IMODE(kept.stat().st_mode) == 0o600
    kept.unlink()


def test_a_daemon_that_goes_while_somebody_edits_loses_nothing(own_llmd: Llmd, tmp_path: Path) -> None:
    script = f"kill -9 {own_llmd.process.pid}; sleep 0.2; echo '# mine' >> \"$1\""
    code, out = _edit(own_llmd, _editor(tmp_path, "kills", script))
    kept = Path(out.partition("--file ")[2].splitlines()[0])
    assert code == 3 and kept.read_text().endswith("# mine\n")
    kept.unlink()


def test_a_running_stream_ends_as_its_model_is_taken_away(house: Llmd, tmp_path: Path) -> None:
    connection = http.client.HTTPSConnection("127.0.0.1", house.port, context=house.tls("bob", tmp_path), timeout=30)
    body = {"model": "smol", "messages": CHAT["messages"], "max_tokens": 3000, "ignore_eos": True, "stream": True}
    connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
    answer = connection.getresponse()
    assert answer.status == 200 and answer.readline().startswith(b"data: ")
    out, _ = run(house, "policy", "edit", "--file", write(tmp_path, only("alice", "demo")), "--yes")
    assert "running answers that it ended: 1" in out
    rest = answer.read().decode()
    connection.close()
    assert '"code":"model_not_found"' in rest.replace(" ", "") and rest.rstrip().endswith("data: [DONE]")
