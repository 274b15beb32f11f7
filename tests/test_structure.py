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

LOOSE = {
    f"llmd.daemon.{leaf}"
    for leaf in (
        "atomic",
        "config",
        "current",
        "errors",
        "fair",
        "gate",
        "hours",
        "kept",
        "limits",
        "logs",
        "metrics",
        "tasks",
        "timers",
        "toml",
    )
}
LEAVES = LOOSE | {"llmd.daemon.machine", "llmd.daemon.state"}
FOR_ENGINES = {
    "llmd.daemon.machine.confined", "llmd.daemon.machine.cores", "llmd.daemon.machine.telling", "llmd.daemon.errors",
    "llmd.daemon.fair", "llmd.quantize.backends",
}  # fmt: skip
# a room, or one file: what it may import from us. The first that fits counts, so exceptions stand above their room.
MAY_IMPORT: dict[str, set[str]] = {
    "daemon/main.py": {"llmd.daemon.composition", "llmd.daemon.command_line", *LEAVES},
    "daemon/composition.py": {"llmd"},  # it wires
    "api/http/": {"llmd.api.http", "llmd.daemon"},
    "api/openai/": {"llmd.api.openai", "llmd.api.http", "llmd.daemon"},
    "api/admin/": {"llmd.api.admin", "llmd.api.http", "llmd.api.openai", "llmd.daemon"},
    "api/cli/": {"llmd.api.cli", "llmd.daemon.errors", "llmd.daemon.audit.offline"},
    "daemon/admin/": {"llmd.daemon", "llmd.quantize.check"},
    "daemon/serving/": {
        "llmd.daemon.serving", "llmd.daemon.replicas", "llmd.daemon.audit", "llmd.daemon.identity", "llmd.daemon.wire",
        "llmd.daemon.engine.answers.loosening", *LEAVES,
    },
    "daemon/replicas/": {
        "llmd.daemon.replicas", "llmd.daemon.planning", "llmd.daemon.gpus", "llmd.daemon.wire", *LEAVES,
    },
    "daemon/planning/": {
        "llmd.daemon.planning", "llmd.daemon.gpus", "llmd.daemon.wire", "llmd.quantize", *LEAVES,
    },
    "daemon/wire/": {"llmd.daemon.wire"},
    "daemon/gpus/": {"llmd.daemon.gpus", *LEAVES},
    "daemon/identity/": {"llmd.daemon.identity", *LEAVES},
    "daemon/audit/": {"llmd.daemon.audit", *LEAVES},
    "daemon/models/": {"llmd.daemon.models", "llmd.daemon.jobs", "llmd.quantize", *LEAVES},
    "daemon/jobs/": {"llmd.daemon.jobs", *LEAVES},
    "daemon/engine/answers/": {
        "llmd.daemon.engine.answers", "llmd.daemon.wire", "llmd.daemon.engine.types", "llmd.daemon.machine.confined",
        "llmd.daemon.errors", "llmd.daemon.kept",
    },
    "daemon/engine/llama/": {
        "llmd.daemon.engine.llama", "llmd.daemon.engine.types", "llmd.daemon.machine.cores", "llmd.daemon.errors",
        "llmd.quantize.header", "llmd.quantize.backends",
    },
    "daemon/engine/torch/": {
        "llmd.daemon.engine.torch", "llmd.daemon.engine.types", "llmd.daemon.engine.pages",
        "llmd.daemon.engine.llama.passes", "llmd.daemon.engine.llama.vocabulary", "llmd.daemon.machine.cores",
        "llmd.daemon.machine.telling", "llmd.daemon.errors", "llmd.quantize.checkpoints",
    },
    "daemon/engine/runners.py": {"llmd.daemon.engine", "llmd.daemon.wire", *FOR_ENGINES},
    "daemon/engine/trial.py": {"llmd.daemon.engine", "llmd.daemon.wire", *FOR_ENGINES},
    "daemon/engine/": {
        "llmd.daemon.engine.answers", "llmd.daemon.wire", *FOR_ENGINES,
        *(f"llmd.daemon.engine.{file.stem}" for file in (ROOT / "daemon" / "engine").glob("[a-z]*.py")),
    },
    "daemon/machine/": {"llmd.daemon.machine", *LOOSE},
    "daemon/state/": {"llmd.daemon.state", *LOOSE},
    "daemon/": LOOSE | {"llmd.daemon.machine.systemd"},
    "quantize/": {"llmd.quantize", "llmd.daemon.errors", "llmd.daemon.machine.telling"},
}  # fmt: skip
# a module, and the files that may import it, whatever their room may
FEW_IMPORT = {"llmd.daemon.main": (), "llmd.daemon.composition": ("daemon/main.py",)}

