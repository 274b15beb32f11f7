"""Which tokens the next step computes. Pure: no threads, clock, ctypes or logging; the engine thread alone calls it.

One rule: computed tokens catch up with known tokens. A step holds

1. one token of every sequence that is one token behind: a generating one, or a prompt's last token;
2. then pieces of prompts, until the step's token budget is used; the last piece may go over it. The budget is `batch`,
   but while anything generates `chunk`, so that a long prompt never stalls other streams; `burst` when many prompts
   wait (times their number by eights), because then first tokens are what most people wait for.

Pieces are dealt round robin by owner, so that nobody's prompts hold up another's. Of one owner's turns, one goes to the
prompt with the least left to read and the next to the oldest: a short one is soon read behind a long one, and the long
one has half of its owner's turns whatever else comes.

A prompt that has no slot yet gets one when its turn to be read comes, in this order:

1. a free slot that holds most of the longest prefix this owner may share (nothing is moved);
2. a free slot into which that prefix is copied from another slot, busy or not;
3. with no shared prefix: the free slot that keeps busy slots adjacent (llama.cpp computes adjacent slots in one pass,
   and each gap costs another), and of these the one longest unused.

It waits, once, when a prompt of the same owner that is being read right now shares much more than any slot holds yet:
reading it twice would cost more than waiting for it. `prefixes.py` finds who holds what.

Where the runner cuts prompts at fixed places (`ModelInfo.exact_block` says why), the same seed and parameters give the
same text, whatever was computed before or beside it: a request with a seed shares only pieces that were read so.

Every `add` is answered by exactly one end of each choice: a finish in `apply`, or `stop`, or `cancel`.
"""

from dataclasses import dataclass, field

from llmd.daemon.engine.prefixes import SHARE_MIN, Prefixes, beginnings
from llmd.daemon.engine.types import Chunk, ModelInfo, Plan, Request, Sample, Sequence, Start, Token, last_cut, next_cut

# this many prompts that wait for their first token get larger chunks
MANY_PROMPTS = 4
# the most slots that change hands in one step, or an eighth of them: planning it stays a fraction of computing it
MAX_STARTS = 16
# a turn's tokens where the runner does not cut prompts itself; a prompt that is SHORT is one piece, as is what is left
# of another and LITTLE more: two passes cost more than a longer one
PIECE = 64
SHORT = 128
LITTLE = 16


@dataclass(slots=True)
class Slot:
    """What a slot's keys and values stand for. `tokens` is a running sequence's own list while one runs."""

    tokens: list[int] = field(default_factory=list)
    owner: str = ""
    read: int = 0  # of an idle slot: how many tokens were computed as a prompt's
    used: int = 0  # the tick of its last release: least recently used goes first
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


@dataclass(slots=True)
class Turns:
    """An owner's turns to have a piece read."""

    last: int = -1  # when the last one was: -1 is longest ago
    count: int = 0


class FreeSlots:
    """The free slots of one step, as they are taken."""

    def __init__(self, slots: list[Slot]) -> None:
        self._used = [slot.used for slot in slots]
        free = [i for i, slot in enumerate(slots) if slot.sequence is None]
        self._free = dict.fromkeys(sorted(free, key=lambda i: (self._used[i], i)))  # the longest unused first
        self._beside: dict[int, int] = {}  # those beside one or two busy slots
        for i, slot in enumerate(slots):
            if slot.sequence is not None:
                self._touch(i)

    def __contains__(self, i: int) -> bool:
        return i in self._free

    def __bool__(self) -> bool:
        return bool(self._free)

    def take(self, i: int) -> None:
        del self._free[i]
        self._beside.pop(i, None)
        self._touch(i)

    def best(self, avoided: int) -> int:
        """The one that keeps busy slots adjacent, and of these the one longest unused; `avoided` only if it is the
        last."""
        edge = [i for i in self._beside if i != avoided]
        if edge:
            return min(edge, key=lambda i: (-self._beside[i], self._used[i], i))
        return next((i for i in self._free if i != avoided), avoided)

    def _touch(self, busy: int) -> None:
        for i in (busy - 1, busy + 1):
            if i in self._free:
                self._beside[i] = self._beside.get(i, 0) + 1


