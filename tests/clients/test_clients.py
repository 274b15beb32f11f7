"""Unmodified clients against a real daemon over mutual TLS: the snippets of docs/clients.md as they stand, then a
second turn, a stream, an agent's history. The files beside this one go on where a client's snippet ends."""

import os
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from real_daemon import Llmd, start_llmd

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "clients.md").read_text()
CLIENTS = {
    "openai (Python)": "openai_python.py", "langchain-openai": "langchain_openai.py", "llama-index": "llama_index.py",
    "litellm": "litellm.py", "openai (npm)": "openai_npm.mjs", "Vercel AI SDK": "ai_sdk.mjs",
}  # fmt: skip

# each in an environment of its own, with a model that says what the test tells it to
FRAMEWORKS = {
    "instructor": "instructor", "pydantic-ai": "pydantic_ai", "openai-agents": "openai_agents",
    "smolagents": "smolagents", "guidellm": "guidellm",
}  # fmt: skip

GREEDY = ("-o", "max_tokens", "16", "-o", "temperature", "0")

Run = Callable[..., str]


def snippet(title: str) -> str:
    """The code under a title of the page."""
    section = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE)
    assert section, title
    code = re.search(r"^```\w+\n(.*?)^```", section[1], re.DOTALL | re.MULTILINE)
    assert code, title
    return code[1]


@pytest.fixture(scope="module")
def clients() -> Path:
    """The folder of the installed clients."""
    done = subprocess.run([ROOT / "packaging" / "clients.sh"], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.splitlines()[-1])