# dependency -> the only files that import it
MAY_USE = {
    "cryptography": {"daemon/identity/certificates.py"},
    "llama_cpp": {"daemon/engine/llama/*.py", "quantize/*.py"},
    "torch": {"daemon/engine/torch/*.py", "quantize/checkpoints/converting.py", "quantize/checkpoints/original.py"},
    "transformers": {"quantize/checkpoints/converting.py", "quantize/checkpoints/original.py"},
    "accelerate": {"quantize/checkpoints/original.py"},
    "conversion": {"quantize/checkpoints/converting.py"},
    "gguf": {"quantize/checkpoints/converting.py"},
    "sqlite_utils": {"daemon/audit/*.py", "daemon/state/tables.py", "daemon/state/database.py"},
    "pynvml": {"daemon/gpus/*.py"},
    "prometheus_client": {"daemon/metrics.py"},
    "jinja2": {"daemon/engine/templates.py"},
    "llguidance": {"daemon/engine/answers/matching.py", "daemon/engine/*/vocabulary.py"},
    "jsonschema_rs": {"daemon/engine/answers/validating.py"},
    "msgspec": {"daemon/wire/*.py", "daemon/state/*.py", "daemon/jobs/*.py", "daemon/models/checking.py"},
    "fastapi": {"api/*"},
    "starlette": {"api/*"},
    "uvicorn": {"api/http/protocol.py", "api/http/outgoing.py", "api/http/listener.py"},
    "httptools": {"api/http/protocol.py", "api/http/listener.py"},
    "sse_starlette": {"api/http/streams.py"},
}

