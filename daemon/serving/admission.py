"""Who begins when, of those who ask a model: pure. The event loop owns it, and a clock is given.

A request has parts, its prompts, and each of them sequences. What has not begun waits here, not in a worker, where only
what runs next is. One that comes is judged in this order:

1. A slot is free for it now: it begins.
2. Its client has so many requests, or prompt tokens, waiting that no more have room: QueueFull. There is room for the
   `queue` of the configuration, and for no more than all clients together have left of SHARED times as much: who comes
   finds as much as any of those who wait has taken.
3. It would not begin before its deadline, by how fast the model has been: WaitTooLong.
4. It waits.

Whenever one comes or something ends, parts begin as long as one of these holds:

1. There is a free slot, or room among the few that wait for the next one: the part of whoever has had the fewest tokens
   for its weight (`fair.py`).
2. An owner, in that order, would have a slot if all were dealt anew by weight, and has had no more tokens than who has
   most of them now: the worker takes one back (`engine/scheduler.py`).

An owner's own requests have turns too, a part each. Tokens are those computed: what a prompt has is estimated from its
bytes, what will be generated from what usually is, and both are corrected once they are known.
"""

from collections import Counter, defaultdict, deque
from collections.abc import Callable
from functools import partial
from heapq import nsmallest
from math import ceil, exp

from llmd.daemon.errors import QueueFull, WaitTooLong
from llmd.daemon.fair import Order
from llmd.daemon.replicas.deployment import Capacity
from llmd.daemon.serving.ask import Ask
from llmd.daemon.serving.queued import Load, Part, Place
from llmd.daemon.wire.work import TOKEN_BYTES, Work

SHARED = 16
# prompt tokens for which there is room, for each request of the queue
QUEUED_TOKENS = 4096
# how much one request's figures count in the usual ones
SMOOTHING = 0.1
USUAL_OUTPUT = 256.0  # tokens of a sequence, before any has ended
LOOKED_AT = 8  # owners that wait, of those who might have a slot back
SPEED_SECONDS = 60.0  # over which speed is measured
LONGEST_RETRY = 60  # seconds: clients that are told more come back when they like


