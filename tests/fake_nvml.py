"""A scripted NVML: pynvml's functions as llmd uses them, over GPUs that a test makes up.

    nvml = FakeNvml(h200(0), h200(1), a100_mig(2), old_card(3), gb10(4))
    inventory = Nvml(nvml, nvml.root(tmp_path)).inventory()

    nvml.hold(uuid, pid=77, used=20 * GIB)        # a process, ours or a stranger's, holds memory; release(77) ends it
    nvml.fail("nvmlDeviceGetName", NotSupported)  # from now on; after=3: three calls later; times=1: once; uuid=: on
    one GPU nvml.mend("nvmlDeviceGetName")                # it answers again
    nvml.emit(uuid, "xid", 79)                    # "xid", "ecc", "unavailable" or "recovery" (then `code` indexes
    gpu.RECOVERY) nvml.lose(uuid)                               # off the bus: still counted, answers nothing;
    listed=False: not even counted nvml.unload(), nvml.load()                    # the driver goes, as in an update, and
    comes back FakeNvml.without_driver()                     # a machine without one

It raises pynvml's own exceptions, wants nvmlInit first, delivers events to GPUs that are registered for them only, and
never sleeps. `calls` counts each function's calls. A GPU's and a MIG instance's fields may be changed at any time.
"""

import ctypes
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pynvml

from llmd.daemon.gpus.event_set import EVENTS

GIB = 1 << 30
Error = type[Exception]
NotSupported: Error = pynvml.NVMLError_NotSupported
FunctionNotFound: Error = pynvml.NVMLError_FunctionNotFound
NoPermission: Error = pynvml.NVMLError_NoPermission
LibraryNotFound: Error = pynvml.NVMLError_LibraryNotFound
DriverNotLoaded: Error = pynvml.NVMLError_DriverNotLoaded
Unknown: Error = pynvml.NVMLError_Unknown
GpuIsLost: Error = pynvml.NVMLError_GpuIsLost

KINDS = {kind: bit for bit, kind in EVENTS.items()}
NOBODY = 0xFFFFFFFF  # the instance ids of an event that concerns the whole GPU
SWITCH = "switch"


@dataclass
class FakeMig:
    """An instance of a GPU in MIG mode."""

    uuid: str
    ids: tuple[int, int]
    total: int = 20 * GIB
    name: str = "NVIDIA A100-SXM4-80GB MIG 2g.20gb"


@dataclass
class FakeGpu:
    """A GPU. `nvlinks` has the other end of each link: SWITCH or a UUID. `missing`: functions that its driver refuses,
    with what error; "nvmlDeviceGetMemoryInfo_v2" is the newer of the two memory queries."""

    uuid: str
    name: str
    bus: int
    total: int = 141 * GIB
    reserved: int = GIB // 2
    compute: tuple[int, int] = (9, 0)
    numa: int = 0
    power_limit: int = 700_000
    power: int = 90_000
    temperature: int = 35
    utilization: int = 0
    ecc: bool = True
    ecc_errors: int = 0
    throttle: int = 0
    recovery: int = 0
    nvlinks: list[str] = field(default_factory=list)
    migs: list[FakeMig] | None = None  # None: not in MIG mode
    missing: dict[str, Error] = field(default_factory=dict)
    lost: bool = False

    @property
    def pci(self) -> str:
        return f"0000:{self.bus:02x}:00.0"


