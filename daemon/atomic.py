"""Small files that are there whole or not at all, whatever the power does."""

import os
from pathlib import Path


def write(file: Path, data: bytes, mode: int) -> None:
    """Put `data` in the place of `file`, with these permissions. On disk when it returns; until then, and if it fails,
    the old content stays. Raises OSError."""
    part = file.with_name(f".{file.name}.part")
    part.unlink(missing_ok=True)  # what a killed process left may be readable for others
    fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "wb") as f:
        os.fchmod(fd, mode)
        f.write(data)
        f.flush()
        os.fsync(fd)
    part.replace(file)
    sync_folder(file.parent)


def why(error: OSError) -> str:
    """In words for a person, with what to do where that is known."""
    said = error.strerror or str(error)
    denied = isinstance(error, PermissionError) and error.filename
    return f"{said}; chown it to the user that llmd runs as" if denied else said


def exposed(file: Path) -> bool:
    """Whether others than its owner may read or write it. Raises OSError."""
    return bool(file.stat().st_mode & 0o077)


def foreign(file: Path) -> str:
    """Why what stands in it is not obeyed, with what to type; "": only root and this process' user can have written it.
    Raises OSError."""
    found = file.stat()
    if found.st_uid not in (0, os.geteuid()):
        return f"{file} belongs to another user than root and the one that llmd runs as: chown root: {file}"
    return f"{file} may be written by others: chmod go-w {file}" if found.st_mode & 0o022 else ""


def sync_folder(folder: Path) -> None:
    """Make what was created, renamed or removed in it last. Raises OSError."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
