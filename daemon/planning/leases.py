"""One ledger of what the GPUs' memory was promised for: a lease a replica."""

import time
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from llmd.daemon.gpus.inventory import Inventory
from llmd.daemon.planning.placement import Device, Placed
from llmd.daemon.planning.plan import Wish

# a model's name, and the number of one of its replicas
Key: TypeAlias = tuple[str, int]


@dataclass(slots=True)
class Lease:
    """`needs`: bytes by UUID, as planned, then as measured. `seen`: the replica is ready, so that NVML counts them all;
    of a process that loads it counts what that has already. `wish`: what was asked, `placed`: what was chosen for it,
    of the file `digest`; `pid` gives its process, 0 before."""

    wish: Wish
    placed: Placed
    digest: str
    needs: Mapping[str, int] = field(init=False)
    seen: bool = False
    pid: Callable[[], int] = lambda: 0

    def __post_init__(self) -> None:
        self.needs = {d.uuid: n.total for d, n in zip(self.placed.devices, self.placed.needs, strict=True)}

    def held(self, uuid: str, inventory: Inventory) -> int | None:
        """What its process holds on a GPU; None: the driver does not tell."""
        pid, gpus = self.pid(), inventory.gpus
        found = [one.used for gpu in gpus if gpu.uuid == uuid for one in gpu.processes if one.pid == pid]
        return found[0] if found else None

    def correct(self, inventory: Inventory) -> list[int] | None:
        """To what is measured: bytes of each device, in the plan's order; None: the driver does not tell."""
        devices = self.placed.devices
        used = [held for device in devices if (held := self.held(device.uuid, inventory)) is not None]
        if len(used) < len(devices):
            return None
        self.needs = {device.uuid: one for device, one in zip(devices, used, strict=True)}
        return used


class Ledger:
    """The event loop owns it."""

    def __init__(self) -> None:
        self._leases: dict[Key, Lease] = {}
        self._gave_back = float("-inf")

    def take(self, key: Key, lease: Lease) -> None:
        self._leases[key] = lease

    def get(self, key: Key) -> Lease | None:
        return self._leases.get(key)

    def end(self, key: Key) -> None:
        if (lease := self._leases.pop(key, None)) and lease.seen:
            self._gave_back = time.monotonic()

    def of(self, model: str, wish: Wish | None = None) -> dict[Key, Lease]:
        """A model's, or those of what was asked so."""
        return {
            key: one for key, one in self._leases.items() if key[0] == model and (wish is None or one.wish == wish)
        }  # fmt: skip

    def gave_back(self, seconds: float) -> bool:
        """Whether a replica that had memory ended so lately: a driver takes a moment to have it back."""
        return time.monotonic() < self._gave_back + seconds

    def left(self, device: Device, inventory: Inventory, without: Set[str]) -> Device:
        """With what replicas were promised that NVML does not see yet taken off; those of the models `without` give
        back what they hold."""
        free = device.free
        for (model, _), lease in self._leases.items():
            need = lease.needs.get(device.uuid, 0)
            if model in without:
                free += need if lease.seen else 0
            elif need and not lease.seen:
                free -= max(0, need - (lease.held(device.uuid, inventory) or 0))
        return replace(device, free=min(device.total, free))
