"""A program that is asked for a verdict: whatever it says, and however it ends, whoever asked learns it."""

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from llmd.daemon.machine import verdicts
from llmd.daemon.machine.verdicts import NoVerdict, Refused

SAYS = "import json\ndef say(**told): print(json.dumps(told), flush=True)\n"


@pytest.fixture(autouse=True)
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))


async def said(tmp_path: Path, code: str, **terms: Any) -> list[dict[str, Any]]:
    (tmp_path / "program.py").write_text(SAYS + code)
    return [line async for line in verdicts.lines("program", "given", **terms)]


async def test_lines_come_one_by_one_and_the_verdict_last(tmp_path: Path) -> None:
    code = "import sys\nsay(done=1)\nsay(log=sys.argv[1])\nsay(ok=True, size=7)"
    assert await said(tmp_path, code) == [{"done": 1}, {"log": "given"}, {"ok": True, "size": 7}]
    assert await verdicts.asked("program", "given", seconds=20) == {"ok": True, "size": 7}


async def test_a_no_is_an_error_and_its_message(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="it is damaged") as e:
        await said(tmp_path, "say(ok=False, code='model_invalid', message='it is damaged')")
    assert e.value.code == "model_invalid"


@pytest.mark.parametrize(
    ("code", "how"),
    [
        ("", r"ended without a verdict \(exit 0\)"),
        ("raise SystemExit(3)", r"ended without a verdict \(exit 3\)"),
        ("say(done=1)", r"without a verdict \(exit 0\)"),
        ("say(ok=1)", "without a verdict"),
        ("say(ok=False)", "without a verdict"),
        ("print('[1]')", "without a verdict"),
        ("print('[' * 50_000)", "without a verdict"),
        ("print('x' * 3000)", "without a verdict"),
        ("say(ok=True); say(done=1)", "went on behind its verdict"),
        ("import os; os.abort()", r"crashed \(SIGABRT\)"),
        ("say(ok=True); import os; os.kill(os.getpid(), 40)", r"crashed \(signal 40\)"),
        ("import time; time.sleep(60)", "said nothing for 0.5 s"),
    ],
)
async def test_without_a_verdict_it_says_how_it_ended(tmp_path: Path, code: str, how: str) -> None:
    silent = 0.5 if "sleep" in code else 20.0
    with pytest.raises(NoVerdict, match=how):
        await said(tmp_path, code, silent=silent, most=2000)


async def test_it_may_take_so_long_however_much_it_says(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(SAYS + "import time\nwhile True: say(done=1); time.sleep(0.05)")
    with pytest.raises(NoVerdict, match="did not end within 1 s"):
        await verdicts.asked("program", seconds=1)
    assert not any("program" in child.cmdline() for child in psutil.Process().children())


async def test_a_caller_that_goes_away_ends_it(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(SAYS + "import time\nsay(done=1)\ntime.sleep(60)")
    lines = verdicts.lines("program")
    assert await anext(lines) == {"done": 1}
    (child,) = [child for child in psutil.Process().children() if "program" in child.cmdline()]
    await lines.aclose()
    assert not child.is_running()
    task = asyncio.create_task(verdicts.asked("program", seconds=60))
    while not (found := [child for child in psutil.Process().children() if "program" in child.cmdline()]):
        await asyncio.sleep(0.02)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not any(child.is_running() for child in found)


TELLS = """
import os, sys
from llmd.daemon.errors import BadRequest
from llmd.daemon.machine.telling import verdict

def work(tell):
    os.write(1, b"a library prints\\n")
    tell({"done": 1})
    match sys.argv[1]:
        case "refuses": raise BadRequest("there is no such thing")
        case "memory": raise MemoryError
        case "file": open("/nowhere/at/all")
    return {"size": 7}

verdict(work, "read this file")
"""


@pytest.mark.parametrize(
    ("how", "verdict"),
    [
        ("works", {"ok": True, "size": 7}),
        ("refuses", {"ok": False, "code": "invalid_request", "message": "there is no such thing"}),
        ("memory", {"ok": False, "code": "model_invalid", "message": "there is not enough memory to read this file"}),
        ("file", {"ok": False, "code": "model_invalid", "message": "a file cannot be read: No such file or directory"}),
    ],
)
def test_a_program_says_what_it_finds_and_nothing_else(how: str, verdict: dict[str, Any]) -> None:
    done = subprocess.run([sys.executable, "-P", "-c", TELLS, how], capture_output=True, text=True, timeout=60)
    assert [json.loads(line) for line in done.stdout.splitlines()] == [{"done": 1}, verdict]
    assert done.returncode == 0 and done.stderr == ""
