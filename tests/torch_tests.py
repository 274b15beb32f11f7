"""Runs tests in the interpreter of `make setup-torch`, with this one's pytest: no package ships it."""

import importlib.util
import json
import os
import re
import subprocess
from pathlib import Path

import llama_cpp
from torch_folders import PYTHON, ROOT

# of pytest, which the other interpreter gets, and nothing else of this one
PYTEST = ("pytest", "_pytest", "py", "pluggy", "iniconfig")
HERE = Path(__file__).parent


def _lent(into: Path) -> Path:
    for name in PYTEST:
        found = importlib.util.find_spec(name)
        assert found and found.origin
        file = Path(found.origin)
        source = file.parent if file.name == "__init__.py" else file
        if not (into / source.name).exists():
            (into / source.name).symlink_to(source)
    return into


def environment(folders: Path, scratch: Path) -> dict[str, str]:
    assert llama_cpp.__file__
    given = {"package": ROOT, "llama": Path(llama_cpp.__file__).parent, "folders": folders}
    paths = [_lent(scratch), HERE]
    told = json.dumps({name: str(path) for name, path in given.items()})
    # as children get it: threads that spin for longer take ten times as long where something else runs
    more = {"PYTHONPATH": os.pathsep.join(map(str, paths)), "LLMD_TESTS": told, "GOMP_SPINCOUNT": "3000"}
    return {**os.environ, **more}


def run(tests: Path, folders: Path, scratch: Path, *arguments: str, timeout: int = 500) -> int:
    """How many passed; all did. `scratch` is an empty folder, or one of an earlier run."""
    command = [
        str(PYTHON), "-B", "-m", "pytest", "-c", os.devnull, "--rootdir", str(ROOT), "--noconftest", "-q",
        "--import-mode=importlib", "-p", "torch_side.interpreter", "-p", "no:cacheprovider", "-W", "error",
        "--basetemp", str(scratch / "tmp"), str(tests), *arguments,
    ]  # fmt: skip
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=timeout, env=environment(folders, scratch), cwd=scratch
    )
    assert done.returncode == 0, f"{done.stdout[-8000:]}\n{done.stderr[-2000:]}"
    found = re.search(r"(\d+) passed", done.stdout)
    assert found
    return int(found[1])
