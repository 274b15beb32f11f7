"""The daemon's side of the page that says who computes on how many cores (`cores.py`): it gives its children seats, and
takes them back as they die. A seat counts from the start of its child, which has a core to itself while it loads.
"""

import asyncio
import mmap
import os
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

from llmd.daemon.machine import children
from llmd.daemon.machine.cores import BYTES, MOST, SEATS, SERVING, VARIABLE, available, word


class Seats:
    """`total`: how many threads all together may compute with; 0: as many as there are cores."""

    def __init__(self, total: int = 0) -> None:
        self._fd = os.memfd_create("llmd-cores", os.MFD_CLOEXEC)
        weakref.finalize(self, os.close, self._fd)
        os.ftruncate(self._fd, BYTES)
        self._page = memoryview(mmap.mmap(self._fd, BYTES)).cast("I")
        self._taken: set[int] = set()
        self._waiting: set[asyncio.Task[None]] = set()
        self.use(total)

    def use(self, total: int) -> None:
        """From the next step of each child on."""
        self._page[0] = min(total or available(), MOST)

    @property
    def total(self) -> int:
        return self._page[0]

    async def start(
        self,
        module: str,
        *arguments: str,
        weight: int = SERVING,
        descriptors: Sequence[int] = (),
        variables: Mapping[str, str] | None = None,
        **given: Any,
    ) -> asyncio.subprocess.Process:
        """`children.start`, for a child with a seat: it has one core until it says how many it could use. Where all
        seats are taken, it computes as if nobody else did."""
        number = next((n for n in range(1, SEATS + 1) if n not in self._taken), 0)
        if not number:
            return await children.start(module, *arguments, descriptors=descriptors, variables=variables, **given)
        self._taken.add(number)
        self._page[number] = word(1, weight)
        seat = {VARIABLE: f"{self._fd}:{number}:{weight}"}
        try:
            process = await children.start(
                module,
                *arguments,
                descriptors=[*descriptors, self._fd],
                variables={**(variables or {}), **seat},
                **given,
            )
        except BaseException:
            self._free(number)
            raise
        task = asyncio.create_task(self._free_after(process, number), name=f"the seat of {process.pid}")
        self._waiting.add(task)
        task.add_done_callback(self._waiting.discard)
        return process

    async def _free_after(self, process: asyncio.subprocess.Process, number: int) -> None:
        try:
            await process.wait()
        finally:
            self._free(number)

    def _free(self, number: int) -> None:
        self._page[number] = 0
        self._taken.discard(number)
