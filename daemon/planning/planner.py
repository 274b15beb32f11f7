"""From a wish to a worker's settings, as the GPUs are now.

A lease is a replica's bytes on its GPUs. Until the replica is ready they are taken off what NVML says is free; from
then on NVML itself says so, and the lease is what it measures. The difference is kept with its conditions, so that the
next plan is right. Plans are made one after the other, so that two loads never count on the same memory. A
wish is planned anew at each start: same facts, same plan.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import replace
from typing import Any

from llmd.daemon.errors import DoesNotFit, LlmdError, ModelInvalid, Unavailable
from llmd.daemon.gpus.inventory import Gpu
from llmd.daemon.gpus.watch import View, Watcher
from llmd.daemon.machine import memory
from llmd.daemon.planning import plan
from llmd.daemon.planning.engines import ENGINES
from llmd.daemon.planning.leases import Key, Lease, Ledger
from llmd.daemon.planning.placement import (
    Asked,
    Device,
    Form,
    Placed,
    Rung,
    conditions,
    explained,
    gib,
    place,
    rungs,
    told,
)
from llmd.daemon.planning.plan import Placement, Wish
from llmd.daemon.state.damage import damage, repair
from llmd.daemon.wire.control import Settings
from llmd.quantize import backends
from llmd.quantize.footprint import MIB, Calibration, Layout, Measured

log = logging.getLogger("llmd.planner")

MOST_OVERHEAD = 4 << 30
WORTH_SAYING = 64 * MIB
GIVE_BACK_SECONDS = 3.0
LOOK_SECONDS = 0.1
IGNORED = "an administrator keeps it out of every plan (`llmctl gpus --use UUID` ends that)"


class Planner:
    """Made once; without a watcher for machines that have no GPU. The event loop owns it. `cuda`: the engine
    can compute on them, those of `architectures` (`quantize/backends.py`; none: it is not known which). `calibration`:
    what was measured before, by the engine's build `build`; `keep` is called with what is measured anew."""

    def __init__(
        self,
        watcher: Watcher | None = None,
        *,
        cuda: bool = True,
        architectures: Sequence[str] = (),
        calibration: Calibration | None = None,
        build: str = "",
        keep: Callable[[Measured], None] = lambda measured: None,
    ) -> None:
        self._watcher, self._cuda, self._turn = watcher, cuda, asyncio.Lock()
        self._calibration, self._build, self._keep = calibration or Calibration(), build, keep
        self.architectures = architectures
        self.leases = Ledger()
        self._below: dict[str, tuple[Wish, Rung]] = {}  # what a model ran out of memory with

    async def settings(self, key: Key, wish: Wish, *, beside: bool = False) -> Settings:
        """For a replica that has no process now; its lease lasts until `ended`. Copies of a model with the same
        settings lie on different GPUs. `beside`: it is to follow another replica, which goes on until this one serves.
        Where it would get less beside that one than in its place, it counts as not fitting beside it. Raises
        DoesNotFit, Unavailable and BadRequest with what is missing."""
        while True:
            lately = self.leases.gave_back(GIVE_BACK_SECONDS)
            try:
                found = await self._settings(key, wish, beside=beside)
            except DoesNotFit:
                if not lately:
                    raise
            else:
                if not lately or not self._cramped(key):
                    return found
            # a driver takes a moment to have back what a process held: there may be more, or enough, in a moment
            await asyncio.sleep(LOOK_SECONDS)

    async def _settings(self, key: Key, wish: Wish, *, beside: bool) -> Settings:
        async with self._turn:
            self.leases.end(key)
            copies = [lease for other, lease in self.leases.of(key[0], wish).items() if other != key]
            taken = {uuid for lease in copies for uuid in lease.needs}
            # a conversation may go on with another copy
            like = replace(wish, context=copies[0].placed.layout.context, keep_context=True) if copies else wish
            placed = await self._placed(key[0], like, taken, origin=wish)
            if placed is None:
                return plan.plan(_on_cpu(wish, memory.available()))
            if beside:
                instead = await self._placed(key[0], like, taken, origin=wish, without={key[0]})
                if instead is None or instead.shown != placed.shown:
                    raise DoesNotFit(f"beside what serves there is only room for {told(placed.layout)}")
            chosen = _resolved(wish, placed)
            self.leases.take(key, Lease(wish, placed, chosen.digest))
            plan.check_memory(chosen, memory.available())
            log.info("%s: %s", key[0], placed.steps[-1].why, extra={"model": key[0]})
            return plan.plan(chosen)

    def started(self, key: Key, pid: Callable[[], int]) -> None:
        """Its process is being started; `pid` tells which it is. Raises Unavailable where one of its GPUs cannot be
        used any more."""
        if lease := self.leases.get(key):
            lease.pid = pid
            if self._watcher and (gone := lease.needs.keys() - self._watcher.view.usable):
                raise Unavailable(f"GPU {min(gone)} cannot be used any more")

    def ready(self, key: Key) -> None:
        if lease := self.leases.get(key):
            lease.seen = True

    async def measure(self, key: Key) -> None:
        """The replica's process is ready, and has computed its largest passes: correct its lease to what NVML says that
        it holds, and keep the difference. Where the driver does not tell, the plan's figures stay."""
        lease = self.leases.get(key)
        if lease is None or self._watcher is None:
            return
        inventory = await asyncio.to_thread(self._watcher.refresh)
        if self.leases.get(key) is lease and inventory.answered and (used := lease.correct(inventory)):
            self._learn(lease, used)

    def _learn(self, lease: Lease, used: Sequence[int]) -> None:
        """Keep the overhead of the device with the largest difference; one that cannot be is somebody's mistake."""
        placed, layout = lease.placed, lease.placed.layout
        more = [one - need.total for one, need in zip(used, placed.needs, strict=True)]
        at = max(range(len(more)), key=more.__getitem__)
        device, count = placed.devices[at], len(placed.devices)
        planned = self._overhead(device, count, layout, lease.digest)
        overhead = planned + more[at]
        if abs(more[at]) >= WORTH_SAYING:
            log.info("a replica takes %+d MiB on %s beside what was planned", round(more[at] / MIB), device.name)
        if not 0 < overhead <= MOST_OVERHEAD or not lease.digest:
            log.warning("an overhead of %s is not kept", gib(overhead))
            return
        measured = Measured(
            overhead, device.compute, self._cuda_version(), count, layout.split, lease.digest, conditions(layout),
            self._build, device.name,
        )  # fmt: skip
        self._calibration = self._calibration.add(measured)
        self._keep(measured)

    def _overhead(self, device: Device, count: int, layout: Layout, digest: str) -> int:
        known = self._calibration
        return known.overhead(device.compute, self._cuda_version(), count, layout.split, digest, conditions(layout))

    def _cuda_version(self) -> int | None:
        cuda = self._watcher.view.inventory.cuda.partition(".")[0] if self._watcher else ""
        return int(cuda) if cuda.isdigit() else None

    def ended(self, key: Key) -> None:
        self.leases.end(key)

    def smaller(self, key: Key) -> tuple[str, bool]:
        """A replica ran out of memory: the next plan of what was asked is one step smaller. Says with what it ran, and
        whether there is a smaller step."""
        lease = self.leases.get(key)
        if lease is None:
            return "", False
        layout = lease.placed.layout
        rung = layout.context, layout.slots, layout.kv_type
        self._below[key[0]] = lease.wish, rung
        last = rungs(_asked(lease.wish))[-1]
        return f"{layout.slots} slots of {layout.context} tokens, {layout.kv_type}", rung != last

    def note(self, key: Key) -> str:
        """What an admin should know of a replica's plan: it is less than what was asked for."""
        lease = self.leases.get(key)
        if lease and (below := self._ran_out(key[0], lease.wish)):
            context, slots, kv = below
            return f"smaller than asked: it ran out of memory with {slots} slots of {context} tokens, {kv}"
        if not lease or not self._cramped(key):
            return ""
        context, slots, kv = _rung(lease.wish)
        return (
            f"smaller than asked ({slots} slots of {context} tokens, {kv}): the GPUs had no room for more; deployed "
            "again, it is planned anew"
        )

    def _cramped(self, key: Key) -> bool:
        """Whether it got less than was asked for, and would get more with more room."""
        lease = self.leases.get(key)
        if not lease or self._ran_out(key[0], lease.wish):
            return False
        layout = lease.placed.layout
        return (layout.context, layout.slots, layout.kv_type) != _rung(lease.wish)

    def on_gpus(self, model: str) -> bool:
        """Whether a replica of it has GPUs."""
        return bool(self.leases.of(model))

    async def better(self, model: str, wish: Wish) -> bool:
        """Whether a replica would get more now, in its own place, than it has."""
        own = self.leases.of(model, wish)
        if not any(self._cramped(key) for key in own):
            return False
        async with self._turn:
            with suppress(LlmdError):
                placed = await self._placed(model, wish, without={model})
                return placed is not None and any(placed.shown != lease.placed.shown for lease in own.values())
        return False

    def forget(self, model: str) -> None:
        """It is not deployed any more."""
        self._below.pop(model, None)

    async def lost(self, gpus: Sequence[str]) -> bool:
        """Whether one of these GPUs cannot be reached now."""
        if self._watcher is None:
            return False
        await asyncio.to_thread(self._watcher.refresh)
        return any(self._watcher.health(uuid).state == "removed" for uuid in gpus)

    async def another(self, model: str, wish: Wish) -> bool:
        """Whether there is one more GPU, on which none of its copies lies, that holds the model whole."""
        async with self._turn:
            copies = list(self.leases.of(model, wish).values())
            if not copies or wish.placement.gpus:
                return False
            taken = {uuid for lease in copies for uuid in lease.needs}
            context = copies[0].placed.layout.context
            whole = replace(wish, context=context, keep_context=True, placement=replace(wish.placement, split="none"))
            try:
                return await self._placed(model, whole, taken) is not None
            except LlmdError:
                return False

    async def check(self, model: str, wish: Wish, gone: Mapping[str, Wish], replicas: int = 1) -> None:
        """Whether so many replicas could serve in the place of what the model has now, and with the models `gone` out
        of service, which serve as these wishes say. Raises what `settings` would."""
        without = {model, *gone}
        async with self._turn:
            taken: set[str] = set()
            like, placed = wish, await self._placed(model, wish, taken, without=without)
            for number in range(2, replicas + 1):
                if placed is None:
                    break
                taken |= {device.uuid for device in placed.devices}
                like = replace(wish, context=placed.layout.context, keep_context=True)
                try:
                    placed = await self._placed(model, like, taken, without=without)
                except DoesNotFit as e:
                    raise DoesNotFit(f"there is no place for replica {number} of {replicas}: {e.message}") from e
        back = sum(plan.memory(one).total for one in gone.values())
        free = memory.available() + back
        plan.check_memory(_resolved(like, placed), free) if placed else _on_cpu(wish, free)

    async def explain(self, model: str, wish: Wish) -> dict[str, Any]:
        """What `llmctl plan` shows. Raises what `settings` would."""
        async with self._turn:
            placed = await self._placed(model, wish, without={model}, by=explained)
        if placed and self._watcher:
            found = placed.to_dict()
            view = self._watcher.view
            out = [(gpu, why) for gpu in view.inventory.gpus if (why := self._out(gpu, view))]
            found["steps"][:0] = [{"what": f"{gpu.name} ({gpu.uuid})", "taken": False, "why": why} for gpu, why in out]
            return found
        free = memory.available()
        wish = _on_cpu(wish, free)
        settings, need = plan.plan(wish), plan.memory(wish).to_dict()
        return {
            "form": wish.form or model, "split": "none", "kv": settings.kv_type, "context": wish.context,
            "slots": wish.slots,
            "ubatch": 0, "gpus": [], "devices": [{"uuid": "", "name": "this machine", "free": free, "need": need}],
            "steps": [{"what": "the CPU", "taken": True, "why": self._why_not()}], "buys": [],
        }  # fmt: skip

    async def _placed(
        self,
        model: str,
        wish: Wish,
        taken: Set[str] = frozenset(),
        *,
        origin: Wish | None = None,
        without: Set[str] = frozenset(),
        by: Callable[..., Placed] = place,
    ) -> Placed | None:
        """On GPUs, but those in `taken`; None: on the CPU. That is never because of a fault: there is no GPU, or the
        engine has no CUDA, or an administrator keeps every GPU out. `origin`: what was asked, if the wish was made of
        it. `without`: what these models' replicas hold now is free then."""
        if self._watcher is None or not ENGINES[wish.engine].on_gpus:
            return None
        await asyncio.to_thread(self._watcher.refresh)
        view = self._watcher.view
        where = wish.placement
        if not self._cuda or view.none:
            if where.gpus or where.split or where.ubatch:
                raise DoesNotFit(f"gpus, split and ubatch are for GPUs: {self._why_not()}")
            return None
        if not view.inventory.gpus and not view.gone:
            raise DoesNotFit(f"no GPU can be used: {view.inventory.reason}")
        out = {gpu.uuid: why for gpu in view.inventory.gpus if (why := self._out(gpu, view))}
        for uuid in where.gpus:
            if uuid in out:
                raise DoesNotFit(f"GPU {uuid}: {out[uuid]}")
        every = [device for device in usable(view) if device.uuid not in out]
        devices = [self.leases.left(device, view.inventory, without) for device in every]
        if not devices:
            raise DoesNotFit(f"no GPU can be used; {'; '.join(sorted({*out.values()})) or '`llmctl gpus` says why'}")
        devices = [device for device in devices if device.uuid not in taken]
        if not devices:
            raise DoesNotFit("a copy lies on every GPU that can be used; another one needs a GPU of its own")
        known = [one for one in plan.forms(wish) if one.shape is not None]
        if not known:
            raise DoesNotFit("what it needs is not known: an older version imported it; import it again")
        asked = _asked(wish, self._ran_out(model, origin or wish))
        forms = [Form.of(one.form or model, one.shape, one.size, one.digest, one.engine) for one in known if one.shape]
        # many GPUs have very many subsets: streams go on meanwhile
        return await asyncio.to_thread(
            by, forms, devices, view.inventory.links, asked, self._calibration, self._cuda_version()
        )

    def no_code(self, gpu: Gpu) -> str:
        """Why no model goes to a GPU that is well; "": one may."""
        if not self._cuda or gpu.compute is None or backends.has_code(self.architectures, gpu.compute):
            return ""
        major, minor = gpu.compute
        known = ", ".join(self.architectures)
        return f"this engine has no code for its compute capability {major}.{minor} (it has {known})"

    def _out(self, gpu: Gpu, view: View) -> str:
        """Why no model goes to a GPU, whether it is well or not; "": one may, if it is."""
        return IGNORED if view.health[gpu.uuid].ignored else self.no_code(gpu)

    def _ran_out(self, model: str, asked: Wish) -> Rung | None:
        wish, rung = self._below.get(model, (None, None))
        return rung if wish == asked else None

    def _why_not(self) -> str:
        """Why the CPU computes."""
        view = self._watcher.view if self._watcher else View()
        if not view.health:
            return view.inventory.reason
        if self._cuda:
            return f"{'every GPU' if len(view.health) > 1 else 'the GPU'} is ignored: {IGNORED}"
        return "this engine was built without CUDA: install the package llmd-cuda"