class _Model:
    """The queue of one model."""

    def __init__(
        self,
        queue: Callable[[], int],
        capacity: Callable[[], Capacity | None],
        clock: Callable[[], float],
        tell: Callable[[int], None],
    ) -> None:
        self._queue, self._capacity, self._clock, self._tell = queue, capacity, clock, tell
        self._order = Order()
        self._waiting: dict[str, deque[Place]] = {}  # the next one first
        self._load: dict[str, Load] = {}  # of each owner
        self._all = Load()
        self._inside: Counter[str] = Counter()  # sequences
        self._weights: dict[str, float] = {}  # of owners with anything here
        self.coming = 0  # sequences that have begun and are in no worker yet
        self._given: defaultdict[str, float] = defaultdict(float)  # tokens, to requests that have begun
        self._begun: Counter[str] = Counter()  # so many requests
        self._bytes_per_token: float | None = None
        self._output: float | None = None  # tokens of a sequence
        self._done = self._took = 0.0  # tokens computed lately, and the seconds that this took
        self._since = 0.0

    # --- what comes

    def parts(self, work: Work) -> list[Part]:
        found = []
        for part in work.parts():
            prompt = part.size / (self._bytes_per_token or TOKEN_BYTES)
            each = min(self._usual_output, part.most_tokens / part.sequences)
            found.append(Part(part.sequences, part.size, prompt, 1 + prompt + part.sequences * each))
        return found

    def enter(self, place: Place, deadline: float | None) -> None:
        if not self._begins(place):  # 1
            wait = self._wait(place)
            self._check_room(place, wait)  # 2
            if deadline is not None and wait > deadline:  # 3
                raise WaitTooLong(
                    f"it would begin in about {ceil(wait)} s, and its deadline is {deadline:g} s; ask again later",
                    retry_after=_retry(wait - deadline),
                )
        self.hold(place)
        if place.owner not in self._waiting:
            self._waiting[place.owner] = deque()
            self._order.come(place.owner)
        self._waiting[place.owner].append(place)
        self.settle()

    def hold(self, place: Place) -> None:
        """It counts among those that wait."""
        place.queued = True
        load = self._load.setdefault(place.owner, Load())
        for one in (load, self._all):
            one.requests += 1
            one.add(list(place.parts))
        self._tell(self._all.sequences)
        self._weights[place.owner] = place.weight

    def room(self, place: Place) -> bool:
        """Whether it may be one of those that wait."""
        mine, queue = self._load.get(place.owner, Load()), self._queue()
        left = min(queue, SHARED * queue - self._all.requests) - self._ahead()
        most = QUEUED_TOKENS * queue
        tokens = min(most, SHARED * most - sum(min(most, one.prompt) for one in self._load.values()))
        held = mine.prompt + sum(part.prompt for part in place.parts)
        # the first one may be as long as a request can be
        return mine.requests < left and (held <= tokens if mine.requests else tokens > 0)

    def _check_room(self, place: Place, wait: float) -> None:
        if not self.room(place):
            # once half of what is before it has begun, there is room for as many
            raise QueueFull("as many requests wait for this model as it takes; ask again later",
                            retry_after=_retry(wait / 2))  # fmt: skip

    def _begins(self, place: Place) -> bool:
        capacity = self._capacity()
        if capacity is None:
            return True
        if not self._waiting and self._free(capacity) > 0:
            return True
        return place.owner not in self._waiting and self._takes(place.owner, place.weight, capacity)

    def _wait(self, place: Place) -> float:
        """Seconds until what comes now would begin: its owner's share of the model's speed is for what it has waiting
        already, and then a slot must become free."""
        if not self._took or not self._done:
            return 0.0
        weights = sum(self._weights.values()) + (0 if place.owner in self._weights else place.weight)
        mine = self._load.get(place.owner, Load()).tokens * weights / place.weight
        return (min(mine, self._all.tokens) + self._usual_output) * self._took / self._done

    @property
    def _usual_output(self) -> float:
        return USUAL_OUTPUT if self._output is None else self._output

    # --- what begins

    def settle(self) -> None:
        """Whatever can begin does."""
        while self._waiting and (owner := self._next()) is not None:
            self._begin(owner)

    def _free(self, capacity: Capacity) -> int:
        most = capacity.slots + min(capacity.ahead, self._queue())
        return most - capacity.taken - self.coming if capacity.slots else 0

    def _ahead(self) -> int:
        """Sequences that wait in processes for the next slot."""
        capacity = self._capacity()
        over = capacity.taken + self.coming - capacity.slots if capacity and capacity.slots else 0
        return max(0, min(over, capacity.ahead if capacity else 0))

    def _next(self) -> str | None:
        capacity = self._capacity()
        if capacity is None or self._free(capacity) > 0:  # 1
            return self._order.next(self._waiting)
        keeps = max(((n - 1) / self._weights[owner] for owner, n in self._inside.items()), default=0.0)
        if keeps <= 0:
            return None
        may = (owner for owner in self._waiting if (self._inside[owner] + 1) / self._weights[owner] <= keeps)
        first = nsmallest(LOOKED_AT, may, key=self._order.had)  # 2
        return next((owner for owner in first if self._takes(owner, self._weights[owner], capacity)), None)

    def _takes(self, owner: str, weight: float, capacity: Capacity) -> bool:
        """Whether an owner's next sequence would have a slot, were they dealt anew: the next one to who has least for
        its weight."""
        others = {name: n for name, n in self._inside.items() if name != owner}
        own = self._inside[owner] + 1
        level = own / weight + 1e-9
        kept = sum(min(n, int(self._weights[name] * level)) for name, n in others.items())
        if not others or own + kept > capacity.slots:
            return False
        most = max(others, key=lambda name: others[name] / self._weights[name])
        # what it has been given and not had yet is of no use to it, once it must give it back
        return self._order.had(owner) <= self._order.had(most) + self._given[most] / self._weights[most]

    def _begin(self, owner: str) -> None:
        queue = self._waiting[owner]
        place = queue.popleft()
        part = place.begin()
        if place.begun == 1:
            self._begun[owner] += 1
        if not self._inside:
            self._since = self._clock()
        self._inside[owner] += part.sequences
        self.coming += part.sequences
        if place.parts:
            queue.append(place)
            self._unload(place, [part])
        else:
            self._unqueue(place, [part])
        if not queue:
            del self._waiting[owner]
        self._order.took(owner, part.tokens, place.weight)
        self._given[owner] += part.tokens
        place.charged += part.tokens
        place.tell()

    # --- what ends

    def note_prompt(self, bytes_per_token: float) -> None:
        self._bytes_per_token = _smoothed(self._bytes_per_token, bytes_per_token)

    def charge(self, place: Place, tokens: float) -> None:
        self._order.correct(place.owner, tokens, place.weight)
        self._given[place.owner] += tokens
        place.charged += tokens

    def ended(self, place: Place, sequences: int) -> None:
        self._end(place, place.end(sequences))
        self.settle()

    def leave(self, place: Place, prompt: int, output: int) -> None:
        if place.begun:
            if prompt + output:  # what was not counted stays as it was estimated
                self.charge(place, prompt + output - place.charged)
                self._measure(prompt + output)
                self._output = _smoothed(self._output, output / place.sequences)
            self._given[place.owner] -= place.charged
            self._begun[place.owner] -= 1
            place.begun, place.charged = 0, 0.0
        self.drop(place)
        self._end(place, place.end())
        self.settle()

    def drop(self, place: Place) -> None:
        if place.queued:
            queue = self._waiting.get(place.owner, deque())
            if place in queue:
                queue.remove(place)
                if not queue:
                    del self._waiting[place.owner]
            self._unqueue(place, list(place.parts))
            place.parts.clear()
        gone = place.lose()
        self.coming -= gone
        self._end(place, gone)

    def _unqueue(self, place: Place, parts: list[Part]) -> None:
        """It is none of those that wait any more."""
        place.queued = False
        self._load[place.owner].requests -= 1
        self._all.requests -= 1
        self._unload(place, parts)
        if not self._all.requests:
            self._all = Load()  # sums of fractions
        self._forget(place.owner)

    def _unload(self, place: Place, parts: list[Part]) -> None:
        self._load[place.owner].add(parts, -1)
        self._all.add(parts, -1)
        self._tell(self._all.sequences)

    def _end(self, place: Place, sequences: int) -> None:
        self._inside[place.owner] -= sequences
        if not self._inside[place.owner]:
            del self._inside[place.owner]
        self._forget(place.owner)

    def _forget(self, owner: str) -> None:
        load = self._load.get(owner)
        if load and not load.requests:
            del self._load[owner]
        if not (self._load.get(owner) or self._inside[owner] or self._begun[owner]):
            self._weights.pop(owner, None)
            self._given.pop(owner, None)
            self._begun.pop(owner, None)

    def _measure(self, tokens: int) -> None:
        now = self._clock()
        seconds = max(0.0, now - self._since)
        fades = exp(-seconds / SPEED_SECONDS)
        self._done, self._took = self._done * fades + tokens, self._took * fades + seconds
        self._since = now