def h200(index: int, links: int = 18) -> FakeGpu:
    """One of up to eight, joined by a switch with 18 links each; four to a CPU."""
    return FakeGpu(f"GPU-h200-{index}", "NVIDIA H200", 0x10 + index, numa=index // 4, nvlinks=[SWITCH] * links)


def a100_mig(index: int, instances: int = 2) -> FakeGpu:
    """In MIG mode; utilization is not told then."""
    migs = [FakeMig(f"MIG-a100-{index}-{n}", (n + 1, 0)) for n in range(instances)]
    return FakeGpu(f"GPU-a100-{index}", "NVIDIA A100-SXM4-80GB", 0x10 + index, 80 * GIB, compute=(8, 0),
    power_limit=400_000,
                   migs=migs, missing={"nvmlDeviceGetUtilizationRates": NotSupported})  # fmt: skip


def old_card(index: int) -> FakeGpu:
    """It and its driver know nothing of ECC, MIG, NVLink, recovery and the second memory query."""
    unknown = ("nvmlDeviceGetMemoryInfo_v2", "nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetFieldValues")
    refused = (
        "nvmlDeviceGetEccMode",
        "nvmlDeviceGetMigMode",
        "nvmlDeviceGetNvLinkState",
        "nvmlDeviceGetSupportedEventTypes",
    )
    missing = dict.fromkeys(unknown, FunctionNotFound) | dict.fromkeys(refused, NotSupported)
    return FakeGpu(
        f"GPU-old-{index}", "Tesla P4", 0x10 + index, 8 * GIB, compute=(6, 1), power_limit=75_000, missing=missing
    )


def gb10(index: int) -> FakeGpu:
    """The GPU has no memory of its own: NVML tells none."""
    refused = (
        "nvmlDeviceGetMemoryInfo",
        "nvmlDeviceGetMemoryInfo_v2",
        "nvmlDeviceGetEnforcedPowerLimit",
        "nvmlDeviceGetEccMode",
    )
    missing = dict.fromkeys((*refused, "nvmlDeviceGetNvLinkState"), NotSupported)
    return FakeGpu(f"GPU-gb10-{index}", "NVIDIA GB10", 0x10 + index, 0, compute=(12, 1), missing=missing)


@dataclass
class _Fault:
    error: Error
    after: int
    times: int | None
    uuid: str


class FakeNvml:
    """See the module."""

    def __init__(self, *gpus: FakeGpu) -> None:
        self.gpus = list(gpus)
        self.absent: Error | None = None  # what nvmlInit raises
        self.calls: Counter[str] = Counter()
        self.pcie: dict[frozenset[str], int] = {}  # level between two UUIDs; default: by CPU
        self.meminfo = (128 * GIB, 100 * GIB)  # the server's: total, available
        self._started = False
        self._faults: dict[str, _Fault] = {}
        self._held: dict[str, dict[int, int | None]] = {}
        self._registered: dict[str, int] = {}  # event types by UUID, of the one event set
        self._queue: list[tuple[FakeGpu, str, int, tuple[int, int]]] = []
        self._handles: dict[int, tuple[FakeGpu, FakeMig | None]] = {}

    @classmethod
    def without_driver(cls, error: Error = LibraryNotFound) -> "FakeNvml":
        fake = cls()
        fake.absent = error
        return fake

    # --- what a test scripts

    def gpu(self, uuid: str) -> FakeGpu:
        """The GPU of this UUID, or the one that the MIG instance is on."""
        return next(gpu for gpu in self.gpus if uuid in (gpu.uuid, *(mig.uuid for mig in gpu.migs or ())))

    def hold(self, uuid: str, pid: int, used: int | None) -> None:
        self._held.setdefault(uuid, {})[pid] = used

    def release(self, pid: int) -> None:
        for held in self._held.values():
            held.pop(pid, None)

    def fail(
        self, name: str, error: Error = Unknown, *, after: int = 0, times: int | None = None, uuid: str = ""
    ) -> None:
        self._faults[name] = _Fault(error, after, times, uuid)

    def mend(self, name: str) -> None:
        del self._faults[name]

    def emit(self, uuid: str, kind: str, code: int = 0) -> bool:
        """Whether anybody was registered for it. On a MIG instance, with its ids."""
        gpu = self.gpu(uuid)
        if not self._registered.get(gpu.uuid, 0) & KINDS[kind]:
            return False
        if kind == "recovery":
            gpu.recovery = code
        ids = next((mig.ids for mig in gpu.migs or () if mig.uuid == uuid), (NOBODY, NOBODY))
        self._queue.append((gpu, kind, code, ids))
        return True

    def lose(self, uuid: str, *, listed: bool = True) -> None:
        self.gpu(uuid).lost = True
        if not listed:
            self.gpus.remove(self.gpu(uuid))

    def unload(self, error: Error = DriverNotLoaded) -> None:
        self.absent, self._started, self._registered, self._queue = error, False, {}, []

    def load(self) -> None:
        self.absent = None

    def root(self, folder: Path) -> Path:
        """A file tree with what is read beside NVML: NUMA nodes and the server's memory."""
        for gpu in self.gpus:
            place = folder / "sys/bus/pci/devices" / gpu.pci
            place.mkdir(parents=True)
            (place / "numa_node").write_text(f"{gpu.numa}\n")
        (folder / "proc").mkdir(parents=True)
        total, available = (size // 1024 for size in self.meminfo)
        (folder / "proc/meminfo").write_text(f"MemTotal: {total} kB\nMemFree: 4 kB\nMemAvailable: {available} kB\n")
        return folder

    # --- NVML

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if not name.startswith("nvml"):
            raise AttributeError(name)
        if not hasattr(pynvml, name):
            raise AssertionError(f"pynvml has no {name}")
        return lambda *arguments: self._call(name, *arguments)

    def _call(self, name: str, *arguments: Any) -> Any:
        self.calls[name] += 1
        device, rest = None, arguments
        if name.startswith("nvmlDevice") and arguments and isinstance(arguments[0], ctypes.c_void_p):
            device, rest = self._handles[arguments[0].value or 0], arguments[1:]
        self._strike(name, device[0].uuid if device else "")
        if name != "nvmlInit" and not self._started:
            raise pynvml.NVMLError_Uninitialized
        if device is None:
            return getattr(self, f"_{name}")(*arguments)
        gpu = device[0]
        if gpu.lost:
            raise GpuIsLost
        refused = gpu.missing.get("nvmlDeviceGetMemoryInfo_v2" if name == "nvmlDeviceGetMemoryInfo" and rest else name)
        if refused:
            raise refused
        return getattr(self, f"_{name}")(*device, *rest)

    def _strike(self, name: str, uuid: str) -> None:
        fault = self._faults.get(name)
        if fault is None or (fault.uuid and fault.uuid != uuid):
            return
        if fault.after:
            fault.after -= 1
        elif fault.times is None or fault.times:
            fault.times = fault.times and fault.times - 1
            raise fault.error

    def _handle(self, gpu: FakeGpu, mig: FakeMig | None) -> ctypes.c_void_p:
        number = (gpu.bus << 8) + ((gpu.migs or []).index(mig) + 1 if mig else 0)
        self._handles[number] = (gpu, mig)
        return ctypes.c_void_p(number)  # like pynvml's pointers, not equal to another of the same address

    def _nvmlInit(self) -> None:
        if self.absent:
            raise self.absent
        self._started = True

    def _nvmlShutdown(self) -> None:
        self._started, self._registered = False, {}

    def _nvmlSystemGetDriverVersion(self) -> str:
        return "580.95.05"

    def _nvmlSystemGetCudaDriverVersion_v2(self) -> int:
        return 13010

    def _nvmlDeviceGetCount(self) -> int:
        return len(self.gpus)

    def _nvmlDeviceGetHandleByIndex(self, index: int) -> ctypes.c_void_p:
        gpu = self.gpus[index]
        if gpu.lost:
            raise GpuIsLost
        refused = gpu.missing.get("nvmlDeviceGetHandleByIndex")
        if refused:
            raise refused
        return self._handle(gpu, None)

    def _nvmlDeviceGetPciInfo(self, gpu: FakeGpu, _: FakeMig | None) -> Any:
        return _address(gpu.bus)

    def _nvmlDeviceGetUUID(self, gpu: FakeGpu, mig: FakeMig | None) -> str:
        return (mig or gpu).uuid

    def _nvmlDeviceGetName(self, gpu: FakeGpu, mig: FakeMig | None) -> str:
        return (mig or gpu).name

    def _nvmlDeviceGetMemoryInfo(self, gpu: FakeGpu, mig: FakeMig | None, version: int | None = None) -> Any:
        held = sum(
            used or 0 for owner in self._held for used in self._held[owner].values() if owner == (mig or gpu).uuid
        )
        total = (mig or gpu).total
        return SimpleNamespace(total=total, free=total - held - gpu.reserved, used=held)

    def _nvmlDeviceGetComputeRunningProcesses(self, gpu: FakeGpu, mig: FakeMig | None) -> list[Any]:
        held = self._held.get((mig or gpu).uuid, {})
        return [SimpleNamespace(pid=pid, usedGpuMemory=used) for pid, used in held.items()]

    _nvmlDeviceGetComputeRunningProcesses_v2 = _nvmlDeviceGetComputeRunningProcesses

    def _nvmlDeviceGetEnforcedPowerLimit(self, gpu: FakeGpu, _: FakeMig | None) -> int:
        return gpu.power_limit

    def _nvmlDeviceGetTotalEnergyConsumption(self, gpu: FakeGpu, _: FakeMig | None) -> int:
        return 1_000_000 * gpu.power

    def _nvmlDeviceGetPowerUsage(self, gpu: FakeGpu, _: FakeMig | None) -> int:
        return gpu.power

    def _nvmlDeviceGetTemperature(self, gpu: FakeGpu, _: FakeMig | None, sensor: int) -> int:
        return gpu.temperature

    _nvmlDeviceGetTemperatureV = _nvmlDeviceGetTemperature

    def _nvmlDeviceGetUtilizationRates(self, gpu: FakeGpu, _: FakeMig | None) -> Any:
        return SimpleNamespace(gpu=gpu.utilization, memory=0)

    def _nvmlDeviceGetEccMode(self, gpu: FakeGpu, _: FakeMig | None) -> list[int]:
        return [int(gpu.ecc), int(gpu.ecc)]

    def _nvmlDeviceGetTotalEccErrors(self, gpu: FakeGpu, _: FakeMig | None, kind: int, counter: int) -> int:
        return gpu.ecc_errors

    def _nvmlDeviceGetCurrentClocksEventReasons(self, gpu: FakeGpu, _: FakeMig | None) -> int:
        return gpu.throttle

    _nvmlDeviceGetCurrentClocksThrottleReasons = _nvmlDeviceGetCurrentClocksEventReasons

    def _nvmlDeviceGetCudaComputeCapability(self, gpu: FakeGpu, _: FakeMig | None) -> tuple[int, int]:
        return gpu.compute

    def _nvmlDeviceGetNumaNodeId(self, gpu: FakeGpu, _: FakeMig | None) -> int:
        raise NotSupported

    def _nvmlDeviceGetFieldValues(self, gpu: FakeGpu, _: FakeMig | None, fields: list[int]) -> list[Any]:
        assert fields == [pynvml.NVML_FI_DEV_GET_GPU_RECOVERY_ACTION]
        return [SimpleNamespace(nvmlReturn=pynvml.NVML_SUCCESS, value=SimpleNamespace(uiVal=gpu.recovery))]

    def _nvmlDeviceGetMigMode(self, gpu: FakeGpu, _: FakeMig | None) -> list[int]:
        return [int(gpu.migs is not None)] * 2

    def _nvmlDeviceGetMaxMigDeviceCount(self, gpu: FakeGpu, _: FakeMig | None) -> int:
        return 7

    def _nvmlDeviceGetMigDeviceHandleByIndex(self, gpu: FakeGpu, _: FakeMig | None, number: int) -> ctypes.c_void_p:
        migs = gpu.migs or []
        if number >= len(migs):
            raise pynvml.NVMLError_NotFound
        return self._handle(gpu, migs[number])

    def _nvmlDeviceGetGpuInstanceId(self, gpu: FakeGpu, mig: FakeMig) -> int:
        return mig.ids[0]

    def _nvmlDeviceGetComputeInstanceId(self, gpu: FakeGpu, mig: FakeMig) -> int:
        return mig.ids[1]

    # links

    def _nvmlDeviceGetTopologyCommonAncestor(self, gpu: FakeGpu, _: FakeMig | None, handle: ctypes.c_void_p) -> int:
        other = self._handles[handle.value or 0][0]
        same: int = pynvml.NVML_TOPOLOGY_NODE if gpu.numa == other.numa else pynvml.NVML_TOPOLOGY_SYSTEM
        return self.pcie.get(frozenset((gpu.uuid, other.uuid)), same)

    def _nvmlDeviceGetNvLinkState(self, gpu: FakeGpu, _: FakeMig | None, number: int) -> int:
        if number >= 18:
            raise pynvml.NVMLError_InvalidArgument
        return int(number < len(gpu.nvlinks))

    def _nvmlDeviceGetNvLinkRemotePciInfo(self, gpu: FakeGpu, _: FakeMig | None, number: int) -> Any:
        end = gpu.nvlinks[number]
        return _address(0xC0 + number if end == SWITCH else self.gpu(end).bus)

    def _nvmlDeviceGetNvLinkRemoteDeviceType(self, gpu: FakeGpu, _: FakeMig | None, number: int) -> int:
        switch = gpu.nvlinks[number] == SWITCH
        kind: int = pynvml.NVML_NVLINK_DEVICE_TYPE_SWITCH if switch else pynvml.NVML_NVLINK_DEVICE_TYPE_GPU
        return kind

    # events

    def _nvmlEventSetCreate(self) -> str:
        return "events"

    def _nvmlEventSetFree(self, _: str) -> None:
        self._registered, self._queue = {}, []

    def _nvmlDeviceGetSupportedEventTypes(self, gpu: FakeGpu, _: FakeMig | None) -> int:
        return int(sum(EVENTS) | pynvml.nvmlEventTypePState)

    def _nvmlDeviceRegisterEvents(self, gpu: FakeGpu, _: FakeMig | None, types: int, events: str) -> None:
        self._registered[gpu.uuid] = types

    def _nvmlEventSetWait(self, _: str, milliseconds: int) -> Any:
        if self._queue:
            gpu, kind, code, ids = self._queue.pop(0)
            handle = ctypes.c_void_p(self._handle(gpu, None).value) if gpu in self.gpus else None
            return SimpleNamespace(
                device=handle, eventType=KINDS[kind], eventData=code, gpuInstanceId=ids[0], computeInstanceId=ids[1]
            )
        if any(gpu.lost and gpu.uuid in self._registered for gpu in self.gpus):
            raise GpuIsLost
        raise pynvml.NVMLError_Timeout


def _address(bus: int) -> Any:
    return SimpleNamespace(domain=0, bus=bus, device=0, busId=f"00000000:{bus:02X}:00.0")
