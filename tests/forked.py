"""`llmd` in a process of its own without the second that Python takes to load it: a process that has loaded it once
forks. What runs is what the installed command runs: `llmd.daemon.main.main`.

    python -P forked.py FD     the socket on which it is asked
"""

import atexit
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from functools import cache
from pathlib import Path
from typing import IO, Any


class Forked:
    """One that runs, as `subprocess.Popen` has it: its output is a pipe of text, or goes where it was told."""

    def __init__(self, by: "Forker", pid: int, stdout: IO[str] | None, stderr: IO[str] | None) -> None:
        self.pid, self.stdout, self.stderr = pid, stdout, stderr
        self.returncode: int | None = None
        self._by, self._fd = by, os.pidfd_open(pid)

    def poll(self) -> int | None:
        return self._ended(0)

    def wait(self, timeout: float | None = None) -> int:
        code = self._ended(timeout)
        if code is None:
            raise subprocess.TimeoutExpired("llmd", timeout or 0)
        return code

    def communicate(self, timeout: float) -> tuple[str, str]:
        """Its whole output, which must fit a pipe."""
        self.wait(timeout)
        found = []
        for stream in (self.stdout, self.stderr):
            found.append(stream.read() if stream else "")
            if stream:
                stream.close()
        return found[0], found[1]

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            signal.pidfd_send_signal(self._fd, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _ended(self, timeout: float | None) -> int | None:
        if self.returncode is None and select.select([self._fd], [], [], timeout)[0]:
            self.returncode = self._by.code(self.pid)
            os.close(self._fd)
        return self.returncode


class Forker:
    """What starts them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sock, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            command = [sys.executable, "-P", __file__, str(theirs.fileno())]
            self._process = subprocess.Popen(command, pass_fds=[theirs.fileno()])

    def start(self, *arguments: object, stdout: int | IO[str], stderr: int | IO[str]) -> Forked:
        """`llmd ARGUMENTS`, with this process' environment and folder."""
        ends = [os.pipe() if stream == subprocess.PIPE else None for stream in (stdout, stderr)]
        given = [end[1] if end else stream if isinstance(stream, int) else stream.fileno()
                 for end, stream in zip(ends, (stdout, stderr), strict=True)]  # fmt: skip
        asked = {"arguments": [str(one) for one in arguments], "folder": os.getcwd(), "environment": dict(os.environ)}
        with self._lock:
            socket.send_fds(self._sock, [json.dumps(asked).encode()], given)
            pid = json.loads(self._sock.recv(100))
        for end in filter(None, ends):
            os.close(end[1])
        return Forked(self, pid, *(os.fdopen(end[0]) if end else None for end in ends))

    def run(self, *arguments: object, timeout: float = 60) -> "subprocess.CompletedProcess[str]":
        """To its end."""
        running = self.start(*arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        out, err = running.communicate(timeout)
        return subprocess.CompletedProcess([], running.wait(), out, err)

    def code(self, pid: int) -> int:
        with self._lock:
            self._sock.send(json.dumps(pid).encode())
            return int(json.loads(self._sock.recv(100)))

    def close(self) -> None:
        self._sock.close()
        self._process.wait(20)


@cache
def forker() -> Forker:
    """One for all tests."""
    made = Forker()
    atexit.register(made.close)
    return made


def forks(sock: socket.socket) -> list[str] | None:
    """The arguments of a child, in that child; None: nobody asks any more, and what still ran was told to end."""
    running: set[int] = set()
    while True:
        data, fds, _, _ = socket.recv_fds(sock, 1 << 18, 2)
        if not data:
            for pid in running:
                os.kill(pid, signal.SIGTERM)
            return None
        asked: Any = json.loads(data)
        if isinstance(asked, int):
            running.discard(asked)
            sock.send(json.dumps(os.waitstatus_to_exitcode(os.waitpid(asked, 0)[1])).encode())
            continue
        pid = os.fork()
        if pid == 0:
            sock.close()
            for at, fd in enumerate(fds, 1):
                os.dup2(fd, at)
                os.close(fd)
            os.chdir(asked["folder"])
            os.environ.clear()
            os.environ.update(asked["environment"])
            return list(asked["arguments"])
        for fd in fds:
            os.close(fd)
        running.add(pid)
        sock.send(json.dumps(pid).encode())


if __name__ == "__main__":
    from llmd.daemon.main import main

    arguments = forks(socket.socket(fileno=int(sys.argv[1])))
    if arguments is not None:
        sys.argv = [str(Path(sys.executable).parent / "llmd"), *arguments]
        main()
