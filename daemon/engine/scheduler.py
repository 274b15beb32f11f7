"""Which tokens the next step computes. Pure: no threads, clock, ctypes or logging; the engine thread alone calls it.

One rule: computed tokens catch up with known tokens. A step holds

1. one token of every sequence that is one token behind: a generating one, or a prompt's last token;
2. then, in the order of arrival, pieces of the prompts that are further behind, until the step's token budget is used;
   the last piece may go over it. The budget is `batch`, but while anything generates `chunk`, so that a long prompt
   never stalls other streams; twice that when many prompts wait, because then first tokens are what most people wait
   for.

A waiting sequence gets a slot in this order:

1. a free slot that holds most of the longest prefix this owner may share (nothing is moved);
2. a free slot into which that prefix is copied from another slot, busy or not;
3. with no shared prefix: the free slot that keeps busy slots adjacent (llama.cpp computes adjacent slots in one pass,
   and each gap costs another), and of these the one longest unused.

It waits when a prompt of the same owner that is being read right now shares much more than any slot holds yet: reading
it twice would cost more than waiting for it.

The same seed and parameters give the same text, whatever was computed before or beside it: prompts are cut at fixed
places (`types.BLOCK` says why), and a request with a seed shares only pieces that were read so.

Every `add` is answered by exactly one end of each choice: a finish in `apply`, or `stop`, or `cancel`.
"""

from dataclasses import dataclass, field

from llmd.daemon.engine.types import (
    BLOCK,
    Chunk,
    ModelInfo,
    Plan,
    Request,
    Sample,
    Sequence,
    Start,
    Token,
    last_cut,
    next_cut,
)

# a shared prefix shorter than this many tokens is read again rather than copied or waited for
SHARE_MIN = 32
# this many prompts that wait for their first token get larger chunks
MANY_PROMPTS = 4


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


def common_prefix(a: list[int], b: list[int], limit: int) -> int:
    """How many of the first `limit` tokens agree."""
    at = 0
    while at < limit and a[at : at + 64] == b[at : at + 64]:
        at += 64
    while at < limit and a[at] == b[at]:
        at += 1
    return min(at, limit)


