#!/usr/bin/python3 -I
"""A generator of systemd's: llmd.socket listens where llmd.toml says.

systemd runs it at boot and at each `systemctl daemon-reload`, as systemd.generator(7) says: the arguments are the
folders for units of normal, early and late precedence. It never fails: llmd itself says what is wrong with its
configuration.
"""

import ipaddress
import sys
import tomllib
from pathlib import Path

CONFIG = Path("/etc/llmd/llmd.toml")
SOCKET = "llmd.socket"


def generate(config: Path, normal: Path, early: Path) -> None:
    """1. No `listen`, or no file that can be read: llmd.socket as it is. 2. An address: that one. 3. A name, which
    nobody can look up yet: no socket; llmd listens itself."""
    try:
        listen = tomllib.loads(config.read_text()).get("listen")
    except (OSError, ValueError):
        return
    if not isinstance(listen, str):
        return
    host, _, port = listen.rpartition(":")
    try:
        ipaddress.ip_address(host.strip("[]"))
        if not 1 <= int(port) <= 65535:
            raise ValueError("a port of the kernel's choice")
    except ValueError:
        (early / SOCKET).symlink_to("/dev/null")
        return
    drop_in = normal / f"{SOCKET}.d" / "listen.conf"
    drop_in.parent.mkdir(parents=True, exist_ok=True)
    drop_in.write_text(f"[Socket]\nListenStream=\nListenStream={listen}\n")


if __name__ == "__main__":
    folders = [Path(given) for given in sys.argv[1:3]]
    generate(CONFIG, folders[0], folders[-1])
