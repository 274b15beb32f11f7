"""What the routes take: pydantic models, strict, every field bounded. Nothing is validated again after them.

Every field that OpenAI documents is known here: what asks for nothing that llmd cannot do is taken, and what llmd
cannot do is refused by name, as is a field of another engine (`grammar_file`, `n_discard`, …).
"""

import abc
from collections.abc import Sequence
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import Field

from llmd.api.http.body import Body, Fields, few
from llmd.api.openai.given import given_template
from llmd.api.openai.messages import Message, Name, Text
from llmd.api.openai.wanted import ResponseFormat, ToolChoice, ToolDefinition, chosen
from llmd.daemon import limits
from llmd.daemon.errors import BadRequest
from llmd.daemon.serving.tools import Choice
from llmd.daemon.wire import work as wire
from llmd.daemon.wire.work import Prompt, RawText, SamplingWish, Tokens

# OpenAI's own
COMPLETION_TOKENS = 16

_Stop = Annotated[str, Field(max_length=limits.MAX_STOP_CHARS)]
_Token = Annotated[int, Field(ge=0, le=2**31 - 1)]
_Tokens = Annotated[list[_Token], Field(fail_fast=True, min_length=1, max_length=limits.MAX_JSON_NODES)]
_Several = Field(fail_fast=True, min_length=1, max_length=limits.MAX_PROMPTS)
# -1: until the context is full
_Limit = Annotated[int, Field(ge=-1, le=limits.MAX_TOKENS)]
# one spelling a number: "5" and "05" would be two biases of one token
_Bias = Annotated[
    dict[Annotated[str, Field(pattern=r"^(0|[1-9][0-9]{0,9})$")], Annotated[float, Field(ge=-100, le=100)]],
    Field(max_length=limits.MAX_LOGIT_BIAS),
    few(limits.MAX_LOGIT_BIAS),
]
_Label = Annotated[str, Field(max_length=limits.MAX_LABEL_CHARS)]
_Labels = Annotated[
    dict[Annotated[str, Field(max_length=limits.MAX_LABEL_KEY_CHARS)], _Label],
    Field(max_length=limits.MAX_LABELS),
    few(limits.MAX_LABELS),
]


class StreamOptions(Body):
    """`continuous_usage_stats`: usage in each event, as load generators ask for it."""

    include_usage: bool | None = False
    continuous_usage_stats: bool | None = False
    include_obfuscation: bool | None = None  # accepted, without effect


