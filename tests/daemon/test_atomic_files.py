"""Atomic writes: the old content or the new, never a half, and on disk before it counts."""

import os
import stat
from pathlib import Path

import pytest

from llmd.daemon import atomic


def test_it_replaces_content_and_permissions(tmp_path: Path) -> None:
    file = tmp_path / "key"
    atomic.write(file, b"old", 0o644)
    umask = os.umask(0o077)
    atomic.write(file, b"new", 0o640)
    os.umask(umask)
    assert file.read_bytes() == b"new" and stat.S_IMODE(file.stat().st_mode) == 0o640
    assert [p.name for p in tmp_path.iterdir()] == ["key"]


def test_a_write_that_fails_leaves_the_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "key"
    atomic.write(file, b"old", 0o600)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        atomic.write(file, b"new", 0o600)
    monkeypatch.undo()
    assert file.read_bytes() == b"old"
    atomic.write(file, b"newer", 0o600)
    assert file.read_bytes() == b"newer" and len(list(tmp_path.iterdir())) == 1


def test_the_content_is_on_disk_before_its_name_and_its_name_before_it_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def synced(fd: int) -> None:
        order.append("folder" if stat.S_ISDIR(os.fstat(fd).st_mode) else "file")
        fsync(fd)

    def replaced(self: Path, target: Path) -> Path:
        order.append("rename")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", replaced)
    atomic.write(tmp_path / "key", b"x", 0o600)
    assert order == ["file", "rename", "folder"]
