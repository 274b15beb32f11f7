"""How two GPUs reach each other: over NVLink, directly or through a switch, or over PCIe."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Final

import pynvml

from llmd.daemon.gpus.asking import Asking, Lost, pci_address

# the higher, the nearer; every NVLink is nearer than any way over PCIe
NVLINK_RANK: Final = 10
PCIE: Final = {
    pynvml.NVML_TOPOLOGY_INTERNAL: ("PIX", 5),
    pynvml.NVML_TOPOLOGY_SINGLE: ("PIX", 5),
    pynvml.NVML_TOPOLOGY_MULTIPLE: ("PXB", 4),
    pynvml.NVML_TOPOLOGY_HOSTBRIDGE: ("PHB", 3),
    pynvml.NVML_TOPOLOGY_NODE: ("NODE", 2),
    pynvml.NVML_TOPOLOGY_SYSTEM: ("SYS", 1),
}


@dataclass(frozen=True, slots=True)
class Link:
    """How two GPUs reach each other. `level` as `nvidia-smi topo` names it: NV18 (18 NVLinks), PIX, PXB, PHB, NODE,
    SYS."""

    kind: str
    level: str
    rank: int


def topology(library: Any, handles: Mapping[str, Any], pci: Mapping[str, str]) -> dict[frozenset[str], Link]:
    """The links between whole GPUs: their handles and PCI addresses by UUID. A pair that nothing is known of is left
    out.

    Raises the errors of SILENT.
    """
    by_pci = {address: uuid for uuid, address in pci.items() if address}
    ends = {uuid: _nvlinks(library, handle, by_pci) for uuid, handle in handles.items()}
    pairs = {
        frozenset((one, other)): _link(library, handles, one, other, ends) for one, other in combinations(handles, 2)
    }
    return {pair: link for pair, link in pairs.items() if link}


def _link(
    library: Any, handles: Mapping[str, Any], one: str, other: str, ends: dict[str, dict[str, int]]
) -> Link | None:
    # through a switch every GPU reaches every other one with all its links
    wires = ends[one].get(other, 0) or min(ends[one].get("", 0), ends[other].get("", 0))
    if wires:
        return Link("nvlink", f"NV{wires}", NVLINK_RANK + wires)
    level = _asked(lambda: library.nvmlDeviceGetTopologyCommonAncestor(handles[one], handles[other]))
    return Link("pcie", *PCIE[level]) if level in PCIE else None


def _nvlinks(library: Any, handle: Any, by_pci: Mapping[str, str]) -> dict[str, int]:
    """Active NVLinks by the UUID at the other end; "" for a switch."""
    counts: dict[str, int] = {}
    for number in range(pynvml.NVML_NVLINK_MAX_LINKS):
        try:
            active = library.nvmlDeviceGetNvLinkState(handle, number)
        except pynvml.NVMLError_InvalidArgument:
            break  # past the last one
        except Exception:
            continue
        end = _far_end(library, handle, number, by_pci) if active else None
        if end is not None:
            counts[end] = counts.get(end, 0) + 1
    return counts


def _far_end(library: Any, handle: Any, number: int, by_pci: Mapping[str, str]) -> str | None:
    asking = Asking()
    try:
        address = asking.ask("remote", lambda: pci_address(library.nvmlDeviceGetNvLinkRemotePciInfo(handle, number)))
        kind = asking.ask("kind", lambda: library.nvmlDeviceGetNvLinkRemoteDeviceType(handle, number))
    except Lost:
        return None
    if address and address in by_pci:
        return by_pci[address]
    # a virtual machine hides the switch: an active link that leads to no GPU and is of no kind leads there
    return "" if kind in (None, pynvml.NVML_NVLINK_DEVICE_TYPE_SWITCH, pynvml.NVML_NVLINK_DEVICE_TYPE_UNKNOWN) else None


def _asked(call: Callable[[], int]) -> int | None:
    try:
        return Asking().ask("level", call)
    except Lost:
        return None
