"""Whether the engine computes on GPUs, and which it has code for: as its package says, else as its own library says
in a child process, which loads it. Where neither says it nothing is known."""

import asyncio
import json
import logging
from contextlib import suppress

from llmd.daemon.machine import children
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
        found = json.loads(await _said())
        return tuple(one for one in found if isinstance(one, str))
    except (OSError, ValueError, TypeError):  # a timeout is an OSError
        log.warning("the engine does not say which GPUs it has code for: models go to any of them")
        return ()


async def _said() -> bytes:
    process = await children.start(PROGRAM, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL)
    try:
        async with asyncio.timeout(SECONDS):
            return (await process.communicate())[0]
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()