@pytest.fixture
def run(llmd: Llmd, clients: Path, tmp_path: Path) -> Run:
    """Run a program in a folder as the page describes it, with the test's daemon and model in place of the page's."""
    pki = llmd.state / "pki"
    for made, name in (("clients/demo.crt", "alice.crt"), ("clients/demo.key", "alice.key"), ("ca.crt", "ca.crt")):
        (tmp_path / name).symlink_to(pki / made)
    (tmp_path / "node_modules").symlink_to(clients / "node_modules")
    environment = os.environ | {"LLM_USER_PATH": str(tmp_path), "LITELLM_LOCAL_MODEL_COST_MAP": "True"}

    def run(code: str, name: str, *arguments: str) -> str:
        code = code.replace("https://127.0.0.1:8443", llmd.url).replace("smollm2-135m-instruct", "smol")
        (tmp_path / name).write_text(code)
        program = {"py": [str(clients / "bin/python"), "-I"], "mjs": [str(clients / "bin/node")], "sh": ["sh"]}
        command = [*program[name.rpartition(".")[2]], name, *arguments]
        done = subprocess.run(
            command,
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=110,
            stdin=subprocess.DEVNULL,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("client", CLIENTS)
def test_a_conversation(run: Run, client: str) -> None:
    file = Path(__file__).parent / CLIENTS[client]
    assert len(run(f"{snippet(client)}\n{file.read_text()}", f"turns{file.suffix}").splitlines()) >= 2


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("client", sorted(CLIENTS.keys() - {"llama-index"}))
def test_an_agent(run: Run, client: str) -> None:
    """A whole conversation with tools, streamed and not, and structured answers."""
    file = Path(__file__).parent / "agents" / CLIENTS[client]
    assert run(f"{snippet(client)}\n{file.read_text()}", f"agent{file.suffix}").strip()


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_openapi_is_true_for_a_minute(llmd: Llmd, clients: Path, tmp_path: Path) -> None:
    """schemathesis asks what /openapi.json says may be asked, and what it says may not, and holds every answer to it.
    Not each body that fits a schema is a good request (no such model, a token that there is not)."""
    pki = llmd.state / "pki"
    done = subprocess.run(
        [clients / "bin/schemathesis", "run", f"{llmd.url}/openapi.json", "--tls-verify", pki / "ca.crt",
         "--request-cert", pki / "clients/demo.crt", "--request-cert-key", pki / "clients/demo.key", "--no-color",
         "--max-time", "60", "--request-timeout", "60", "--continue-on-failure", "--workers", "2", "--warnings", "off",
         "--phases", "fuzzing", "--exclude-checks", "positive_data_acceptance"],
        cwd=tmp_path, capture_output=True, text=True, timeout=180,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr
    generated = re.search(r"(\d+) generated", done.stdout)
    assert generated and int(generated[1]) > 100, done.stdout


@pytest.fixture(scope="module")
def scripted(tmp_path_factory: pytest.TempPathFactory, model_file: Path) -> Iterator[Llmd]:
    """A daemon whose model says what it is told to (`scripted_worker.py`)."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent))
        llmd = start_llmd(
            tmp_path_factory.mktemp("scripted"), model_file, "slots = 4\ncontext = 8192\n", "scripted_worker"
        )
        yield llmd
        assert llmd.stop() == 0


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_framework(scripted: Llmd, clients: Path, tmp_path: Path, framework: str) -> None:
    pki = scripted.state / "pki"
    for made, name in (("clients/demo.crt", "alice.crt"), ("clients/demo.key", "alice.key"), ("ca.crt", "ca.crt")):
        (tmp_path / name).symlink_to(pki / made)
    code = (Path(__file__).parent / "frameworks" / f"{FRAMEWORKS[framework]}.py").read_text()
    code = code.replace("https://127.0.0.1:8443", scripted.url).replace("smollm2-135m-instruct", "smol")
    (tmp_path / "asks.py").write_text(code)
    done = subprocess.run(
        [clients / framework / "bin/python", "-I", "asks.py"], cwd=tmp_path, env=os.environ | {"HOME": str(tmp_path)},
        capture_output=True, text=True, timeout=300, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 0 and framework in done.stdout, done.stdout[-4000:] + done.stderr[-4000:]


@pytest.mark.slow
def test_llm_goes_on(run: Run) -> None:
    assert run(snippet("llm"), "llmd.py", "-m", "smol", "Hello!", *GREEDY).strip()
    assert run(snippet("llm"), "llmd.py", "-c", "And again?", *GREEDY, "--no-stream").strip()
    assert '"Hello!"' in run(snippet("llm"), "llmd.py", "logs", "--json", "-n", "2") and "And again?" in PAGE


@pytest.mark.slow
def test_curl(run: Run) -> None:
    assert run(snippet("curl"), "ask.sh").rstrip().endswith("data: [DONE]")


def test_the_page_begins_with_what_was_run() -> None:
    """At the versions that are pinned."""
    pinned = (ROOT / "packaging" / "clients" / "requirements.txt").read_text().split()
    pinned += (ROOT / "packaging" / "requirements-dev.txt").read_text().split()
    modules = (ROOT / "packaging" / "clients" / "package.json").read_text()
    rows = [line for line in PAGE.split("\n## ")[0].splitlines() if line.startswith("| [")]
    said = {row.split("](")[0].removeprefix("| ["): row.split("|")[2] for row in rows}
    assert set(CLIENTS) | {"llm"} == set(said) - {"Go", "Java"}
    for name in ("openai", "langchain-openai", "llama-index-llms-openai-like", "litellm", "llm"):
        versions = [line.partition("==")[2] for line in pinned if line.startswith(f"{name}==")]
        assert versions and all(any(version in cell for cell in said.values()) for version in versions), name
    for version in re.findall(r'": "([0-9.]+)"', modules):
        assert any(version in cell for cell in said.values()), version
    frameworks = {
        row.split("|")[1].strip(): row.split("|")[2].strip() for row in PAGE.splitlines() if row.count("|") == 4
    }
    for name in FRAMEWORKS:
        pinned = (ROOT / "packaging" / "clients" / f"framework-{name}.txt").read_text().split()
        package = "pydantic-ai-slim" if name == "pydantic-ai" else name
        assert f"{package}=={frameworks[name]}" in pinned
