"""Control groups for workers, below the service's own, where systemd has delegated it (Delegate=memory): the daemon in
one, each worker in one with a limit on its memory. The kernel ends what goes over its limit, and nothing else.

Version 2 of control groups; the kernel's Documentation/admin-guide/cgroup-v2.rst has the files' meanings.
"""

import itertools
import logging
import os
from contextlib import suppress
from pathlib import Path

log = logging.getLogger("llmd.groups")

DELEGATED = "user.delegate"  # systemd marks a group so that is its service's own
DAEMON = "daemon"


class Groups:
    """`reason`: why workers' memory is not limited although systemd runs this service; "": it is, or nobody asked."""

    def __init__(self, folder: Path | None = None, reason: str = "") -> None:
        self._folder, self.reason = folder, reason
        self._numbers = itertools.count(1)

    @classmethod
    def open(cls, root: Path = Path("/")) -> "Groups":
        """Move this process into a group of its own, so that its siblings can have limits. `root` stands for / in
        tests."""
        folder = _own(root)
        if folder is None or not _delegated(folder):
            return cls()
        try:
            if "memory" not in (folder / "cgroup.controllers").read_text().split():
                return cls(reason="the kernel does not let this service limit memory (no memory controller)")
            (folder / DAEMON).mkdir(exist_ok=True)
            (folder / DAEMON / "cgroup.procs").write_text(str(os.getpid()))
            (folder / "cgroup.subtree_control").write_text("+memory")
        except OSError as e:
            return cls(reason=f"its control group cannot be used: {e.strerror}")
        return cls(folder)

    def make(self, limit: int) -> Path | None:
        """A group for a process that may hold so many bytes; None: there is none."""
        if self._folder is None or not limit:
            return None
        group = self._folder / f"worker-{next(self._numbers)}"
        try:
            group.mkdir()
            (group / "memory.max").write_text(str(limit))
            (group / "memory.oom.group").write_text("1")
        except OSError as e:
            log.warning("a worker's memory is not limited: %s", e.strerror)
            return None
        return group


def over(group: Path) -> bool:
    """Whether the kernel ended something in it that took more than its limit."""
    try:
        counts = dict(line.split() for line in (group / "memory.events").read_text().splitlines())
    except (OSError, ValueError):
        return False
    return int(counts.get("oom_kill", 0)) > 0


def remove(group: Path) -> None:
    """Once its process is gone."""
    with suppress(OSError):
        group.rmdir()


def _own(root: Path) -> Path | None:
    """This process's group."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return None
    found = next((line[3:].strip("/") for line in lines if line.startswith("0::")), "")
    return root / "sys/fs/cgroup" / found if found else None


def _delegated(folder: Path) -> bool:
    try:
        return os.getxattr(folder, DELEGATED) == b"1"
    except OSError:
        return False