class Generation(Body, abc.ABC):
    """What chat and plain completions share."""

    model: Annotated[str, Field(min_length=1, max_length=256)] | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=1_000_000)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    n: Annotated[int, Field(ge=1, le=limits.MAX_CHOICES)] | None = 1
    stop: _Stop | Annotated[list[_Stop], Field(fail_fast=True, max_length=limits.MAX_STOP_STRINGS)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    repeat_penalty: Annotated[float, Field(gt=0, le=10)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] | None = None  # how other engines call it
    logit_bias: _Bias | None = None
    ignore_eos: bool | None = False
    user: _Label | None = None  # accepted, without effect

    @abc.abstractmethod
    def limit(self) -> int | None:
        """The most tokens to generate; None or -1: until the context is full."""

    @abc.abstractmethod
    def wanted_logprobs(self) -> int | None:
        """How many likeliest tokens to show beside the chosen one; None: no log-probabilities."""

    @abc.abstractmethod
    def prompts(self) -> Sequence[Prompt]:
        """What to continue. Raises BadRequest for what no model here can do."""

    def wanted(self) -> wire.Wanted | None:
        """What the answer is held to; None: any text. Raises BadRequest."""
        return None

    def params(self) -> SamplingWish:
        """The engine's parameters; what was not given has the model's own defaults, or llama.cpp's."""
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        given: dict[str, Any] = {
            # of no share of the tokens the likeliest is left
            "temperature": 0.0 if self.top_p == 0 else self.temperature, "top_p": self.top_p, "min_p": self.min_p,
            "top_k": None if self.top_k is None else max(0, self.top_k),
            "presence_penalty": self.presence_penalty, "frequency_penalty": self.frequency_penalty,
            "repeat_penalty": self._repeat_penalty(), "ignore_eos": bool(self.ignore_eos),
            # OpenAI takes any 64-bit seed, llama.cpp 32 bits
            "seed": None if self.seed is None else (self.seed ^ (self.seed >> 32)) & 0xFFFFFFFF,
        }  # fmt: skip
        return SamplingWish(
            max_tokens=self._max_tokens(),
            stop=tuple(filter(None, stop)),
            logprobs=self.wanted_logprobs(),
            logit_bias=tuple((int(t), b) for t, b in (self.logit_bias or {}).items()),
            **given,
        )

    def _repeat_penalty(self) -> float | None:
        one, other = self.repeat_penalty, self.repetition_penalty
        if one is not None and other is not None and one != other:
            raise BadRequest("repetition_penalty is another repeat_penalty; send one", param="repetition_penalty")
        return other if one is None else one

    def _max_tokens(self) -> int:
        limit = self.limit()
        if limit == 0:
            raise BadRequest("max_tokens: give 1 or more, or -1 for as many as the context holds", param="max_tokens")
        # a sequence without a limit ends with the context at the latest
        return limits.MAX_TOKENS if limit in (None, -1) else limit or limits.MAX_TOKENS


class Typed(Fields):
    """Something whose `type` says what it is; the rest of it is read by nobody, for it is refused or has no effect."""

    model_config = {**Fields.model_config, "extra": "allow"}

    type: Name


class Function(Fields):
    """A function in the older form, likewise."""

    model_config = {**Fields.model_config, "extra": "allow"}

    name: Name


_Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]


class ChatBody(Generation):
    messages: Annotated[list[Message], Field(fail_fast=True, min_length=1, max_length=limits.MAX_MESSAGES)]
    max_tokens: _Limit | None = None
    max_completion_tokens: _Limit | None = None
    logprobs: bool | None = False
    top_logprobs: Annotated[int, Field(ge=0, le=limits.MAX_TOP_LOGPROBS)] | None = None
    reasoning_effort: _Effort | None = None
    enable_thinking: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    response_format: ResponseFormat | None = None
    tools: Annotated[list[ToolDefinition], Field(fail_fast=True, max_length=limits.MAX_TOOLS)] | None = None
    tool_choice: ToolChoice = None
    parallel_tool_calls: bool | None = None
    # taken where they ask for nothing but text, else refused by name
    functions: Annotated[list[Function], Field(fail_fast=True, max_length=1024)] | None = None
    function_call: Literal["none", "auto"] | Function | None = None
    modalities: Annotated[list[Literal["text", "audio"]], Field(fail_fast=True, max_length=2)] | None = None
    audio: dict[str, Any] | None = None
    web_search_options: dict[str, Any] | None = None
    moderation: dict[str, Any] | None = None
    store: bool | None = None
    service_tier: Literal["auto", "default", "flex", "scale", "priority", "fast"] | None = None
    # accepted, without effect: hints, and OpenAI's own bookkeeping
    metadata: _Labels | None = None
    prediction: Typed | None = None
    prompt_cache_key: _Label | None = None
    prompt_cache_options: dict[str, Any] | None = None
    prompt_cache_retention: Literal["in_memory", "in-memory", "24h"] | None = None
    safety_identifier: _Label | None = None
    verbosity: Literal["low", "medium", "high"] | None = None

    def limit(self) -> int | None:
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    def wanted_logprobs(self) -> int | None:
        if self.top_logprobs and not self.logprobs:
            raise BadRequest("top_logprobs needs logprobs: true", param="top_logprobs")
        return (self.top_logprobs or 0) if self.logprobs else None

    def prompts(self) -> Sequence[Prompt]:
        self._refuse()
        turns = tuple(message.turn(i) for i, message in enumerate(self.messages))
        return (wire.Chat(turns, self.reasoning_effort, self.told, *self._given()),)

    def wanted(self) -> wire.Wanted | None:
        schema = self.response_format.wanted() if self.response_format else None
        return self._choice.wanted(schema, self.told)

    def _given(self) -> tuple[bool | None, str]:
        """Whether the model is to think, and what else its chat template is given. Raises BadRequest."""
        given = {name: value for name, value in (self.chat_template_kwargs or {}).items() if value is not None}
        thinks = self.enable_thinking
        for name in ("enable_thinking", "thinking"):
            if thinks is None and isinstance(given.get(name), bool):
                thinks = given[name]
        return thinks, given_template(given) if given else ""

    @cached_property
    def told(self) -> tuple[wire.Tool, ...]:
        """The tools that the model is told of. Raises BadRequest."""
        return self._choice.told(tool.engine(i) for i, tool in enumerate(self.tools or ()))

    @property
    def _choice(self) -> Choice:
        return chosen(self.tool_choice, self.parallel_tool_calls)

    def _refuse(self) -> None:
        """What asks for more than text from a model."""
        older = "this is the older form; send tools and tool_choice"
        refused = {
            "functions": (bool(self.functions) and self.function_call != "none", older),
            "function_call": (self.function_call not in (None, "none", "auto"), older),
            "modalities": ("audio" in (self.modalities or ()), "this server's models answer with text only"),
            "audio": (self.audio is not None, "this server's models answer with text only; remove it"),
            "web_search_options": (self.web_search_options is not None, "this server searches no web; remove it"),
            "moderation": (self.moderation is not None, "this server moderates nothing; remove it"),
            "store": (bool(self.store), "this server stores no answers; send false"),
            "service_tier": (
                self.service_tier in ("scale", "priority", "fast"),
                "this server has one tier; send auto or default",
            ),
        }
        for field, (wrong, why) in refused.items():
            if wrong:
                raise BadRequest(f"{field}: {why}", param=field)


