"""What the tree promises: packages, import directions, one file a dependency, the map, sizes, versions."""

import ast
import fnmatch
import re
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TOPS = ("daemon", "quantize", "api")
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
FILES = sorted(file for top in TOPS for file in (ROOT / top).rglob("*.py"))

# folder -> what its files may import from us, the nearest folder decides
MAY_IMPORT = {
    "daemon/engine": {"llmd.daemon.engine", "llmd.daemon.errors"},
    "daemon": {"llmd.daemon", "llmd.quantize"},
    "quantize": {"llmd.quantize", "llmd.daemon.errors", "llmd.daemon.gpu"},
    "api": {"llmd.api", "llmd.daemon", "llmd.quantize"},
}
WIRES = "daemon/main.py"

# dependency -> the only files that import it
MAY_USE = {
    "cryptography": {"daemon/pki.py"},
    "llama_cpp": {"daemon/engine/llama.py", "quantize/*.py"},
    "sqlite_utils": {"daemon/audit*.py", "daemon/store.py"},
    "pynvml": {"daemon/gpu.py"},
    "prometheus_client": {"daemon/metrics.py"},
    "jinja2": {"daemon/engine/prompts.py"},
    "msgpack": {"daemon/engine/frames.py"},
    "uvicorn": {"api/protocol.py", "api/listener.py"},
    "httptools": {"api/protocol.py", "api/listener.py"},
    "sse_starlette": {"api/stream.py"},
}

# a file of a stranger must never become code
FORBIDDEN_IMPORTS = {"pickle", "cPickle", "dill", "shelve", "marshal", "cloudpickle", "joblib"}
FORBIDDEN_NAMES = {"eval", "exec"}
FORBIDDEN_CALLS = {"os.system", "os.popen", "yaml.load", "subprocess.getoutput", "subprocess.getstatusoutput"}
FORBIDDEN_METHODS = {"extractall"}


def name_of(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


def tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(), str(file))


def imports(module: ast.Module) -> Iterator[str]:
    """Every imported dotted name: `from a.b import c` gives a.b.c, since c may be a module."""
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import in line {node.lineno}: write it out"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def wrong_imports(file: str, module: ast.Module) -> list[str]:
    """What `file` imports from us against the rule of its folder."""
    folder = next(folder for folder in MAY_IMPORT if file.startswith(folder + "/"))
    ours = [name for name in imports(module) if within(name, "llmd")]
    if file == WIRES:
        return []
    return [name for name in ours if not any(within(name, allowed) for allowed in MAY_IMPORT[folder])]


def wrong_dependencies(file: str, module: ast.Module) -> list[str]:
    """The dependencies that `file` imports and another file is there for."""
    used = {name.split(".")[0] for name in imports(module)}
    return sorted(
        name for name in used if not any(fnmatch.fnmatch(file, pattern) for pattern in MAY_USE.get(name, {"*"}))
    )


def dangers(module: ast.Module) -> Iterator[str]:
    """Ways in which data becomes code, or an archive a file anywhere."""
    for name in imports(module):
        if name.split(".")[0] in FORBIDDEN_IMPORTS:
            yield name
    for node in ast.walk(module):
        if isinstance(node, ast.keyword) and node.arg == "shell":
            if not (isinstance(node.value, ast.Constant) and node.value.value is False):
                yield "shell="
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        if called in FORBIDDEN_NAMES | FORBIDDEN_CALLS or called.rpartition(".")[2] in FORBIDDEN_METHODS:
            yield called


def test_every_package_is_listed() -> None:
    on_disk = {"llmd." + ".".join(init.parent.relative_to(ROOT).parts) for init in FILES if init.name == "__init__.py"}
    assert on_disk == set(PYPROJECT["tool"]["setuptools"]["packages"])
    assert {file.parent for file in FILES} == {init.parent for init in FILES if init.name == "__init__.py"}


def test_folders_that_are_no_packages_stay_so() -> None:
    """An __init__.py there would hide the `packaging` that everybody imports, and python-systemd."""
    assert not [folder for folder in ("packaging", "systemd", "debian") if (ROOT / folder / "__init__.py").exists()]


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_imports_point_one_way(file: Path) -> None:
    assert wrong_imports(name_of(file), tree(file)) == []


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_a_dependency_has_one_file(file: Path) -> None:
    assert wrong_dependencies(name_of(file), tree(file)) == []


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_data_never_becomes_code(file: Path) -> None:
    assert list(dangers(tree(file))) == []


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_files_and_functions_are_short(file: Path) -> None:
    long = [
        f"{node.name}: {node.end_lineno - node.lineno + 1} lines"
        for node in ast.walk(tree(file))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno
        and node.end_lineno - node.lineno >= 80
    ]
    assert long == []
    assert len(file.read_text().splitlines()) <= 400


