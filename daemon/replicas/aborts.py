"""What llama.cpp prints as it gives up, read: the one place where text decides. Pure.

llama.cpp ends a process with nothing but lines on standard error. `ggml_cuda_error` (ggml-cuda.cu) prints four: the
error in CUDA's words, where, the call, and that it aborts; an allocation that fails while a model loads prints
`cudaMalloc failed: out of memory`, after which the load fails; a false assertion prints itself. Whether a GPU is lost
NVML knows better than any of them.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

KEPT_LINES = 60  # the last ones of a process; an abort prints a stack trace after its cause

_CUDA = re.compile(r"^CUDA error: (.{1,200})$")
_MALLOC = re.compile(r"\bcudaMalloc failed: out of memory$")
# CUDA's and the driver's words are the same; the others are cuBLAS' (by CUDA version) and NCCL's
_MEMORY = re.compile(r"out of memory|resource allocation failed|CUBLAS_STATUS_ALLOC_FAILED|CUDA_ERROR_OUT_OF_MEMORY")
_ABORTS = re.compile(r"^(?:.*/)?([\w.-]+\.(?:c|cpp|cu|cuh|h|hpp)):(\d+): ")


@dataclass(frozen=True, slots=True)
class Abort:
    """Why a process gave up. `memory`: a GPU had no room for what it wanted. `text` is for an admin, without paths."""

    memory: bool
    text: str


def read(lines: Iterable[str]) -> Abort | None:
    """What the last lines of a process say; None: nothing that we know. The last cause counts: what came before it was
    survived."""
    found: Abort | None = None
    for line in (line.strip() for line in lines):
        if cuda := _CUDA.match(line):
            memory = bool(_MEMORY.search(cuda[1]))
            found = Abort(memory, f"CUDA: {cuda[1]}")
        elif _MALLOC.search(line):
            found = Abort(True, "CUDA: out of memory")
        elif (place := _ABORTS.match(line)) and not (found and line.endswith(": CUDA error")):
            found = Abort(False, f"llama.cpp gave up at {place[1]}:{place[2]}")
    return found
