#!/usr/bin/env python3
"""Holds advisories against what the packages ship: which of their wheels are known to be vulnerable.

python packaging/check_cves.py FILE ...      `make check-cves FILES='FILE …'`

A FILE is a bill of materials (CycloneDX, as the packages bring it: sbom.cdx.json), or advisories in OSV's form
(ossf.github.io/osv-schema): one, a list of them, or a ZIP file of them, as OSV's own exports are. Without a bill it is
what packaging/deb.lock and packaging/torch.lock name. It asks nobody: advisories come as everything else does.

It prints a line for each wheel that is affected, and exits with 1 where there is one, with 2 for a file that is none of
these.
"""

import json
import re
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from packaging.version import InvalidVersion, Version

HERE = Path(__file__).parent
ECOSYSTEM = "PyPI"
_PURL = re.compile(r"pkg:pypi/([^@?#]+)@([^?#]+)")

Bill = dict[str, set[str]]  # a package's normalized name, and its versions


class Unreadable(Exception):
    """The message names the file."""


def normalized(name: str) -> str:
    """PEP 503."""
    return re.sub(r"[-_.]+", "-", name).lower()


def locked() -> Bill:
    found: Bill = {}
    for lock in ("deb.lock", "torch.lock"):
        for name, version in re.findall(r"^([^\s#=]+)==(\S+)", (HERE / lock).read_text(), re.MULTILINE):
            found.setdefault(normalized(name), set()).add(version)
    return found


def read(file: Path) -> tuple[Bill, list[dict[str, Any]]]:
    """What a file is of both. Raises Unreadable."""
    try:
        values = list(_values(file))
    except (OSError, ValueError, zipfile.BadZipFile) as e:
        raise Unreadable(
            f"{file}: {getattr(e, 'strerror', None) or 'this is neither JSON nor a ZIP file of it'}"
        ) from e
    bill: Bill = {}
    advisories: list[dict[str, Any]] = []
    for value in values:
        if isinstance(value, dict) and value.get("bomFormat") == "CycloneDX":
            for component in value.get("components", []):
                if purl := _PURL.match(str(component.get("purl"))):
                    bill.setdefault(normalized(unquote(purl[1])), set()).add(unquote(purl[2]))
        elif isinstance(value, dict) and "id" in value and isinstance(value.get("affected", []), list):
            advisories.append(value)
        else:
            raise Unreadable(f"{file}: this is neither a bill of materials (CycloneDX) nor an advisory (OSV)")
    return bill, advisories


def _values(file: Path) -> Iterator[Any]:
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            for name in archive.namelist():
                if name.endswith(".json"):
                    yield json.loads(archive.read(name))
        return
    value = json.loads(file.read_bytes())
    yield from value if isinstance(value, list) else [value]


def affected(advisory: dict[str, Any], bill: Bill) -> Iterator[tuple[str, str, str]]:
    """Name, version and what repairs it ("": nothing yet), of each wheel that the advisory is of."""
    if advisory.get("withdrawn"):
        return
    for one in advisory.get("affected", []):
        package = one.get("package", {})
        name = normalized(str(package.get("name", "")))
        if package.get("ecosystem") != ECOSYSTEM:
            continue
        for version in sorted(bill.get(name, ())):
            ranges = [r for r in one.get("ranges", []) if r.get("type") in ("ECOSYSTEM", "SEMVER")]
            if version in one.get("versions", []) or any(_within(version, r["events"]) for r in ranges):
                fixes = [event["fixed"] for r in ranges for event in r["events"] if "fixed" in event]
                yield name, version, ", ".join(fixes)


def _within(version: str, events: list[dict[str, str]]) -> bool:
    """OSV's evaluation: the last event at or before it decides; `last_affected` is the last that is vulnerable."""
    at, inside = _version(version), False
    for event in sorted(events, key=lambda e: _version(next(iter(e.values())))):
        if "introduced" in event and at >= _version(event["introduced"]):
            inside = True
        if "fixed" in event and at >= _version(event["fixed"]):
            inside = False
        if "last_affected" in event and at > _version(event["last_affected"]):
            inside = False
    return inside


def _version(text: str) -> Version:
    """What is no version stands before all, so that more is told and not less."""
    try:
        return Version(text.partition("+")[0])
    except InvalidVersion:
        return Version("0")


def main(files: list[str]) -> int:
    bill: Bill = {}
    advisories: list[dict[str, Any]] = []
    try:
        for file in files:
            wheels, found = read(Path(file))
            advisories += found
            for name, versions in wheels.items():
                bill.setdefault(name, set()).update(versions)
    except Unreadable as e:
        print(f"check-cves: {e}", file=sys.stderr)
        return 2
    if not advisories:
        print("check-cves: no advisories were given: make check-cves FILES='all.zip'", file=sys.stderr)
        return 2
    bill = bill or locked()
    told = 0
    for advisory in advisories:
        for name, version, fixed in affected(advisory, bill):
            told += 1
            names = ", ".join([advisory["id"], *(a for a in advisory.get("aliases", []) if a.startswith("CVE-"))])
            print(f"{name} {version}: {names}: {str(advisory.get('summary') or advisory.get('details', ''))[:100]}"
                  f"{f' (repaired in {fixed})' if fixed else ''}")  # fmt: skip
    wheels_count = sum(map(len, bill.values()))
    print(f"{told} of {len(advisories)} advisories are about the {wheels_count} wheels" if told else
          f"none of {len(advisories)} advisories is about the {wheels_count} wheels")  # fmt: skip
    return 1 if told else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
