"""What a worker and a trial may reach (`daemon/machine/confined.py`): the model's file, and a worker its GPUs.

CUDA reads and writes NVIDIA's device nodes, and names its threads below /proc/self/task: without that it finds no
device. As it starts it makes one socket, on which other processes may ask for its memory (AF_UNIX, SOCK_SEQPACKET): so
it starts first, and then nothing makes any more. NCCL, which a model that is split into tensors needs, looks at
how GPUs are connected (/sys), shares memory, and opens sockets on this machine's own interface
(benchmarks/results/confinement.md).
"""

import ctypes
import glob
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from llmd.daemon.machine import confined
from llmd.daemon.machine.confined import NCCL, NO_SOCKETS
from llmd.daemon.wire.control import Settings

DRIVER = ("/proc/driver", "/proc/devices")
DEVICES, THREADS, SHARED, TOPOLOGY = "/dev/nvidia*", "/proc/self/task", "/dev/shm", "/sys"
HOSTS = ("/etc/hosts", "/etc/host.conf", "/etc/resolv.conf", "/etc/gai.conf")
CACHE = "CUDA_CACHE_PATH"  # the folder of what the driver compiles for a GPU that the engine was not compiled for


def hold_trial(path: str) -> None:
    """Raises OSError."""
    confined.confine([path])


@contextmanager
def confining(s: Settings) -> Iterator[None]:
    """Around what a worker loads of its own while its GPUs start: before it there is one thread, after it comes the
    model. Raises OSError."""
    reads, writes = [*s.files], list[str]()
    if s.gpus:
        reads += DRIVER
        writes += [*glob.glob(DEVICES), THREADS, os.environ.get(CACHE, "")]
    nccl = len(s.gpus) > 1 and s.split == "tensor"
    if nccl:
        reads, writes = [*reads, TOPOLOGY, *HOSTS], [*writes, SHARED]
    confined.hold_to_paths(reads, filter(None, writes))
    starting = threading.Thread(target=_start_gpus, name="start_gpus", daemon=True)
    if s.gpus:
        starting.start()
    yield
    if s.gpus:
        starting.join()
    confined.refuse_calls(NCCL if nccl else NO_SOCKETS)


def _start_gpus() -> None:
    """A process' first use of a GPU takes a moment, in which Python can load what it needs. Each GPU's primary
    context, that ggml uses as well, is made; whatever is wrong here, ggml meets again and says."""
    with suppress(OSError, AttributeError):
        cuda, number, context = ctypes.CDLL("libcuda.so.1"), ctypes.c_int(), ctypes.c_void_p()
        if cuda.cuInit(0) == 0 and cuda.cuDeviceGetCount(ctypes.byref(number)) == 0:
            for device in range(number.value):
                cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), device)
