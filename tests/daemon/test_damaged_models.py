"""A model whose stored file is damaged or missing: what is told of it, and what brings it back."""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from forked import forker
from real_daemon import Llmd, llmctl

MISSING, CUT = "its stored file is missing", "its stored file is damaged: it has "


def stored(llmd: Llmd) -> Path:
    digest: str = llmd.llmctl("model", "show", "smol")["digest"]
    return llmd.state / "models" / digest / "model.gguf"


def until(what: Callable[[], object], seconds: float = 15.0) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end
        time.sleep(0.05)


def told_by_doctor(llmd: Llmd) -> dict[str, Any]:
    checks = llmd.llmctl("doctor", code=1)["checks"]
    found: dict[str, Any] = next(check for check in checks if check["name"] == "file of smol@Q4_1")
    return found


def said(llmd: Llmd, *arguments: str, code: int) -> str:
    done = llmctl(llmd.state / "admin.sock", *arguments)
    assert done.exit_code == code, done.output
    return done.stdout + done.stderr


def test_one_that_is_gone_is_told_of_everywhere_and_comes_back_by_itself(own_llmd: Llmd, model_file: Path) -> None:
    file = stored(own_llmd)
    file.unlink()
    assert f"smol@Q4_1: {MISSING}: import the same file again" in said(own_llmd, "status", code=0)
    assert own_llmd.post("/v1/completions", {"prompt": "a", "max_tokens": 1})[0] == 200, "what is loaded serves"
    check = told_by_doctor(own_llmd)
    assert check["message"] == MISSING and "llmctl model import FILE --name smol" in check["fix"]
    refused = said(own_llmd, "deploy", "smol", "--ctx", "256", code=1)
    assert MISSING in refused and "llmctl model import FILE --name smol" in refused
    assert MISSING in said(own_llmd, "plan", "smol", code=1)
    assert "HAS CHANGED: import the same file again" in said(own_llmd, "model", "verify", "smol", code=1)
    os.kill(own_llmd.model()["pid"], signal.SIGKILL)
    until(lambda: MISSING in own_llmd.model()["reason"])
    assert own_llmd.model()["state"] == "restarting"
    assert "imported smol" in said(own_llmd, "model", "import", str(model_file), "--name", "smol", code=0)
    until(lambda: own_llmd.model()["state"] == "ready", 30)
    assert own_llmd.llmctl("model", "verify", "smol") == {"model": "smol", "ok": True, "do": ""}
    assert own_llmd.llmctl("status")["damaged"] == []


def test_what_serves_from_a_damaged_file_is_loaded_anew_once_that_is_repaired(own_llmd: Llmd, model_file: Path) -> None:
    file, before = stored(own_llmd), own_llmd.model()["pid"]
    said(own_llmd, "model", "import", str(model_file), "--name", "smol", code=0)
    said(own_llmd, "model", "import", str(model_file), "--name", "same", code=0)
    assert own_llmd.model()["pid"] == before and own_llmd.model()["state"] == "ready", "nothing was damaged"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.unlink()  # other tests have this file too
    file.write_bytes(data)
    assert own_llmd.llmctl("status")["damaged"] == [], "its size tells nothing"
    assert "HAS CHANGED" in said(own_llmd, "model", "verify", "smol", code=1)
    said(own_llmd, "model", "import", str(model_file), "--name", "smol", code=0)
    until(lambda: own_llmd.model()["state"] == "ready" and own_llmd.model()["pid"] != before, 30)
    assert own_llmd.model()["restarts"] == 0
    assert said(own_llmd, "model", "verify", "smol", code=0) == "smol is as it was imported\n"


def test_a_daemon_starts_with_a_model_whose_file_is_cut_off(own_llmd: Llmd, model_file: Path) -> None:
    file = stored(own_llmd)
    assert own_llmd.stop() == 0
    file.unlink()
    with model_file.open("rb") as whole, file.open("wb") as half:
        shutil.copyfileobj(whole, half)
        half.truncate(1_000_000)
    arguments = ["--config", own_llmd.state / "llmd.toml", "--listen", f"127.0.0.1:{own_llmd.port}"]
    with (own_llmd.state / "log").open("a") as log:
        own_llmd.process = forker().start("serve", *arguments, stdout=subprocess.PIPE, stderr=log)
    until(lambda: llmctl(own_llmd.state / "admin.sock", "status").exit_code == 0)
    until(lambda: own_llmd.model()["reason"].startswith(f"{CUT}1,000,000 bytes of "))
    assert told_by_doctor(own_llmd)["message"].startswith(CUT)
    status, _, answer = own_llmd.post("/v1/completions", {"prompt": "a", "max_tokens": 1})
    assert status == 503 and CUT in answer["error"]["message"]
    said(own_llmd, "model", "import", str(model_file), "--name", "smol", code=0)
    until(lambda: own_llmd.model()["state"] == "ready", 30)