def _asked(wish: Wish, below: Rung | None = None) -> Asked:
    where = wish.placement
    return Asked(
        wish.context, wish.slots, wish.keep_context, wish.keep_slots, where.kv, where.split, where.ubatch, where.gpus,
        below,
    )  # fmt: skip


def _rung(wish: Wish) -> Rung:
    """What was asked for."""
    return wish.context, wish.slots, wish.placement.kv or "f16"


def check_file(wish: Wish, path: str, imported: str) -> None:
    """Raises ModelInvalid where the file that was chosen is missing or cut off: what the engine says of that helps
    nobody. `imported`: the SHA-256 of the model's own file."""
    form = next((one for one in plan.forms(wish) if one.path == path and one.digest), None)
    if form and (why := damage(path, form.size)):
        raise ModelInvalid(f"{why}; {repair(form.form, imported=form.digest == imported)}")


def usable(view: View) -> list[Device]:
    """The GPUs and MIG instances that a worker may be started on, of which the memory is known."""
    return [
        Device(gpu.uuid, gpu.name, gpu.free, gpu.total, gpu.compute, gpu.unified, bool(gpu.parent))
        for gpu in view.inventory.gpus
        if view.health[gpu.uuid].usable and gpu.total
    ]


def _on_cpu(wish: Wish, free: int) -> Wish:
    """With the largest form that so many bytes of this machine's memory hold. Raises Unavailable for the smallest."""
    *larger, smallest = sorted(plan.forms(wish), key=lambda one: -one.size)
    for one in larger:
        with suppress(Unavailable):
            plan.check_memory(one, free)
            return one
    plan.check_memory(smallest, free)
    return smallest


def _resolved(wish: Wish, placed: Placed) -> Wish:
    """The wish with every choice made."""
    layout = placed.layout
    where = Placement(
        tuple(device.uuid for device in placed.devices),
        layout.split if len(placed.devices) > 1 else None,
        layout.kv_type,
        layout.ubatch,
    )
    (form, *_) = [one for one in plan.forms(wish) if one.form == placed.form] or plan.forms(wish)
    return replace(form, context=layout.context, slots=layout.slots, placement=where)
