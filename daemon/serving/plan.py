"""From what was asked of a deployment to the settings that a worker is started with. Pure; made anew at each start."""

from dataclasses import dataclass
from typing import Any

from llmd.daemon.engine.messages import Settings


@dataclass(frozen=True, slots=True)
class Wish:
    """What was asked: a model's file, and how it should serve. `context` is tokens a slot; `runner` is `llama`, or
    `fake` with the fake's own arguments."""

    path: str
    slots: int
    context: int
    batch: int
    chunk: int
    threads: int
    runner: str = "llama"
    fake: dict[str, Any] | None = None


def plan(wish: Wish) -> Settings:
    """On the CPU, as it was asked."""
    return Settings(
        path=wish.path,
        slots=wish.slots,
        context=wish.context,
        batch=wish.batch,
        chunk=wish.chunk,
        threads=wish.threads,
        runner=wish.runner,
        fake=wish.fake,
    )
