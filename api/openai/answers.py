"""What the routes answer, for /openapi.json; a test holds real answers to it."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

FinishReason = Literal["stop", "length", "tool_calls"]


class _Answer(BaseModel):
    model_config = ConfigDict(extra="forbid")


class PromptTokensDetails(_Answer):
    """`cached_tokens`: found in a prefix that an earlier request of the same client had left."""

    cached_tokens: int


class CompletionTokensDetails(_Answer):
    """`reasoning_tokens`: what the model thought before it answered."""

    reasoning_tokens: int


class Usage(_Answer):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails


class TokenLogprob(_Answer):
    token: str
    logprob: float
    bytes: list[int]


class ChosenLogprob(TokenLogprob):
    top_logprobs: list[TokenLogprob]


class ChatLogprobs(_Answer):
    content: list[ChosenLogprob]


class CalledFunction(_Answer):
    """`arguments` are JSON, and whole: a call that was cut is none."""

    name: str
    arguments: str


class ToolCall(_Answer):
    id: str
    type: Literal["function"]
    function: CalledFunction


class ChatMessage(_Answer):
    """`content` is null where the model called tools and said nothing; `tool_calls` and `reasoning_content` are there
    where there are any."""

    role: Literal["assistant"]
    content: str | None
    refusal: None
    reasoning_content: str = ""
    tool_calls: list[ToolCall] = []


class ChatChoice(_Answer):
    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason


class ChatCompletion(_Answer):
    """`created` is in Unix seconds."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class TextLogprobs(_Answer):
    """An entry a token; `text_offset` is in characters."""

    tokens: list[str]
    token_logprobs: list[float]
    text_offset: list[int]
    top_logprobs: list[dict[str, float]]


class TextChoice(_Answer):
    index: int
    text: str
    logprobs: TextLogprobs | None
    finish_reason: FinishReason


class Completion(_Answer):
    """`created` is in Unix seconds."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[TextChoice]
    usage: Usage


# --- in a stream


class FunctionDelta(_Answer):
    """`name` comes first, then what is new of the arguments."""

    name: str = ""
    arguments: str


class ToolCallDelta(_Answer):
    """`index`: which call it is; `id` and `type` come with the first of it."""

    index: int
    id: str = ""
    type: Literal["function"] = "function"
    function: FunctionDelta


class ChatDelta(_Answer):
    """What is new."""

    role: Literal["assistant"] = "assistant"
    content: str = ""
    reasoning_content: str = ""
    tool_calls: list[ToolCallDelta] = []


class ChatChunkChoice(_Answer):
    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason | None


class ChatCompletionChunk(_Answer):
    """The data of an event. `usage` is there where it was asked for: in the last one and null in the others, or in each
    (`continuous_usage_stats`)."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: Usage | None = None


class TextChunkChoice(_Answer):
    index: int
    text: str
    logprobs: TextLogprobs | None
    finish_reason: FinishReason | None


class CompletionChunk(_Answer):
    """The data of an event. `usage` is there where it was asked for: in the last one and null in the others, or in each
    (`continuous_usage_stats`)."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[TextChunkChoice]
    usage: Usage | None = None


class TokenizeAnswer(_Answer):
    """`max_model_len`: tokens that a prompt and its answer may have together."""

    tokens: list[int]
    count: int
    max_model_len: int


class DetokenizeAnswer(_Answer):
    """`content` is llama-server's name for the same."""

    prompt: str
    content: str
