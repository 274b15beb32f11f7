"""A conversation as OpenAI's clients send it: what they wrote, what a model answered, tools' calls and answers."""

from typing import Annotated, Any, Literal

from pydantic import Field

from llmd.api.http.body import Fields
from llmd.daemon import limits
from llmd.daemon.errors import BadRequest, quoted
from llmd.daemon.wire import work as wire

Text = Annotated[str, Field(max_length=limits.MAX_BODY_BYTES)]
Name = Annotated[str, Field(max_length=256)]
# of a call: some gateways keep a signature in it
Identifier = Annotated[str, Field(max_length=limits.MAX_IDENTIFIER_CHARS)]


# what other servers, gateways and clients keep in a conversation; nothing of it is needed to go on
FOREIGN = frozenset({
    "id", "type", "annotations", "cache_control", "reasoning_details", "thinking_blocks", "provider_specific_fields",
    "extra_content",
})  # fmt: skip


class Said(Fields):
    """A part of a conversation. Clients keep fields of their own in what they send back: they are taken where they say
    nothing (null, an empty list) or are FOREIGN, and refused by name else."""

    model_config = {**Fields.model_config, "extra": "allow"}

    def check(self, where: str) -> None:
        """Raises BadRequest for a field that is not known."""
        for field, value in (self.model_extra or {}).items():
            if value not in (None, []) and field not in FOREIGN:
                shown = quoted(f"{where}.{field}", 80)
                raise BadRequest(f"there is no parameter {shown} here; remove it", param="messages")


class Part(Said):
    """One part of a content. Models here read text; the other kinds are refused by name."""

    type: Literal["text", "refusal", "image_url", "input_audio", "file"]
    text: Text | None = None
    refusal: Text | None = None
    image_url: dict[str, Any] | None = None
    input_audio: dict[str, Any] | None = None
    file: dict[str, Any] | None = None
    # accepted, without effect: prefixes are shared without being told where
    prompt_cache_breakpoint: dict[str, Any] | None = None

    def said(self, where: str) -> str:
        self.check(where)
        if self.type not in ("text", "refusal"):
            raise BadRequest(f"{where}: this server's models read text, not {self.type}; remove it", param="messages")
        text: str | None = getattr(self, self.type)
        if text is None:
            raise BadRequest(f"{where}.{self.type} is missing", param="messages")
        return text


class FunctionCall(Said):
    """`parsed_arguments` are what OpenAI's own packages keep beside the text, without effect."""

    name: Name
    arguments: Text
    parsed_arguments: Any = None

    @property
    def text(self) -> str:
        return self.arguments


class CustomCall(Said):
    name: Name
    input: Text

    @property
    def text(self) -> str:
        return self.input


class ToolCall(Said):
    """`index` stands in those that a client put together from a stream."""

    id: Identifier | None = None
    type: Literal["function", "custom"] | None = None
    function: FunctionCall | None = None
    custom: CustomCall | None = None
    index: int | None = None

    def called(self, where: str) -> wire.ToolCall:
        self.check(where)
        kind = self.type or "function"
        call = self.function if kind == "function" else self.custom
        if call is None:
            raise BadRequest(f"{where}.{kind} is missing", param="messages")
        call.check(f"{where}.{kind}")
        return wire.ToolCall(self.id or "", call.name, call.text)


_ROLES = {"developer": "system", "function": "tool"}
_EVERY = frozenset({"role", "content", "name"})
# what only some roles have
_OWN = {
    "assistant": _EVERY
    | {"refusal", "annotations", "audio", "function_call", "tool_calls", "reasoning_content", "reasoning", "parsed"},
    "tool": _EVERY | {"tool_call_id"},
}


class Message(Said):
    """`annotations` are what a model answered about its sources, `parsed` what a client's package made of the text,
    both without effect; `function_call` and the role `function` are how tools' calls and answers were first called."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Text | Annotated[list[Part], Field(fail_fast=True, max_length=1024)] | None = None
    name: Name | None = None
    refusal: Text | None = None
    annotations: Annotated[list[dict[str, Any]], Field(fail_fast=True)] | None = None
    audio: dict[str, Any] | None = None
    function_call: FunctionCall | None = None
    tool_calls: Annotated[list[ToolCall], Field(fail_fast=True, max_length=1024)] | None = None
    tool_call_id: Identifier | None = None
    reasoning_content: Text | None = None
    reasoning: Text | None = None  # how other servers call it
    parsed: Any = None

    def turn(self, number: int) -> wire.ChatMessage:
        """As the engine takes it; `developer` is what newer clients call `system`. Raises BadRequest."""
        where = f"messages.{number}"
        if not self.model_fields_set <= _OWN.get(self.role, _EVERY):
            self._check_role(where)
        if self.audio is not None:
            raise BadRequest(f"{where}: this server's models speak text, not audio; remove audio", param="messages")
        role = _ROLES.get(self.role, self.role)
        thought = self.reasoning if self.reasoning_content is None else self.reasoning_content
        return wire.ChatMessage(role, self._said(where), self.name, self._calls(where), self.tool_call_id, thought)

    def _check_role(self, where: str) -> None:
        self.check(where)
        for field in sorted(self.model_fields_set - _OWN.get(self.role, _EVERY) - FOREIGN):
            if getattr(self, field) not in (None, []):
                raise BadRequest(f"{where}: a message of role {self.role} has no {field}; remove it", param="messages")

    def _said(self, where: str) -> str | tuple[str, ...] | None:
        if isinstance(self.content, str):
            return self.content
        if self.content:
            return tuple(part.said(f"{where}.content.{i}") for i, part in enumerate(self.content))
        if self.role == "assistant":
            return self.refusal
        if self.role in ("tool", "function"):  # it answered nothing
            return ""
        raise BadRequest(f"{where}.content is missing", param="messages")

    def _calls(self, where: str) -> tuple[wire.ToolCall, ...]:
        calls = [call.called(f"{where}.tool_calls.{i}") for i, call in enumerate(self.tool_calls or ())]
        if self.function_call:
            self.function_call.check(f"{where}.function_call")
            calls.append(wire.ToolCall("", self.function_call.name, self.function_call.arguments))
        if self.role == "tool" and self.tool_call_id is None:
            raise BadRequest(f"{where}.tool_call_id is missing", param="messages")
        if self.role == "function" and self.name is None:
            raise BadRequest(f"{where}.name is missing", param="messages")
        return tuple(calls)
