"""What the tests share: the real small model, and a runner on it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from llmd.daemon.engine.llama import LlamaRunner

ROOT = Path(__file__).parent.parent
MODEL = ROOT / ".build" / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(scope="session")
def model_file() -> Path:
    assert MODEL.exists(), "run `make setup` first: it fetches the model"
    return MODEL


@pytest.fixture(scope="session")
def runner(model_file: Path) -> Iterator[LlamaRunner]:
    runner = LlamaRunner(str(model_file), slots=4, context=512, batch=256)
    yield runner
    runner.close()
