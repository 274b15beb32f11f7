"""Whether the engine computes on GPUs, and which it has code for: as its package says, else as its own library says
in a child process, which loads it. Where neither says it nothing is known."""

import logging

from llmd.daemon.machine import verdicts
from llmd.daemon.machine.verdicts import NoVerdict, Refused
from llmd.quantize import backends

log = logging.getLogger("llmd.planner")

PROGRAM = "llmd.quantize.backends"
SECONDS = 60.0  # a driver that has slept takes its time


def cuda_engine() -> bool:
    """Whether the engine that workers run has its CUDA library."""
    where = backends.folder()
    return where is not None and any(where.glob("*ggml-cuda*"))


async def known() -> tuple[str, ...]:
    """As CMake names them."""
    told = backends.architectures()
    if told or not cuda_engine():
        return told
    try:
        found = await verdicts.asked(PROGRAM, seconds=SECONDS)
        return tuple(one for one in found["architectures"] if isinstance(one, str))
    except (OSError, KeyError, TypeError, Refused, NoVerdict):
        log.warning("the engine does not say which GPUs it has code for: models go to any of them")
        return ()
