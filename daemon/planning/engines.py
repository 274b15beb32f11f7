"""What is asked of an engine, by its name: how many bytes a model takes on it, and which interpreter its workers run
with."""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from llmd.daemon.wire.control import Fake, Llama
from llmd.quantize.footprint import Layout, Load, Need
from llmd.quantize.shape import Shape


class Arithmetic(Protocol):
    """A shape made ready: it is asked for many layouts while a plan is made. Bytes."""

    def need(self, layout: Layout, overheads: tuple[int, ...]) -> tuple[Need, ...]:
        """What each device needs, in the order of `layout.shares`; `overheads` has its measured overhead."""
        ...

    def host(self, layout: Layout) -> Need:
        """What the process takes of the host's memory; without devices all of it."""
        ...

    def least(self, layout: Layout) -> int:
        """What all devices together hold at the least."""
        ...


@dataclass(frozen=True, slots=True)
class Engine:
    """`interpreter` has what its workers import; `on_gpus`: they compute there, where there are any."""

    arithmetic: Callable[[Shape], Arithmetic]
    interpreter: str = sys.executable
    on_gpus: bool = True


ENGINES: Mapping[str, Engine] = {Llama.engine: Engine(Load), Fake.engine: Engine(Load, on_gpus=False)}
