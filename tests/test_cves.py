"""`make check-cves`: advisories in OSV's form against what the packages ship. Three made by hand, since the real ones
change."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
PROGRAM = ROOT / "packaging" / "check_cves.py"
BILL = {
    "bomFormat": "CycloneDX",
    "components": [{"name": n, "purl": f"pkg:pypi/{n}@{v}"} for n, v in (("jinja2", "3.1.4"), ("Starlette", "1.10.0"))],
}


def advisory(id_: str, name: str, *events: dict[str, str], **more: Any) -> dict[str, Any]:
    package = {"ecosystem": more.pop("ecosystem", "PyPI"), "name": name}
    ranges = [{"type": "ECOSYSTEM", "events": list(events)}] if events else []
    return {"id": id_, "summary": f"about {name}", "affected": [{"package": package, "ranges": ranges,
            "versions": more.pop("versions", [])}], **more}  # fmt: skip


HITS = advisory("OSV-1", "Jinja2", {"introduced": "0"}, {"fixed": "3.1.6"}, aliases=["CVE-2025-1", "GHSA-x"])
PAST = advisory("OSV-2", "starlette", {"introduced": "0.9"}, {"fixed": "1.9.1"}, {"introduced": "1.11"})
NAMED = advisory("OSV-3", "starlette", versions=["1.9.0", "1.10.0"])


def run(tmp_path: Path, *values: Any) -> tuple[int, str]:
    files = []
    for number, value in enumerate(values):
        file = tmp_path / f"{number}.json"
        file.write_bytes(value if isinstance(value, bytes) else json.dumps(value).encode())
        files.append(str(file))
    done = subprocess.run([sys.executable, "-P", PROGRAM, *files], capture_output=True, text=True, timeout=30)
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout + done.stderr


def test_what_is_affected_is_named_with_what_repairs_it(tmp_path: Path) -> None:
    code, said = run(tmp_path, BILL, [HITS, PAST, NAMED])
    assert code == 1
    assert said.splitlines() == [
        "jinja2 3.1.4: OSV-1, CVE-2025-1: about Jinja2 (repaired in 3.1.6)",
        "starlette 1.10.0: OSV-3: about starlette",
        "2 of 3 advisories are about the 2 wheels",
    ]


@pytest.mark.parametrize(
    "one",
    [
        PAST, HITS | {"withdrawn": "2026-01-01T00:00:00Z"},
        advisory("OSV-4", "jinja2", {"introduced": "0"}, ecosystem="npm"),
        advisory("OSV-5", "jinja2", {"introduced": "0"}, {"last_affected": "3.1.3"}),
        advisory("OSV-6", "jinja2", {"introduced": "3.1.5"}), advisory("OSV-7", "other", {"introduced": "0"}),
    ],
)  # fmt: skip
def test_what_is_not_affected_is_not_named(tmp_path: Path, one: dict[str, Any]) -> None:
    assert run(tmp_path, BILL, one) == (0, "none of 1 advisories is about the 2 wheels\n")


@pytest.mark.parametrize("end", [{"last_affected": "3.1.4"}, {"fixed": "3.1.5rc1"}])
def test_the_last_version_that_is_affected_is(tmp_path: Path, end: dict[str, str]) -> None:
    assert run(tmp_path, BILL, advisory("OSV-8", "jinja2", end, {"introduced": "0"}))[0] == 1


def test_without_a_bill_it_is_what_the_packages_are_built_from(tmp_path: Path) -> None:
    export = tmp_path / "all.zip"
    with zipfile.ZipFile(export, "w") as archive:
        archive.writestr("OSV-9.json", json.dumps(advisory("OSV-9", "msgspec", {"introduced": "0"})))
        archive.writestr("README", "x")
    code, said = run(tmp_path, export.read_bytes())
    assert code == 1 and "msgspec " in said and "OSV-9" in said


@pytest.mark.parametrize("value", [b"", b"{", {"a": 1}, [1], {"bomFormat": "SPDX"}, b"\x50\x4b\x03\x04"])
def test_what_is_neither_is_refused_by_its_name(tmp_path: Path, value: Any) -> None:
    code, said = run(tmp_path, HITS, value)
    assert code == 2 and "1.json: this is neither" in said


def test_no_advisories_are_no_good_news(tmp_path: Path) -> None:
    code, said = run(tmp_path, BILL)
    assert code == 2 and "no advisories" in said
