"""What follows from what a GPU reports: a pure table. Nothing here resets a GPU, and nothing moves work to the CPU.

Sources: NVIDIA's XID catalog ("Analyzing Xid Errors with the Xid Catalog", its buckets RESTART_APP, RESET_GPU and
RESTART_BM), "Dynamic Page Retirement" (48, 63, 64), and NVML's header for events and what a driver asks for.
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


XIDS: Final = {
    13: (Action.RESTART, "a program computed with a bad address"),
    31: (Action.RESTART, "a program used memory that is not its own"),
    43: (Action.RESTART, "a program's work was stopped by the driver"),
    45: (Action.RESTART, "a program's work was cut off"),
    48: (Action.DRAIN, "a memory error that could not be corrected"),
    63: (Action.NOTE, "a bad row of memory was replaced; the next reset completes it"),
    64: (Action.DRAIN, "a bad row of memory could not be replaced"),
    74: (Action.DRAIN, "an NVLink failed"),
    79: (Action.REMOVE, "the GPU has fallen off the bus"),
    94: (Action.RESTART, "a memory error that hit one program only"),
    95: (Action.DRAIN, "a memory error that may have hit every program"),
    109: (Action.DRAIN, "the GPU did not finish a switch between programs"),
    119: (Action.DRAIN, "the GPU's own processor (GSP) does not answer"),
    120: (Action.DRAIN, "the GPU's own processor (GSP) failed"),
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
        return f"{XIDS[event.code][1] if event.code in XIDS else UNKNOWN_XID} (XID {event.code})"
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
