"""What the GPUs are and how they do, as NVML tells it.

Every query is guarded on its own, since drivers, virtual machines and MIG instances each leave some of them out: what
was not answered is None (or empty) and its name stands in `Gpu.unknown`. Nothing in here raises because of a driver.

pynvml is imported by `daemon/gpus/` alone.
"""

import contextlib
import ctypes
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

import pynvml

from llmd.daemon.gpus.asking import SILENT, Asking, Lost, cuda_version, missing, nothing, pci_address, reason
from llmd.daemon.gpus.event_set import EVENTS, EventSet
from llmd.daemon.gpus.inventory import RECOVERY, Event, Gpu, Inventory, Process
from llmd.daemon.gpus.links import Link, topology

THROTTLE: Final = {
    0x04: "power_cap",
    0x08: "hw_slowdown",
    0x10: "sync_boost",
    0x20: "thermal_sw",
    0x40: "thermal_hw",
    0x80: "power_brake",
}
# the XID by which drivers without that event tell that what they ask for has changed
XID_RECOVERY: Final = 154


class Nvml:
    """NVML, started on the first use and again whenever it stopped answering: a driver may be loaded later.

    One thread at a time. `library` has pynvml's functions, `root` stands for / in tests.
    """

    def __init__(self, library: Any = None, root: Path = Path("/")) -> None:
        self._library: Any = pynvml if library is None else library
        self._root = root
        self._started = False
        self._handles: dict[str, Any] = {}  # whole GPUs only, by UUID
        self._instances: dict[tuple[str, int, int], str] = {}  # (GPU, GPU instance, compute instance) to MIG UUID
        self._labels: dict[int, str] = {}  # the best name of a device when it last answered, for when it does not
        self._places: dict[str, str] = {}  # PCI address to UUID
        self._events = EventSet(self._library)
        self._links: tuple[tuple[str, ...], dict[frozenset[str], Link]] = ((), {})

    def inventory(self) -> Inventory:
        """Ask for everything: some 15 queries a GPU, milliseconds each."""
        library, asking = self._library, Asking()
        try:
            self._start()
            count = library.nvmlDeviceGetCount()
            gpus, lost, refused = self._devices(count)
            self._events.arm(self._handles)
            return Inventory(
                gpus=tuple(gpus),
                links=self._topology(gpus),
                driver=asking.ask("driver", lambda: str(library.nvmlSystemGetDriverVersion())) or "",
                cuda=cuda_version(asking.ask("cuda", library.nvmlSystemGetCudaDriverVersion_v2)),
                reason="" if gpus else nothing(count, len(lost), refused),
                lost=tuple(lost),
                absent=count == 0,
            )
        except Exception as error:
            self.close()
            return Inventory(reason=reason(error), answered=False, absent=missing(error))

    def wait(self, seconds: float) -> Event | None:
        """The next event, or None after `seconds`; None at once where there is nothing to wait for."""
        try:
            data = self._events.wait(seconds)
            return None if data is None else self._event(data)
        except Exception:  # the next inventory() watches again, without the GPU that was lost
            lost = self._find_lost()
            return Event(lost, "lost", 0) if lost else None

    def close(self) -> None:
        """Give NVML back; the next inventory() starts it again."""
        self._events.free()
        if self._started:
            self._started = False
            with contextlib.suppress(Exception):
                self._library.nvmlShutdown()
        self._handles, self._instances, self._links = {}, {}, ((), {})

    def _start(self) -> None:
        if not self._started:
            self._library.nvmlInit()
            self._started = True

    # events

    def _event(self, data: Any) -> Event | None:
        """What NVML reported; None for what was not asked for, or for a device that nobody knows."""
        kind, uuid, code = EVENTS.get(data.eventType), self._uuid_of(data.device), 0
        if kind is None or not uuid:
            return None
        if kind == "xid":
            code = int(data.eventData)
        if kind == "recovery" or code == XID_RECOVERY:
            try:
                wanted = self._recovery(Asking(), data.device)
            except Lost:
                return Event(uuid, "lost", 0)
            return Event(uuid, "recovery", RECOVERY.index(wanted) if wanted else -1)
        return Event(self._instances.get((uuid, data.gpuInstanceId, data.computeInstanceId), uuid), kind, code)

    def _uuid_of(self, device: Any) -> str:
        """By the handle's address first: a GPU that was lost answers nothing."""
        place = ctypes.cast(device, ctypes.c_void_p).value
        for uuid, handle in self._handles.items():
            if ctypes.cast(handle, ctypes.c_void_p).value == place:
                return uuid
        try:
            return Asking().ask("uuid", lambda: str(self._library.nvmlDeviceGetUUID(device))) or ""
        except Lost:
            return ""

    def _find_lost(self) -> str:
        """The first GPU that says it is lost; "" when all others answer, or nothing does."""
        library = self._library
        for uuid, handle in self._handles.items():
            for query in (library.nvmlDeviceGetUUID, library.nvmlDeviceGetPowerUsage, library.nvmlDeviceGetMemoryInfo):
                try:
                    Asking().ask("", partial(query, handle))
                except Lost:
                    return uuid
                except SILENT:
                    return ""
        return ""

    # devices

    def _devices(self, count: int) -> tuple[list[Gpu], list[str], int]:
        """What can be used, the names of what is lost, and how many this process may not open."""
        gpus: list[Gpu] = []
        lost: list[int] = []
        refused = 0
        self._handles, self._instances = {}, {}
        for index in range(count):
            try:
                gpus += self._device(index)
            except pynvml.NVMLError_NoPermission:
                refused += 1  # a container that was given only some of the GPUs: the others are nobody's fault
            except Lost:
                lost.append(index)
        # numbers move up when NVML is started again without a GPU: a name in use is not the lost one's
        names = [label if (label := self._labels.get(index, "")) not in self._handles else "" for index in lost]
        return gpus, [name or f"GPU {index}" for index, name in zip(lost, names, strict=True)], refused

    def _device(self, index: int) -> list[Gpu]:
        library, asking = self._library, Asking()
        try:
            handle = library.nvmlDeviceGetHandleByIndex(index)
        except (*SILENT, pynvml.NVMLError_NoPermission):
            raise
        except Exception as error:
            raise Lost from error
        pci = asking.ask("pci", lambda: pci_address(library.nvmlDeviceGetPciInfo(handle)))
        if pci:
            self._labels[index] = self._places.get(pci, f"GPU {index} ({pci})")
        uuid = asking.ask("uuid", lambda: str(library.nvmlDeviceGetUUID(handle)))
        if not uuid:
            raise Lost
        self._labels[index] = uuid
        if pci:
            self._places[pci] = uuid
        shared = self._shared(asking, handle, pci or "")
        mode = asking.ask("mig", lambda: library.nvmlDeviceGetMigMode(handle)[0], quiet=True)
        if mode == pynvml.NVML_DEVICE_MIG_ENABLE:
            found = list(self._mig(index, uuid, handle, asking, shared))
        else:
            found = [self._gpu(asking, handle, shared, uuid=uuid, index=index, parent="")]
        self._handles[uuid] = handle
        return found

    def _mig(self, index: int, parent: str, handle: Any, asked: Asking, shared: dict[str, Any]) -> Iterator[Gpu]:
        """The instances of a GPU in MIG mode: they have memory and processes of their own, the rest is the GPU's."""
        library = self._library
        most = Asking().ask("instances", lambda: int(library.nvmlDeviceGetMaxMigDeviceCount(handle))) or 0
        for number in range(most):
            asking = Asking()
            asking.unknown, asking.reset = list(asked.unknown), asked.reset
            instance = asking.ask("instance", partial(library.nvmlDeviceGetMigDeviceHandleByIndex, handle, number))
            if instance is None:
                continue  # instances may leave gaps in the numbering
            uuid = asking.ask("uuid", partial(library.nvmlDeviceGetUUID, instance))
            if not uuid:
                continue
            ids = asking.ask("instance_id", partial(self._instance_ids, instance), quiet=True)
            if ids:
                self._instances[parent, *ids] = uuid
            yield self._gpu(asking, instance, shared, uuid=uuid, index=index, parent=parent)

    def _instance_ids(self, instance: Any) -> tuple[int, int]:
        library = self._library
        return library.nvmlDeviceGetGpuInstanceId(instance), library.nvmlDeviceGetComputeInstanceId(instance)

    def _gpu(self, asking: Asking, handle: Any, shared: dict[str, Any], *, uuid: str, index: int, parent: str) -> Gpu:
        library = self._library
        total, free, unified = self._memory(asking, handle, whole=not parent)
        name = asking.ask("name", lambda: str(library.nvmlDeviceGetName(handle)))
        running = asking.ask(
            "processes",
            lambda: library.nvmlDeviceGetComputeRunningProcesses(handle),
            lambda: library.nvmlDeviceGetComputeRunningProcesses_v2(handle),
        )
        return Gpu(
            uuid=uuid,
            index=index,
            parent=parent,
            **{**shared, "recovery": "gpu_reset" if asking.reset else shared["recovery"]},
            name=name or "",
            total=total,
            free=free,
            unified=unified,
            processes=tuple(Process(process.pid, process.usedGpuMemory) for process in running or ()),
            unknown=tuple(asking.unknown),
        )

    def _shared(self, asking: Asking, handle: Any, pci: str) -> dict[str, Any]:
        """What belongs to the whole GPU, in MIG mode too."""
        library, ask = self._library, asking.ask
        sensor = pynvml.NVML_TEMPERATURE_GPU
        errors = (pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, pynvml.NVML_VOLATILE_ECC)
        limit = ask("power_limit", lambda: library.nvmlDeviceGetEnforcedPowerLimit(handle) / 1000)
        draw = ask("power_draw", lambda: library.nvmlDeviceGetPowerUsage(handle) / 1000)
        ecc = ask("ecc", lambda: bool(library.nvmlDeviceGetEccMode(handle)[0]))
        uncorrected = (
            ask("ecc_uncorrected", lambda: library.nvmlDeviceGetTotalEccErrors(handle, *errors)) if ecc else None
        )
        throttle = ask(
            "throttle",
            lambda: library.nvmlDeviceGetCurrentClocksEventReasons(handle),
            lambda: library.nvmlDeviceGetCurrentClocksThrottleReasons(handle),
        )
        return {
            "pci": pci,
            "numa": ask("numa", lambda: self._numa(pci), lambda: library.nvmlDeviceGetNumaNodeId(handle)),
            "compute": ask("compute", lambda: tuple(library.nvmlDeviceGetCudaComputeCapability(handle))),
            "power_limit": limit,
            "power_draw": draw,
            "energy": ask("energy", lambda: library.nvmlDeviceGetTotalEnergyConsumption(handle) / 1000),
            "temperature": ask(
                "temperature",
                lambda: library.nvmlDeviceGetTemperature(handle, sensor),
                lambda: library.nvmlDeviceGetTemperatureV(handle, sensor),
            ),
            "utilization": ask("utilization", lambda: library.nvmlDeviceGetUtilizationRates(handle).gpu),
            "ecc": ecc,
            "ecc_uncorrected": uncorrected,
            "throttle": tuple(name for bit, name in THROTTLE.items() if (throttle or 0) & bit),
            "recovery": self._recovery(asking, handle),
        }

    def _numa(self, pci: str) -> int:
        """The CPU node nearest to the GPU. NVML's own answer is for servers whose GPUs are nodes themselves."""
        node = int((self._root / "sys/bus/pci/devices" / pci / "numa_node").read_text())
        if node < 0:
            raise LookupError
        return node

    def _memory(self, asking: Asking, handle: Any, *, whole: bool) -> tuple[int, int, bool]:
        """Total and free bytes, and whether they are the server's own memory."""
        library, unified = self._library, False

        def plain() -> Any:
            nonlocal unified
            try:
                return library.nvmlDeviceGetMemoryInfo(handle)
            except pynvml.NVMLError_NotSupported:
                unified = (
                    whole  # this error alone, and never of a MIG instance: others say nothing about the kind of GPU
                )
                raise

        # version 2 counts what the driver reserves as neither used nor free
        info = asking.ask(
            "memory", lambda: library.nvmlDeviceGetMemoryInfo(handle, pynvml.nvmlMemory_v2), plain, quiet=True
        )
        if info is not None:
            return info.total, info.free, False
        total, free = (asking.ask("memory", self._meminfo) or (0, 0)) if unified else (0, 0)
        if not unified:
            asking.unknown.append("memory")
        return total, free, unified

    def _meminfo(self) -> tuple[int, int]:
        lines = (self._root / "proc/meminfo").read_text().splitlines()
        kib = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines)}
        return kib["MemTotal"] * 1024, kib["MemAvailable"] * 1024

    def _recovery(self, asking: Asking, handle: Any) -> str | None:
        def query() -> str:
            value = self._library.nvmlDeviceGetFieldValues(handle, [pynvml.NVML_FI_DEV_GET_GPU_RECOVERY_ACTION])[0]
            if value.nvmlReturn != pynvml.NVML_SUCCESS:
                raise pynvml.NVMLError(value.nvmlReturn)
            return RECOVERY[value.value.uiVal]

        return asking.ask("recovery", query)

    def _topology(self, gpus: list[Gpu]) -> dict[frozenset[str], Link]:
        """Links between whole GPUs. They do not change while the GPUs stay the same, and there may be a thousand
        queries."""
        whole = {gpu.uuid: gpu.pci for gpu in gpus if not gpu.parent}
        if self._links[0] != tuple(whole):
            handles = {uuid: self._handles[uuid] for uuid in whole}
            self._links = (tuple(whole), topology(self._library, handles, whole))
        return self._links[1]
