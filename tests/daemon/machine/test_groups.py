"""Control groups of workers, in a made-up file system: packaging/test_power.sh has the kernel's own."""

import asyncio
import os
from pathlib import Path

import pytest

from llmd.daemon.machine import children, groups
from llmd.daemon.machine.groups import Groups


@pytest.fixture
def service(tmp_path: Path) -> Path:
    """The group of a service to which systemd has delegated it; / is `tmp_path`."""
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("1:name=systemd:/\n0::/system.slice/llmd.service\n")
    folder = tmp_path / "sys/fs/cgroup/system.slice/llmd.service"
    folder.mkdir(parents=True)
    (folder / "cgroup.controllers").write_text("memory pids\n")
    os.setxattr(folder, groups.DELEGATED, b"1")
    return folder


def test_a_worker_gets_a_group_with_a_limit(tmp_path: Path, service: Path) -> None:
    made = Groups.open(tmp_path)
    assert made.reason == ""
    assert (service / "daemon/cgroup.procs").read_text() == str(os.getpid()), "no process beside groups with limits"
    assert (service / "cgroup.subtree_control").read_text() == "+memory"
    one, two = made.make(5 << 30), made.make(1)
    assert one and two and one != two
    assert (one / "memory.max").read_text() == str(5 << 30) and (one / "memory.oom.group").read_text() == "1"
    assert made.make(0) is None, "what it needs is not known"


def test_over_its_limit(tmp_path: Path) -> None:
    assert not groups.over(tmp_path)
    (tmp_path / "memory.events").write_text("low 0\noom 0\noom_kill 0\n")
    assert not groups.over(tmp_path)
    (tmp_path / "memory.events").write_text("low 0\noom 1\noom_kill 3\n")
    assert groups.over(tmp_path)


def test_no_systemd_no_word(tmp_path: Path, service: Path) -> None:
    os.removexattr(service, groups.DELEGATED)
    for made in (Groups.open(tmp_path), Groups.open(tmp_path / "nowhere")):
        assert made.reason == "" and made.make(1) is None
    assert not (service / "daemon").exists(), "a group that is not its own is left alone"


def test_why_there_is_no_limit_is_told(tmp_path: Path, service: Path) -> None:
    (service / "cgroup.controllers").write_text("\n")
    made = Groups.open(tmp_path)
    assert "no memory controller" in made.reason and made.make(1) is None
    (service / "cgroup.controllers").write_text("memory\n")
    (service / "daemon").write_text("in the way")
    assert "cannot be used" in Groups.open(tmp_path).reason


async def test_a_child_is_in_its_group_from_the_first_line_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "program.py").write_text("import sys; print(open(sys.argv[1]).read())")
    group = tmp_path / "worker-1"
    group.mkdir()
    given = {"stdout": asyncio.subprocess.PIPE, "group": group}
    child = await children.start("program", str(group / "cgroup.procs"), **given)  # type: ignore[arg-type]
    out, _ = await asyncio.wait_for(child.communicate(), 20)
    assert out == b"0\n", "0 is the writer itself"
