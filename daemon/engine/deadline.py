"""A deadline for work that nothing else can stop: a chat template may loop for ever without output."""

import ctypes
import threading
import time

_raise_in = ctypes.pythonapi.PyThreadState_SetAsyncExc


class Timeout(Exception):
    """Raised into the thread whose block is over its time."""


class Deadline:
    """`with deadline:` in one thread, `check()` now and then in another. A block that is over its `seconds` when it is
    checked gets a Timeout, once, perhaps as it ends; outside the block nothing is ever raised."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._lock = threading.Lock()
        self._until: float | None = None  # monotonic
        self._thread = 0

    def __enter__(self) -> None:
        with self._lock:
            self._thread, self._until = threading.get_ident(), time.monotonic() + self._seconds

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._until = None
            # an exception that is on its way must not hit what comes next
            _raise_in(ctypes.c_ulong(self._thread), None)

    def check(self) -> None:
        with self._lock:
            if self._until is not None and time.monotonic() > self._until:
                self._until = None  # a second one could come when nobody expects it any more
                _raise_in(ctypes.c_ulong(self._thread), ctypes.py_object(Timeout))
