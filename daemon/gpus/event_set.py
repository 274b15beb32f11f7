"""NVML's event set: every GPU's faults as they happen."""

import contextlib
from collections.abc import Mapping
from typing import Any, Final

import pynvml

EVENTS: Final = {
    pynvml.nvmlEventTypeXidCriticalError: "xid",
    pynvml.nvmlEventTypeDoubleBitEccError: "ecc",
    pynvml.nvmlEventTypeGpuUnavailableError: "unavailable",
    pynvml.nvmlEventTypeGpuRecoveryAction: "recovery",
}
OLD_EVENTS: Final[int] = pynvml.nvmlEventTypeXidCriticalError | pynvml.nvmlEventTypeDoubleBitEccError


class EventSet:
    """Made when there is a GPU to watch, freed after an error and made anew."""

    def __init__(self, library: Any) -> None:
        self._library = library
        self._set: Any = None
        self._watched: set[str] = set()

    def arm(self, handles: Mapping[str, Any]) -> None:
        """Have the events of all these whole GPUs reported; what was refused is tried again at the next call."""
        self._watched &= handles.keys()
        missing = handles.keys() - self._watched
        if not missing:
            return
        try:
            if self._set is None:
                self._set = self._library.nvmlEventSetCreate()
        except Exception:
            return
        self._watched |= {uuid for uuid in missing if self._register(handles[uuid])}
        if not self._watched:
            self.free()

    def wait(self, seconds: float) -> Any:
        """NVML's next event; None after `seconds`, or at once where nothing is watched. After an error nothing is
        watched: it is raised as it came."""
        if self._set is None:
            return None
        try:
            return self._library.nvmlEventSetWait(self._set, int(seconds * 1000))
        except pynvml.NVMLError_Timeout:
            return None
        except Exception:
            self.free()
            raise

    def free(self) -> None:
        if self._set is not None:
            with contextlib.suppress(Exception):
                self._library.nvmlEventSetFree(self._set)
        self._set, self._watched = None, set()

    def _register(self, handle: Any) -> bool:
        """With every kind of event that the GPU knows, or with the oldest two."""
        library = self._library
        with contextlib.suppress(Exception):
            known = library.nvmlDeviceGetSupportedEventTypes(handle) & sum(EVENTS)
            if not known:
                return False
            library.nvmlDeviceRegisterEvents(handle, known, self._set)
            return True
        with contextlib.suppress(Exception):
            library.nvmlDeviceRegisterEvents(handle, OLD_EVENTS, self._set)
            return True
        return False
