"""Which tokens the next step computes. Pure: no threads, clock, ctypes or logging; the engine thread alone calls it.

One rule: computed tokens catch up with known tokens. A step holds

1. one token of every sequence that is one token behind: a generating one, or a prompt's last token;
2. then pieces of prompts, until the step's token budget is used; the last piece may go over it. The budget is `batch`,
   but while anything generates `chunk`, so that a long prompt never stalls other streams; `burst` when many prompts
   wait (times their number by eights), because then first tokens are what most people wait for.

Pieces are dealt to whoever has had the least for its weight (`fair.py`), so that nobody's prompts hold up another's. Of
one owner's turns, one goes to the prompt with the least left to read and the next to the oldest: a short one is soon
read behind a long one, and the long one has half of its owner's turns whatever else comes.

Slots are shared by weight too. Who is alone may have them all; where they are taken and an owner waits that would have
no more than its share with one more, an owner that has no less than its own with one less gives one back: its sequence
that has said the least waits again. Where both would have as many then, that is PATIENCE steps later: one may become
free by itself, and what is taken back is computed twice.

Where a sequence lives is the space's to say (`Space` in `protocols.py`; `slots.py` is llama.cpp's): a prompt gets a
place when its turn to be read comes. One that loses its place, be it to the space, waits again, and reads what it had
said anew, before it goes on where it was.

Where the runner cuts prompts at fixed places (`ModelInfo.exact_block` says why), the same seed and parameters give the
same text, whatever was computed before or beside it: what a sequence with a seed had said is computed again a token a
step, as it was the first time.

Every `add` is answered by exactly one end of each choice: a finish in `apply`, or `stop`, or `cancel`.
"""

from collections import Counter
from operator import attrgetter

from llmd.daemon.engine.prefixes import beginnings
from llmd.daemon.engine.protocols import Space
from llmd.daemon.engine.slots import MAX_STARTS, Slots
from llmd.daemon.engine.types import Chunk, ModelInfo, Plan, Request, Sample, Sequence, Start, Token, next_cut
from llmd.daemon.fair import Order

# this many prompts that wait for their first token get larger chunks
MANY_PROMPTS = 4
# a turn's tokens where the runner does not cut prompts itself; a prompt that is SHORT is one piece, as is what is left
# of another and LITTLE more: two passes cost more than a longer one
PIECE = 64
SHORT = 128
LITTLE = 16
# steps that an owner waits before it takes a slot from one that would have as many as it then
PATIENCE = 16

_arrived = attrgetter("arrived")


