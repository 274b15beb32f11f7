"""The Hugging Face folders that the interpreter with torch makes for tests, once a session."""

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PYTHON = ROOT / ".build" / "torch" / "bin" / "python"
MAKER = ROOT / "tests" / "torch_side" / "checkpoints.py"
MODELS = (
    "smollm2", "llama-bpe", "qwen3", "moe", "gptneox", "gptq", "gptq-older", "llama-spm", "mistral-spm", "gemma3-spm",
)  # fmt: skip

needs_torch = pytest.mark.skipif(not PYTHON.exists(), reason="make setup-torch comes first")


def make(model: Path, out: Path) -> Path:
    """Each model's folder NAME, its conversion NAME.gguf and the original's first logits NAME.npz; faults/."""
    done = subprocess.run(
        [str(PYTHON), "-P", str(MAKER), str(ROOT), str(model), str(out)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return out
