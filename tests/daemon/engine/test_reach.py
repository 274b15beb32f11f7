"""What a worker may reach with and without GPUs, and in which order it gives the rest away. What that means to a
process is tried in `tests/daemon/machine/test_confined.py`, with GPUs in benchmarks/results/confinement.md."""

import glob
import threading
from collections.abc import Iterable
from typing import Any

import pytest

from llmd.daemon.engine import reach
from llmd.daemon.machine import confined
from llmd.daemon.machine.confined import NCCL, NO_SOCKETS
from llmd.daemon.wire.control import Llama

DEVICES = ["/dev/nvidia0", "/dev/nvidiactl"]


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    """What is done, in its order; `start` waits until something else is done."""
    found: list[tuple[str, Any]] = []
    loaded = threading.Event()

    def hold(reads: Iterable[str], writes: Iterable[str]) -> None:
        found.append(("hold", (list(reads), list(writes))))

    def start() -> None:
        assert loaded.wait(10)
        found.append(("start", None))

    def append(name: str, value: Any = None) -> None:
        found.append((name, value))
        loaded.set()

    monkeypatch.setattr(confined, "hold_to_paths", hold)
    monkeypatch.setattr(confined, "refuse_calls", lambda sockets: append("refuse", sockets))
    monkeypatch.setattr(reach, "_start_gpus", start)
    monkeypatch.setattr(glob, "glob", lambda _: DEVICES)
    monkeypatch.setenv("CUDA_CACHE_PATH", "/m/cuda")
    found.append(("load", append))
    return found


def run(done: list[tuple[str, Any]], gpus: int, split: str = "none") -> None:
    _, append = done.pop()
    with reach.confining(Llama("/m/model.gguf", 1, 1, 1, 1, 1, gpus=("a", "b")[:gpus], split=split)):
        append("load")


def test_on_the_cpu_it_reads_its_model_and_that_is_all(done: list[tuple[str, Any]]) -> None:
    run(done, 0)
    assert done == [("hold", (["/m/model.gguf"], [])), ("load", None), ("refuse", NO_SOCKETS)]


@pytest.mark.parametrize(("gpus", "split"), [(1, "none"), (2, "layer"), (2, "tensor")])
def test_on_gpus_it_has_them_too_and_sockets_only_where_nccl_needs_them(
    done: list[tuple[str, Any]], gpus: int, split: str
) -> None:
    """The GPUs start beside what is loaded, and have started before a socket is refused."""
    run(done, gpus, split)
    (_, (reads, writes)), *order = done
    nccl = split == "tensor"
    assert order == [("load", None), ("start", None), ("refuse", NCCL if nccl else NO_SOCKETS)]
    own = {"/m/model.gguf", "/proc/driver", "/proc/devices"}
    assert set(reads) == (own | {"/sys", *reach.HOSTS} if nccl else own)
    assert set(writes) == {*DEVICES, "/proc/self/task", "/m/cuda", *(["/dev/shm"] if nccl else [])}