@pytest.mark.parametrize(
    ("file", "code"),
    [
        ("daemon/engine/loop.py", "import llmd.daemon.pool"),
        ("daemon/engine/loop.py", "from llmd.daemon import pool"),
        ("daemon/engine/loop.py", "def f():\n    import llmd.api.app as app"),
        ("daemon/pool.py", "import llmd.api"),
        ("daemon/pool.py", "from llmd import api"),
        ("quantize/gguf.py", "from llmd.daemon.errorsome import x"),
    ],
)
def test_the_import_guard_sees(file: str, code: str) -> None:
    assert wrong_imports(file, ast.parse(code))


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from pickle import loads",
        "eval('1')",
        "exec(x)",
        "run('x', shell=True)",
        "run('x', shell=flag)",
        "yaml.load(x)",
        "tarfile.open(x).extractall()",
        "os.system('x')",
    ],
)
def test_the_danger_guard_sees(code: str) -> None:
    assert list(dangers(ast.parse(code)))


def test_the_map_is_true() -> None:
    """docs/structure.md's table names every module (a glob may stand for some), and nothing that is not there."""
    text = (ROOT / "docs" / "structure.md").read_text()
    rows = [row.split("|")[1] for row in text.splitlines() if row.startswith("| `")]
    patterns = {pattern for row in rows for pattern in re.findall(r"`([^`]+)`", row)}
    modules = {name_of(file) for file in FILES if file.name != "__init__.py"}
    assert {p for p in patterns if not any(ROOT.glob(p))} == set(), "in the table, not on disk"
    assert {m for m in modules if not any(fnmatch.fnmatch(m, p) for p in patterns)} == set(), (
        "on disk, not in the table"
    )
    assert len(text.splitlines()) <= 60


def test_versions_agree() -> None:
    heading = re.search(r"^## (\d+\.\d+\.\d+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert heading and heading[1] == PYPROJECT["project"]["version"]


def pins(*names: str) -> dict[str, str]:
    lines = [
        line
        for name in names
        for line in (ROOT / "packaging" / name).read_text().splitlines()
        if not line.startswith("#")
    ]
    pairs = [line.split("==") for line in lines]
    assert len(pairs) == len({name for name, _ in pairs})
    return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in pairs}


def test_pyproject_and_the_pinned_requirements_agree() -> None:
    """requirements*.txt are installed without asking pip whether they fit: this asks."""
    script = (ROOT / "packaging" / "build_llama.sh").read_text()
    built = re.search(r"^LLAMA_VERSION=(.+)$", script, re.MULTILINE)
    assert built
    runtime = {"llama-cpp-python": built[1], **pins("requirements.txt")}
    dev = PYPROJECT["project"]["optional-dependencies"]["dev"]
    wanted = [(line, runtime) for line in PYPROJECT["project"]["dependencies"]]
    wanted += [(line, runtime | pins("requirements-dev.txt")) for line in dev]
    for line, pinned in wanted:
        name, _, version = line.partition("==")
        assert name.lower() in pinned, f"{name} is not in packaging/requirements*.txt"
        assert version in ("", pinned[name.lower()]), f"{line}: packaging/requirements*.txt say {pinned[name.lower()]}"


# written in pieces, so that this file does not name them either
PLACES = [re.compile(r"(?<![\w}])/" + name) for name in (r"work/", r"root\b")]
PLACES += [re.compile(name + r"\.(org|io|co)\b") for name in ("pypi", "python" + "hosted", "anaconda", "huggingface")]


def test_no_file_names_a_place_of_one_machine() -> None:
    """Paths of the machine it was written on, and hosts of package registries, do not belong into the project."""
    listed = subprocess.check_output(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, text=True)
    found = []
    for name in listed.splitlines():
        file = ROOT / name
        if file.is_file() and not file.is_symlink():
            text = file.read_bytes().decode(errors="ignore")
            found += [f"{name}: {place.pattern}" for place in PLACES if place.search(text)]
    assert found == []
