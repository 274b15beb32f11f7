"""What a sequence may use of the keys and values that others of its owner have, or have left. Pure; spaces ask.

Where the runner cuts prompts at fixed places (`ModelInfo.exact_block` says why), a sequence whose text is promised
shares only pieces that were read as it would read them itself.

A sequence waits, once, when a prompt of the same owner that is being read right now shares much more with it than
anybody holds yet: reading it twice would cost more than waiting for it.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from llmd.daemon.engine.prefixes import SHARE_MIN
from llmd.daemon.engine.types import ModelInfo, Sequence, last_cut


@dataclass(slots=True, eq=False)
class Held:
    """What the keys and values of one place stand for. `tokens` is a running sequence's own list while one runs."""

    tokens: list[int] = field(default_factory=list)
    key: tuple[str, ...] = ()  # whose they are: `Request.prefix_key`
    read: int = 0  # of what nobody uses: how many tokens were computed as a prompt's
    used: int = 0  # the tick at which it was left: least recently used goes first
    sequence: Sequence | None = None

    @property
    def computed(self) -> int:
        return self.sequence.computed if self.sequence else len(self.tokens)

    @property
    def as_prompt(self) -> int:
        """How many of its first tokens were computed as a prompt's."""
        return min(self.sequence.computed, self.sequence.read) if self.sequence else self.read

    @property
    def reading(self) -> bool:
        return self.sequence is not None and not self.sequence.prefilled

    def leave(self, sequence: Sequence, tick: int) -> None:
        """It has ended; what was computed stays."""
        self.tokens, self.read = sequence.tokens[: sequence.computed], self.as_prompt
        self.used, self.sequence = tick, None


class Sharing:
    """For one model."""

    def __init__(self, info: ModelInfo) -> None:
        self._can_trim, self._block = info.can_trim, info.exact_block

    def shared(self, held: Held, sequence: Sequence, common: int) -> int:
        """Tokens of a prompt that are held and can be reused, of those in common; the last is computed anew, for its
        logits."""
        exact = self._block and sequence.exact
        shared = min(common, held.as_prompt if exact else held.computed, len(sequence.tokens) - 1)
        if exact:
            shared = self._exact(shared, sequence)
        if not self._can_trim and shared < held.computed:
            return 0
        return shared

    def _exact(self, shared: int, sequence: Sequence) -> int:
        """The part of a shared prefix whose pieces are those that the sequence would read itself."""
        return min(shared - shared % self._block, last_cut(len(sequence.request.prompt), self._block))

    def waits(self, sequence: Sequence, found: Iterable[tuple[Held, int]], best: int) -> bool:
        """Whether it waits for a prompt that is being read; `found`: what is held in common, `best` what can be
        reused. It does so for one, and once: prompts that share a prefix may come one after the other for ever."""
        if sequence.awaits is not None or not self._can_trim:
            return False
        for held, common in found:
            soon = min(common, len(sequence.tokens) - 1)
            if self._block and sequence.exact:
                soon = self._exact(soon, sequence)
            if held.reading and soon >= best + SHARE_MIN:
                sequence.awaits = held.sequence
                return True
        return False

    def begin(self, held: Held, sequence: Sequence, source: Held, keep: int) -> None:
        """It lives there from now on, with `keep` tokens of `source`."""
        if self._block:
            # behind a part that was cut elsewhere nothing is as if read anew
            whole = keep <= source.as_prompt and keep % self._block == 0
            last = last_cut(len(sequence.request.prompt), self._block)
            sequence.read = last if whole else min(keep, source.as_prompt)
        held.tokens, held.key, held.sequence = sequence.tokens, sequence.request.prefix_key, sequence