class CompletionBody(Generation):
    prompt: Text | _Tokens | Annotated[list[Text], _Several] | Annotated[list[_Tokens], _Several]
    max_tokens: _Limit | None = None
    logprobs: Annotated[int, Field(ge=0, le=limits.MAX_TOP_LOGPROBS)] | None = None
    # taken where they ask for nothing, else refused by name
    echo: bool | None = None
    best_of: int | None = None
    suffix: Text | None = None

    def limit(self) -> int | None:
        return COMPLETION_TOKENS if self.max_tokens is None else self.max_tokens

    def wanted_logprobs(self) -> int | None:
        return self.logprobs

    def prompts(self) -> Sequence[Prompt]:
        refused = {
            "echo": (bool(self.echo), "this server does not repeat the prompt; send false"),
            "best_of": (
                self.best_of not in (None, self.n or 1),
                "every text that is generated is answered; use n",
            ),
            "suffix": (bool(self.suffix), "this server only continues a text; remove it"),
        }
        for field, (wrong, why) in refused.items():
            if wrong:
                raise BadRequest(f"{field}: {why}", param=field)
        return [_prompt(given) for given in self._list()]

    def _list(self) -> Sequence[str | list[int]]:
        match self.prompt:
            case str(text):
                return [text]
            case [int(), *_]:
                return [[t for t in self.prompt if isinstance(t, int)]]
            case several:
                return [p for p in several if not isinstance(p, int)]


def _prompt(given: str | list[int]) -> RawText | Tokens:
    return RawText(given) if isinstance(given, str) else Tokens(tuple(given))


class TokenizeBody(Body):
    model: Annotated[str, Field(max_length=256)] | None = None
    prompt: Text | None = None
    content: Text | None = None  # llama-server's name for it
    add_special: bool | None = False

    def text(self) -> str:
        """Raises BadRequest."""
        text = self.content if self.prompt is None else self.prompt
        if text is None:
            raise BadRequest("prompt is missing", param="prompt")
        return text


class DetokenizeBody(Body):
    model: Annotated[str, Field(max_length=256)] | None = None
    tokens: Annotated[list[_Token], Field(fail_fast=True, max_length=limits.MAX_JSON_NODES)]
