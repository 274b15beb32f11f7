#!/usr/bin/python3 -I
"""A generator of systemd's: llmd.socket listens where llmd.toml says.

systemd runs it at boot and at each `systemctl daemon-reload`, as systemd.generator(7) says: the arguments are the
folders for units of normal, early and late precedence. It never fails: llmd itself says what is wrong with its
configuration.
"""

import ipaddress
import os
import stat
import sys
import tomllib
from pathlib import Path

CONFIG = Path("/etc/llmd/llmd.toml")
SOCKET = "llmd.socket"


def generate(config: Path, normal: Path, early: Path) -> None:
    """1. No `listen`, or no file of root's that can be read: llmd.socket as it is. 2. An address: that one. 3. A name,
    which nobody can look up yet: no socket; llmd listens itself."""
    listen = _said(config)
    if not isinstance(listen, str):
        return
    try:
        address = _address(listen)
    except ValueError:
        (early / SOCKET).symlink_to("/dev/null")
        return
    drop_in = normal / f"{SOCKET}.d" / "listen.conf"
    drop_in.parent.mkdir(parents=True, exist_ok=True)
    drop_in.write_text(f"[Socket]\nListenStream=\nListenStream={address}\n")


def _said(config: Path) -> object:
    """Of a file that only root can have written: this runs as root, and its word reaches a unit."""
    try:
        with open(os.open(config, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode) or found.st_uid not in (0, os.geteuid()) or found.st_mode & 0o022:
                return None
            return tomllib.loads(file.read().decode("utf-8-sig")).get("listen")
    except (OSError, ValueError, RecursionError):
        return None


def _address(listen: str) -> str:
    """What was read of it, and nothing of how it was written. Raises ValueError for what is no address and port."""
    host, _, port = listen.rpartition(":")
    address = ipaddress.ip_address(host[1:-1] if host.startswith("[") and host.endswith("]") else host)
    if getattr(address, "scope_id", None):
        raise ValueError("an interface is a name")
    number = int(port) if port.isascii() and port.isdecimal() else 0
    if not 1 <= number <= 65535:
        raise ValueError("a port of the kernel's choice, or none")
    return f"[{address}]:{number}" if address.version == 6 else f"{address}:{number}"


if __name__ == "__main__":
    folders = [Path(given) for given in sys.argv[1:3]]
    generate(CONFIG, folders[0], folders[-1])
