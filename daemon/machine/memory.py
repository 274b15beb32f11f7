"""How much of the machine's memory a new process can have."""

from pathlib import Path


def available(root: Path = Path("/")) -> int:
    """Bytes, without others being paged out: what the kernel says, or less where this process's control group has a
    limit. `root` stands for / in tests."""
    lines = (root / "proc/meminfo").read_text().splitlines()
    kernel = next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    return min([kernel, *_groups(root)])


def _groups(root: Path) -> list[int]:
    """What the control group (version 2) of this process and those above it leave."""
    try:
        own = next(line for line in (root / "proc/self/cgroup").read_text().splitlines() if line.startswith("0::"))
    except (OSError, StopIteration):
        return []
    folder, left = root / "sys/fs/cgroup" / own[3:].strip("/"), []
    while folder.is_relative_to(root / "sys/fs/cgroup"):
        try:
            limit = (folder / "memory.max").read_text().strip()
            if limit != "max":
                left.append(max(0, int(limit) - _held(folder)))
        except (OSError, ValueError):
            pass  # the root group has no limit, an older kernel no such files
        folder = folder.parent
    return left


def _held(folder: Path) -> int:
    """What a group cannot give back: the files that it has read can be read again."""
    known = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    return int((folder / "memory.current").read_text()) - int(known["inactive_file"])
