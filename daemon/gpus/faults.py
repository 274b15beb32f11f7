"""What follows from what a GPU reports: a pure table. Nothing here resets a GPU, and nothing moves work to the CPU.

Sources: NVIDIA's XID catalog (docs.nvidia.com/deploy/xid-errors, as of October 2025), whose immediate action stands
with each XID, and NVML's header for the other events and for what a driver asks for.
"""

from enum import StrEnum
from typing import Final

from llmd.daemon.gpus.inventory import RECOVERY, Event


class Action(StrEnum):
    """What follows from an event; the later, the graver."""

    NOTE = "note"
    RESTART = "restart"
    DRAIN = "drain"
    REMOVE = "remove"


# what follows, the catalog's immediate action, and plain words
XIDS: Final = {
    8: (Action.RESTART, "RESTART_APP", "a program's work did not end"),
    11: (Action.RESTART, "RESTART_APP", "a program sent what is no work"),
    13: (Action.RESTART, "RESTART_APP", "a program computed with a bad address"),
    25: (Action.RESTART, "RESTART_APP", "a program sent work that is not allowed"),
    31: (Action.RESTART, "RESTART_APP", "a program used memory that is not its own"),
    32: (Action.RESTART, "RESTART_APP", "a program's work was damaged on its way"),
    37: (Action.NOTE, "IGNORE", "the driver's firmware met a mistake"),
    38: (Action.NOTE, "IGNORE", "the driver's firmware took too long"),
    39: (Action.RESTART, "RESTART_APP", "a program's copy failed"),
    40: (Action.RESTART, "RESTART_APP", "a program's copy failed"),
    41: (Action.RESTART, "RESTART_APP", "a program's copy failed"),
    # to be ignored by all but the program: a worker whose work was stopped does not go on
    43: (Action.RESTART, "IGNORE", "a program's work was stopped by the driver"),
    44: (Action.NOTE, "IGNORE", "a fault while programs changed places"),
    # alone, or as the consequence of another one
    45: (Action.RESTART, "WORKFLOW_XID_45", "a program's work was cut off"),
    46: (Action.DRAIN, "RESET_GPU", "the GPU stopped"),
    48: (Action.DRAIN, "WORKFLOW_XID_48", "a memory error that could not be corrected"),
    62: (Action.DRAIN, "RESET_GPU", "a processor inside the GPU halted"),
    63: (Action.NOTE, "IGNORE", "a bad row of memory was replaced; the next reset completes it"),
    64: (Action.DRAIN, "RESET_GPU", "a bad row of memory could not be replaced"),
    66: (Action.NOTE, "IGNORE", "the driver used what it may not"),
    67: (Action.NOTE, "IGNORE", "the driver used what it may not"),
    69: (Action.RESTART, "RESTART_APP", "a program asked for what the GPU cannot do"),
    74: (Action.DRAIN, "WORKFLOW_NVLINK_ERR", "an NVLink failed"),
    79: (Action.REMOVE, "RESTART_BM", "the GPU has fallen off the bus"),
    80: (Action.RESTART, "RESTART_APP", "a program's work was damaged on its way"),
    92: (Action.NOTE, "IGNORE", "many memory errors, all corrected"),
    93: (Action.NOTE, "IGNORE", "the GPU's own settings were written very often"),
    94: (Action.RESTART, "RESTART_APP", "a memory error that hit one program only"),
    95: (Action.DRAIN, "RESET_GPU", "a memory error that may have hit every program"),
    109: (Action.DRAIN, "RESET_GPU", "the GPU did not finish a switch between programs"),
    110: (Action.DRAIN, "RESET_GPU", "the GPU found a breach of security"),
    119: (Action.DRAIN, "RESET_GPU", "the GPU's own processor (GSP) does not answer"),
    120: (Action.DRAIN, "RESET_GPU", "the GPU's own processor (GSP) failed"),
    121: (Action.NOTE, "IGNORE", "an error on the link between GPU and CPU (C2C)"),
    136: (Action.DRAIN, "RESET_GPU", "a link could not be set up"),
    137: (Action.NOTE, "IGNORE", "an access over NVLink was refused"),
    140: (Action.DRAIN, "RESET_GPU", "a memory error that could not be corrected"),
    141: (Action.NOTE, "IGNORE", "an error that CUDA has been told of"),
    143: (Action.DRAIN, "RESET_GPU", "the GPU could not be set up"),
    155: (Action.DRAIN, "RESET_GPU", "an NVLink failed"),
    156: (Action.DRAIN, "RESET_GPU", "a part of the GPU was taken out of service; a reset completes it"),
    157: (Action.NOTE, "IGNORE", "a part of the GPU could not be taken out of service"),
    158: (Action.DRAIN, "RESET_GPU", "the GPU did not answer in time"),
}
UNKNOWN_XID: Final = "an error that llmd has no rule for"
THROTTLES: Final = {
    "hw_slowdown": "slowed down by the hardware: heat or power",
    "thermal_sw": "slowed down: too hot",
    "thermal_hw": "slowed down by the hardware: much too hot",
    "power_brake": "slowed down: the server's power supply asked for it",
}
# what a busy GPU does all day
LIMITED: Final = {"power_cap": "at its power limit", "sync_boost": "keeps the pace of a slower GPU"}


def action(event: Event, seen_before: bool) -> Action:
    """What an event asks for. `seen_before`: it happened on this device before, some time ago."""
    if event.kind in ("lost", "unavailable"):
        return Action.REMOVE
    if event.kind == "recovery":
        return Action.NOTE if event.code == RECOVERY.index("none") else Action.DRAIN
    if event.kind == "ecc" or event.code == 154:  # 154 without what the driver asks for: it asks for something
        return Action.DRAIN
    if event.code in XIDS:
        return XIDS[event.code][0]
    return Action.DRAIN if seen_before else Action.RESTART


def describe(event: Event) -> str:
    """The event in plain words."""
    if event.kind == "xid":
        return f"{XIDS[event.code][2] if event.code in XIDS else UNKNOWN_XID} (XID {event.code})"
    if event.kind == "recovery":
        wanted = RECOVERY[event.code] if 0 <= event.code < len(RECOVERY) else "something unknown"
        return (
            "the driver asks for nothing any more"
            if wanted == "none"
            else f"the driver asks for {wanted.replace('_', ' ')}"
        )
    return {
        "ecc": "a memory error that could not be corrected (ECC)",
        "unavailable": "the driver says that the GPU cannot be used",
        "lost": "the GPU is lost: the driver cannot reach it",
    }.get(event.kind, event.kind)
