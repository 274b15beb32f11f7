#!/usr/bin/env python3
"""Writes what holds downloads to the files that were looked at, after a change in requirements*.txt:

    packaging/deb.lock, torch.lock              every wheel that the packages llmd and llmd-torch ship, with its hash,
                                                for Debian 12's Python 3.11
    packaging/requirements.lock, -torch.lock    what a checkout installs, with the hashes of every file of that version
                                                that Linux may take, as the index names them

.venv/bin/python packaging/lock.py
"""

import hashlib
import json
import re
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from packaging.utils import InvalidWheelFilename, parse_wheel_filename
from pip._internal.models.index import PyPI

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


# a checkout's, and what the packages ship: it may have a build that the index has not (torch's for CPUs)
CHECKOUTS = {
    "requirements.lock": (("requirements.txt", "requirements-dev.txt"), "deb.lock"),
    "requirements-torch.lock": (("requirements-torch.txt",), "torch.lock"),
}
LINUX = re.compile(r"(many)?linux\S*_(x86_64|aarch64)|any")
PYTHON = re.compile(r"py3|cp3(1[1-9]|[2-9]\d)")
JSON = "application/vnd.pypi.simple.v1+json"  # the index's interface: packaging.python.org, "Simple repository API"


def files(name: str, version: str) -> Iterator[str]:
    """The hashes of a version's files that a Linux with Python 3.11 or newer may take."""
    request = urllib.request.Request(f"{PyPI.simple_url.rstrip('/')}/{name.lower()}/", headers={"Accept": JSON})
    with urllib.request.urlopen(request, timeout=60) as answer:
        listed: list[dict[str, Any]] = json.load(answer)["files"]
    for file in listed:
        try:
            _, found, _, tags = parse_wheel_filename(file["filename"])
        except InvalidWheelFilename:
            stem = f"{name}-{version}.tar.gz"
            if re.sub(r"[-_.]+", "-", file["filename"]).lower() == re.sub(r"[-_.]+", "-", stem).lower():
                yield file["hashes"]["sha256"]
            continue
        fits = any(LINUX.fullmatch(t.platform) and (PYTHON.match(t.interpreter) or t.abi == "abi3") for t in tags)
        if str(found) == version and fits:
            yield file["hashes"]["sha256"]


def checkout(requirements: tuple[str, ...], shipped: Path, out: Path) -> None:
    names = [
        line
        for file in requirements
        for line in (HERE / file).read_text().splitlines()
        if "==" in line and line[0] != "#"
    ]
    own = dict(re.findall(r"^(\S+) --hash=sha256:(\w+)$", shipped.read_text(), re.MULTILINE))
    lines = []
    for name in names:
        found = set(files(*name.split("==")))
        if name in own and own[name] not in found:
            found = {own[name]}  # a build of its own: the index's would be taken before it
        if not found:
            raise SystemExit(f"the index has no file of {name} for Linux")
        lines.append(" ".join([name, *(f"--hash=sha256:{one}" for one in sorted(found))]))
    head = f"# Made by packaging/lock.py of {' and '.join(requirements)}: what a checkout installs.\n"
    out.write_text(head + "\n".join(lines) + "\n")


if __name__ == "__main__":
    for source, made in LOCKS.items():
        lock(HERE / source, HERE / made)
    for made, (sources, ships) in CHECKOUTS.items():
        checkout(sources, HERE / ships, HERE / made)
