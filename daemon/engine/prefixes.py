"""Which slots hold how much of a prompt: an index over the beginnings of what they hold. Pure.

A slot's tokens are known by a hash of each of their beginnings of BLOCK, 2 * BLOCK, … tokens, seeded with whose they
are: prefixes are never shared across owners. A prompt's own hashes find, the longest beginning first, the slots that
hold most of it; few are looked at, however many there are. Whoever uses a slot compares the tokens themselves.
"""

from collections.abc import Hashable, Sequence
from itertools import islice

# a shared prefix shorter than this many tokens is read again rather than copied or waited for
SHARE_MIN = 32
BLOCK = SHARE_MIN
# slots that are looked at for one prompt
MAX_FOUND = 4


def common_prefix(a: list[int], b: list[int], limit: int, start: int = 0) -> int:
    """How many of the first `limit` tokens agree, where the first `start` do."""
    at = start
    while at < limit and a[at : at + 64] == b[at : at + 64]:
        at += 64
    while at < limit and a[at] == b[at]:
        at += 1
    return min(at, limit)


def beginnings(key: Hashable, tokens: Sequence[int]) -> tuple[int, ...]:
    """A hash of each beginning of whole blocks, the shortest first. `key`: `Request.prefix_key`."""
    found, last = [], hash(key)
    for end in range(BLOCK, len(tokens) + 1, BLOCK):
        last = hash((last, *tokens[end - BLOCK : end]))
        found.append(last)
    return tuple(found)


class Prefixes:
    """`put` whenever a slot's tokens are others than before; tokens that are only added at their end need none."""

    def __init__(self) -> None:
        # a beginning's hash to the slots that have it, newest last, each with its tokens
        self._slots: dict[int, dict[int, list[int]]] = {}
        self._hashes: dict[int, tuple[int, ...]] = {}  # of each slot

    def drop(self, slot: int) -> None:
        for old in self._hashes.pop(slot, ()):
            having = self._slots[old]
            del having[slot]
            if not having:
                del self._slots[old]

    def put(self, slot: int, hashes: tuple[int, ...], tokens: list[int]) -> None:
        """`hashes`: the `beginnings` of these tokens."""
        self.drop(slot)
        self._hashes[slot] = hashes
        for new in hashes:
            self._slots.setdefault(new, {})[slot] = tokens

    def find(self, hashes: tuple[int, ...], prompt: list[int]) -> dict[int, int]:
        """Slots, each with how many of its first tokens seem to be the prompt's, the most first. At most MAX_FOUND."""
        found: dict[int, int] = {}
        for at in range(len(hashes), 0, -1):
            for slot, tokens in islice(reversed(self._slots.get(hashes[at - 1], {}).items()), MAX_FOUND):
                if slot not in found:
                    found[slot] = common_prefix(tokens, prompt, min(len(tokens), len(prompt)), at * BLOCK)
                if len(found) == MAX_FOUND:
                    return found
        return found
