"""What a new process can have: the kernel's word, or a control group's."""

from pathlib import Path

from llmd.daemon.machine import memory

GIB = 1 << 30


def machine(root: Path, cgroup: str = "0::/") -> Path:
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/meminfo").write_text("MemTotal: 33554432 kB\nMemFree: 1 kB\nMemAvailable: 16777216 kB\n")
    (root / "proc/self/cgroup").write_text(f"1:cpu:/x\n{cgroup}\n")
    return root


def group(root: Path, path: str, most: str, current: int, files: int) -> None:
    folder = root / "sys/fs/cgroup" / path
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.max").write_text(f"{most}\n")
    (folder / "memory.current").write_text(f"{current}\n")
    (folder / "memory.stat").write_text(f"anon 5\ninactive_file {files}\n")


def test_without_a_limit_it_is_what_the_kernel_says(tmp_path: Path) -> None:
    assert memory.available(machine(tmp_path)) == 16 * GIB
    (tmp_path / "proc/self/cgroup").unlink()
    assert memory.available(tmp_path) == 16 * GIB
    assert memory.available() > 0


def test_the_narrowest_group_counts_and_files_can_be_given_back(tmp_path: Path) -> None:
    root = machine(tmp_path, "0::/system.slice/llmd.service")
    group(root, "system.slice/llmd.service", "max", 0, 0)
    assert memory.available(root) == 16 * GIB
    group(root, "system.slice", str(8 * GIB), 3 * GIB, GIB)
    assert memory.available(root) == 6 * GIB
    group(root, "system.slice/llmd.service", str(2 * GIB), 3 * GIB, 0)
    assert memory.available(root) == 0
