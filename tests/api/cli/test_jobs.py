"""`llmctl model quantize` and `llmctl jobs`, against a real daemon."""

import json
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from real_daemon import Llmd, llmctl, start_llmd

from llmd.api.cli.connection import Client
from llmd.api.cli.model import _bytes

LLMCTL = str(Path(sys.executable).parent / "llmctl")


def run(llmd: Llmd, *arguments: str, code: int = 0) -> str:
    done = llmctl(llmd.state / "admin.sock", *arguments)
    assert done.exit_code == code, done.stderr
    return done.stdout + done.stderr


def stop(llmd: Llmd) -> psutil.Process:
    """The process of the job that runs, once there is one. It goes on no further."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        for child in psutil.Process(llmd.process.pid).children(recursive=True):
            with suppress(psutil.Error):
                if any("llmd.quantize" in word for word in child.cmdline()):
                    child.suspend()
                    return child
        time.sleep(0.01)
    raise AssertionError("there is no process of a job")


def test_a_form_is_made_shown_used_and_removed(llmd: Llmd) -> None:
    sizes = {s["type"]: s["bytes"] for s in llmd.llmctl("model", "quantize", "smol", "--dry-run")["sizes"]}
    assert f"{sizes['Q3_K_S']:,}" in run(llmd, "model", "quantize", "smol", "--dry-run")
    assert "quantized already (Q4_1)" in run(llmd, "model", "quantize", "smol", "--type", "Q3_K_S", code=1)
    said = run(llmd, "model", "quantize", "smol", "--type", "Q3_K_S", "--requantize")
    assert "made smol@Q3_K_S" in said and "100 %" in said
    forms = {f["name"]: f for f in llmd.llmctl("model", "show", "smol")["forms"]}
    made = forms["smol@Q3_K_S"]
    assert made["size"] == sizes["Q3_K_S"] and made["made"]["from"] == forms["smol@Q4_1"]["digest"]
    assert "Q4_1 Q3_K_S" in run(llmd, "model", "list")
    job = llmd.llmctl("jobs", "list")[-1]
    assert job["state"] == "done" and job["result"]["form"] == "smol@Q3_K_S"
    assert "smol@Q3_K_S" in run(llmd, "jobs") and "done" in run(llmd, "jobs", "show", str(job["id"]))
    assert "quant size" in run(llmd, "jobs", "logs", str(job["id"]))
    found = Client(str(llmd.state / "admin.sock")).call("GET", "/audit/query", kind="job.ended")["rows"]
    rows = [row["body"] for row in found]
    assert rows[-1]["digest"] == job["result"]["digest"] and rows[-1]["state"] == "done"
    assert "is done already" in run(llmd, "jobs", "cancel", str(job["id"]), code=1)
    assert "serves" in run(llmd, "model", "rm", "smol@Q4_1", code=1)
    assert "removed" in run(llmd, "model", "rm", "smol@q3_k_s")


def test_ctrl_c_goes_away_from_it_and_cancel_ends_it(llmd: Llmd) -> None:
    command = [LLMCTL, "--socket", str(llmd.state / "admin.sock"), "model", "quantize", "smol", "--type", "IQ4_XS"]
    client = subprocess.Popen([*command, "--requantize"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert client.stderr is not None
    number = re.match(r"job (\d+): ", client.stderr.readline())
    assert number
    stopped = stop(llmd)  # so that it does not end by itself first
    client.send_signal(signal.SIGINT)
    _, err = client.communicate(timeout=60)
    assert (
        client.returncode == 130 and f"llmctl jobs show {number[1]} --wait comes back" in err and "Traceback" not in err
    )
    assert llmd.llmctl("jobs", "show", number[1])["state"] in ("running", "done")
    assert run(llmd, "jobs", "cancel", number[1]) == f"job {number[1]} is cancelled\n"
    assert json.dumps("IQ4_XS") not in json.dumps(llmd.llmctl("model", "show", "smol"))
    assert "is cancelled" in run(llmd, "jobs", "show", number[1], "--wait", code=1) and not stopped.is_running()
    assert not list((llmd.state / "models" / "staging").iterdir())


def test_a_killed_daemon_begins_it_again(tmp_path: Path, model_file: Path) -> None:
    llmd = start_llmd(tmp_path / "state", model_file)
    number = llmd.llmctl("model", "quantize", "smol", "--type", "Q3_K_M", "--requantize", "--no-wait")["id"]
    while llmd.llmctl("jobs", "show", str(number))["state"] != "running":
        time.sleep(0.05)
    llmd.process.kill()
    llmd.process.wait()
    assert llmd.process.stdout is not None
    llmd.process.stdout.close()
    llmd = start_llmd(tmp_path / "state", model_file)
    assert "made smol@Q3_K_M" in run(llmd, "jobs", "show", str(number), "--wait")
    assert llmd.stop() == 0


@pytest.mark.parametrize(
    ("text", "count"), [("5GiB", 5 << 30), ("800MB", 800_000_000), ("1.5 GiB", 3 << 29), ("123", 123), ("2k", 2000)]
)
def test_a_size(text: str, count: int) -> None:
    assert _bytes(text) == count
