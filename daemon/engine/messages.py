"""The messages between the daemon and its workers, and what they carry: msgspec structs, each with a tag.

To a worker: `Load` first, then `Open` and `Cancel`. From it: `Ready` or `Fatal`, then `Step` (one frame carries the
events of one engine step) and `Beat` (once a second). An opened request is answered by

    Generate      Started, then Text, Reasoning and ToolCalled as they come, and one Finished a choice
    Tokenize      Tokenized
    Detokenize    Detokenized

or, at any point, by one Failed, after which nothing comes. How they travel: `frames.py`.
"""

from dataclasses import dataclass
from typing import Any, TypeAlias

import msgspec

LOGPROB_BYTES = 160  # a token with its log-probability, as an object


class Message(msgspec.Struct, frozen=True, array_like=True, tag=True, gc=False):
    """A tagged value. `gc=False`: none of them can be part of a cycle, and there are many."""


# --- what to do


@dataclass(frozen=True, slots=True)
class Settings:
    """What a worker is started with. `runner` is `llama`, or `fake` with the fake's own arguments.

    It sees the GPUs in `gpus` and no other, in this order; none: it computes on the CPU.
    """

    path: str
    slots: int
    context: int  # tokens a slot
    batch: int
    chunk: int
    threads: int
    gpus: tuple[str, ...] = ()  # UUIDs, MIG instances' too
    split: str = "none"  # over several GPUs: `layer` or `tensor`
    kv_type: str = "f16"  # of keys and values: f16, q8_0, q4_0
    ubatch: int = 0  # most tokens the device computes in one pass; 0: 512
    form: str = ""  # which of the model's files it is, for people
    memory: int = 0  # bytes of the machine's memory that it may hold; 0: as many as there are
    syntax: str = ""  # how the model writes calls and thoughts, where an admin says so (`answers/detecting.py`)
    runner: str = "llama"
    fake: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How a sequence's tokens are chosen and when it ends. Set by the API, validated there, never changed."""

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
    # of the fields above those that were not given: a model's own defaults are used, where its file has any
    unset: tuple[str, ...] = ()


class ToolCall(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A tool that the model called: `arguments` are as it wrote them, JSON as a rule."""

    id: str
    name: str
    arguments: str


class ChatMessage(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One turn of a conversation. `role`: system, user, assistant or tool; `name`: of a speaker, or of the tool that
    answers the call `tool_call_id`."""

    role: str
    content: str | tuple[str, ...] | None  # several: parts of one text
    name: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    reasoning: str | None = None


class Tool(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A function that the model may call. `definition` is what its chat template shows (JSON, as the client wrote it),
    `parameters` the JSON schema of its arguments; `strict`: they are held to all of that, else to what of it can be."""

    name: str
    definition: str
    parameters: str
    strict: bool = False


class Chat(Message, frozen=True):
    """A prompt that the model's chat template renders; `reasoning_effort` is for those that look at it, as are
    `enable_thinking` and `arguments`, a JSON object or "", which the client gives it."""

    messages: tuple[ChatMessage, ...]
    reasoning_effort: str | None = None
    tools: tuple[Tool, ...] = ()
    enable_thinking: bool | None = None
    arguments: str = ""

    @property
    def thinks(self) -> bool | None:
        """What the model is told; None: nothing."""
        return self.enable_thinking if self.reasoning_effort is None else self.reasoning_effort != "none"


class RawText(Message, frozen=True):
    """A prompt as it is."""

    text: str


class Tokens(Message, frozen=True):
    """A prompt that is tokenized already."""

    tokens: tuple[int, ...]


Prompt: TypeAlias = Chat | RawText | Tokens


class Wanted(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What an answer to a chat is held to: a text that fits the JSON `schema` (None: any text), or calls of `tools`.
    `must_call`: nothing but calls; not `parallel`: one at most."""

    schema: str | None = None
    tools: tuple[Tool, ...] = ()
    must_call: bool = False
    parallel: bool = True


class Generate(Message, frozen=True):
    """Continue each prompt `choices` times: the first prompt's choices come first."""

    prompts: tuple[Prompt, ...]
    params: SamplingParams
    choices: int = 1
    wanted: Wanted | None = None  # of one chat

    @property
    def sequences(self) -> int:
        return len(self.prompts) * self.choices


class Tokenize(Message, frozen=True):
    """`special`: add the model's own first tokens, and read special tokens' text as such."""

    text: str
    special: bool = False


class Detokenize(Message, frozen=True):
    tokens: tuple[int, ...]


Work: TypeAlias = Generate | Tokenize | Detokenize


# --- to a worker


class Load(Message, frozen=True):
    settings: Settings


class Open(Message, frozen=True):
    """Begin a request. `id` is unique in the worker; `owner` is whose prompt prefixes it may share."""

    id: int
    owner: str
    work: Work


class Cancel(Message, frozen=True):
    """No event of this request follows what is on its way already."""

    id: int


ToWorker: TypeAlias = Load | Open | Cancel


# --- events


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
    """A call of a tool begins (`call` and `name` are given), or its arguments go on. `number`: which call it is of its
    choice, from 0. Counters as in Text."""

    id: int
    choice: int
    number: int
    call: str  # its identifier
    name: str
    arguments: str  # what is new of them
    tokens: int
    cached: int

    def weight(self) -> int:
        return len(self.arguments) + len(self.name)


class Finished(Message, frozen=True):
    """The end of one choice. `reasoning`: tokens that it thought with; `calls`: how many of its calls are whole."""

    id: int
    choice: int
    reason: str  # `stop`, `length` or `tool_calls`
    tokens: int
    cached: int
    reasoning: int = 0
    calls: int = 0


class Failed(Message, frozen=True):
    """The end of a request that cannot be answered (further). `code` is one of `daemon/errors.py`."""

    id: int
    code: str
    message: str
    param: str | None = None


class Tokenized(Message, frozen=True):
    id: int
    tokens: tuple[int, ...]


class Detokenized(Message, frozen=True):
    id: int
    text: str


Event: TypeAlias = Started | Text | Reasoning | ToolCalled | Finished | Failed | Tokenized | Detokenized


# --- from a worker


class Ready(Message, frozen=True):
    """The model is loaded."""

    context: int  # tokens a slot
    slots: int
    vocab: int
    parameters: int
    size: int  # bytes of weights
    description: str
    chat: bool  # it has a chat template
    confined: bool = False  # it reaches its model and its GPUs, and nothing else

    @property
    def positions(self) -> int:
        """Tokens that all slots hold."""
        return self.context * self.slots


class Fatal(Message, frozen=True):
    """The process ends; `code` is one of `daemon/errors.py`."""

    code: str
    message: str


class Busy(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """How busy an engine is."""

    running: int = 0
    waiting: int = 0
    kv_used: int = 0  # positions in use
    threads: int = 0  # that compute a step
    share: int = 0  # of the cores, dealt to it: more than `threads` where others use them


class Step(Message, frozen=True):
    """What one engine step made visible. `busy` is None where no step was made."""

    events: tuple[Event, ...]
    busy: Busy | None = None


class Beat(Message, frozen=True):
    """The process lives. Seconds: `step` since the running step began, 0 between steps; `token` since the last one."""

    step: float
    token: float


FromWorker: TypeAlias = Ready | Fatal | Step | Beat
