"""What answers a request, `id` is its number in the worker:

    Generate      Started, then Text, Reasoning and ToolCalled as they come, and one Finished a choice
    Tokenize      Tokenized
    Detokenize    Detokenized
    Count         Counted

or, at any point, one Failed, after which nothing comes.
"""

from typing import TypeAlias

import msgspec

from llmd.daemon.wire.message import Message

LOGPROB_BYTES = 160  # a token with its log-probability, as an object


class Started(Message, frozen=True):
    """The prompts are read in and fit; they wait for slots or have them. `prompt_tokens` is of all together."""

    id: int
    prompt_tokens: int


class TokenLogprob(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A token's bytes and its natural-log probability under the model's own distribution (temperature 1)."""

    token: bytes
    logprob: float


class ChosenLogprob(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A token of the text, and the likeliest at its place."""

    chosen: TokenLogprob
    top: tuple[TokenLogprob, ...]


class Text(Message, frozen=True):
    """New text of one choice: whole characters, no part of a stop string."""

    id: int
    choice: int
    text: str
    tokens: int  # generated so far, those that show no text too
    cached: int  # of the prompt, found in a shared prefix
    logprobs: tuple[ChosenLogprob, ...] = ()  # of the tokens that this text shows, if they were asked for

    def weight(self) -> int:
        """About how many bytes it keeps in memory while nobody reads it."""
        if not self.logprobs:
            return len(self.text)
        return len(self.text) + sum(LOGPROB_BYTES * (1 + len(entry.top)) for entry in self.logprobs)


class Reasoning(Message, frozen=True):
    """New text of what one choice thinks before it answers. Counters as in Text."""

    id: int
    choice: int
    text: str
    tokens: int
    cached: int

    def weight(self) -> int:
        return len(self.text)


class ToolCalled(Message, frozen=True):
    """A call of a tool begins (`name` is given), or its arguments go on. `number`: which call it is of its choice, from
    0. Counters as in Text."""

    id: int
    choice: int
    number: int
    name: str
    arguments: str  # what is new of them
    tokens: int
    cached: int

    def weight(self) -> int:
        return len(self.arguments) + len(self.name)


class Finished(Message, frozen=True):
    """The end of one choice. `reasoning`: tokens that it thought with; `calls`: how many of its calls are whole.
    `stop`: the stop string or the token that ended it; None: its length did, or it is all that it is held to."""

    id: int
    choice: int
    reason: str  # `stop` or `length`
    tokens: int
    cached: int
    reasoning: int = 0
    calls: int = 0
    stop: str | int | None = None


class Failed(Message, frozen=True):
    """The end of a request that cannot be answered (further). `code` is one of `daemon/errors.py`."""

    id: int
    code: str
    message: str
    param: str | None = None


class Answered(Message, frozen=True):
    """The one event that answers work which samples nothing."""

    id: int


class Tokenized(Answered, frozen=True):
    tokens: tuple[int, ...]


class Detokenized(Answered, frozen=True):
    text: str


class Counted(Answered, frozen=True):
    """`tokens`: of each prompt."""

    tokens: tuple[int, ...]


Event: TypeAlias = Started | Text | Reasoning | ToolCalled | Finished | Failed | Tokenized | Detokenized | Counted


def moved(event: Event, by: int) -> Event:
    """An event of a part of a request as one of the whole, where its first choice has this number."""
    match event:
        case Text() | Reasoning() | ToolCalled() | Finished():
            if event.choice < 0:
                raise ValueError("there is no such choice")
            return msgspec.structs.replace(event, choice=event.choice + by)
    return event
