"""The torch engine, in the interpreter that has torch (`torch_tests.py`)."""

from pathlib import Path

import pytest
import torch_tests
from torch_folders import ROOT, needs_torch

TESTS = {
    # file: how many tests there are at least, and what is left out: minutes of it are computed in float32
    "torch_side/logits.py": (107, ""),
    "torch_side/drawing.py": (30, ""),
    "torch_side/texts.py": (2, ""),
    "daemon/engine/test_runners.py": (12, ""),
    "daemon/engine/test_same_text.py": (14, "not at_every_length"),
}


@pytest.mark.slow
@needs_torch
@pytest.mark.timeout(600)
@pytest.mark.parametrize("file", TESTS)
def test_of_torch(file: str, folders: Path, tmp_path: Path) -> None:
    least, chosen = TESTS[file]
    assert torch_tests.run(ROOT / "tests" / file, folders, tmp_path, *(["-k", chosen] if chosen else [])) >= least