class Scheduler:
    """`batch`: tokens a step when nothing generates; `chunk`: prompt tokens a step when something does, `burst` when
    many prompts wait (0: twice `chunk`). A step's prompt tokens are less than one piece (two blocks) over that."""

    def __init__(self, info: ModelInfo, *, batch: int, chunk: int, burst: int = 0, space: Space | None = None) -> None:
        self.info, self.block = info, info.exact_block
        self.batch, self.chunk, self.burst = batch, chunk, burst
        self.space: Space = space or Slots(info)
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []  # in the order in which they entered
        self._arrivals = 0
        self.moves = 0  # of sequences, into places and out of them
        self._turns: dict[str, int] = {}  # that each owner with prompts has had
        self._order = Order()
        # of the step: who enters, and to where each one is read
        self._starts: dict[Sequence, Start] = {}
        self._ends: dict[Sequence, int] = {}
        self._lost: set[Sequence] = set()  # of the step: whose place was taken away
        self._short: Counter[str] = Counter()  # steps in which an owner has waited for no more than its share
        self._may_enter: Counter[str] | None = None  # of the step: how many of each owner; None: all

    def add(self, request: Request) -> None:
        """Queue every choice of a request. Its prompt is not empty and shorter than the context."""
        hashes = request.beginnings or beginnings(request.prefix_key, request.prompt)
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
        """End one sequence."""
        if sequence.slot < 0:
            self.waiting.remove(sequence)
            return
        self.moves += 1
        self.running.remove(sequence)
        self.space.leave(sequence)

    @property
    def reads(self) -> bool:
        """The step that was planned last computes tokens of prompts."""
        return bool(self._ends)

    @property
    def busy(self) -> bool:
        return bool(self.running or self.waiting)

    @property
    def kv_used(self) -> int:
        """Positions that hold keys and values, of `slots * context`."""
        return self.space.used

    def plan(self) -> Plan:
        """The next step. What it computes counts as computed from here on: its samples are due before anything else
        changes."""
        self._starts, self._ends, self._lost = {}, {}, set()
        space = self.space
        self._share()
        space.open(enter=bool(self.waiting))
        single: list[Sequence] = []
        behind: list[Sequence] = []
        for sequence in list(self.running) if space.bounded else self.running:
            if len(sequence.tokens) - sequence.computed != 1 and not (sequence.repeats and sequence.prefilled):
                behind.append(sequence)
            elif not space.bounded or self._room(sequence, sequence.computed + 1):
                single.append(sequence)  # 1
        self._deal([one for one in behind if one not in self._lost] if self._lost else behind)  # 2
        plan = Plan(list(self._starts.values()))
        for sequence in [one for one in single if one not in self._lost] if self._lost else single:
            at, sample = sequence.computed, not sequence.repeats or len(sequence.tokens) - sequence.computed == 1
            plan.chunks.append(Chunk(sequence.slot, at, sequence.tokens[at : at + 1], sample))
            sequence.computed = at + 1
        for sequence, end in self._ends.items():
            at, sample = sequence.computed, end == len(sequence.tokens)
            plan.chunks.append(Chunk(sequence.slot, at, sequence.tokens[at:end], sample, end == whole(sequence)))
            sequence.computed = end
        return plan

    def apply(self, plan: Plan, samples: list[Sample]) -> list[Token]:
        """Take in what a step sampled, all at once or part by part. Sequences that end by it leave their slots."""
        out = []
        for sample in samples:
            sequence = self.space.at(sample.slot)
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

    # --- places

    def _room(self, sequence: Sequence, end: int) -> bool:
        """Whether its tokens up to `end` have a place now. Others may lose theirs for it."""
        if sequence in self._lost:
            return False
        lost = self.space.room(sequence, end)
        for other in lost or ():
            self._starts.pop(other, None)
            self._ends.pop(other, None)
            self._lost.add(other)
            self._wait_again(other)
        return lost is not None

    def _wait_again(self, sequence: Sequence) -> None:
        """It has lost its place."""
        self.moves += 1
        self.running.remove(sequence)
        sequence.slot, sequence.computed = -1, 0
        sequence.repeats = bool(self.block) and sequence.exact  # its text is promised
        self.waiting.append(sequence)

    def _share(self) -> None:
        """Where not all who wait can enter: how many of each owner may. Who came first does, unless it would have to
        give the slot back at once; and where every slot is taken, who has more than its share gives to who has less."""
        self._may_enter = None
        free = self.info.slots - len(self.running)
        if len(self.waiting) <= free:
            self._short.clear()
            return
        weights = {s.request.owner: s.request.weight for s in (*self.running, *self.waiting)}
        have = Counter(s.request.owner for s in self.running)
        want: dict[str, list[int]] = {}
        for sequence in sorted(self.waiting, key=_arrived, reverse=True):
            if not sequence.held_up:
                want.setdefault(sequence.request.owner, []).append(sequence.arrived)
        may: Counter[str] = Counter()
        short: Counter[str] = Counter()
        while want and may.total() < MAX_STARTS + free:
            least = min(want, key=lambda owner: (have[owner] + 1) / weights[owner])
            level = (have[least] + 1) / weights[least]
            if may.total() < free:
                new = min((o for o in want if have[o] / weights[o] < level), key=lambda o: want[o][-1])
            elif self._take_back(least, level, have, weights):
                new = least
            else:
                short[least] = self._short[least] + 1
                break
            have[new] += 1
            may[new] += 1
            want[new].pop()
            if not want[new]:
                del want[new]
        self._may_enter, self._short = may, short

    def _take_back(self, owner: str, level: float, have: Counter[str], weights: dict[str, float]) -> bool:
        """Whether somebody has no less than its share without one of its slots: it waits again, for this owner."""
        most = max(have, key=lambda name: (have[name] - 1) / weights[name])
        keeps = (have[most] - 1) / weights[most]
        if most == owner or keeps < level:
            return False
        if keeps == level and self._short[owner] < PATIENCE:
            return False
        last = min((s for s in self.running if s.request.owner == most), key=lambda s: (s.generated, -s.arrived))
        self.space.leave(last)
        self._wait_again(last)
        have[most] -= 1
        return True

    # --- prompts

    def _budget(self, prompts: int) -> int:
        """How many prompt tokens this step may compute."""
        if not any(s.generated for s in self.running):
            return self.batch
        if prompts < MANY_PROMPTS:
            return min(self.batch, self.chunk)
        # the more wait, the less it helps the others that streams go on smoothly
        return min(self.batch, self.burst * max(1, prompts // (2 * MANY_PROMPTS)) or 2 * self.chunk)

    def _deal(self, behind: list[Sequence]) -> None:
        """Pieces to prompts, each to the owner that has had the least, until the budget is used."""
        left = self._budget(len(behind) + len(self.waiting))
        queues = self._queues(behind)
        ends, bounded = self._ends, self.space.bounded
        while left > 0 and queues:
            owner = self._order.next(queues)
            queue = queues[owner]
            sequence = self._next(queue, self._turns[owner] % 2 == 1)
            if sequence is None:
                del queues[owner]
                continue
            begin, length = ends.get(sequence, sequence.computed), whole(sequence)
            end = self._cut(begin, length, left, begin == sequence.kept)
            if bounded and not self._room(sequence, end):
                queue.remove(sequence)
                continue
            ends[sequence] = end
            self._turns[owner] += 1
            self._order.took(owner, end - begin, sequence.request.weight)
            left -= end - begin
            if end == length:
                queue.remove(sequence)

    def _queues(self, behind: list[Sequence]) -> dict[str, list[Sequence]]:
        """The prompts of each owner, the shortest last."""
        queues: dict[str, list[Sequence]] = {}
        for sequence in (*behind, *self.waiting):
            queues.setdefault(sequence.request.owner, []).append(sequence)
        for owner in queues.keys() - self._turns.keys():
            self._order.come(owner)
        self._turns = {owner: self._turns.get(owner, 0) for owner in queues}
        for queue in queues.values():
            queue.sort(key=lambda s: (s.computed - len(s.tokens), -s.arrived))
        return queues

    def _next(self, queue: list[Sequence], oldest: bool) -> Sequence | None:
        """An owner's next prompt that has a place or gets one; those that get none leave the queue, for this step."""
        while queue:
            sequence = min(queue, key=_arrived) if oldest else queue[-1]
            if sequence.slot >= 0:
                return sequence
            if self.space.full or not self._may(sequence):
                queue[:] = [one for one in queue if one.slot >= 0]
                continue
            start = None if sequence in self._lost else self.space.enter(sequence)
            if start is not None:
                self.waiting.remove(sequence)
                self.moves += 1
                self.running.append(sequence)
                self._starts[sequence] = start
                if self._may_enter is not None:
                    self._may_enter[sequence.request.owner] -= 1
                return sequence
            queue.remove(sequence)
        return None

    def _may(self, sequence: Sequence) -> bool:
        return self._may_enter is None or self._may_enter[sequence.request.owner] > 0

    def _cut(self, at: int, length: int, left: int, first: bool) -> int:
        """Where the piece that begins at `at` ends."""
        if self.block:
            return next_cut(at, length, self.block)
        cut = at + min(PIECE, left)
        return length if length - cut < LITTLE or (first and length - at <= SHORT) else cut


def whole(sequence: Sequence) -> int:
    """Up to where it is read in pieces."""
    return len(sequence.request.prompt if sequence.repeats else sequence.tokens)
