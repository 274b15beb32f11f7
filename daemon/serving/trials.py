"""What a worker is asked by nobody but us: whether it still gives tokens, and what a full slot takes."""

import asyncio
from collections.abc import Callable

from llmd.daemon.engine.messages import Generate, SamplingParams, Tokens
from llmd.daemon.errors import LlmdError
from llmd.daemon.serving.worker import Worker

# an idle model is asked for one token when its last is older
PROBE_AFTER = 30.0
PROBE_SECONDS = 10.0
LOOK_SECONDS = 0.05


async def token_age(worker: Worker) -> float | None:
    """Seconds since its last token; an idle one is asked for one. None: it does not give one."""
    age = worker.token_age + worker.beat_age
    if age <= PROBE_AFTER:
        return age
    stream = worker.open("", _token_after(2), counted=False)
    try:
        async with asyncio.timeout(PROBE_SECONDS):
            while not stream.read_out:
                await stream.next()
    except (TimeoutError, LlmdError):
        return None
    finally:
        stream.cancel()
    return None if stream.first is None else 0.0


async def fill(worker: Worker, goes_on: Callable[[], bool]) -> bool:
    """Have it read a prompt that fills a slot. False: somebody else came, who goes first, or `goes_on` said no."""
    context = worker.info.context if worker.info else 2
    stream = worker.gives_way = worker.open("", _token_after(context - 1), counted=False)
    events = asyncio.ensure_future(stream.next())
    try:
        while not stream.ended and goes_on():
            done, _ = await asyncio.wait({events}, timeout=LOOK_SECONDS)
            if done and not stream.ended:
                events = asyncio.ensure_future(stream.next())
        return stream.first is not None
    finally:
        events.cancel()
        worker.gives_way = None
        stream.cancel()


def _token_after(count: int) -> Generate:
    """One token after a prompt of so many."""
    return Generate((Tokens((1,) * count),), SamplingParams(max_tokens=1, temperature=0.0, ignore_eos=True))
