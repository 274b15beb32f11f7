"""What a model can be asked. Each kind of work says of itself what others must know of it, so that nobody asks which it
is:

    sequences     how many it adds to what runs and waits
    size          about how many bytes its prompts are
    parts()       what of it can begin by itself, one after the other: the same work, in pieces
    check()       what is asked before the first of several begins, so that none does where one must fail; None: nothing
    choices       how many answers each of its prompts has
    most_tokens   how many it may generate
    seconds       how long it may take, to its last event
    wanted        what its answers are held to; None: nothing
    schemas()     the JSON schemas of that, and `held_to()`: the same work with others
    spelled()     its prompt, as the audit log's keyed hash covers it
    said()        what else somebody said, as the hash of its parameters covers it

It samples where `most_tokens` is more than 0; else one event answers it, an `Answered` (`events.py`).
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Self, TypeAlias

import msgspec

from llmd.daemon.wire.message import Message

GENERATE_SECONDS = 3600.0
AT_ONCE_SECONDS = 60.0
TOKEN_BYTES = 4  # of text, about
NO_TEXT = b"\xff"  # UTF-8 has no such byte
# what of a request's parts the prompt's hash covers, or the parameters' hash by itself
COVERED = frozenset({
    "prompts", "params", "wanted", "messages", "text", "tokens", "schema", "tools", "must_call", "parallel", "name",
    "definition", "parameters", "strict",
})  # fmt: skip
# a JSON schema, the request's field that it comes from, whether all of it is to hold
Schema: TypeAlias = tuple[str, str, bool]


@dataclass(frozen=True, slots=True)
class SamplingWish:
    """How tokens are to be chosen and when a text ends, as somebody asked for it: what is None was not given, and has
    the model's own default or ours (`SamplingParams` in `engine/types.py`)."""

    max_tokens: int
    temperature: float | None = None  # 0 is greedy
    top_k: int | None = None  # 0: off
    top_p: float | None = None
    min_p: float | None = None
    seed: int | None = None  # None: drawn by the runner
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repeat_penalty: float | None = None
    logit_bias: tuple[tuple[int, float], ...] = ()
    logprobs: int | None = None  # None: none; n: the chosen token's and the n likeliest
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False


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

    @property
    def texts(self) -> tuple[str, ...]:
        """All that it says."""
        said = self.content if isinstance(self.content, tuple) else (self.content or "",)
        return (*said, self.reasoning or "", *(call.arguments for call in self.tool_calls))


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

    def spelled(self) -> bytes:
        # a turn after the other: a thread keeps the interpreter while it makes one
        said = b"[" + b",".join(_json(_turn(turn)) for turn in self.messages) + b"]"
        tools = [tool.definition for tool in self.tools]
        return b'{"messages":' + said + b',"tools":' + _json(tools) + b"}" if tools else said

    def among(self) -> Any:
        """Among several, of which one is JSON."""
        return self.spelled().decode()

    @property
    def size(self) -> int:
        texts = sum(len(part) for turn in self.messages for part in turn.texts)
        return texts + sum(len(tool.definition) for tool in self.tools)


class RawText(Message, frozen=True):
    """A prompt as it is."""

    text: str

    def spelled(self) -> bytes:
        return self.text.encode()

    def among(self) -> Any:
        return self.text

    @property
    def size(self) -> int:
        return len(self.text)


class Tokens(Message, frozen=True):
    """A prompt that is tokenized already."""

    tokens: tuple[int, ...]

    def spelled(self) -> bytes:
        return NO_TEXT + _json(self.tokens)

    def among(self) -> Any:
        return self.tokens

    @property
    def size(self) -> int:
        return TOKEN_BYTES * len(self.tokens)


Prompt: TypeAlias = Chat | RawText | Tokens


