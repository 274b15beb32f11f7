"""A conversation as OpenAI's clients send it: what they wrote, what a model answered, tools' calls and answers."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from llmd.api.http.body import Body
from llmd.daemon import limits
from llmd.daemon.engine import messages as engine
from llmd.daemon.errors import BadRequest

Text = Annotated[str, Field(max_length=limits.MAX_BODY_BYTES)]
Name = Annotated[str, Field(max_length=256)]


class Given(Body):
    """A body in which null means 'not given', as it does to OpenAI."""

    @model_validator(mode="before")
    @classmethod
    def _drop_null(cls, value: Any) -> Any:
        if isinstance(value, dict) and None in value.values():
            return {k: v for k, v in value.items() if v is not None or not cls._may_drop(k)}
        return value

    @classmethod
    def _may_drop(cls, field: str) -> bool:
        return field in cls.model_fields


class Said(Given):
    """A part of a conversation. Clients keep fields of their own in what they send back; null says nothing in any."""

    @classmethod
    def _may_drop(cls, field: str) -> bool:
        return True


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


class CustomCall(Said):
    name: Name
    input: Text


class ToolCall(Said):
    """`index` stands in those that a client put together from a stream."""

    id: Name | None = None
    type: Literal["function", "custom"] = "function"
    function: FunctionCall | None = None
    custom: CustomCall | None = None
    index: int | None = None

    def called(self, where: str) -> engine.ToolCall:
        if self.type == "function" and self.function:
            return engine.ToolCall(self.id or "", self.function.name, self.function.arguments)
        if self.type == "custom" and self.custom:
            return engine.ToolCall(self.id or "", self.custom.name, self.custom.input)
        raise BadRequest(f"{where}.{self.type} is missing", param="messages")


# what only some roles have, besides role, content and name
_OWN = {
    "assistant": {"refusal", "annotations", "audio", "function_call", "tool_calls", "reasoning_content", "parsed"},
    "tool": {"tool_call_id"},
}


class Message(Said):
    """`annotations` are what a model answered about its sources, `parsed` what a client's package made of the text,
    both without effect; `function_call` and the role `function` are how tools' calls and answers were first called."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Text | Annotated[list[Part], Field(max_length=1024)] | None = None
    name: Name | None = None
    refusal: Text | None = None
    annotations: list[dict[str, Any]] | None = None
    audio: dict[str, Any] | None = None
    function_call: FunctionCall | None = None
    tool_calls: Annotated[list[ToolCall], Field(max_length=1024)] | None = None
    tool_call_id: Name | None = None
    reasoning_content: Text | None = None
    parsed: Any = None

    def turn(self, number: int) -> engine.ChatMessage:
        """As the engine takes it; `developer` is what newer clients call `system`. Raises BadRequest."""
        where = f"messages.{number}"
        for field in sorted(self.model_fields_set - {"role", "content", "name"} - _OWN.get(self.role, set())):
            raise BadRequest(f"{where}: a message of role {self.role} has no {field}; remove it", param="messages")
        if self.audio is not None:
            raise BadRequest(f"{where}: this server's models speak text, not audio; remove audio", param="messages")
        role = {"developer": "system", "function": "tool"}.get(self.role, self.role)
        return engine.ChatMessage(
            role, self._said(where), self.name, self._calls(where), self.tool_call_id, self.reasoning_content
        )

    def _said(self, where: str) -> str | None:
        if isinstance(self.content, str):
            return self.content
        if self.content:
            return "".join(part.said(f"{where}.content.{i}") for i, part in enumerate(self.content))
        if self.role == "assistant":
            return self.refusal
        if self.role == "function":
            return ""
        raise BadRequest(f"{where}.content is missing", param="messages")

    def _calls(self, where: str) -> tuple[engine.ToolCall, ...]:
        calls = [call.called(f"{where}.tool_calls.{i}") for i, call in enumerate(self.tool_calls or [])]
        if self.function_call:
            calls.append(engine.ToolCall("", self.function_call.name, self.function_call.arguments))
        if self.role == "tool" and self.tool_call_id is None:
            raise BadRequest(f"{where}.tool_call_id is missing", param="messages")
        if self.role == "function" and self.name is None:
            raise BadRequest(f"{where}.name is missing", param="messages")
        return tuple(calls)
