"""From a wish to a worker's settings, as the GPUs are now: one ledger of what they have been promised.

A lease is a replica's bytes on its GPUs. Until the replica is ready they are taken off what NVML says is free; from
then on NVML itself says so. Plans are made one after the other, so that two loads never count on the same memory. A
wish is planned anew at each start: same facts, same plan.
"""

import asyncio
import importlib.util
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llmd.daemon import memory
from llmd.daemon.engine.messages import Settings
from llmd.daemon.errors import DoesNotFit
from llmd.daemon.gpus.watch import View, Watcher
from llmd.daemon.serving import plan
from llmd.daemon.serving.placement import Asked, Device, Form, Placed, place
from llmd.daemon.serving.plan import Placement, Wish

log = logging.getLogger("llmd.planner")


@dataclass(slots=True)
class Lease:
    """Bytes by UUID; `seen`: the replica is ready, so that NVML counts them."""

    needs: Mapping[str, int]
    seen: bool = False


class Planner:
    """Made once, by `main`; without a watcher for machines that have no GPU. The event loop owns it. `cuda`: the engine
    can compute on them."""

    def __init__(self, watcher: Watcher | None = None, *, cuda: bool = True) -> None:
        self._watcher, self._cuda, self._turn = watcher, cuda, asyncio.Lock()
        self._leases: dict[str, Lease] = {}

    async def settings(self, model: str, wish: Wish) -> Settings:
        """For a replica of a model that has none now; its lease lasts until `ended`. Raises DoesNotFit, Unavailable and
        BadRequest with what is missing."""
        async with self._turn:
            self._leases.pop(model, None)
            placed = await self._placed(model, wish)
            if placed is None:
                plan.check_memory(wish, memory.available())
                return plan.plan(wish)
            needs = zip(placed.devices, placed.needs, strict=True)
            self._leases[model] = Lease({device.uuid: need.total for device, need in needs})
            chosen = _resolved(wish, placed)
            plan.check_memory(chosen, memory.available())
            log.info("%s: %s", model, placed.steps[-1].why)
            return plan.plan(chosen)

    def ready(self, model: str) -> None:
        if model in self._leases:
            self._leases[model].seen = True

    def ended(self, model: str) -> None:
        self._leases.pop(model, None)

    async def check(self, model: str, wish: Wish, replaced: Wish | None) -> None:
        """Whether it could serve in the place of what serves now (`replaced`). Raises what `settings` would."""
        async with self._turn:
            placed = await self._placed(model, wish)
        back = plan.memory(replaced).total if replaced else 0
        plan.check_memory(_resolved(wish, placed) if placed else wish, memory.available() + back)

    async def explain(self, model: str, wish: Wish) -> dict[str, Any]:
        """What `llmctl plan` shows. Raises what `settings` would."""
        async with self._turn:
            placed = await self._placed(model, wish)
        if placed:
            return placed.to_dict()
        free, settings = memory.available(), plan.plan(wish)
        plan.check_memory(wish, free)
        need = plan.memory(wish).to_dict()
        return {
            "form": model, "split": "none", "kv": settings.kv_type, "context": wish.context, "slots": wish.slots,
            "ubatch": 0, "gpus": [], "devices": [{"uuid": "", "name": "this machine", "free": free, "need": need}],
            "steps": [{"what": "the CPU", "taken": True, "why": self._why_not()}],
        }  # fmt: skip

    async def _placed(self, model: str, wish: Wish) -> Placed | None:
        """On GPUs; None: on the CPU, but never there because of a fault."""
        if self._watcher is None or wish.runner == "fake":
            return None
        await asyncio.to_thread(self._watcher.refresh)
        view = self._watcher.view
        where = wish.placement
        if not self._cuda or (view.inventory.absent and not view.inventory.gpus and not view.gone):
            if where.gpus or where.split or where.ubatch:
                raise DoesNotFit(f"gpus, split and ubatch are for GPUs: {self._why_not()}")
            return None
        if not view.inventory.gpus and not view.gone:
            raise DoesNotFit(f"no GPU can be used: {view.inventory.reason}")
        devices = [self._left(model, device) for device in usable(view)]
        if not devices:
            raise DoesNotFit("no GPU can be used; `llmctl gpus` says why")
        if wish.shape is None:
            raise DoesNotFit("what it needs is not known: an older version imported it; import it again")
        asked = Asked(
            wish.context, wish.slots, wish.keep_context, wish.keep_slots, where.kv, where.split, where.ubatch,
            where.gpus,
        )  # fmt: skip
        cuda = view.inventory.cuda.partition(".")[0]
        forms, version = [Form.of(model, wish.shape, wish.size)], int(cuda) if cuda.isdigit() else None
        # many GPUs have very many subsets: streams go on meanwhile
        return await asyncio.to_thread(place, forms, devices, view.inventory.links, asked, cuda=version)

    def _why_not(self) -> str:
        """Why the CPU computes."""
        view = self._watcher.view if self._watcher else View()
        if view.inventory.gpus or view.gone:
            return "this engine was built without CUDA: install the package llmd-cuda"
        return view.inventory.reason

    def _left(self, model: str, device: Device) -> Device:
        """With what others were promised taken off, and what the model's own replica gives back put on."""
        promised = sum(
            lease.needs.get(device.uuid, 0) for name, lease in self._leases.items() if name != model and not lease.seen
        )
        own = self._leases.get(model)
        back = own.needs.get(device.uuid, 0) if own and own.seen else 0
        return replace(device, free=min(device.total, device.free - promised + back))


def cuda_engine() -> bool:
    """Whether the engine that workers run has its CUDA library."""
    found = importlib.util.find_spec("llama_cpp")
    places = (found.submodule_search_locations if found else None) or []
    return any(list(Path(place, "lib").glob("*ggml-cuda*")) for place in places)


def usable(view: View) -> list[Device]:
    """The GPUs and MIG instances that a worker may be started on, of which the memory is known."""
    return [
        Device(gpu.uuid, gpu.name, gpu.free, gpu.total, gpu.compute, gpu.unified, bool(gpu.parent))
        for gpu in view.inventory.gpus
        if view.health[gpu.uuid].usable and gpu.total
    ]


def _resolved(wish: Wish, placed: Placed) -> Wish:
    """The wish with every choice made."""
    layout = placed.layout
    where = Placement(
        tuple(device.uuid for device in placed.devices),
        layout.split if len(placed.devices) > 1 else None,
        layout.kv_type,
        layout.ubatch,
    )
    return replace(wish, context=layout.context, slots=layout.slots, placement=where)
