"""How what serves is shown to an admin: a deployment, its replicas, and a form that was made."""

from collections.abc import Callable
from typing import Any

from llmd.daemon.admin.doctor import rfc3339
from llmd.daemon.replicas.deployment import Deployment, Replica
from llmd.daemon.state.records import Form
from llmd.daemon.wire.control import Busy


def made_room(other: str, at: float) -> str:
    """What is said of a model that is away."""
    return f"made room for {other} at {rfc3339(at)}"


def made(form: Form) -> dict[str, Any]:
    """Of one that was made here: of what, and by which versions."""
    told = form.info.to_dict()
    return {"made": told["made"]} if "made" in told else {}


def deployed(d: Deployment, note: Callable[[tuple[str, int]], str]) -> dict[str, Any]:
    """A model and its replicas, each with what an admin should know of its plan (`note`); `slots`, `running`, `waiting`
    and `gpus` are of all that serve, `kv_used` is the fullest one's."""
    replicas = [_replica(d.model, one, note) for one in d.replicas]
    found: dict[str, Any] = {
        "model": d.model,
        "state": d.state,
        "reason": d.reason,
        "restarts": d.restarts,
        "digest": d.digest,
        "wanted_replicas": "auto" if d.auto else d.count,
        "replicas": replicas,
    }
    serving = [one for one in replicas if "slots" in one]
    if not serving:
        return found
    return {
        **found,
        **{name: serving[0][name] for name in ("pid", "context", "split", "kv")},
        **{name: sum(one[name] for one in serving) for name in ("slots", "running")},
        "waiting": d.queued + sum(one["waiting"] for one in serving),
        "gpus": [uuid for one in serving for uuid in one["gpus"]],
        "kv_used": max(one["kv_used"] for one in serving),
        "token_age": min(one["token_age"] for one in serving),
    }


def crowded(busy: Busy) -> str:
    """Where somebody else is in its way."""
    if not busy.running or busy.threads >= busy.share:
        return ""
    return f"computes on {busy.threads} of {busy.share} cores: others use them"


def _replica(model: str, one: Replica, note: Callable[[tuple[str, int]], str]) -> dict[str, Any]:
    found: dict[str, Any] = {
        "number": one.number,
        "state": one.life.state,
        "reason": one.leaves or one.reason,
        "note": note((model, one.number)),
    }
    if not one.serving:
        return found
    worker, info = one.serving
    busy, chosen = worker.busy, worker.settings
    return {
        **found, "note": "; ".join(filter(None, (found["note"], crowded(busy)))), "threads": busy.threads,
        "share": busy.share, "pid": worker.pid, "form": chosen.form, "context": info.context, "slots": info.slots,
        "running": busy.running, "waiting": busy.waiting, "gpus": list(chosen.gpus), "split": chosen.split,
        "kv": chosen.kv_type, "kv_used": round(busy.kv_used / info.positions, 4),
        "token_age": round(worker.token_age + worker.beat_age, 1), "confined": info.confined,
    }  # fmt: skip
