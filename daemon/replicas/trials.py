"""What a worker is asked by nobody but us: whether it still gives tokens, and what a full slot takes."""

import asyncio
from collections.abc import Callable
from typing import Any

from llmd.daemon.errors import LlmdError
from llmd.daemon.replicas.deployment import Deployment
from llmd.daemon.replicas.worker import Worker
from llmd.daemon.wire.work import Generate, SamplingWish, Tokens

# an idle model is asked for one token when its last is older
PROBE_AFTER = 30.0
PROBE_SECONDS = 10.0
LOOK_SECONDS = 0.05


async def token_age(worker: Worker) -> float | None:
    """Seconds since its last token; an idle one is asked for one. None: it does not give one. Of a model that has none
    to give: since it last said that it lives."""
    if worker.info and not worker.info.samples:
        return worker.beat_age
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


async def health(deployment: Deployment) -> dict[str, Any]:
    """Whether a model answers, through its workers: `ready`, and why not. Idle ones are asked for a token. The ages are
    the oldest ones."""
    known: dict[str, Any] = {"model": deployment.model, "state": deployment.state}
    serving = [found[0] for one in deployment.replicas if (found := one.serving)]
    if not serving:
        return {**known, "ready": False, "reason": deployment.reason}
    known["beat_age"] = round(max(one.beat_age for one in serving), 3)
    ages = await asyncio.gather(*(token_age(worker) for worker in serving))
    if any(age is None for age in ages):
        return {**known, "ready": False, "reason": "it does not answer a request for one token"}
    return {**known, "ready": True, "token_age": round(max(age or 0.0 for age in ages), 3)}


async def fill(worker: Worker, goes_on: Callable[[], bool]) -> bool:
    """Have it read a prompt that fills a slot. False: somebody else came, who goes first, or `goes_on` said no."""
    if worker.info and not worker.info.samples:
        return True  # nothing does
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
    return Generate((Tokens((1,) * count),), SamplingWish(max_tokens=1, temperature=0.0, ignore_eos=True))
