"""Children: what they get of this process and what they do not, and that none outlives it."""

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest

from llmd.daemon.machine import children
from llmd.daemon.machine.children import Limits

SAYS = """
import ctypes, json, os, resource, signal, sys
with open("/proc/self/status") as f:
    status = {name: value.strip() for name, _, value in (line.partition(":") for line in f)}
print(json.dumps({
    "argv": sys.argv[1:], "name": __name__, "environment": dict(os.environ), "privileges": status["NoNewPrivs"],
    "core": resource.getrlimit(resource.RLIMIT_CORE)[0], "memory": resource.getrlimit(resource.RLIMIT_AS)[0],
    "cpu": resource.getrlimit(resource.RLIMIT_CPU)[0], "open": sorted(map(int, os.listdir("/proc/self/fd"))),
    "session": os.getsid(0) == os.getpid(), "path": sys.path, "input": sys.stdin.read(),
    "scheduler": os.sched_getscheduler(0), "io": ctypes.CDLL(None).syscall(252, 1, 0),
    "group": open("/proc/self/autogroup").read() if os.path.exists("/proc/self/autogroup") else "",
    "interrupt": signal.getsignal(signal.SIGINT) == signal.SIG_IGN,
}))
"""


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module `program` that children find."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    file = tmp_path / "program.py"
    file.write_text(SAYS)
    return file


async def said(*arguments: str, variables: Mapping[str, str] | None = None, **given: Any) -> dict[str, Any]:
    child = await children.start("program", *arguments, variables=variables, stdout=asyncio.subprocess.PIPE, **given)
    async with asyncio.timeout(20):
        out, _ = await child.communicate()
    assert child.returncode == 0
    found: dict[str, Any] = json.loads(out)
    return found


async def test_work_in_the_background_gets_what_nobody_else_wants(program: Path) -> None:
    for background in (False, True):
        found = await said(limits=Limits(background=background))
        assert (found["scheduler"] == os.SCHED_IDLE) == background
        assert (found["io"] >> 13 == 3) == background, "the class that waits for everybody else"
        assert not found["group"] or found["group"].strip().endswith("nice 19") == background


async def test_a_child_gets_its_arguments_and_nothing_else(program: Path) -> None:
    with open(os.devnull) as other:
        os.set_inheritable(other.fileno(), True)
        found = await said("a", "b c")
        assert found["argv"] == ["a", "b c"] and found["name"] == "__main__"
        assert found["privileges"] == "1" and found["core"] == 0 and found["session"] and found["interrupt"]
        assert found["input"] == "" and len(found["open"]) <= 4, "the three standard ones, and the folder it lists"
        assert os.getcwd() not in found["path"] and str(Path(children.__file__).parent) not in found["path"]


async def test_descriptors_are_handed_on_by_name(program: Path) -> None:
    read, write = os.pipe()
    assert write in (await said(descriptors=[write]))["open"]
    assert write not in (await said())["open"]
    os.close(read)
    os.close(write)


async def test_of_the_environment_only_what_it_needs(program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steering = {
        "NCCL_NVLS_ENABLE": "0", "NVSHMEM_DISABLE_NVLS": "1", "TORCH_SYMM_MEM_DISABLE_MULTICAST": "1",
        "LD_LIBRARY_PATH": "/usr/lib/cuda", "CUDA_CACHE_PATH": "/var/cache",
    }  # fmt: skip
    for name, value in {**steering, "AWS_SECRET_ACCESS_KEY": "x", "LD_PRELOAD": "", "PYTHONSTARTUP": "x"}.items():
        monkeypatch.setenv(name, value)
    found = (await said(variables={"CUDA_VISIBLE_DEVICES": "GPU-1"}))["environment"]
    assert {name: found.get(name) for name in steering} == steering
    assert found["CUDA_VISIBLE_DEVICES"] == "GPU-1"
    assert not found.keys() & {"AWS_SECRET_ACCESS_KEY", "LD_PRELOAD", "PYTHONSTARTUP"}


async def test_its_threads_wait_for_each_other_a_short_time(program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    for few, turns in ((1, "3000"), (4, "3000"), (5, "100000"), (64, "100000")):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, few=few: set(range(few)))
        assert (await said())["environment"]["GOMP_SPINCOUNT"] == turns
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")  # an admin's word counts
    assert (await said())["environment"]["GOMP_SPINCOUNT"] == "7"


async def test_limits_hold_before_the_first_line(program: Path) -> None:
    found = await said(limits=Limits(address_space=4 << 30, cpu_seconds=7))
    assert found["memory"] == 4 << 30 and found["cpu"] == 7
    program.write_text("bytearray(8 << 30)")
    child = await children.start("program", limits=Limits(address_space=4 << 30), stderr=asyncio.subprocess.PIPE)
    _, error = await child.communicate()
    assert child.returncode == 1 and b"MemoryError" in error


async def test_another_interpreter(program: Path, tmp_path: Path) -> None:
    """An optional engine brings its own, which need not have us installed."""
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')
    bare.chmod(0o755)
    assert (await said("x", interpreter=str(bare)))["argv"] == ["x"]


PARENT = """
import asyncio
from llmd.daemon.machine import children
async def main():
    child = await children.start("program")
    print(child.pid, flush=True)
    await asyncio.sleep(60)
asyncio.run(main())
"""


def test_a_child_dies_with_its_parent(program: Path) -> None:
    program.write_text("import time\ntime.sleep(60)")
    parent = subprocess.Popen([sys.executable, "-P", "-c", PARENT], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 5
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.02)


async def test_a_child_leaves_no_compiled_module_that_a_limit_cut_off(program: Path) -> None:
    """What it imports is imported again, by others: half a .pyc breaks them."""
    (program.parent / "large.py").write_text("\n".join(f"x{i} = {i}" for i in range(20_000)))
    program.write_text(f"import large\n{SAYS}")
    await said(limits=Limits(file_size=1000))
    assert not (program.parent / "__pycache__").exists()
    await said()
