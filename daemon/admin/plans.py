"""What `llmctl plan` says: where a model would go as things are now, or why nowhere. Nothing is loaded for it."""

from typing import Any

from llmd.daemon import memory
from llmd.daemon.errors import DoesNotFit
from llmd.daemon.gpus.watch import View
from llmd.daemon.serving import plan
from llmd.daemon.serving.placement import Asked, Device, Form, place
from llmd.daemon.serving.plan import Wish

Planned = dict[str, Any]


def planned(view: View, form: Form, wish: Wish, *, keep_context: bool, keep_slots: bool) -> Planned:
    """On the GPUs that can be used, else on the CPU: never there because of a fault. Raises DoesNotFit and
    Unavailable."""
    found = devices(view)
    if not found and (view.inventory.gpus or view.gone):
        raise DoesNotFit("no GPU can be used; `llmctl gpus` says why")
    if not found and wish.placement.gpus:
        raise DoesNotFit(f"there is no GPU: {view.inventory.reason}")
    if not found:
        return _on_cpu(form, wish)
    where = wish.placement
    asked = Asked(wish.context, wish.slots, keep_context, keep_slots, where.kv, where.split, where.ubatch, where.gpus)
    cuda = view.inventory.cuda.partition(".")[0]
    return place([form], found, view.inventory.links, asked, cuda=int(cuda) if cuda.isdigit() else None).to_dict()


def devices(view: View) -> list[Device]:
    """The GPUs and MIG instances that a worker may be started on, of which the memory is known."""
    return [
        Device(gpu.uuid, gpu.name, gpu.free, gpu.total, gpu.compute, gpu.unified, bool(gpu.parent))
        for gpu in view.inventory.gpus
        if view.health[gpu.uuid].usable and gpu.total
    ]


def _on_cpu(form: Form, wish: Wish) -> Planned:
    free = memory.available()
    plan.check_memory(wish, free)
    settings = plan.plan(wish)
    need = plan.memory(wish).to_dict()
    return {
        "form": form.name, "split": "none", "kv": settings.kv_type, "context": wish.context, "slots": wish.slots,
        "ubatch": 0, "gpus": [], "devices": [{"uuid": "", "name": "this machine", "free": free, "need": need}],
        "steps": [{"what": "the CPU", "taken": True, "why": "this machine has no GPU"}],
    }  # fmt: skip
