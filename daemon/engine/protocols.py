"""What the engine asks of its parts that come in several kinds: where sequences live, what texts are made of, and what
computes."""

from collections import abc
from typing import Protocol

from llmd.daemon.engine.types import NO_MASKS, Lexicon, Masks, ModelInfo, Plan, Sample, Sequence, Start


class Space(Protocol):
    """Where sequences live: what place each one has, what it shares with others, and what the runner must do for it.
    The scheduler asks, and decides what is computed; it knows no layout. The engine thread alone calls it.

    A place is a slot's number, by which the runner knows a sequence. Who came first is never refused for ever: it gets
    the places of those that came later, if there is no other.
    """

    bounded: bool  # who has a place may lack room in it, or lose it; else `room` need not be asked

    @property
    def used(self) -> int:
        """Positions that hold keys and values."""
        ...

    def open(self, *, enter: bool) -> None:
        """A step is planned from now on; `enter`: somebody waits for a place."""
        ...

    @property
    def full(self) -> bool:
        """Nobody else gets a place in this step."""
        ...

    def enter(self, sequence: Sequence) -> Start | None:
        """A place for a waiting sequence, with `Sequence.start`, where it is not full; None: not now."""
        ...

    def room(self, sequence: Sequence, end: int) -> list[Sequence] | None:
        """Room for a sequence's tokens up to `end`. None: not now. Else those who have lost their places for it: they
        wait again, and what they had is computed anew."""
        ...

    def leave(self, sequence: Sequence) -> None:
        """It has ended; what it had may stay, for others to share."""
        ...

    def at(self, slot: int) -> Sequence | None:
        """Who lives there."""
        ...


class Vocabulary(Protocol):
    """What a model's texts are made of, and what its file says of them. Any thread."""

    @property
    def longest(self) -> int:
        """The most bytes of text that one token stands for; 0: a tokenizer that may drop text, of which nothing can be
        said."""
        ...

    @property
    def bos_text(self) -> str:
        """Of the token that begins a text; "" where there is none."""
        ...

    @property
    def eos_text(self) -> str: ...

    @property
    def chat_template(self) -> str | None: ...

    @property
    def tool_template(self) -> str | None:
        """For conversations with tools, where it is another one."""
        ...

    @property
    def defaults(self) -> abc.Mapping[str, float]:
        """What is asked for where a request does not say, by the names of `SamplingParams`."""
        ...

    def piece(self, token: int) -> bytes:
        """The bytes of text that a token stands for; none for a control token."""
        ...

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        """A text from its beginning. `add_special`: with the token that begins texts; `parse_special`: names of control
        tokens are read as such. Raises LlmdError for what it cannot read."""
        ...

    def continued(self, text: str, *, parse_special: bool) -> list[int]:
        """A text that goes on after others: no blank is put before it, where the tokenizer does so to a text."""
        ...

    def detokenize(self, tokens: abc.Sequence[int]) -> str:
        """With the names of control tokens."""
        ...

    def special_texts(self) -> abc.Sequence[str]:
        """The names of the control tokens, longest first."""
        ...

    def lexicon(self) -> Lexicon:
        """As grammars see it."""
        ...


class Runner(Protocol):
    """A model on its device. The engine thread alone calls it. A step is one `launch`, then one `collect` that is read
    to its end; steps follow one another.

    1. `launch(plan)` carries out the plan's starts, in order, and begins to compute its chunks. Where `info.overlaps`,
       it returns while the device computes; a runner that computes on the caller's thread puts the work off to
       `collect`.
    2. Between the two the engine makes what was sampled before visible, takes in commands, and computes masks from the
       tokens that it has. Sequences may end meanwhile: what is computed for them is thrown away. Nothing is planned:
       a slot that becomes free is started anew by a later `launch` only.
    3. `collect(masks)` yields what it samples as it comes, part by part: a first token need not wait for the other
       prompts of its step, and while a part is looked at the device may compute the next. `masks` are by slot, of
       chunks with `sample`; a slot without one may sample any token. Every chunk with `sample` gives one Sample.

    It computes with `threads` threads at most, and before a `launch` is told how many it may `use`.

    `FakeRunner` holds engines to this.
    """

    @property
    def info(self) -> ModelInfo: ...
    @property
    def vocabulary(self) -> Vocabulary: ...
    @property
    def threads(self) -> int: ...
    @property
    def space(self) -> Space | None:
        """Where sequences live that it computes; None: in slots (`slots.py`)."""
        ...

    def use(self, threads: int) -> None: ...
    def launch(self, plan: Plan) -> None: ...
    def collect(self, masks: Masks = NO_MASKS) -> abc.Iterator[list[Sample]]: ...
    def close(self) -> None: ...