def _smoothed(usual: float | None, new: float) -> float:
    return new if usual is None else usual + SMOOTHING * (new - usual)


def _retry(seconds: float) -> int:
    return max(1, min(LONGEST_RETRY, ceil(seconds)))


class Admission:
    """`queue` tells how many requests of a client may wait, a model; `capacity` what a model's processes have, None
    where none will serve soon: whoever waits is let go on then, to be told so. `tell(model, sequences)`: so many
    wait."""

    def __init__(
        self,
        queue: Callable[[], int],
        capacity: Callable[[str], Capacity | None],
        clock: Callable[[], float],
        tell: Callable[[str, int], None] = lambda model, sequences: None,
    ) -> None:
        self._queue, self._capacity, self._clock, self._tell = queue, capacity, clock, tell
        self._models: dict[str, _Model] = {}

    def expects(self, ask: Ask) -> float:
        """Tokens that it will have."""
        parts = self._model(ask.model or "").parts(ask.work) if ask.work.most_tokens else []
        return sum(part.tokens for part in parts)

    def enter(self, owner: str, weight: float, ask: Ask) -> Place:
        """Raises QueueFull and WaitTooLong."""
        model = self._model(ask.model or "")
        place = Place(model, owner, weight, model.parts(ask.work))
        model.enter(place, ask.deadline)
        return place

    def hold(self, owner: str, weight: float, ask: Ask) -> Place | None:
        """Room to wait for the model itself; None: there is none. Nothing of it begins."""
        model = self._model(ask.model or "")
        place = Place(model, owner, weight, model.parts(ask.work))
        if not model.room(place):
            return None
        model.hold(place)
        return place

    def changed(self, model: str) -> None:
        """Its capacity has."""
        if model in self._models:
            self._models[model].settle()

    def _model(self, name: str) -> _Model:
        found = self._models.get(name)
        if found is None:
            found = self._models[name] = _Model(
                self._queue, partial(self._capacity, name), self._clock, partial(self._tell, name)
            )
        return found
