"""What tests share that run in the interpreter of `make setup-torch`: the package by its path, llama.cpp's library, and
the models of `checkpoints.py`. A plugin of pytest; `torch_tests.py` runs it.

LLMD_TESTS   JSON: package, llama (where its library is), folders
"""

import json
import os
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

GIVEN = {name: Path(path) for name, path in json.loads(os.environ["LLMD_TESTS"]).items()}
package = types.ModuleType("llmd")
package.__path__ = [str(GIVEN["package"])]
sys.modules["llmd"] = package

from llmd.daemon.engine.torch.borrowed import borrow  # noqa: E402

borrow(str(GIVEN["llama"]))

from llmd.daemon.engine.pages import PAGE  # noqa: E402
from llmd.daemon.engine.torch.runner import TorchRunner  # noqa: E402

FOLDERS = GIVEN["folders"]


# packed weights are unpacked, and then the same as any
MODELS = ("llama-spm",)


def runner_of(name: str, **given: Any) -> TorchRunner:
    return TorchRunner(str(FOLDERS / name), str(FOLDERS / f"{name}.gguf"), **given)


def random_weights(name: str, _: Path, *, slots: int, context: int, threads: int) -> TorchRunner:
    """With a third of the pages that all slots would need."""
    pages = slots * -(-context // PAGE) // 3
    return runner_of(name, slots=slots, context=context, threads=threads, pages=pages)


def real_model(*, slots: int, context: int) -> TorchRunner:
    return runner_of("smollm2", slots=slots, context=context)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow: as pyproject.toml says")


@pytest.fixture(scope="session")
def runner() -> Iterator[TorchRunner]:
    made = runner_of("smollm2", slots=4, context=512)
    yield made
    made.close()
