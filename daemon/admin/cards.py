"""The GPUs as an admin sees them, and which of them are kept out of every plan."""

import asyncio
from dataclasses import dataclass
from typing import Any

from llmd.daemon.admin.doctor import rfc3339
from llmd.daemon.audit.acts import Acts
from llmd.daemon.errors import Conflict, NotFound
from llmd.daemon.gpus.faults import Action
from llmd.daemon.gpus.watch import Watcher
from llmd.daemon.planning.planner import Planner
from llmd.daemon.replicas.pool import Pool
from llmd.daemon.state.store import StateThread, Store


@dataclass(slots=True)
class Cards:
    """Made once, by the composition."""

    watcher: Watcher
    planner: Planner
    pool: Pool
    store: Store
    state: StateThread
    acts: Acts

    def restore(self) -> None:
        """Keep out what was kept out before."""
        self.watcher.ignore(self.store.ignored_gpus())

    def shown(self) -> dict[str, Any]:
        """Every GPU, its links, processes and health, at most some seconds old; whoever asks again gets newer
        figures."""
        self.watcher.nudge()
        view = self.watcher.view
        told = view.to_dict()
        told["at"] = rfc3339(told["at"])
        no_code = {gpu.uuid: self.planner.no_code(gpu) for gpu in view.inventory.gpus}
        for device in told["gpus"]:
            device["no_code"] = no_code[device["uuid"]]
        for device in (*told["gpus"], *told["gone"]):
            for event in device["health"]["events"]:
                event["at"] = rfc3339(event["at"])
        return told

    async def ignore(self, uuid: str, actor: str) -> dict[str, Any]:
        """Keep a GPU, with its MIG instances, or one instance out of every plan, also after a restart; what runs there
        moves, with what it still answers. Raises NotFound."""
        self._known(uuid)
        async with self.acts("admin.gpu_ignore", actor, gpu=uuid):
            await self.state.run(lambda: self.store.ignore_gpu(uuid))
            await self._reread()
        for device in self.watcher.view.devices(uuid):
            self.pool.fault(device, Action.DRAIN, "an administrator keeps it out of every plan")
        self.pool.feed()  # the last one: what waited for it goes to the CPU
        return {"gpu": uuid, "ignored": True}

    async def use(self, uuid: str, actor: str) -> dict[str, Any]:
        """Use an ignored, drained or removed GPU again: its health, as the driver tells it now. One that is ignored and
        not there is forgotten. Raises NotFound, and Conflict with the reasons where the driver still asks for its
        recovery or does not find it, which stays ignored then, or where it is a part of an ignored one."""
        self._known(uuid)
        view = self.watcher.view
        ignored = uuid in view.ignored
        for gpu in view.inventory.gpus:
            if gpu.uuid == uuid and gpu.parent in view.ignored:
                raise Conflict(f"the whole GPU is ignored: `llmctl gpus --use {gpu.parent}`")
        async with self.acts("admin.gpu_use", actor, gpu=uuid):
            for device in view.devices(uuid) or [uuid]:
                await asyncio.to_thread(self.watcher.clear, device)
            await asyncio.to_thread(self.watcher.refresh)
            there = self.watcher.view.devices(uuid)
            found = [self.watcher.health(device) for device in there or [uuid]]
            for health in found:
                if not health.well and (there or not ignored):
                    raise Conflict(f"GPU {health.uuid} is {health.state} again: {'; '.join(health.reasons)}")
            if ignored:
                await self.state.run(lambda: self.store.use_gpu(uuid))
                await self._reread()
        self.pool.feed()
        return {"gpu": uuid, "ignored": False, "state": found[0].state}

    async def _reread(self) -> None:
        self.watcher.ignore(await self.state.run(self.store.ignored_gpus))

    def _known(self, uuid: str) -> None:
        """Raises NotFound."""
        view = self.watcher.view
        whole = {gpu.parent for gpu in view.inventory.gpus if gpu.parent}
        if uuid not in (known := {*view.health, *whole, *view.ignored}):
            raise NotFound.among("GPU", sorted(known), param="gpu")
