"""What the tests share: the real small model, a runner on it, and a real daemon."""

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch_folders
from real_daemon import Llmd, start_llmd

from llmd.daemon.engine.llama.runner import LlamaRunner

ROOT = Path(__file__).parent.parent
MODEL = ROOT / ".build" / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"


def pytest_unconfigure() -> None:
    """llama-cpp-python opens /dev/null twice as it is loaded, and closes neither."""
    if utils := sys.modules.get("llama_cpp._utils"):
        utils.outnull_file.close()
        utils.errnull_file.close()


@pytest.fixture(scope="session")
def model_file() -> Path:
    assert MODEL.exists(), "run `make setup` first: it fetches the model"
    return MODEL


@pytest.fixture(scope="session")
def runner(model_file: Path) -> Iterator[LlamaRunner]:
    runner = LlamaRunner(str(model_file), slots=4, context=512, batch=256)
    yield runner
    runner.close()


@pytest.fixture(scope="session")
def folders(model_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return torch_folders.make(model_file, tmp_path_factory.mktemp("folders"))


@pytest.fixture(scope="session")
def llmd(model_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Llmd]:
    """One daemon for every test that leaves it as it was."""
    daemon = start_llmd(tmp_path_factory.mktemp("llmd"), model_file, "slots = 4\ncontext = 1024\nqueue = 8\n")
    yield daemon
    assert daemon.stop() == 0


@pytest.fixture(scope="session")
def imported(model_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a first start leaves: a CA, and the model."""
    state = tmp_path_factory.mktemp("imported")
    assert start_llmd(state, model_file).stop() == 0
    return state


@pytest.fixture
def own_llmd(model_file: Path, imported: Path, tmp_path: Path) -> Iterator[Llmd]:
    """A daemon for one test to hurt. Its model is there: the import takes most of a first start."""
    shutil.copytree(imported, tmp_path / "state", copy_function=_linked, ignore=shutil.ignore_patterns("*.sock"))
    daemon = start_llmd(tmp_path / "state", model_file, "slots = 2\ncontext = 512\nqueue = 1\n")
    yield daemon
    daemon.process.kill()
    daemon.stop()


def _linked(source: str, copy: str) -> None:
    os.link(source, copy) if source.endswith(".gguf") else shutil.copy2(source, copy)
