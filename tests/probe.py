"""Planted in a child of the daemon, where it begins with a stranger's bytes: tries what one that was taken over would.

A folder that is on its PYTHONPATH holds this file, a `sitecustomize.py` that calls its `main`, and `terms.json`:
`files`, which it tries to read, write and change, `folders`, which it tries to list and to make files in, `stream` and
`datagram`, the paths of Unix sockets that somebody reads, `port`, a TCP port on which somebody listens, and `pid`,
another process (0: the one that started it). `version` is the version of Landlock that it is limited to; 0: as the
kernel has it.

Each process adds a line to `found` in that folder: {"place": …, "done": [what worked], "refused": [what did not],
"able": …, "unable": …}, the last two of what is its own. Standard library only.
"""

import ctypes
import fcntl
import json
import os
import signal
import socket
import struct
import sys
from collections.abc import Callable
from functools import partial
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

FOLDER = Path(__file__).resolve().parent
PARENT = os.getppid()
TERMS = json.loads((FOLDER / "terms.json").read_text())
# where strangers' bytes are first read: modules and what is called there
PLACES: dict[str, tuple[str, ...]] = {
    "llmd.quantize.header": ("read_header",),
    "llmd.daemon.engine.llama.vocabulary": ("load",),
    "llmd.daemon.engine.answers.matching": ("refusal",),
    "llmd.daemon.engine.rendering": ("Rendering.text",),
}
PRLIMIT = 302

libc = ctypes.CDLL(None, use_errno=True)


def call(number: int, *arguments: Any) -> int:
    result = int(libc.syscall(number, *arguments))
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def opened(path: str, flags: int = os.O_RDONLY) -> None:
    os.close(os.open(path, flags, 0o600))


def connected(family: int, kind: int, address: Any) -> None:
    with socket.socket(family, kind) as sock:
        sock.settimeout(1)
        sock.connect(address)


def sent_from_a_pair(path: str) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with ours, theirs:
        ours.sendto(b"x", path)


def owned(command: int, value: Any) -> None:
    """A descriptor that sends signals."""
    reads, writes = os.pipe()
    try:
        fcntl.fcntl(reads, command, value)
    finally:
        os.close(reads)
        os.close(writes)


def paired() -> None:
    for sock in socket.socketpair():
        sock.close()


def owned_by_ioctl(pid: int) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        fcntl.ioctl(ours, 0x8901, struct.pack("i", pid))


def attached(pid: int) -> None:
    call(101, 16, pid, None, None)  # PTRACE_ATTACH
    os.waitpid(pid, 0x40000000)
    call(101, 17, pid, None, None)


def memory_read(pid: int) -> None:
    data = ctypes.create_string_buffer(8)
    at = next(line for line in Path(f"/proc/{pid}/maps").read_text().splitlines()).partition("-")[0]
    local = struct.pack("=QQ", ctypes.addressof(data), 8)
    remote = struct.pack("=QQ", int(at, 16), 8)
    call(310, pid, local, ctypes.c_ulong(1), remote, ctypes.c_ulong(1), ctypes.c_ulong(0))


def descriptor_taken(pid: int) -> None:
    fd = os.pidfd_open(pid)
    try:
        os.close(call(438, fd, 0, 0))
    finally:
        os.close(fd)


def queued(pid: int) -> None:
    info = ctypes.create_string_buffer(struct.pack("iii", 0, 0, -1), 128)
    call(129, pid, 0, info)


def by_pidfd(pid: int) -> None:
    fd = os.pidfd_open(pid)
    try:
        signal.pidfd_send_signal(fd, 0)
    finally:
        os.close(fd)


def watched(path: str) -> None:
    fd = call(294, 0)
    try:
        call(254, fd, path.encode(), 2)
    finally:
        os.close(fd)


def changed(path: str) -> dict[str, Callable[[], Any]]:
    """Nothing of it harms the file where it works."""
    return {
        f"changes who may read {path}": lambda: os.chmod(path, os.stat(path).st_mode & 0o777),
        f"changes the owner of {path}": lambda: os.chown(path, os.getuid(), -1),
        f"changes the times of {path}": lambda: os.utime(path),
        f"changes the attributes of {path}": lambda: os.setxattr(path, "user.probe", b"x"),
        f"cuts {path} off": lambda: os.truncate(path, os.stat(path).st_size),
        f"opens {path} for neither": lambda: opened(path, 3),
        f"watches {path}": lambda: watched(path),
    }  # fmt: skip