class Wanted(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What an answer to a chat is held to: a text that fits the JSON `schema` (None: any text), or calls of `tools`.
    `must_call`: nothing but calls; not `parallel`: one at most."""

    schema: str | None = None
    tools: tuple[Tool, ...] = ()
    must_call: bool = False
    parallel: bool = True

    def schemas(self) -> list[Schema]:
        tools = [(tool.parameters, f"tools.{tool.name}", tool.strict) for tool in self.tools]
        return tools if self.schema is None else [*tools, (self.schema, "response_format", True)]

    def held_to(self, schemas: Mapping[int, str]) -> "Wanted":
        """To other ones than `schemas()`, by their number."""
        tools = [msgspec.structs.replace(t, parameters=schemas.get(i, t.parameters)) for i, t in enumerate(self.tools)]
        return msgspec.structs.replace(self, tools=tuple(tools), schema=schemas.get(len(tools), self.schema))

    def said(self) -> list[Any]:
        tools = [[tool.name, tool.parameters, tool.strict] for tool in self.tools]
        return [self.schema, tools, self.must_call, self.parallel]


# --- kinds of work


class Generate(Message, frozen=True):
    """Continue each prompt `choices` times: the first prompt's choices come first."""

    prompts: tuple[Prompt, ...]
    params: SamplingWish
    choices: int = 1
    wanted: Wanted | None = None  # of one chat
    seconds: ClassVar[float] = GENERATE_SECONDS

    @property
    def sequences(self) -> int:
        return len(self.prompts) * self.choices

    @property
    def most_tokens(self) -> int:
        return self.sequences * self.params.max_tokens

    @property
    def size(self) -> int:
        return sum(prompt.size for prompt in self.prompts)

    def parts(self) -> tuple["Generate", ...]:
        if len(self.prompts) == 1:
            return (self,)
        return tuple(Generate((prompt,), self.params, self.choices, self.wanted) for prompt in self.prompts)

    def check(self) -> "Count | None":
        return Count(self.prompts) if len(self.prompts) > 1 else None

    def schemas(self) -> list[Schema]:
        return self.wanted.schemas() if self.wanted else []

    def held_to(self, schemas: Mapping[int, str]) -> Self:
        return msgspec.structs.replace(self, wanted=self.wanted.held_to(schemas)) if self.wanted else self

    def spelled(self) -> bytes:
        """One text is its own bytes; what is none begins with a byte that no text begins with, so that no text spells
        it, but a chat, which comes by a route of its own."""
        return _spelled(self.prompts)

    def said(self) -> dict[str, Any]:
        found = asdict(self.params)
        if self.wanted:
            found["wanted"] = self.wanted.said()
        for part in (self, *self.prompts, *((self.wanted, *self.wanted.tools) if self.wanted else ())):
            found |= _given(part)
        return found


class AtOnce(Message, frozen=True):
    """Work that samples nothing and has one answer."""

    choices: ClassVar[int] = 1
    sequences: ClassVar[int] = 1
    most_tokens: ClassVar[int] = 0
    seconds: ClassVar[float] = AT_ONCE_SECONDS
    wanted: ClassVar[Wanted | None] = None

    def parts(self) -> tuple[Self, ...]:
        return (self,)

    def check(self) -> None:
        return None

    def schemas(self) -> list[Schema]:
        return []

    def held_to(self, schemas: Mapping[int, str]) -> Self:
        return self

    def said(self) -> dict[str, Any]:
        return _given(self)


class Tokenize(AtOnce, frozen=True):
    """`special`: add the model's own first tokens, and read special tokens' text as such."""

    text: str
    special: bool = False

    @property
    def size(self) -> int:
        return len(self.text)

    def spelled(self) -> bytes:
        return self.text.encode()


class Detokenize(AtOnce, frozen=True):
    tokens: tuple[int, ...]

    @property
    def size(self) -> int:
        return TOKEN_BYTES * len(self.tokens)

    def spelled(self) -> bytes:
        return json.dumps(self.tokens).encode()


class Count(AtOnce, frozen=True):
    """How many tokens each prompt has, of which all can be answered."""

    prompts: tuple[Prompt, ...]

    @property
    def size(self) -> int:
        return sum(prompt.size for prompt in self.prompts)

    def spelled(self) -> bytes:
        return _spelled(self.prompts)


Work: TypeAlias = Generate | Tokenize | Detokenize | Count


# --- what hashes cover


def _spelled(prompts: tuple[Prompt, ...]) -> bytes:
    if len(prompts) == 1:
        return prompts[0].spelled()
    return NO_TEXT + _json([prompt.among() for prompt in prompts])


def _given(struct: Any) -> dict[str, Any]:
    """What in it is not as it would be if nobody had said it, and is not COVERED."""
    names, defaults = struct.__struct_fields__, struct.__struct_defaults__
    unsaid = dict(zip(reversed(names), reversed(defaults), strict=False))
    found = {name: getattr(struct, name) for name in names if name not in COVERED}
    return {name: value for name, value in found.items() if name not in unsaid or value != unsaid[name]}


def _turn(turn: ChatMessage) -> dict[str, Any]:
    """A turn's role and content, and what else it has."""
    more = {
        "name": turn.name, "tool_call_id": turn.tool_call_id, "reasoning_content": turn.reasoning,
        "tool_calls": [{"id": c.id, "name": c.name, "arguments": c.arguments} for c in turn.tool_calls],
    }  # fmt: skip
    content = "".join(turn.content) if isinstance(turn.content, tuple) else turn.content
    return {"role": turn.role, "content": content} | {k: v for k, v in more.items() if v}


_encoder = json.JSONEncoder(separators=(",", ":"))


def _json(value: Any) -> bytes:
    return _encoder.encode(value).encode()
