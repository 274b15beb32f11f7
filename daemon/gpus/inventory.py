"""What is known of the GPUs at one moment: plain values."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from llmd.daemon.gpus.links import Link

RECOVERY: Final = (
    *("none", "gpu_reset", "node_reboot", "drain_p2p"),
    *("drain_and_reset", "recover_imex_domain", "bus_reset", "system_reboot"),
)


@dataclass(frozen=True, slots=True)
class Process:
    """A process that computes on a GPU: ours or a stranger's. `used` is in bytes, None where the driver does not
    tell."""

    pid: int
    used: int | None


@dataclass(frozen=True, slots=True)
class Gpu:
    """One device that a worker can be given: a GPU, or a MIG instance (then `parent` is its GPU's UUID).

    Memory in bytes, power in watts, energy in joules since the driver was loaded, temperature in degrees Celsius,
    utilization in percent. `unified`: the memory is the server's own. A MIG instance shows its GPU's power,
    temperature, ECC and PCI facts. `recovery` is what the driver asks for to make the GPU whole again ("none",
    "gpu_reset", "node_reboot", ...).
    """

    uuid: str
    index: int
    name: str
    total: int
    free: int
    unified: bool = False
    compute: tuple[int, int] | None = None
    pci: str = ""
    numa: int | None = None
    parent: str = ""
    power_limit: float | None = None
    power_draw: float | None = None
    energy: float | None = None
    temperature: int | None = None
    utilization: int | None = None
    ecc: bool | None = None
    ecc_uncorrected: int | None = None
    throttle: tuple[str, ...] = ()
    processes: tuple[Process, ...] = ()
    recovery: str | None = None
    unknown: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Inventory:
    """All GPUs at one moment.

    `links` has no entry for a pair that the driver tells nothing about, nor for MIG instances: they cannot reach each
    other. `reason` says in plain words why there is no GPU, or why NVML does not answer. `lost` names devices that are
    listed but cannot be used: a UUID where it is known, "GPU 3 (0000:65:00.0)" otherwise. `answered` is False when NVML
    as a whole gave no answer: nothing is known about any GPU then, which is not the same as their being gone.
    """

    gpus: tuple[Gpu, ...] = ()
    links: Mapping[frozenset[str], Link] = field(default_factory=dict)
    driver: str = ""
    cuda: str = ""
    reason: str = ""
    lost: tuple[str, ...] = ()
    answered: bool = True
    absent: bool = False  # this machine has no GPU: no driver is installed, or it finds none

    def to_dict(self) -> dict[str, Any]:
        """For JSON: links become a list, each with the two UUIDs under `between`."""
        return {
            "gpus": [dataclasses.asdict(gpu) for gpu in self.gpus],
            "links": [{"between": sorted(pair), **dataclasses.asdict(link)} for pair, link in self.links.items()],
            "driver": self.driver,
            "cuda": self.cuda,
            "reason": self.reason,
            "lost": list(self.lost),
            "answered": self.answered,
            "absent": self.absent,
        }


@dataclass(frozen=True, slots=True)
class Event:
    """A fault on a GPU. `code`: the XID of an "xid"; the index in RECOVERY of a "recovery", -1 if unknown; 0 otherwise.

    `uuid` is a MIG instance's where the driver says which one it was, else that of the whole GPU, never empty.
    """

    uuid: str
    kind: str
    code: int
