"""What a daemon takes of its machine before it begins: descriptors, the state folder for itself, the audit's key."""

import fcntl
import grp
import logging
import os
import resource
import secrets
from contextlib import suppress
from pathlib import Path

from llmd.daemon import atomic, limits
from llmd.daemon.machine import confined

log = logging.getLogger("llmd")

ADMINS = "llmd-admin"
KEY_BYTES = 32
# for databases, workers, children, models that are read
OWN_DESCRIPTORS = 256


class Fatal(Exception):
    """The daemon cannot start; the message says what to do."""


def descriptors() -> int:
    """How many files this process may have open: as many as it can be given."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    enough = limits.MAX_CONNECTIONS + OWN_DESCRIPTORS
    most = enough if hard == resource.RLIM_INFINITY else hard
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    if most < enough:
        log.warning("this process may have %d files open: it takes %d connections", most, most - OWN_DESCRIPTORS)
    return max(most, 2 * OWN_DESCRIPTORS)


def without_dumps() -> None:
    """A dump of this process, or of one that it starts, would hold keys and prompts: none is written, and what a
    program of the machine's is handed all the same (core(5): it need not mind the limit) has no memory in it."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(OSError):
        Path("/proc/self/coredump_filter").write_text("0")


def admins() -> int:
    """The group whose members may use the admin socket; -1: there is none, or this process is not in it."""
    try:
        group = grp.getgrnam(ADMINS).gr_gid
    except KeyError:
        return -1
    return group if group in os.getgroups() else -1


def apart(state: Path) -> None:
    """Raises Fatal for a state folder among the system's files, which what is confined may read."""
    if root := confined.readable(state):
        raise Fatal(f"{state} lies below {root}, which what reads models may read too: choose another state_dir")


def confinement(*, required: bool) -> bool:
    """Whether the kernel can hold what reads strangers' bytes to what is its own. Raises Fatal where it is required and
    it cannot."""
    missing = " and no ".join(confined.lacks())
    if missing and required:
        raise Fatal(f"this kernel has no {missing}, and require_confinement is set: {confined.REPAIR}")
    if missing:
        log.warning("this kernel has no %s: what reads models, schemas and templates is not confined", missing)
    return not missing


def lock(state: Path) -> int:
    fd = os.open(state / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as e:
        os.close(fd)
        raise Fatal(f"another llmd runs on {state}; stop it or give another --state-dir") from e
    return fd


def audit_key(state: Path) -> bytes:
    """The audit log's key, made with the log: whoever lacks it cannot guess prompts from their hashes. Raises Fatal
    where it is missing, damaged or open to others: with another one, nothing in the log could be proven any more."""
    file, begun = state / "audit.key", (state / "audit.db").exists()
    if not file.exists() and not begun:
        atomic.write(file, secrets.token_bytes(KEY_BYTES), 0o600)
    lost = "put back a copy of it, or move audit.db and audit.db-wal away as well to begin a new log"
    if not file.exists():
        raise Fatal(f"{file} is missing, which the audit log was written with: {lost}")
    if atomic.exposed(file):
        raise Fatal(f"{file} may be read or written by others: chmod 600 {file}")
    key = file.read_bytes()
    if len(key) != KEY_BYTES:
        raise Fatal(f"{file} is damaged: {lost}")
    return key
