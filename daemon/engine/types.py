"""The nouns that the engine's parts share. All of them are plain values; a word says who sets a field."""

from collections import abc
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Protocol

from llmd.daemon.wire.work import SamplingWish

if TYPE_CHECKING:  # it needs libraries that not everything here needs
    from llmd.daemon.engine.answers.answering import Answering


def next_cut(at: int, length: int, block: int) -> int:
    """Where the piece that begins at `at` of a prompt of `length` tokens ends."""
    cut = at - at % block + block
    return length if length - cut < block else cut


def last_cut(length: int, block: int) -> int:
    """Where the last piece begins of a prompt of `length` tokens that is read from its start."""
    return max(0, (length // block - 1) * block)


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How a sequence's tokens are chosen and when it ends. The defaults are llama.cpp's."""

    max_tokens: int
    temperature: float = 0.8  # 0 is greedy
    top_k: int = 40  # 0: off
    top_p: float = 0.95
    min_p: float = 0.05
    seed: int | None = None  # None: drawn by the runner
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repeat_penalty: float = 1.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    logprobs: int | None = None  # None: none; n: the chosen token's and the n likeliest
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False

    @classmethod
    def of(cls, asked: SamplingWish, own: abc.Mapping[str, float]) -> "SamplingParams":
        """As it was asked for; what was not given is the model's own default, or the one above."""
        given = {f.name: value for f in fields(asked) if (value := getattr(asked, f.name)) is not None}
        return cls(**{**own, **given})


@dataclass(frozen=True, slots=True)
class Request:
    """One request as the scheduler gets it: `choices` sequences over one tokenized prompt."""

    id: int  # set by the daemon, unique in one worker
    owner: str  # whose prefixes it may share: the principal
    prompt: tuple[int, ...]
    params: SamplingParams
    choices: int = 1
    first: int = 0  # its first choice's number: a request of several prompts is one of these a prompt
    beginnings: tuple[int, ...] | None = None  # `prefixes.beginnings`, where whoever made it had the time
    answering: "Answering | None" = None  # what its answers are held to and read as; None: text
    adapter: str = ""  # what is computed with beside the model's own weights

    @property
    def prefix_key(self) -> tuple[str, ...]:
        """Prefixes are shared among requests that have the same one."""
        return (self.owner, self.adapter)


@dataclass(slots=True, eq=False)
class Sequence:
    """One running or waiting continuation. Its progress is its counters; the scheduler and its space alone change
    them."""

    request: Request
    choice: int
    tokens: list[int]  # prompt, then what was sampled
    computed: int = 0  # how many of `tokens` have their keys and values in the slot
    kept: int = 0  # how many were found there as it entered
    cached: int = 0  # as many, when nothing was generated yet
    read: int = 0  # how many of its first tokens are computed as any prompt's are, cut at the same places
    slot: int = -1  # -1: waiting
    arrived: int = 0  # its place in the order of arrival
    repeats: bool = False  # it lost its place: what it had said is computed again as it was the first time
    awaits: "Sequence | None" = None  # whose reading of a shared prefix it waits for, or has waited for
    beginnings: tuple[int, ...] = ()  # `prefixes.beginnings` of its prompt

    def start(self, slot: int, copy_from: int, keep: int) -> "Start":
        """It lives in that slot from now on, where `keep` of its tokens are computed already."""
        request = self.request
        said = tuple(self.tokens[len(request.prompt) :]) if len(self.tokens) > len(request.prompt) else ()
        self.slot, self.computed, self.kept = slot, keep, keep
        if not said:
            self.cached = keep
        # a prompt's text is the same alone and among others
        return Start(slot, copy_from, keep, request.params, request.prompt, self.choice - request.first, said)

    @property
    def exact(self) -> bool:
        """Whether its text is promised to be the same every time: it was given a seed, or is greedy."""
        return self.request.params.seed is not None or self.request.params.temperature == 0

    @property
    def generated(self) -> int:
        return len(self.tokens) - len(self.request.prompt)

    @property
    def prefilled(self) -> bool:
        return self.computed >= len(self.request.prompt)


@dataclass(frozen=True, slots=True)
class Start:
    """A sequence enters a slot: `copy_from` is the slot whose keys and values are copied first (-1: none), `keep` how
    many positions of what the slot then holds stay."""

    slot: int
    copy_from: int
    keep: int
    params: SamplingParams
    prompt: tuple[int, ...]
    choice: int
    generated: tuple[int, ...] = ()  # by a sequence that had lost its place: what is sampled next follows these


@dataclass(frozen=True, slots=True)
class Chunk:
    """Tokens of one slot to compute in this step, from position `start`; `sample`: the last one's logits are sampled.
    `last`: what is read in pieces ends with it, whether it is sampled or what follows is known already."""

    slot: int
    start: int
    tokens: list[int]
    sample: bool
    last: bool = False


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

    def enter(self, sequence: Sequence) -> Start | None:
        """A place for a waiting sequence, with `Sequence.start`; None: not now."""
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


@dataclass(slots=True)
class Plan:
    """One step. Starts are carried out before chunks, in order."""

    starts: list[Start] = field(default_factory=list)
    chunks: list[Chunk] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Logprob:
    """A token's natural-log probability under the model's own distribution (temperature 1), and its likeliest
    rivals."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Sample:
    """What the runner chose for a chunk with `sample`."""

    slot: int
    token: int
    logprob: Logprob | None = None


@dataclass(frozen=True, slots=True)
class Token:
    """A new token of a sequence, and how the sequence ended with it: `stop` (the token is no part of the text), `whole`
    (it is, and nothing may follow), `length` or None."""

    sequence: Sequence
    sample: Sample
    finish: str | None


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What a loaded model can do. Set by the runner."""

    vocab: int
    context: int  # tokens a slot
    slots: int
    eos: frozenset[int]  # tokens that end a text
    can_trim: bool  # False: recurrent state cannot be cut back to a prefix
    # prompts are read in pieces that end at multiples of this many tokens, the last one up to twice as long; 0:
    # anywhere. For a runner whose keys and values depend on how many tokens are computed together: a text stays the
    # same only if its prompt is always cut at the same places
    exact_block: int
    chat_template: str | None
    bos_text: str
    eos_text: str
    description: str
    parameters: int
    size: int  # bytes of weights
    # the most bytes of text that one token stands for, so that more text than `context` times this cannot fit; 0: a
    # tokenizer that may drop text, of which nothing can be said
    longest_token: int = 0
    tool_template: str | None = None  # for conversations with tools, where it is another one
    # the tokenizer puts a blank before a text: one that goes on after tokens must not have it
    space_prefix: bool = False
    samples: bool = True  # it gives tokens
    # `Runner.launch` returns while the device computes: what is done before `collect` costs no time
    overlaps: bool = False
    # what its file asks for where a request does not say, by the names of `SamplingParams`
    defaults: abc.Mapping[str, float] = field(default_factory=dict)


# of one slot: a bit a token of the vocabulary, the lowest first, in 32-bit words; without its bit a token is not
# sampled
Mask = abc.Sequence[int]
Masks = abc.Mapping[int, Mask]
NO_MASKS: Masks = {}


@dataclass(frozen=True, slots=True)
class Lexicon:
    """A vocabulary as grammars see it: each token's bytes, a control token's as its name; the tokens that end a text;
    and llama.cpp's vocabulary and its `llama_tokenize`, as addresses (0: there are none)."""

    pieces: abc.Sequence[bytes]
    control: frozenset[int]
    ends: frozenset[int]
    vocabulary: int = 0
    tokenize: int = 0

    def tokens(self) -> dict[str, int]:
        """The control tokens by their names."""
        return {self.pieces[token].decode(errors="replace"): token for token in sorted(self.control)}


class Runner(Protocol):
    """A model on its device. `launch`, `collect` and `close` are called by the engine thread alone; the rest by any
    thread. A step is one `launch`, then one `collect` that is read to its end; steps follow one another.

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

    info: ModelInfo
    threads: int

    def use(self, threads: int) -> None: ...
    def launch(self, plan: Plan) -> None: ...
    def collect(self, masks: Masks = NO_MASKS) -> abc.Iterator[list[Sample]]: ...
    def piece(self, token: int) -> bytes: ...
    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]: ...
    def detokenize(self, tokens: abc.Sequence[int]) -> str: ...
    def special_texts(self) -> abc.Sequence[str]: ...
    def lexicon(self) -> Lexicon: ...
    def close(self) -> None: ...
