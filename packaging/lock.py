#!/usr/bin/env python3
"""Writes packaging/deb.lock anew: every wheel that the package ships, with its hash, for Debian 12's Python 3.11.

.venv/bin/python packaging/lock.py      after a change in requirements.txt
"""

import hashlib
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
NOT_SHIPPED = ("pip==",)
PLATFORMS = ("manylinux_2_36_x86_64", "manylinux_2_34_x86_64", "manylinux_2_28_x86_64", "manylinux_2_17_x86_64",
             "manylinux2014_x86_64")  # fmt: skip


def main() -> None:
    names = [line for line in (HERE / "requirements.txt").read_text().splitlines() if "==" in line and line[0] != "#"]
    wanted = [name for name in names if not name.startswith(NOT_SHIPPED)]
    with tempfile.TemporaryDirectory() as folder:
        platforms = [f"--platform={name}" for name in PLATFORMS]
        subprocess.run(
            [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps",
             "--only-binary=:all:", "--python-version=3.11", "--implementation=cp", "--abi=cp311", "--abi=abi3",
             "--abi=none", *platforms, "--dest", folder, *wanted], check=True,
        )  # fmt: skip
        lines = []
        for name in wanted:
            stem = name.partition("==")[0].lower().replace("-", "_").replace(".", "_")
            version = name.partition("==")[2]
            (wheel,) = [w for w in Path(folder).iterdir() if w.name.lower().startswith(f"{stem}-{version}-")]
            lines.append(f"{name} --hash=sha256:{hashlib.sha256(wheel.read_bytes()).hexdigest()}")
    head = "# Made by packaging/lock.py: every wheel of the index that the package ships.\n"
    (HERE / "deb.lock").write_text(head + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