class Scheduler:
    """`batch`: tokens a step when nothing generates; `chunk`: prompt tokens a step when something does. A step's prompt
    tokens are less than one piece (two blocks) over that."""

    def __init__(self, info: ModelInfo, *, batch: int, chunk: int, block: int = BLOCK) -> None:
        self.info, self.block = info, block
        self.batch, self.chunk = batch, chunk
        self.slots = [Slot() for _ in range(info.slots)]
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []  # in the order of arrival
        self._tick = 0

    def add(self, request: Request) -> None:
        """Queue every choice of a request. Its prompt is not empty and shorter than the context."""
        self.waiting += [Sequence(request, choice, list(request.prompt)) for choice in range(request.choices)]

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
        if self.waiting:
            self._place_waiting(plan)
        behind: list[Sequence] = []
        for sequence in self.running:
            if len(sequence.tokens) - sequence.computed == 1:
                plan.chunks.append(Chunk(sequence.slot, sequence.computed, sequence.tokens[-1:], True))
            else:
                behind.append(sequence)
        for sequence in behind:
            budget = self._budget(len(behind)) - sum(len(c.tokens) for c in plan.chunks if len(c.tokens) > 1)
            if budget <= 0:
                break
            end = sequence.computed
            while end < len(sequence.tokens) and end - sequence.computed < budget:
                end = next_cut(end, len(sequence.tokens), self.block)
            tokens = sequence.tokens[sequence.computed : end]
            plan.chunks.append(Chunk(sequence.slot, sequence.computed, tokens, end == len(sequence.tokens)))
        for chunk in plan.chunks:
            computing = self.slots[chunk.slot].sequence
            assert computing is not None
            computing.computed = chunk.start + len(chunk.tokens)
        return plan

    def _budget(self, prompts: int) -> int:
        """How many prompt tokens this step may compute."""
        if not any(s.generated for s in self.running):
            return self.batch
        return min(self.batch, self.chunk * (2 if prompts + len(self.waiting) >= MANY_PROMPTS else 1))

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

    # --- slots

    def _place_waiting(self, plan: Plan) -> None:
        free = {i for i, slot in enumerate(self.slots) if slot.sequence is None}
        still = []
        for at, sequence in enumerate(self.waiting):
            if not free:
                still += self.waiting[at:]
                break
            start = self._place(sequence, free)
            if start is None:
                still.append(sequence)
            else:
                plan.starts.append(start)
                free.discard(start.slot)
        self.waiting = still

    def _place(self, sequence: Sequence, free: set[int]) -> Start | None:
        owner, prompt = sequence.request.owner, sequence.tokens
        held = {i: self._shared(slot, sequence) for i, slot in enumerate(self.slots) if slot.owner == owner}
        donor = max(held, key=lambda i: (held[i], i in free), default=-1)
        best = held.get(donor, 0)
        soon = self._will_share(owner, prompt)
        if (self._exact(soon, sequence) if sequence.exact else soon) >= best + SHARE_MIN:
            return None
        fits = [i for i in held if i in free and held[i] > 0 and 2 * held[i] >= len(self.slots[i].tokens)]
        here = max(fits, key=lambda i: held[i], default=-1)
        if here >= 0 and held[here] + SHARE_MIN > best:
            return self._start(sequence, here, -1, held[here])
        target = self._unshared_slot(free - {donor} or free)
        if target == donor:
            return self._start(sequence, donor, -1, best)
        if best >= SHARE_MIN:
            return self._start(sequence, target, donor, best)
        return self._start(sequence, target, -1, 0)

    def _shared(self, slot: Slot, sequence: Sequence) -> int:
        """Tokens of a prompt that a slot holds and that can be reused; the last is computed anew, for its logits."""
        limit = min(slot.as_prompt if sequence.exact else slot.computed, len(sequence.tokens) - 1)
        shared = common_prefix(slot.tokens, sequence.tokens, limit)
        if sequence.exact:
            shared = self._exact(shared, sequence)
        if not self.info.can_trim and shared < slot.computed:
            return 0
        return shared

    def _exact(self, shared: int, sequence: Sequence) -> int:
        """The part of a shared prefix whose pieces are those that the sequence would read itself."""
        return min(shared - shared % self.block, last_cut(len(sequence.tokens), self.block))

    def _will_share(self, owner: str, prompt: list[int]) -> int:
        reading = [s for s in self.running if s.request.owner == owner and not s.prefilled]
        if not self.info.can_trim:
            return 0
        return max((common_prefix(s.tokens, prompt, min(len(s.tokens), len(prompt) - 1)) for s in reading), default=0)

    def _unshared_slot(self, free: set[int]) -> int:
        busy = {i for i in range(len(self.slots)) if self.slots[i].sequence is not None}

        def gaps(i: int) -> int:
            return -((i - 1) in busy) - ((i + 1) in busy)

        return min(free, key=lambda i: (gaps(i), self.slots[i].used, i))

    def _start(self, sequence: Sequence, index: int, copy_from: int, keep: int) -> Start:
        slot, source = self.slots[index], self.slots[copy_from if copy_from >= 0 else index]
        # behind a part that was cut elsewhere nothing is as if read anew
        whole = keep <= source.as_prompt and keep % self.block == 0
        sequence.read = last_cut(len(sequence.request.prompt), self.block) if whole else min(keep, source.as_prompt)
        slot.tokens, slot.owner, slot.sequence = sequence.tokens, sequence.request.owner, sequence
        sequence.slot, sequence.computed, sequence.cached = index, keep, keep
        self.running.append(sequence)
        request = sequence.request
        return Start(index, copy_from, keep, request.params, request.prompt, sequence.choice)