def attempts() -> dict[str, Callable[[], Any]]:
    """What must be refused wherever it is tried."""
    pid, tries = int(TERMS["pid"]) or PARENT, dict[str, Callable[[], Any]]()
    for path in TERMS["files"]:
        tries |= {
            f"reads {path}": partial(opened, path),
            f"writes {path}": partial(opened, path, os.O_WRONLY),
            f"goes round to {path}": partial(opened, f"/proc/self/root{path}"),
            **changed(path),
        }
    for folder in TERMS["folders"]:
        tries[f"writes into {folder}"] = partial(opened, f"{folder}/probe", os.O_WRONLY | os.O_CREAT)
        tries[f"lists {folder}"] = partial(os.listdir, folder)
    for name in ("environ", "mem", "maps", "cmdline", "status"):
        tries[f"reads another's {name}"] = partial(opened, f"/proc/{pid}/{name}")
    stream, port = TERMS["stream"], int(TERMS["port"])
    return tries | {
        "lists processes": lambda: os.listdir("/proc"),
        "follows another's descriptor": lambda: os.readlink(f"/proc/{pid}/fd/0"),
        "connects to the admin socket": lambda: connected(socket.AF_UNIX, socket.SOCK_STREAM, stream),
        "connects to the port": lambda: connected(socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", port)),
        "makes a datagram socket": lambda: socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).close(),
        "sends from a pair": lambda: sent_from_a_pair(TERMS["datagram"]),
        "asks for interfaces": lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW).close(),
        "attaches": lambda: attached(pid),
        "reads memory": lambda: memory_read(pid),
        "takes a descriptor": lambda: descriptor_taken(pid),
        "compares": lambda: call(312, pid, pid, 2, 0, 0),
        "sets limits": lambda: call(PRLIMIT, pid, 7, None, ctypes.create_string_buffer(16)),
        "sets its scheduling": lambda: os.sched_setscheduler(pid, os.SCHED_OTHER, os.sched_param(0)),
        "sets its priority": lambda: os.setpriority(os.PRIO_PROCESS, pid, os.getpriority(os.PRIO_PROCESS, pid)),
        "signals": lambda: os.kill(pid, 0),
        "signals its group": lambda: os.kill(0, 0),
        "signals all": lambda: os.kill(-1, 0),
        "signals a thread": lambda: call(234, pid, pid, 0),
        "signals any thread": lambda: call(200, pid, 0),
        "queues a signal": lambda: queued(pid),
        "signals by a descriptor": lambda: by_pidfd(pid),
        "has signals sent": lambda: owned(8, pid),
        "has them sent at large": lambda: owned(15, struct.pack("ii", 1, pid)),
        "has them sent by a socket": lambda: owned_by_ioctl(pid),
        "chooses the signal": lambda: owned(10, signal.SIGUSR1),
        "makes a ring": lambda: os.close(call(425, 1, ctypes.create_string_buffer(120))),
        "opens by a structure": lambda: os.close(call(437, -100, b"/", struct.pack("=QQQ", 0, 0, 0), 24)),
        "leaves its namespaces": lambda: call(272, 0),
    }


def own() -> dict[str, Callable[[], Any]]:
    """What a process that opens files can do, and one that is sealed cannot."""
    return {
        "reads itself": lambda: opened("/proc/self/status"),
        "reads libraries": lambda: opened("/usr/lib/os-release"),
        "throws away": lambda: opened("/dev/null", os.O_WRONLY),
        "signals itself": lambda: os.kill(os.getpid(), 0),
        "makes a pair": paired,
    }


def tried(tries: dict[str, Callable[[], Any]]) -> tuple[list[str], list[str]]:
    done, refused = [], []
    for name, work in tries.items():
        try:
            work()
            done.append(name)
        except (OSError, StopIteration):
            refused.append(name)
    return done, refused


def place() -> str:
    """The program's name, or that of the process."""
    name = ctypes.create_string_buffer(16)
    libc.prctl(16, name, 0, 0, 0)
    program = "/".join(Path(sys.argv[0]).with_suffix("").parts[-2:])
    return name.value.decode() if name.value.startswith(b"llmd-") else program


def probed() -> None:
    done, refused = tried(attempts())
    able, unable = tried(own())
    line = {"place": place(), "done": done, "refused": refused, "able": able, "unable": unable}
    os.write(0, json.dumps(line).encode() + b"\n")


def plant(module: ModuleType, names: tuple[str, ...]) -> None:
    for name in names:
        *path, last = name.split(".")
        where: Any = module
        for part in path:
            where = getattr(where, part)
        setattr(where, last, _before(getattr(where, last)))


def _before(work: Callable[..., Any]) -> Callable[..., Any]:
    probing = True

    def probe_first(*given: Any, **named: Any) -> Any:
        nonlocal probing
        if probing and place() != "llmd-nursery":
            probing = False
            probed()
        return work(*given, **named)

    return probe_first


class Planter:
    """Finds the modules of PLACES, and plants the probe as they are loaded."""

    @staticmethod
    def find_spec(name: str, path: Any = None, target: Any = None) -> Any:
        spec = PathFinder.find_spec(name, path, target) if name in PLACES else None
        if spec is None or spec.loader is None:
            return None
        load = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            load(module)
            plant(module, PLACES[name])

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def main() -> None:
    sys.meta_path.insert(0, Planter)
    # what a child prints is not seen, and its other descriptors may be closed: its input is nothing
    fd = os.open(FOLDER / "found", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    os.dup2(fd, 0)
    os.close(fd)
    if TERMS["version"]:
        from llmd.daemon.machine import confined

        known = confined.landlock
        confined.landlock = lambda: min(known(), TERMS["version"])
