"""What NVML measured on this machine before, kept in state.db: of this build of the engine only."""

import asyncio
import dataclasses
import logging
from importlib.metadata import version

from llmd.daemon.gpus.watch import Watcher
from llmd.daemon.planning.gpu_code import cuda_engine
from llmd.daemon.planning.planner import Planner
from llmd.daemon.state.store import StateThread, Store
from llmd.daemon.tasks import Tasks
from llmd.quantize.footprint import KEPT_MEASUREMENTS, Calibration, Measured

log = logging.getLogger("llmd.planner")


def planner(watcher: Watcher, store: Store, state: StateThread, tasks: Tasks) -> Planner:
    """One that knows what was measured before, and keeps what is measured from now on."""
    build, known = version("llama-cpp-python"), Calibration()
    running: set[asyncio.Task[None]] = set()
    try:
        rows = store.measurements(build)
        for measured in Calibration.from_list(rows).measured if rows else ():
            known = known.add(measured)
    except ValueError:
        log.warning("what was measured of the GPUs' memory before cannot be read, and is measured anew")

    def keep(measured: Measured) -> None:
        kept = dataclasses.asdict(measured)

        async def write() -> None:
            key = repr(measured.key)
            await state.run(lambda: store.keep_measurement(key, build, kept, KEPT_MEASUREMENTS))

        task = tasks.start("keeping a measurement", write)
        running.add(task)
        task.add_done_callback(running.discard)

    return Planner(watcher, cuda=cuda_engine(), calibration=known, build=build, keep=keep)
