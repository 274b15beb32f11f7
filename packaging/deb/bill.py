"""The list of every wheel in a package (CycloneDX).

python -I packaging/deb/bill.py PACKAGE SITE LOCK OUT      run by debian/rules, with the package's own Python
"""

import json
import os
import re
import sys
from datetime import UTC, datetime
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Any

# what packaging/build_portable.sh changes in llama.cpp
PATCHES = sorted(Path(__file__).resolve().parents[1].glob("patches/*.patch"))
WHEN = datetime.fromtimestamp(int(os.environ.get("SOURCE_DATE_EPOCH", "0")), UTC)


def component(one: Distribution, hashes: dict[str, str]) -> dict[str, Any]:
    name, meta = one.metadata["Name"], one.metadata
    purl = f"pkg:pypi/{name.lower().replace('_', '-')}@{one.version}"
    licence = meta.get("License-Expression") or (meta.get("License") or "").split("\n")[0][:100] or _classified(one)
    found: dict[str, Any] = {"type": "library", "bom-ref": purl, "name": name, "version": one.version, "purl": purl}
    if licence:
        found["licenses"] = [{"license": {"name": licence}}]
    if found["purl"].startswith("pkg:pypi/llama-cpp-python@"):
        patches = [{"type": "unofficial", "diff": {"text": {"content": file.read_text()}}} for file in PATCHES]
        found["pedigree"] = {"patches": patches, "notes": "compiled from the source distribution with these patches"}
    if digest := hashes.get(name.lower().replace("_", "-")):
        found["hashes"] = [{"alg": "SHA-256", "content": digest}]
    return found


def _classified(one: Distribution) -> str:
    said = [value for key, value in one.metadata.items() if key == "Classifier" and value.startswith("License ::")]
    return said[0].rpartition(" :: ")[2] if said else ""


def bill(package: str, site: Path, lock: Path) -> dict[str, Any]:
    pinned = re.findall(r"^(\S+)==\S+ --hash=sha256:(\w+)$", lock.read_text(), re.MULTILINE)
    hashes = {name.lower().replace("_", "-"): digest for name, digest in pinned}
    found = sorted((component(one, hashes) for one in distributions(path=[str(site)])), key=lambda c: c["purl"])
    return {
        "bomFormat": "CycloneDX", "specVersion": "1.5", "version": 1,
        "metadata": {"timestamp": f"{WHEN:%Y-%m-%dT%H:%M:%SZ}", "component": {"type": "application", "name": package}},
        "components": found,
    }  # fmt: skip


def main() -> None:
    package, *paths = sys.argv[1:]
    site, lock, out = map(Path, paths)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(bill(package, site, lock), indent=1) + "\n")


if __name__ == "__main__":
    main()
