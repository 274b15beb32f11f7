"""Asking NVML: one guarded query at a time, and what its errors mean in plain words."""

from collections.abc import Callable
from typing import Any, Final, TypeVar

import pynvml

T = TypeVar("T")

REASONS: Final = {
    pynvml.NVML_ERROR_LIBRARY_NOT_FOUND: "no NVIDIA driver is installed",
    pynvml.NVML_ERROR_FUNCTION_NOT_FOUND: "the NVIDIA driver is too old",
    pynvml.NVML_ERROR_DRIVER_NOT_LOADED: "the NVIDIA driver is installed but not loaded (`modprobe nvidia`)",
    pynvml.NVML_ERROR_UNINITIALIZED: "the NVIDIA driver has just stopped answering, as when it is restarted",
    pynvml.NVML_ERROR_NO_PERMISSION: "llmd may not open the GPUs (/dev/nvidia*)",
    pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH: (
        "the NVIDIA driver was updated and the old one still runs: restart the server"
    ),
}

# NVML itself is gone, as while a driver is restarted: that says nothing about the device that was asked
SILENT: Final = (pynvml.NVMLError_Uninitialized, pynvml.NVMLError_DriverNotLoaded)


class Lost(Exception):
    """The device has fallen off the bus, or cannot be addressed: nothing else about it is worth asking."""


class Asking:
    """One device's queries: counts what was not answered. `reset`: some query said that the GPU waits for one."""

    def __init__(self) -> None:
        self.unknown: list[str] = []
        self.reset = False

    def ask(self, name: str, *calls: Callable[[], T], quiet: bool = False) -> T | None:
        """The first call that answers; the later ones are for older drivers. Raises Lost, and SILENT when NVML is
        gone."""
        for call in calls:
            try:
                return call()
            except pynvml.NVMLError_GpuIsLost as error:
                raise Lost from error
            except SILENT:
                raise
            except pynvml.NVMLError_ResetRequired:
                self.reset = True
            except (
                Exception
            ):  # also a function this driver lacks, or a name that is no UTF-8: one field, never the daemon
                continue
        if not quiet:
            self.unknown.append(name)
        return None


def reason(error: Exception) -> str:
    """Why NVML as a whole does not answer, in plain words."""
    if isinstance(error, pynvml.NVMLError):
        return REASONS.get(error.value) or f"the NVIDIA driver does not answer ({error})"
    return f"the NVIDIA driver does not answer ({type(error).__name__})"


def missing(error: Exception) -> bool:
    """Whether NVML is not there at all, which says that no driver was ever installed."""
    return isinstance(error, pynvml.NVMLError) and error.value == pynvml.NVML_ERROR_LIBRARY_NOT_FOUND


def nothing(count: int, lost: int, refused: int) -> str:
    """Why a driver that answers has no device for us."""
    if not count:
        return "the NVIDIA driver runs but finds no GPU"
    if lost:
        return "no GPU can be reached (`dmesg` has the driver's words): restart the server"
    if refused:
        return REASONS[pynvml.NVML_ERROR_NO_PERMISSION]
    return "the GPUs are in MIG mode and have no instances (`nvidia-smi mig -cgi` makes them)"


def cuda_version(number: int | None) -> str:
    """NVML's 13010 is CUDA 13.1."""
    return f"{number // 1000}.{number % 1000 // 10}" if number else ""


def pci_address(info: Any) -> str:
    """As Linux writes it in /sys/bus/pci: NVML's own text has a longer domain and capitals."""
    return f"{info.domain:04x}:{info.bus:02x}:{info.device:02x}.0"
