"""What a request holds in the queue of a model: what of it waits, and what has begun. `admission.py` says when."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol


class Queue(Protocol):
    """The model's side."""

    coming: int

    def note_prompt(self, bytes_per_token: float) -> None: ...

    def charge(self, place: "Place", tokens: float) -> None: ...

    def ended(self, place: "Place", sequences: int) -> None: ...

    def drop(self, place: "Place") -> None: ...

    def leave(self, place: "Place", prompt: int, output: int) -> None: ...


@dataclass(frozen=True, slots=True)
class Part:
    """What begins at once: so many sequences over one prompt of so many bytes; tokens are estimated."""

    sequences: int
    size: int
    prompt: float
    tokens: float  # the prompt's and those that it will generate


@dataclass(slots=True)
class Load:
    """What waits."""

    requests: int = 0
    sequences: int = 0
    prompt: float = 0.0  # tokens
    tokens: float = 0.0

    def add(self, parts: list[Part], sign: int = 1) -> None:
        self.sequences += sign * sum(part.sequences for part in parts)
        self.prompt += sign * sum(part.prompt for part in parts)
        self.tokens += sign * sum(part.tokens for part in parts)


class Place:
    """What a request has here. `tell` is called when a part begins; `begun` says how many have."""

    __slots__ = (
        "_coming",
        "_counts",
        "_inside",
        "_model",
        "begun",
        "charged",
        "owner",
        "parts",
        "prompt_tokens",
        "prompts",
        "queued",
        "sequences",
        "tell",
        "weight",
    )

    def __init__(self, model: "Queue", owner: str, weight: float, parts: list[Part]) -> None:
        self._model, self.owner, self.weight, self.parts = model, owner, weight, deque(parts)
        self.queued = False  # it has parts that wait
        self.begun = self.sequences = 0  # parts, and what they have
        self.charged = 0.0  # tokens
        self.prompts = self.prompt_tokens = 0  # of those that have been counted
        self._coming: deque[int] = deque()  # sequences of parts that have begun and are in no worker yet
        self._counts: deque[Part] = deque()  # parts that have begun, whose prompt is estimated still
        self._inside = 0  # sequences that have begun and not ended
        self.tell: Callable[[], None] = lambda: None

    def opened(self) -> None:
        """A worker has the next of the parts that have begun."""
        self._model.coming -= self._coming.popleft()

    def counted(self, tokens: int) -> None:
        """A prompt of it has so many tokens."""
        part = self._counts.popleft()
        self.prompts += 1
        self.prompt_tokens += tokens
        self._model.charge(self, tokens - part.prompt)
        if part.size and tokens:
            self._model.note_prompt(part.size / tokens)

    def ended(self, sequences: int) -> None:
        """So many of its sequences have."""
        self._model.ended(self, sequences)

    def drop(self) -> None:
        """What of it is in no worker yet is not to begin any more."""
        self._model.drop(self)

    def leave(self, prompt: int = 0, output: int = 0) -> None:
        """Nothing of it runs or waits any more. For it so many tokens of prompts were read, and so many generated. More
        often it does nothing."""
        self._model.leave(self, prompt, output)

    # --- the model's

    def begin(self) -> Part:
        part = self.parts.popleft()
        self.begun += 1
        self.sequences += part.sequences
        self._inside += part.sequences
        self._coming.append(part.sequences)
        self._counts.append(part)
        return part

    def end(self, sequences: int | None = None) -> int:
        """How many have ended by that; None: all that is left."""
        ended = self._inside if sequences is None else min(sequences, self._inside)
        self._inside -= ended
        return ended

    def lose(self) -> int:
        """What has begun and is in no worker yet comes to none. How many sequences that are."""
        gone = sum(self._coming)
        self._coming.clear()
        self._inside -= gone
        return gone