class Scheduler:
    """`batch`: tokens a step when nothing generates; `chunk`: prompt tokens a step when something does, `burst` when
    many prompts wait (0: twice `chunk`). A step's prompt tokens are less than one piece (two blocks) over that."""

    def __init__(self, info: ModelInfo, *, batch: int, chunk: int, burst: int = 0) -> None:
        self.info, self.block = info, info.exact_block
        self.batch, self.chunk, self.burst = batch, chunk, burst
        self._max_starts = max(MAX_STARTS, info.slots // 8)
        self.slots = [Slot() for _ in range(info.slots)]
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []  # in the order of arrival
        self._prefixes = Prefixes()
        self._tick = 0  # of releases
        self._arrivals = 0
        self._turns: dict[str, Turns] = {}  # of the owners with prompts
        self._turn = 0

    def add(self, request: Request) -> None:
        """Queue every choice of a request. Its prompt is not empty and shorter than the context."""
        hashes = request.beginnings or beginnings(request.owner, request.prompt)
        for choice in range(request.choices):
            self._arrivals += 1
            tokens = list(request.prompt)
            self.waiting.append(
                Sequence(request, request.first + choice, tokens, arrived=self._arrivals, beginnings=hashes)
            )

    def cancel(self, request_id: int) -> list[Sequence]:
        """Take a request out, wherever its choices are. Returns those that had not ended."""
        gone = [s for s in self.waiting + self.running if s.request.id == request_id]
        for sequence in gone:
            self.stop(sequence)
        return gone

    def stop(self, sequence: Sequence) -> None:
        """End one sequence; its slot keeps what was computed for the next request that shares it."""
        if sequence.slot < 0:
            self.waiting.remove(sequence)
            return
        self.running.remove(sequence)
        slot = self.slots[sequence.slot]
        self._tick += 1
        slot.tokens, slot.read = sequence.tokens[: sequence.computed], slot.as_prompt
        slot.used, slot.sequence = self._tick, None
        self._prefixes.put(sequence.slot, beginnings(slot.owner, slot.tokens), slot.tokens)

    @property
    def busy(self) -> bool:
        return bool(self.running or self.waiting)

    @property
    def kv_used(self) -> int:
        """Positions that hold keys and values, of `slots * context`."""
        return sum(slot.computed for slot in self.slots)

    def plan(self) -> Plan:
        """The next step. What it computes counts as computed from here on: its samples are due before anything else
        changes."""
        plan = Plan()
        behind: list[Sequence] = []
        for sequence in self.running:
            if len(sequence.tokens) - sequence.computed == 1:
                plan.chunks.append(Chunk(sequence.slot, sequence.computed, sequence.tokens[-1:], True))
            else:
                behind.append(sequence)
        self._deal(plan, behind)
        for chunk in plan.chunks:
            computing = self.slots[chunk.slot].sequence
            assert computing is not None
            computing.computed = chunk.start + len(chunk.tokens)
        return plan

    def apply(self, plan: Plan, samples: list[Sample]) -> list[Token]:
        """Take in what a step sampled, all at once or part by part. Sequences that end by it leave their slots."""
        out = []
        for sample in samples:
            sequence = self.slots[sample.slot].sequence
            if sequence is None:
                continue
            sequence.tokens.append(sample.token)
            finish = self._finish(sequence, sample.token)
            if finish:
                self.stop(sequence)
            out.append(Token(sequence, sample, finish))
        return out

    def _finish(self, sequence: Sequence, token: int) -> str | None:
        params = sequence.request.params
        if token in self.info.eos and not params.ignore_eos:
            return "stop"
        if sequence.generated >= params.max_tokens or len(sequence.tokens) >= self.info.context:
            return "length"
        return None

    # --- prompts

    def _budget(self, prompts: int) -> int:
        """How many prompt tokens this step may compute."""
        if not any(s.generated for s in self.running):
            return self.batch
        if prompts < MANY_PROMPTS:
            return min(self.batch, self.chunk)
        # the more wait, the less it helps the others that streams go on smoothly
        return min(self.batch, self.burst * max(1, prompts // (2 * MANY_PROMPTS)) or 2 * self.chunk)

    def _deal(self, plan: Plan, behind: list[Sequence]) -> None:
        """Pieces to prompts, a piece an owner in turn, until the budget is used."""
        left = self._budget(len(behind) + len(self.waiting))
        queues = self._queues(behind)
        free = FreeSlots(self.slots if self.waiting else [])
        ends: dict[int, int] = {}  # slot to where what it reads in this step ends
        while left > 0 and queues:
            for owner, queue in list(queues.items()):
                turns = self._turns[owner]
                sequence = self._next(queue, turns.count % 2 == 1, plan, free)
                if sequence is None:
                    del queues[owner]
                    continue
                begin = ends.get(sequence.slot, sequence.computed)
                ends[sequence.slot] = end = self._cut(begin, len(sequence.tokens), left, begin == sequence.cached)
                self._turn += 1
                turns.last, turns.count, left = self._turn, turns.count + 1, left - (end - begin)
                if end == len(sequence.tokens):
                    queue.remove(sequence)
                if left <= 0:
                    break
        for slot, end in ends.items():
            reading = self.slots[slot].sequence
            assert reading is not None
            tokens = reading.tokens[reading.computed : end]
            plan.chunks.append(Chunk(slot, reading.computed, tokens, end == len(reading.tokens)))

    def _queues(self, behind: list[Sequence]) -> dict[str, list[Sequence]]:
        """The prompts of each owner, the shortest last; the owner whose turn is longest ago first."""
        queues: dict[str, list[Sequence]] = {}
        for sequence in (*behind, *self.waiting):
            queues.setdefault(sequence.request.owner, []).append(sequence)
        self._turns = {owner: self._turns.get(owner) or Turns() for owner in queues}
        for queue in queues.values():
            queue.sort(key=lambda s: (s.computed - len(s.tokens), -s.arrived))
        return dict(sorted(queues.items(), key=lambda item: self._turns[item[0]].last))

    def _next(self, queue: list[Sequence], oldest: bool, plan: Plan, free: FreeSlots) -> Sequence | None:
        """An owner's next prompt that has a slot or gets one; those that get none leave the queue, for this step."""
        while queue:
            sequence = min(queue, key=lambda s: s.arrived) if oldest else queue[-1]
            if sequence.slot >= 0:
                return sequence
            start = self._place(sequence, free) if free and len(plan.starts) < self._max_starts else None
            if start is not None:
                self.waiting.remove(sequence)
                plan.starts.append(start)
                free.take(start.slot)
                return sequence
            queue.remove(sequence)
        return None

    def _cut(self, at: int, length: int, left: int, first: bool) -> int:
        """Where the piece that begins at `at` ends."""
        if self.block:
            return next_cut(at, length, self.block)
        cut = at + min(PIECE, left)
        return length if length - cut < LITTLE or (first and length - at <= SHORT) else cut

    # --- slots

    def _place(self, sequence: Sequence, free: FreeSlots) -> Start | None:
        if sequence.awaits is not None and self._reads(sequence.awaits):
            return None
        found = self._prefixes.find(sequence.beginnings, sequence.tokens)
        held = {i: self._shared(self.slots[i], sequence, common) for i, common in found.items()}
        donor = max(held, key=lambda i: (held[i], i in free, -i), default=-1)
        best = held.get(donor, 0)
        if self._waits(sequence, found, best):
            return None
        fits = [i for i in held if i in free and held[i] > 0 and 2 * held[i] >= len(self.slots[i].tokens)]
        here = max(fits, key=lambda i: held[i], default=-1)
        if here >= 0 and held[here] + SHARE_MIN > best:
            return self._start(sequence, here, -1, held[here])
        target = free.best(donor)
        if target == donor:
            return self._start(sequence, donor, -1, best)
        if best >= SHARE_MIN:
            return self._start(sequence, target, donor, best)
        return self._start(sequence, target, -1, 0)

    def _shared(self, slot: Slot, sequence: Sequence, common: int) -> int:
        """Tokens of a prompt that a slot holds and that can be reused; the last is computed anew, for its logits."""
        exact = self.block and sequence.exact
        shared = min(common, slot.as_prompt if exact else slot.computed, len(sequence.tokens) - 1)
        if exact:
            shared = self._exact(shared, sequence)
        if not self.info.can_trim and shared < slot.computed:
            return 0
        return shared

    def _exact(self, shared: int, sequence: Sequence) -> int:
        """The part of a shared prefix whose pieces are those that the sequence would read itself."""
        return min(shared - shared % self.block, last_cut(len(sequence.tokens), self.block))

    def _waits(self, sequence: Sequence, found: dict[int, int], best: int) -> bool:
        """Whether it waits for a prompt that is being read. It does so for one, and once: prompts that share a prefix
        may come one after the other for ever."""
        if sequence.awaits is not None or not self.info.can_trim:
            return False
        for i, common in found.items():
            slot = self.slots[i]
            soon = min(common, len(sequence.tokens) - 1)
            if self.block and sequence.exact:
                soon = self._exact(soon, sequence)
            if slot.reading and soon >= best + SHARE_MIN:
                sequence.awaits = slot.sequence
                return True
        return False

    def _reads(self, reader: Sequence) -> bool:
        """Whether its prompt is being read still."""
        return self.slots[reader.slot].sequence is reader and not reader.prefilled

    def _start(self, sequence: Sequence, index: int, copy_from: int, keep: int) -> Start:
        slot, source = self.slots[index], self.slots[copy_from if copy_from >= 0 else index]
        if source.tokens[:keep] != sequence.tokens[:keep]:
            copy_from, keep = -1, 0  # two beginnings with one hash
        if self.block:
            # behind a part that was cut elsewhere nothing is as if read anew
            whole = keep <= source.as_prompt and keep % self.block == 0
            last = last_cut(len(sequence.request.prompt), self.block)
            sequence.read = last if whole else min(keep, source.as_prompt)
        slot.tokens, slot.owner, slot.sequence = sequence.tokens, sequence.request.owner, sequence
        sequence.slot, sequence.computed, sequence.cached = index, keep, keep
        self._prefixes.put(index, sequence.beginnings, slot.tokens)
        self.running.append(sequence)
        request = sequence.request
        # a prompt's text is the same alone and among others
        choice = sequence.choice - request.first
        return Start(index, copy_from, keep, request.params, request.prompt, choice)
