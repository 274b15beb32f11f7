"""What the routes take: pydantic models, strict, every field bounded. Nothing is validated again after them.

Only what is listed passes: a field of another engine (`grammar_file`, `n_discard`, …) is refused by name.
"""

import abc
from typing import Annotated, Any, Literal

from pydantic import Field

from llmd.api.http.body import Body
from llmd.daemon import limits
from llmd.daemon.engine.messages import ChatMessage, RawText, SamplingParams, Tokens
from llmd.daemon.errors import BadRequest

_Text = Annotated[str, Field(max_length=limits.MAX_BODY_BYTES)]
_Stop = Annotated[str, Field(min_length=1, max_length=limits.MAX_STOP_CHARS)]
_Tokens = Annotated[
    list[Annotated[int, Field(ge=0, le=2**31 - 1)]], Field(min_length=1, max_length=limits.MAX_JSON_NODES)
]
_Positive = Annotated[int, Field(ge=1, le=limits.MAX_TOKENS)]
_Bias = dict[Annotated[str, Field(pattern=r"^\d{1,9}$")], Annotated[float, Field(ge=-100, le=100)]]
# a sequence without max_tokens ends with the context at the latest
_NO_LIMIT = limits.MAX_TOKENS


class StreamOptions(Body):
    include_usage: bool = False
    include_obfuscation: bool | None = None  # accepted, without effect


class TextFormat(Body):
    type: Literal["text"]


class Generation(Body, abc.ABC):
    """What chat and plain completions share."""

    model: Annotated[str, Field(min_length=1, max_length=256)] | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0, le=1_000_000)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    n: Annotated[int, Field(ge=1, le=limits.MAX_CHOICES)] | None = 1
    stop: _Stop | Annotated[list[_Stop], Field(max_length=limits.MAX_STOP_STRINGS)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    repeat_penalty: Annotated[float, Field(gt=0, le=10)] | None = None
    logit_bias: Annotated[_Bias, Field(max_length=limits.MAX_LOGIT_BIAS)] | None = None
    ignore_eos: bool | None = False
    # accepted, without effect: OpenAI's own bookkeeping
    user: Annotated[str, Field(max_length=512)] | None = None
    metadata: Annotated[dict[str, Annotated[str, Field(max_length=512)]], Field(max_length=16)] | None = None
    service_tier: Literal["auto", "default"] | None = None
    store: Literal[False] | None = None

    @abc.abstractmethod
    def limit(self) -> int | None:
        """The most tokens to generate; None: until the context is full."""

    @abc.abstractmethod
    def wanted_logprobs(self) -> int | None:
        """How many likeliest tokens to show beside the chosen one; None: no log-probabilities."""

    def params(self) -> SamplingParams:
        """The engine's parameters; what was not given has llama.cpp's own defaults."""
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        given: dict[str, Any] = {
            "temperature": self.temperature, "top_p": self.top_p, "top_k": self.top_k, "min_p": self.min_p,
            "presence_penalty": self.presence_penalty, "frequency_penalty": self.frequency_penalty,
            "repeat_penalty": self.repeat_penalty, "ignore_eos": self.ignore_eos,
            # OpenAI takes any 64-bit seed, llama.cpp 32 bits
            "seed": None if self.seed is None else (self.seed ^ (self.seed >> 32)) & 0xFFFFFFFF,
        }  # fmt: skip
        return SamplingParams(
            max_tokens=self.limit() or _NO_LIMIT,
            stop=tuple(stop),
            logprobs=self.wanted_logprobs(),
            logit_bias=tuple((int(t), b) for t, b in (self.logit_bias or {}).items()),
            **{k: v for k, v in given.items() if v is not None},
        )


class TextPart(Body):
    type: Literal["text"]
    text: _Text


class Message(Body):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: _Text | Annotated[list[TextPart], Field(min_length=1, max_length=1024)]
    name: Annotated[str, Field(max_length=256)] | None = None


class ChatBody(Generation):
    messages: Annotated[list[Message], Field(min_length=1, max_length=limits.MAX_MESSAGES)]
    max_tokens: _Positive | None = None
    max_completion_tokens: _Positive | None = None
    logprobs: bool | None = False
    top_logprobs: Annotated[int, Field(ge=0, le=limits.MAX_TOP_LOGPROBS)] | None = None
    response_format: TextFormat | None = None

    def limit(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    def wanted_logprobs(self) -> int | None:
        if self.top_logprobs is not None and not self.logprobs:
            raise BadRequest("top_logprobs needs logprobs: true", param="top_logprobs")
        return (self.top_logprobs or 0) if self.logprobs else None

    def chat(self) -> tuple[ChatMessage, ...]:
        """Messages as chat templates take them: one text each; `developer` is what newer clients call `system`."""
        return tuple(
            ChatMessage(
                "system" if m.role == "developer" else m.role,
                m.content if isinstance(m.content, str) else "".join(p.text for p in m.content),
            )
            for m in self.messages
        )


class CompletionBody(Generation):
    prompt: _Text | _Tokens | Annotated[list[_Text], Field(min_length=1, max_length=1)]
    max_tokens: _Positive | None = 16
    logprobs: Annotated[int, Field(ge=0, le=limits.MAX_TOP_LOGPROBS)] | None = None
    echo: Literal[False] | None = None
    best_of: Literal[1] | None = None

    def limit(self) -> int | None:
        return self.max_tokens

    def wanted_logprobs(self) -> int | None:
        return self.logprobs

    def given(self) -> RawText | Tokens:
        match self.prompt:
            case str(text) | [str(text)]:
                return RawText(text)
            case tokens:
                return Tokens(tuple(t for t in tokens if isinstance(t, int)))


class TokenizeBody(Body):
    model: Annotated[str, Field(max_length=256)] | None = None
    prompt: _Text | None = None
    content: _Text | None = None  # llama-server's name for it
    add_special: bool = False


class DetokenizeBody(Body):
    model: Annotated[str, Field(max_length=256)] | None = None
    tokens: Annotated[list[Annotated[int, Field(ge=0, le=2**31 - 1)]], Field(max_length=limits.MAX_JSON_NODES)]
