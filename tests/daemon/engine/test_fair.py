"""Nobody waits for all that another one has asked."""

import threading

from llmd.daemon.engine.fair import FairQueue


def test_owners_have_turns() -> None:
    queue = FairQueue[str]()
    for item in ("a1", "a2", "a3", "b1", "c1", "b2"):
        queue.put(item[0], item)
    assert [queue.get() for _ in range(3)] == ["a1", "b1", "c1"]
    queue.put("c", "c2")
    assert [queue.get() for _ in range(4)] == ["a2", "b2", "c2", "a3"]
    assert not queue._waiting


def test_it_waits() -> None:
    queue, got = FairQueue[int](), list[int]()
    taking = threading.Thread(target=lambda: got.append(queue.get()))
    taking.start()
    queue.put("a", 5)
    taking.join(10)
    assert got == [5]
