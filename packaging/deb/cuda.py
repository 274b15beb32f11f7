#!/usr/bin/env python3
"""Lays out the package llmd-cuda: the GPUs' backend beside the engine's other libraries, and in a folder of its own
every library that it needs and that neither Debian, llmd nor NVIDIA's driver has.

python3 -I packaging/deb/cuda.py ROOT HOUSE ENGINE       run by debian/rules

HOUSE has libggml-cuda.so, what it was compiled for, and the wheels of CUDA's libraries (packaging/build_cuda.sh);
ENGINE is the folder of the package llmd with the engine's libraries. Nothing is laid out that would not be found: each
library's own search path is followed as the loader follows it.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from email.parser import HeaderParser
from pathlib import Path

BACKEND = "libggml-cuda.so"
ARCHITECTURES = "architectures"  # the GPUs that it has code for
LIBRARIES = "usr/lib/llmd/cuda"
DOCUMENTS = "usr/share/doc/llmd-cuda"
OF_DRIVER = frozenset({"libcuda.so.1"})
# libc6, libgcc-s1 and libstdc++6, on which the package depends
OF_DEBIAN = frozenset({"libc.so.6", "libm.so.6", "libdl.so.2", "librt.so.1", "libpthread.so.0", "ld-linux-x86-64.so.2",
                       "libgcc_s.so.1", "libstdc++.so.6"})  # fmt: skip
# a worker has loaded them before, and the loader takes what has the same name
OF_ENGINE = re.compile(r"libggml-base\.so\.\d+")


class NotFound(Exception):
    """A library that nobody has, and who needs it."""


@dataclass(frozen=True)
class Library:
    """What a library needs, and where the loader looks for that (`$ORIGIN` is where the library lies)."""

    needs: tuple[str, ...]
    looks_in: tuple[str, ...]


def read(file: Path) -> Library:
    command = ["readelf", "--dynamic", "--wide", str(file)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    paths = ":".join(re.findall(r"\((?:RUNPATH|RPATH)\).*\[(.*)\]", text))
    return Library(tuple(re.findall(r"\(NEEDED\).*\[(.*)\]", text)), tuple(filter(None, paths.split(":"))))


def closure(first: Path, found_in: dict[str, Path], lies_in: Path, engine: Path) -> Iterator[Path]:
    """Every file that `first` needs, directly or not. `first` and the files of `found_in` (by name) are about to lie in
    `engine` and `lies_in`. Raises NotFound."""
    seen: set[str] = set()
    left = [(first, engine)]
    while left:
        file, at = left.pop()
        library = read(file)
        places = [Path(os.path.normpath(path.replace("$ORIGIN", str(at)))) for path in library.looks_in]
        for name in library.needs:
            if name in OF_DEBIAN | OF_DRIVER or OF_ENGINE.fullmatch(name):
                continue
            if name not in found_in:
                raise NotFound(f"{file.name} needs {name}, which neither the package nor Debian nor the driver has")
            if lies_in not in places:
                raise NotFound(f"{file.name} needs {name}, and does not look for it in {lies_in}")
            if name not in seen:
                seen.add(name)
                left.append((found_in[name], lies_in))
                yield found_in[name]


def bill(wheels: list[Path]) -> dict[str, object]:
    """CycloneDX of the wheels whose libraries are in the package."""
    when = datetime.fromtimestamp(int(os.environ.get("SOURCE_DATE_EPOCH", "0")), UTC)
    components = []
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as file:
            (name,) = [n for n in file.namelist() if n.endswith(".dist-info/METADATA")]
            meta = HeaderParser().parsestr(file.read(name).decode())
        purl = f"pkg:pypi/{meta['Name']}@{meta['Version']}"
        components.append({"type": "library", "bom-ref": purl, "name": meta["Name"], "version": meta["Version"],
                           "purl": purl, "licenses": [{"license": {"name": meta["License-Expression"]}}]})  # fmt: skip
    return {"bomFormat": "CycloneDX", "specVersion": "1.5", "version": 1, "components": components,
            "metadata": {"timestamp": f"{when:%Y-%m-%dT%H:%M:%SZ}",
                         "component": {"type": "application", "name": "llmd-cuda"}}}  # fmt: skip


def lay_out(root: Path, house: Path, engine: Path) -> None:
    """Raises NotFound."""
    documents = root / DOCUMENTS
    documents.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        held: dict[str, tuple[Path, Path]] = {}  # a library's name to its file and its wheel
        for wheel in sorted(house.glob("*.whl")):
            where = Path(folder, wheel.name)
            with zipfile.ZipFile(wheel) as file:
                file.extractall(where)
            held |= {library.name: (library, wheel) for library in where.rglob("lib*.so*")}
        files = {name: library for name, (library, _) in held.items()}
        wanted = list(closure(house / BACKEND, files, Path("/", LIBRARIES), Path("/", engine)))
        for source, target in [(house / BACKEND, root / engine), *((one, root / LIBRARIES) for one in wanted)]:
            target.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target / source.name)
            (target / source.name).chmod(0o644)
        # beside the backend, under the name by which the engine looks for it (quantize/backends.py)
        shutil.copyfile(house / ARCHITECTURES, root / engine / f"libggml-cuda.{ARCHITECTURES}")
        (root / engine / f"libggml-cuda.{ARCHITECTURES}").chmod(0o644)
        wheels = sorted({held[one.name][1] for one in wanted})
        for wheel in wheels:
            for text in Path(folder, wheel.name).glob("*.dist-info/licenses/*"):
                shutil.copyfile(text, documents / f"{wheel.name.partition('-')[0]}.{text.name}")
    (documents / "sbom.cdx.json").write_text(json.dumps(bill(wheels), indent=1) + "\n")


if __name__ == "__main__":
    try:
        lay_out(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3].lstrip("/")))
    except NotFound as e:
        sys.exit(f"llmd-cuda: {e}")
