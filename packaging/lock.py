#!/usr/bin/env python3
"""Writes packaging/deb.lock and packaging/torch.lock anew: every wheel that the packages llmd and llmd-torch ship, with
its hash, for Debian 12's Python 3.11.

.venv/bin/python packaging/lock.py      after a change in requirements.txt or requirements-torch.txt
"""

import hashlib
import re
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
LOCKS = {"requirements.txt": "deb.lock", "requirements-torch.txt": "torch.lock"}
NOT_SHIPPED = ("pip==",)
PLATFORMS = ("manylinux_2_36_x86_64", "manylinux_2_34_x86_64", "manylinux_2_31_x86_64", "manylinux_2_28_x86_64",
             "manylinux_2_17_x86_64", "manylinux2014_x86_64")  # fmt: skip


def lock(requirements: Path, out: Path) -> None:
    names = [line for line in requirements.read_text().splitlines() if "==" in line and line[0] != "#"]
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
            stem = re.escape(re.sub(r"[-.]", "_", name.partition("==")[0].lower()))
            version = re.escape(name.partition("==")[2])
            pattern = re.compile(rf"{stem}-{version}(\+\w+)?-")  # torch's build for CPUs has its name behind a plus
            (wheel,) = [w for w in Path(folder).iterdir() if pattern.match(w.name.lower())]
            lines.append(f"{name} --hash=sha256:{hashlib.sha256(wheel.read_bytes()).hexdigest()}")
    head = "# Made by packaging/lock.py: every wheel of the index that the package ships.\n"
    out.write_text(head + "\n".join(lines) + "\n")


if __name__ == "__main__":
    for requirements, out in LOCKS.items():
        lock(HERE / requirements, HERE / out)
