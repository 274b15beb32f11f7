"""The nouns that the engine's parts share. All of them are plain values; a word says who sets a field."""

from collections import abc
from dataclasses import dataclass, field, fields
from typing import Any

from llmd.daemon.wire.work import SamplingWish


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
    adapter: str = ""  # what is computed with beside the model's own weights
    weight: float = 1.0  # its owner's, among others who wait for the same

    @property
    def prefix_key(self) -> tuple[str, ...]:
        """Prefixes are shared among requests that have the same one."""
        return (self.owner, self.adapter)


class Memo:
    """What a runner knows of how a sequence was sampled: it goes with the sequence from place to place, and ends with
    it."""

    __slots__ = ("__weakref__", "state")

    def __init__(self) -> None:
        self.state: Any = None  # the runner's own; None: nothing was sampled yet


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
    read: int = 0  # so many of its first tokens were computed as a prompt's: in pieces that end at the usual places
    slot: int = -1  # -1: waiting
    arrived: int = 0  # its place in the order of arrival
    repeats: bool = False  # it lost its place: what it had said is computed again as it was the first time
    awaits: "Sequence | None" = None  # whose reading of a shared prefix it waits for, or has waited for
    beginnings: tuple[int, ...] = ()  # `prefixes.beginnings` of its prompt
    memo: Memo = field(default_factory=Memo)

    def start(self, slot: int, copy_from: int, keep: int) -> "Start":
        """It lives in that slot from now on, where `keep` of its tokens are computed already."""
        request = self.request
        said = tuple(self.tokens[len(request.prompt) :]) if len(self.tokens) > len(request.prompt) else ()
        self.slot, self.computed, self.kept = slot, keep, keep
        if not said:
            self.cached = keep
        # a prompt's text is the same alone and among others
        choice = self.choice - request.first
        return Start(slot, copy_from, keep, request.params, request.prompt, choice, said, self.memo)

    @property
    def exact(self) -> bool:
        """Whether its text is promised to be the same every time: it was given a seed, or is greedy."""
        return self.request.params.seed is not None or self.request.params.temperature == 0

    @property
    def held_up(self) -> bool:
        """By the reading of a prefix that it will share."""
        return self.awaits is not None and self.awaits.slot >= 0 and not self.awaits.prefilled

    @property
    def generated(self) -> int:
        return len(self.tokens) - len(self.request.prompt)

    @property
    def prefilled(self) -> bool:
        return self.computed >= len(self.request.prompt)


@dataclass(frozen=True, slots=True)
class Start:
    """A sequence enters a slot: `copy_from` is the slot whose keys and values are copied first (-1: none), `keep` how
    many positions of what the slot then holds stay. Where it holds pages, `copy` is the one that is copied first, and
    the one that it is copied into."""

    slot: int
    copy_from: int
    keep: int
    params: SamplingParams
    prompt: tuple[int, ...]
    choice: int
    generated: tuple[int, ...] = ()  # by a sequence that had lost its place: what is sampled next follows these
    memo: Memo = field(default_factory=Memo)
    copy: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Chunk:
    """Tokens of one slot to compute in this step, from position `start`; `sample`: the last one's logits are sampled.
    `last`: what is read in pieces ends with it, whether it is sampled or what follows is known already."""

    slot: int
    start: int
    tokens: list[int]
    sample: bool
    last: bool = False


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
    description: str
    parameters: int
    size: int  # bytes of weights
    samples: bool = True  # it gives tokens
    # `Runner.launch` returns while the device computes: what is done before `collect` costs no time
    overlaps: bool = False


# of one slot: a bit a token of the vocabulary, the lowest first, in 32-bit words; without its bit a token is not
# sampled
Mask = abc.Sequence[int]
Masks = abc.Mapping[int, Mask]
NO_MASKS: Masks = {}


@dataclass(frozen=True, slots=True)
class Lexicon:
    """A vocabulary as grammars see it: each token's bytes, a control token's as its name; and the tokens that end a
    text. `tokenizer` makes of the marked bytes and the ends what the grammars' library tokenizes with, in code that
    needs no Python (masks are computed in threads); None: the longest tokens first."""

    pieces: abc.Sequence[bytes]
    control: frozenset[int]
    ends: frozenset[int]
    tokenizer: abc.Callable[[list[bytes], list[int]], Any] | None = None

    def tokens(self) -> dict[str, int]:
        """The control tokens by their names."""
        return {self.pieces[token].decode(errors="replace"): token for token in sorted(self.control)}
