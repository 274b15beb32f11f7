"""Who is let in to a model: a count of what runs and waits, above its workers. The event loop owns it."""

from collections.abc import Callable
from dataclasses import dataclass

from llmd.daemon.errors import ModelNotReady, QueueFull
from llmd.daemon.identity.principal import Principal
from llmd.daemon.serving.ask import Ask

# how much one request's time counts in the usual time
SMOOTHING = 0.1


@dataclass(slots=True)
class _Model:
    inside: int = 0  # sequences that were let in and have not ended
    waiting: int = 0  # sequences that wait for a successor
    seconds: float = 1.0  # a request's usual time in a slot


class Place:
    """What one request holds. `leave` is called when its work ends, for whatever reason; more often does nothing."""

    __slots__ = ("_count", "_model", "_waits")

    def __init__(self, model: _Model, count: int, *, waits: bool = False) -> None:
        self._model, self._count, self._waits = model, 0, waits
        self._change(count)

    def leave(self) -> None:
        self._change(-self._count)

    def _change(self, by: int) -> None:
        self._count += by
        if self._waits:
            self._model.waiting += by
        else:
            self._model.inside += by


class Admission:
    """`queue` tells how many sequences may wait for a slot, a model; `slots` how many a model has. What is asked names
    its model."""

    def __init__(self, queue: Callable[[], int], slots: Callable[[str], int]) -> None:
        self._queue, self._slots = queue, slots
        self._models: dict[str, _Model] = {}

    def enter(self, principal: Principal, ask: Ask) -> Place:
        """Room for its sequences, or QueueFull with the time until there should be room:

        1. nothing else is inside, or all that is and these have a slot or wait within the queue's limit: let in;
        2. else refused: the queue is `waiting` long, and a slot serves one in the usual time.
        """
        model, count = ask.model or "", ask.work.sequences
        known, slots = self._models.setdefault(model, _Model()), self._slots(model)
        waiting = known.inside + count - slots
        if known.inside and waiting > self._queue():  # 2
            after = max(1, min(60, round(known.seconds * waiting / slots)))
            raise QueueFull(
                f"{model} has as many requests waiting as it takes; try again in {after} s", retry_after=after
            )
        return Place(known, count)  # 1

    def wait(self, principal: Principal, ask: Ask) -> Place:
        """Room to wait for a model whose settings change: it has no slots then. Raises ModelNotReady where what is
        inside and these are more than the queue takes."""
        model, count = ask.model or "", ask.work.sequences
        known = self._models.setdefault(model, _Model())
        if known.waiting + count > self._queue():
            raise ModelNotReady(f"{model} is being deployed anew; try again soon", retry_after=5)
        return Place(known, count, waits=True)

    def took(self, ask: Ask, seconds: float) -> None:
        """It has ended after this long in its slot."""
        known = self._models.get(ask.model or "")
        if known:
            known.seconds += SMOOTHING * (seconds - known.seconds)
