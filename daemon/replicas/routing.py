"""Which of a model's replicas answers a request: pure.

1. The one that took the longest beginning of this prompt before, of the same client (prefixes are not shared across
   clients): it need not read it again. Not where all its slots are taken while another replica has a free one.
2. Else the one with the fewest requests for each of its slots.

A prompt is known by a hash of each of its beginnings of BLOCK, 2 * BLOCK, … bytes.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

BLOCK = 512  # bytes; some hundred tokens, about as much as a worker begins to share
MOST = BLOCK * 256  # bytes of one prompt that are looked at
KEPT = 16_384  # beginnings of a deployment, the last ones used


@dataclass(frozen=True, slots=True)
class Candidate:
    """A replica that serves, with its requests and how many it answers at once."""

    number: int
    load: int
    slots: int

    @property
    def free(self) -> bool:
        return self.load < self.slots


class Router:
    """Of one deployment: it remembers who took what."""

    def __init__(self) -> None:
        self._taken: OrderedDict[bytes, int] = OrderedDict()  # a beginning's hash to a replica, the last used last

    def choose(self, candidates: Sequence[Candidate], owner: str, prompt: bytes) -> int:
        """One of the candidates, at least one, by its number. `prompt` may be empty: nothing is known of it."""
        if len(candidates) == 1:
            return candidates[0].number
        begins = beginnings(owner, prompt)
        found = self._before(begins, candidates)  # 1
        found = found or min(candidates, key=lambda c: (c.load / c.slots, c.number))  # 2
        self._keep(begins, found.number)
        return found.number

    def _before(self, begins: Sequence[bytes], candidates: Sequence[Candidate]) -> Candidate | None:
        by_number = {one.number: one for one in candidates}
        longest = (by_number[n] for b in reversed(begins) if (n := self._taken.get(b, -1)) in by_number)
        found = next(longest, None)
        if found and not found.free and any(one.free for one in candidates):
            return None
        return found

    def _keep(self, begins: Sequence[bytes], number: int) -> None:
        for begin in begins:
            self._taken[begin] = number
            self._taken.move_to_end(begin)
        while len(self._taken) > KEPT:
            self._taken.popitem(last=False)


def beginnings(owner: str, prompt: bytes) -> list[bytes]:
    """A hash of each beginning of whole blocks, the shortest first."""
    running, found = hashlib.blake2b(owner.encode() + b"\0", digest_size=16), []
    for end in range(BLOCK, min(len(prompt), MOST) + 1, BLOCK):
        running.update(prompt[end - BLOCK : end])
        found.append(running.digest())
    return found
