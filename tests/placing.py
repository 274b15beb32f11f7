"""Plans on scripted GPUs for processes that compute on none: a deployment's life without hardware."""

import asyncio
from collections.abc import Sequence
from typing import Any

from fake_nvml import GIB

from llmd.daemon.gpus.watch import Watcher
from llmd.daemon.planning.plan import Wish
from llmd.daemon.planning.planner import Planner
from llmd.daemon.replicas.stream import Stream
from llmd.daemon.wire.control import Common, Fake, Llama, Settings
from llmd.daemon.wire.events import Failed, Finished
from llmd.quantize.shape import Layer, Shape

LAYER = Layer(k=1024, v=1024, heads=32, kv_heads=8, q=4096, ff=14336, nbytes=2 * GIB)
# 65 GiB of weights: one of them fits on a GPU of 141 GiB beside what else it needs, and two do not
SHAPE = Shape("llama", 131072, 128256, 4096, (LAYER,) * 32, 128, 128, host=GIB, output=GIB, file=66 * GIB)
PLACED = Wish("", 4, 4096, 64, 32, 1, shape=SHAPE.to_dict(), size=66 * GIB,
              fake={"text": "one two", "step_seconds": 0.01})  # fmt: skip


class Placing(Planner):
    """`given`: the GPUs of each replica, as they were planned last."""

    def __init__(self, watcher: Watcher, *, architectures: Sequence[str] = ()) -> None:
        super().__init__(watcher, architectures=architectures)
        self.given: dict[tuple[str, int], tuple[str, ...]] = {}
        self.fake: dict[str, Any] = {"text": "one two", "step_seconds": 0.01}

    async def settings(self, key: tuple[str, int], wish: Wish, *, beside: bool = False) -> Settings:
        found = await super().settings(key, wish, beside=beside)
        self.given[key] = found.gpus
        assert isinstance(found, Llama)
        common: dict[str, Any] = {name: getattr(found, name) for name in Common.__struct_fields__}
        return Fake(**common, says=wish.fake or self.fake)


async def end(stream: Stream) -> Finished | Failed:
    """How a request ended."""
    async with asyncio.timeout(20):
        while True:
            last = (await stream.next())[-1]
            if stream.read_out:
                assert isinstance(last, Finished | Failed)
                return last
