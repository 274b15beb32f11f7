"""What ends work that nothing else can stop."""

import threading

from llmd.daemon.engine.deadline import Deadline, Timeout


def test_a_deadline_that_is_checked_as_its_block_ends_never_reaches_what_comes_next() -> None:
    """A thread was lost to a deadline that fired between two requests."""
    deadline = Deadline(0.0)
    stop = threading.Event()

    def watch() -> None:
        while not stop.is_set():
            deadline.check()

    thread = threading.Thread(target=watch)
    thread.start()
    inside = rounds = 0
    try:
        while inside < 20:
            rounds += 1
            try:
                with deadline:
                    for _ in range(rounds * 7919 % 100_000):
                        pass
            except Timeout:
                inside += 1
            sum(range(200))  # nothing may be raised here
    finally:
        stop.set()
        thread.join()
    assert inside == 20
