"""Which of the engine's libraries is used: tried in real processes, of which some die."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmd.daemon.errors import Unavailable
from llmd.daemon.machine import cpu
from llmd.daemon.machine.cpu import choose, identity

TRIALS = """
import json, os, signal, sys
scores = json.loads(os.environ["GGML_SCORES"])
dies = os.environ["GGML_DIES"].split(",")
open(os.environ["GGML_SEEN"], "a").write(" ".join(sys.argv[1:]) + ";")
if len(sys.argv) < 2:
    print(json.dumps({"ok": True, "variants": scores}))
elif sys.argv[1] + ":wrong" in dies:
    print(json.dumps({"ok": False, "code": "", "message": "its products of q4_K weights are wrong"}))
elif sys.argv[1] in dies:
    os.kill(os.getpid(), signal.SIGILL)
else:
    print(json.dumps({"ok": True}))
"""


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """A machine whose libraries behave as `dies` says."""
    (tmp_path / "trials.py").write_text(TRIALS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(cpu, "PROGRAM", "trials")
    monkeypatch.setattr(cpu, "has_libraries", lambda: True)
    monkeypatch.setenv("GGML_SCORES", json.dumps({"x64": 1, "haswell": 60, "icelake": 1000, "sapphire": 0}))
    monkeypatch.setenv("GGML_DIES", "")
    monkeypatch.setenv("GGML_SEEN", str(tmp_path / "seen"))
    monkeypatch.setenv(cpu.VARIABLE, "")
    yield monkeypatch


async def test_the_best_that_fits_is_kept_for_the_children_and_the_next_start(
    machine: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found = await choose(tmp_path)
    assert (found.variant, found.failed, found.text) == ("icelake", {}, "icelake is used")
    assert os.environ[cpu.VARIABLE] == "icelake" and (tmp_path / "seen").read_text() == ";icelake;"
    assert await choose(tmp_path) == found and (tmp_path / "seen").read_text() == ";icelake;"
    machine.setattr(cpu, "identity", lambda: "another CPU")
    assert (await choose(tmp_path)).identity == "another CPU" and (tmp_path / "seen").read_text().count("icelake") == 2


async def test_one_that_crashes_or_is_wrong_is_stepped_down_from(machine: pytest.MonkeyPatch, tmp_path: Path) -> None:
    machine.setenv("GGML_DIES", "icelake,haswell:wrong")
    found = await choose(tmp_path)
    assert found.variant == "x64" and os.environ[cpu.VARIABLE] == "x64"
    assert found.failed == {"icelake": "crashed (SIGILL)", "haswell": "its products of q4_K weights are wrong"}
    assert "icelake: crashed (SIGILL)" in found.text


async def test_where_none_runs_the_daemon_does_not(machine: pytest.MonkeyPatch, tmp_path: Path) -> None:
    machine.setenv("GGML_DIES", "icelake,haswell,x64")
    with pytest.raises(Unavailable, match=r"no library of the engine runs on this CPU .*x64: crashed \(SIGILL\)"):
        await choose(tmp_path)
    assert not (tmp_path / cpu.FILE).exists()


async def test_a_damaged_file_is_made_anew(machine: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / cpu.FILE).write_text("{")
    assert (await choose(tmp_path)).variant == "icelake"
    assert json.loads((tmp_path / cpu.FILE).read_text())["variant"] == "icelake"


async def test_an_engine_for_this_machine_alone_has_nothing_to_choose(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(cpu, "has_libraries", lambda: False)
    assert (await choose(tmp_path)).variant == "" and not (tmp_path / cpu.FILE).exists()


def test_another_cpu_has_another_identity(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    for flags in ("avx2", "avx2 avx512f"):
        (tmp_path / "proc/cpuinfo").write_text(f"processor : 0\nmodel name : X\nflags : {flags}\n\nprocessor : 1\n")
        assert identity(tmp_path) not in (identity(), "")
    first = identity(tmp_path)
    (tmp_path / "proc/cpuinfo").write_text("processor : 7\nmodel name : X\nflags : avx2 avx512f\n\nprocessor : 1\n")
    assert identity(tmp_path) == first
