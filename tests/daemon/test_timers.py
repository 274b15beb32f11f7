"""Nobody is judged by a process that stood still before what came meanwhile is read."""

import asyncio
import socket
import time

import pytest

from llmd.daemon import timers
from llmd.daemon.timers import Judgement


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timers, "LATE_SECONDS", 0.1)
    monkeypatch.setattr(timers, "GRACE_SECONDS", 0.05)


async def test_who_is_late_is_judged() -> None:
    judged = asyncio.Event()
    Judgement(0.01, judged.set)
    assert not judged.is_set()
    assert await asyncio.wait_for(judged.wait(), 5)


async def test_who_spoke_while_this_process_stood_still_is_not() -> None:
    """What it said is there, and is read before the grace is over."""
    ours, theirs = socket.socketpair()
    judged: list[None] = []
    judgement = Judgement(0.05, lambda: judged.append(None))
    loop = asyncio.get_running_loop()
    loop.add_reader(ours, judgement.cancel)
    theirs.send(b"x")
    time.sleep(0.3)
    await asyncio.sleep(0.2)
    assert not judged
    loop.remove_reader(ours)
    ours.close()
    theirs.close()


async def test_who_did_not_is_judged_a_little_later() -> None:
    judged = asyncio.Event()
    Judgement(0.01, judged.set)
    time.sleep(0.3)
    await asyncio.sleep(0.01)
    assert not judged.is_set()
    await asyncio.wait_for(judged.wait(), 5)
