"""Whoever asks for much leaves a place to everybody else."""

import asyncio
import threading
from collections import Counter
from functools import partial

from llmd.daemon.gate import Aside, Gate


async def entered(gate: Gate, owner: str, inside: list[str], leave: asyncio.Event) -> None:
    async with gate.enter(owner):
        inside.append(owner)
        await leave.wait()
        inside.remove(owner)


async def test_an_owners_own_wait_and_others_do_not() -> None:
    gate, inside, leave = Gate(2), list[str](), asyncio.Event()
    tasks = [asyncio.create_task(entered(gate, owner, inside, leave)) for owner in "aaabc"]
    await asyncio.sleep(0.01)
    assert inside == ["a", "b"]
    leave.set()
    await asyncio.gather(*tasks)
    assert not inside and not gate._owners


async def test_without_places_only_an_owners_own_are_counted() -> None:
    gate, inside, leave = Gate(0, each=2), list[str](), asyncio.Event()
    tasks = [asyncio.create_task(entered(gate, owner, inside, leave)) for owner in "aaabcd"]
    await asyncio.sleep(0.01)
    assert inside == ["a", "a", "b", "c", "d"]
    for task in tasks[:3]:
        task.cancel()
    await asyncio.gather(*tasks[:3], return_exceptions=True)
    assert "a" not in gate._owners
    leave.set()
    await asyncio.gather(*tasks[3:])


async def test_what_takes_long_is_done_in_two_threads_and_in_one_for_each() -> None:
    aside, names, lock, inside = Aside(), list[str](), threading.Lock(), Counter[str]()
    most, met = Counter[str](), threading.Barrier(2)

    def work(owner: str, wait: bool) -> int:
        with lock:
            inside.update([owner, "all"])
            most.update({name: inside[name] - most[name] for name in inside if inside[name] > most[name]})
        names.append(threading.current_thread().name)
        if wait:
            met.wait(10)
        with lock:
            inside.subtract([owner, "all"])
        return 5

    asked = [("a", True), ("a", False), ("b", True), ("b", False), ("c", False), ("d", False)]
    assert await asyncio.gather(*(aside.run(owner, partial(work, owner, wait)) for owner, wait in asked)) == [5] * 6
    assert threading.current_thread().name not in names
    assert most == {"a": 1, "b": 1, "c": 1, "d": 1, "all": 2}


async def test_a_thread_goes_on_and_so_the_next_one_waits() -> None:
    """Whoever leaves does not leave a thread beside the next one's."""
    aside, gate, running = Aside(), threading.Semaphore(0), list[str]()

    def work(name: str) -> None:
        running.append(name)
        gate.acquire()

    first = asyncio.create_task(aside.run("a", lambda: work("first")))
    while not running:
        await asyncio.sleep(0.001)
    second = asyncio.create_task(aside.run("a", lambda: work("second")))
    first.cancel()
    await asyncio.sleep(0.05)
    assert running == ["first"] and not first.done()
    gate.release(2)
    await asyncio.wait({first, second})
    assert first.cancelled() and running == ["first", "second"] and not aside.gate._owners
