"""Wheels with the names of what llmd-torch ships, and nothing in them.

python tests/torch_standins.py FOLDER      as packaging/torch_house.sh leaves the real ones
"""

import base64
import hashlib
import sys
import zipfile
from pathlib import Path

FILES = {
    "torch": {"torch/__init__.py": b"", "torch/bin/torch_shm_manager": b"", "torch/include/torch.h": b""},
    "transformers": {
        "transformers/__init__.py": b"class AutoTokenizer: from_pretrained = None\nAutoConfig = AutoTokenizer\n"
    },
}


def wheel(folder: Path, name: str, files: dict[str, bytes]) -> str:
    """Its line of a lock."""
    info = f"{name}-1.0.dist-info"
    files = files | {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\nLicense: MIT\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: none\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    rows = [
        f"{path},sha256={base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b'=').decode()},{len(data)}"
        for path, data in files.items()
    ]
    file = folder / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(file, "w") as out:
        for path, data in files.items():
            out.writestr(path, data)
        out.writestr(f"{info}/RECORD", "\n".join([*rows, f"{info}/RECORD,,", ""]))
    return f"{name}==1.0 --hash=sha256:{hashlib.sha256(file.read_bytes()).hexdigest()}"


def make(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    lines = [wheel(folder, name, files) for name, files in FILES.items()]
    (folder / "torch.lock").write_text("\n".join(lines) + "\n")
    for name in ("conversion", "gguf"):
        package = folder / "converter" / name
        package.mkdir(parents=True, exist_ok=True)
        (package / "__init__.py").write_text("")


if __name__ == "__main__":
    make(Path(sys.argv[1]))
