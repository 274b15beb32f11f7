"""The one way to start a child process: a worker, the check of a file, later a job.

A child dies with its parent, however that dies. It can gain no privileges, dumps no core, has no descriptor but those
it is given, and of the environment only what `environment` lets through. Run as a program in the child, this file takes
all of that on before the first line of the module that it was started for; standard library only, so that any
interpreter will do.
"""

import asyncio
import contextlib
import ctypes
import json
import os
import resource
import runpy
import signal
import sys
import types
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[2]
PR_SET_PDEATHSIG = 1
PR_SET_NO_NEW_PRIVS = 38
# on x86_64; ioprio_set(2)
SYS_IOPRIO_SET, IOPRIO_WHO_PROCESS, IOPRIO_IDLE = 251, 1, 3 << 13

# what a child needs to find: programs, modules, the libraries of a CUDA build, the time zone and temporary files
NAMES = frozenset({"PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "HOME", "LANG", "TZ", "TMPDIR"})
# and what steers the libraries that it computes with. Hosts switch NVLink multicast off with the last three
PREFIXES = ("LC_", "CUDA_", "NVIDIA_", "GGML_", "OMP_", "GOMP_", "OPENBLAS_", "NCCL_", "NVSHMEM_", "TORCH_SYMM_MEM_")
# where this process' environment says nothing else, libgomp's threads wait for each other so many turns before they
# sleep. Its own 300,000 take milliseconds, from a thread that could run. Few cores lose nothing by so short a
# wait, 16 do (benchmarks/results/sharing.md)
SPIN, FEW_CORES, FEW_SPIN = 100_000, 4, 3_000
# numpy would start a thread a core as it is imported, which nothing here computes with; and what confines a process
# (`confined.py`) acts on one thread
ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1"}


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one child; 0: as its parent."""

    address_space: int = 0  # bytes
    file_size: int = 0  # bytes of a file that it writes
    cpu_seconds: int = 0
    background: bool = False  # it gets the processors and the disk that nobody else wants
    # where it works on a stranger's files: what it may read and write beside the system's own files, and nobody else
    reads: tuple[str, ...] | None = None
    writes: tuple[str, ...] = ()
    links: bool = True  # `reads` may be links, or lie behind some; else one that was put there since leads nowhere


NO_LIMITS = Limits()
MAX_LINE_BYTES = 1 << 20  # of what a child prints, where it is read line by line


def signal_name(code: int) -> str:
    """Of what ended a process, from its exit code, which is below 0."""
    try:
        return signal.Signals(-code).name
    except ValueError:  # the real-time signals have no names
        return f"signal {-code}"


def environment(given: Mapping[str, str]) -> dict[str, str]:
    """What of this process's environment a child gets, and over it `given`."""
    kept = {k: v for k, v in os.environ.items() if k in NAMES or k.startswith(PREFIXES)}
    spin = FEW_SPIN if len(os.sched_getaffinity(0)) <= FEW_CORES else SPIN
    return {"GOMP_SPINCOUNT": str(spin), **kept, **ONE_THREAD, **given}


async def start(
    module: str,
    *arguments: str,
    descriptors: Sequence[int] = (),
    variables: Mapping[str, str] | None = None,
    limits: Limits = NO_LIMITS,
    group: os.PathLike[str] | None = None,
    stdout: int | None = None,
    stderr: int | None = None,
    interpreter: str = sys.executable,
    most_line: int = MAX_LINE_BYTES,
) -> asyncio.subprocess.Process:
    """Run `module` in a process of its own, with nothing on its standard input. Raises OSError.

    `variables` are added to its environment, `group` is the control group that it runs in, `interpreter` the Python
    that has what the module needs; it need not have this package; `most_line`: bytes of a line that is read of it.
    """
    given = {"parent": os.getpid(), "group": os.fspath(group) if group else "", "own": interpreter == sys.executable}
    terms = json.dumps({**given, **asdict(limits)})
    return await asyncio.create_subprocess_exec(
        interpreter,
        "-P",
        __file__,
        terms,
        module,
        *arguments,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=stdout,
        stderr=stderr,
        pass_fds=descriptors,
        start_new_session=True,
        limit=most_line,
        env=environment(variables or {}),
    )


def _take_on(terms: str) -> None:
    """In the child: the parent's terms. Exits where the parent is gone already."""
    given = json.loads(terms)
    libc = ctypes.CDLL(None)
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != given["parent"]:
        os._exit(0)
    if given["group"]:  # before it takes any memory that counts
        with open(os.path.join(given["group"], "cgroup.procs"), "w") as group:
            group.write("0")
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core dump would hold prompts
    if given["background"]:
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
        # a session of its own competes with others as a group, whatever its processes are (sched(7), autogroups)
        with contextlib.suppress(OSError), open("/proc/self/autogroup", "w") as group:
            group.write("19")
        libc.syscall(SYS_IOPRIO_SET, IOPRIO_WHO_PROCESS, 0, IOPRIO_IDLE)
    # a .pyc that the limit on files cuts off would break every later start
    sys.dont_write_bytecode = True
    if not given["own"]:
        _bring_package()
    if given["reads"] is not None:
        from llmd.daemon.machine.confined import confine

        confine(given["reads"], given["writes"], links=given["links"])
    for kind, limit in (
        (resource.RLIMIT_AS, given["address_space"]),
        (resource.RLIMIT_FSIZE, given["file_size"]),
        (resource.RLIMIT_CPU, given["cpu_seconds"]),
    ):
        if limit:
            resource.setrlimit(kind, (limit, limit))


def _bring_package() -> None:
    """This package, in an interpreter that has other packages. Its folders lie beside each other in a checkout too."""
    package = types.ModuleType("llmd")
    package.__path__ = [str(PACKAGE)]
    sys.modules["llmd"] = package


if __name__ == "__main__":
    _take_on(sys.argv[1])
    module = sys.argv[2]
    del sys.argv[:2]  # the module sees its own name and its arguments
    runpy.run_module(module, run_name="__main__", alter_sys=True)