MOST_LINES = 350
# what is one thing, and would be harder to follow in two files
LONGER = {
    "daemon/audit/chain.py": "a row's form and its proof: `offline.py` reads by it what `writer.py` wrote",
    "daemon/engine/llama/runner.py": "one step of llama.cpp: its arrays are shared by all that fills and reads them",
    "daemon/engine/loop.py": "the engine thread: what a step does, in its order",
    "daemon/engine/templates.py": "what a stranger's template is given, and every bound on it",
    "daemon/identity/pki.py": "the CA: whatever is signed by its keys, and when",
    "daemon/models/files.py": "what is on the disk and its rows: no file without one and none without a file",
    "daemon/planning/placement.py": "one search: its order of choices is its docstring",
    "daemon/planning/planner.py": "one lock: what is promised of the GPUs from one plan to the next",
    "daemon/replicas/pool.py": "one owner: each effect that a replica's or a deployment's life has",
    "daemon/replicas/worker.py": "a process from its start to the reason of its end",
    "quantize/checkpoints/checkpoint.py": "what a Hugging Face folder must be, by one reader",
    "quantize/header.py": "GGUF's header, by one reader",
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
    """What `file` imports from us against the rule of its room."""
    allowed = next((allowed for room, allowed in MAY_IMPORT.items() if file.startswith(room)), set())
    ours = [name for name in imports(module) if within(name, "llmd")]
    return [
        name
        for name in ours
        if not any(within(name, a) for a in allowed)
        or any(within(name, one) for one, files in FEW_IMPORT.items() if file not in files)
    ]


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


def test_nothing_of_sse_starlettes_inside_is_used() -> None:
    """Its public names only, and none of its classes as a base."""
    module = tree(ROOT / "api/http/streams.py")
    used = {name for name in imports(module) if name.startswith("sse_starlette")}
    assert used == {"sse_starlette.EventSourceResponse", "sse_starlette.ServerSentEvent"}
    bases = {ast.unparse(base) for node in ast.walk(module) if isinstance(node, ast.ClassDef) for base in node.bases}
    assert not bases & {"EventSourceResponse", "ServerSentEvent"}


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
    lines = len(file.read_text().splitlines())
    assert lines <= MOST_LINES or (lines <= 400 and name_of(file) in LONGER), lines


def test_the_files_that_may_be_longer_are() -> None:
    assert {file for file in LONGER if len((ROOT / file).read_text().splitlines()) <= MOST_LINES} == set()


@pytest.mark.parametrize(
    ("file", "code"),
    [
        ("daemon/engine/loop.py", "import llmd.daemon.replicas.pool"),
        ("daemon/engine/loop.py", "from llmd.daemon.replicas import pool"),
        ("daemon/engine/loop.py", "def f():\n    import llmd.api.http.app as app"),
        ("daemon/replicas/pool.py", "import llmd.api"),
        ("daemon/replicas/pool.py", "from llmd import api"),
        ("daemon/replicas/pool.py", "from llmd.daemon.engine.types import Sequence"),
        ("daemon/identity/pki.py", "from llmd.daemon.audit.log import AuditLog"),
        ("daemon/state/store.py", "from llmd.daemon.replicas.pool import Pool"),
        ("daemon/admin/service.py", "from llmd.daemon.composition import Daemon"),
        ("api/http/app.py", "from llmd.api.openai import chat"),
        ("api/cli/main.py", "from llmd.daemon.state.store import Store"),
        ("quantize/check.py", "from llmd.daemon.errorsome import x"),
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


# what stands in several layers: a command of `llmctl`, the admin socket's routes, and who does it
IN_LAYERS = {"audit", "chat", "clients", "deployments", "doctor", "forms", "main", "plan", "policy", "usage"}
OF_EACH_ENGINE = {"runner", "sampling"}


def test_a_files_name_stands_for_one_thing() -> None:
    names = [file.stem for file in FILES if not file.stem.startswith("__")]
    assert {name for name in names if names.count(name) > 1} == IN_LAYERS | OF_EACH_ENGINE


ROOMS = sorted({file.parent for file in FILES})


@pytest.mark.parametrize("room", ROOMS, ids=name_of)
def test_a_room_lists_its_files(room: Path) -> None:
    """The docstring of its __init__ has a line for each file and each room in it, and for nothing else."""
    said = ast.get_docstring(tree(room / "__init__.py")) or ""
    listed = re.findall(r"^(\S+(?:\.py|/))\s+\S", said.partition("\n\n")[2], re.MULTILINE)
    files = {f.name for f in room.glob("*.py")} - {"__init__.py"}
    assert sorted(listed) == sorted(files | {f"{r.name}/" for r in ROOMS if r.parent == room})


def test_the_map_is_true() -> None:
    """docs/structure.md has a line for each room, and names no file or room that is not there."""
    text = (ROOT / "docs" / "structure.md").read_text()
    named = {name for name in re.findall(r"`((?:daemon|api|quantize|tests)/[\w./]*)`", text)}
    assert {n for n in named if not any(ROOT.glob(f"{n}*"))} == set(), "on the map, not on disk"
    rows = {row.split("`")[1] for row in text.splitlines() if row.startswith("| `")}
    rooms = {f"{name_of(room)}/" for room in ROOMS if room.parent != ROOT} | {"quantize/"}
    assert {room for room in rooms if room not in rows} == set(), "on disk, not on the map"
    assert len(text.splitlines()) <= 60


def test_versions_agree() -> None:
    heading = re.search(r"^## (\d+\.\d+\.\d+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert heading and heading[1] == PYPROJECT["project"]["version"]
    assert (ROOT / "debian/changelog").read_text().startswith(f"llmd ({heading[1]}) ")


def test_the_package_ships_what_is_tested() -> None:
    """`packaging/lock.py` was run after the last change of requirements.txt."""
    locked = re.findall(r"^(\S+==\S+) --hash=sha256:[0-9a-f]{64}$", (ROOT / "packaging/deb.lock").read_text(), re.M)
    pinned = [line for line in (ROOT / "packaging/requirements.txt").read_text().splitlines() if "==" in line]
    assert locked == [line for line in pinned if not line.startswith(("#", "pip=="))]


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


@pytest.mark.parametrize(
    ("made", "sources"),
    [("requirements.lock", ("requirements.txt", "requirements-dev.txt")),
     ("requirements-torch.lock", ("requirements-torch.txt",))],
)  # fmt: skip
def test_a_checkout_installs_what_is_pinned_held_to_its_hashes(made: str, sources: tuple[str, ...]) -> None:
    """`packaging/lock.py` was run after the last change of requirements*.txt."""
    lines = [line.split() for line in (ROOT / "packaging" / made).read_text().splitlines() if line[0] != "#"]
    wanted = [line for name in sources for line in (ROOT / "packaging" / name).read_text().splitlines() if "==" in line]
    assert [name for name, *_ in lines] == [line for line in wanted if line[0] != "#"]
    assert all(
        hashes and all(re.fullmatch("--hash=sha256:[0-9a-f]{64}", one) for one in hashes) for _, *hashes in lines
    )
    scripts = ((ROOT / "packaging" / name).read_text() for name in ("setup.sh", "setup_torch.sh", "wheelhouse.sh"))
    assert all("--require-hashes" in script for script in scripts)


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


def test_the_licence_is_one_and_the_same() -> None:
    text = (ROOT / "LICENSE").read_text()
    assert text.lstrip().startswith("Apache License") and "Version 2.0, January 2004" in text and len(text) > 10_000
    assert PYPROJECT["project"]["license"] == "Apache-2.0"
    said = (ROOT / "debian/copyright").read_text()
    assert "Files: *\nCopyright: 2026 the llmd developers\nLicense: Apache-2.0\n" in said
    assert "[Apache License 2.0](LICENSE)" in (ROOT / "README.md").read_text()


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
