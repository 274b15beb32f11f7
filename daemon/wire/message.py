"""What every message is."""

import msgspec


class Message(msgspec.Struct, frozen=True, array_like=True, tag=True, gc=False):
    """A tagged value. `gc=False`: none of them can be part of a cycle, and there are many."""
