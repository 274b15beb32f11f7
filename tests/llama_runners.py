"""llama.cpp's runners for tests that are the same for every engine; `torch_side/interpreter.py` has torch's."""

from pathlib import Path

import pytest
import small_models
from conftest import MODEL

from llmd.daemon.engine.llama.runner import LlamaRunner
from llmd.quantize import quantizing

# what llama.cpp computes in different ways: rows that are packed together, others, none at all; a window
MODELS = (
    "llama F16",
    "llama Q4_K_M",
    *(
        pytest.param(model, marks=pytest.mark.slow)
        for model in ("llama F32", "llama Q8_0", "llama Q4_0", "gemma3 F32", "qwen3moe Q4_K_M", "deepseek2 F32")
    ),
)


def random_weights(model: str, folder: Path, *, slots: int, context: int, threads: int) -> LlamaRunner:
    arch, kind = model.split()
    path = small_models.random_weights(folder, arch)
    if kind != "F32":
        whole, path = path, folder / "packed.gguf"
        quantizing.make(str(whole), str(path), kind, 2, False, lambda _: None)
    return LlamaRunner(str(path), slots=slots, context=context, batch=256, threads=threads)


def real_model(*, slots: int, context: int) -> LlamaRunner:
    return LlamaRunner(str(MODEL), slots=slots, context=context, batch=256, threads=2)
