"""A conversation as a chat template gets it. Templates differ in what they take for a text, for a tool's call and for
its answer, and say so nowhere: `templates.py` tries the manners of this file and sees which shows everything.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal

from llmd.daemon.engine.answers.formats import Calls
from llmd.daemon.wire.work import ChatMessage, Tool, ToolCall

# how arguments are explained, by the way in which they are written
_GIVEN = {
    "json": "<args-json-object>",
    "gemma": "{<name>:MARK<text>MARK,<name>:<number>}",
    "xml": "<parameter=<name>>\n<value>\n</parameter>\n</function>",
}
# of the identifiers that Mistral's templates take
SHORT_ID = 9

Escape = Callable[[str], str]
# of a message's text: `text` as it is, `parts` as a list of typed parts, `either` as the client sent it
Form = Literal["text", "parts", "either"]


class Arguments(dict[str, Any]):
    """A call's arguments: a mapping to templates that look into it, JSON text to those that append it to a text."""

    def __init__(self, value: dict[str, Any], text: str) -> None:
        super().__init__(value)
        self._text = text

    def __str__(self) -> str:
        return self._text

    def __add__(self, other: str) -> str:
        return self._text + other

    def __radd__(self, other: str) -> str:
        return other + self._text


@dataclass(frozen=True, slots=True)
class Manner:
    """`calls`: in a field of their own, else as text, as Hermes writes them. `empty`: the content of a message that has
    none. `short_ids`: calls have identifiers of nine letters and digits. `role`: whose turn a tool's answer is."""

    calls: bool
    empty: Literal["left out", "null", "text"] = "text"
    short_ids: bool = False
    role: Literal["tool", "user"] = "tool"


# transformers' own manner first
MANNERS = (
    Manner(True, "left out"),
    Manner(True, "null"),
    Manner(True, "text"),
    Manner(True, "left out", short_ids=True),
    Manner(True, "null", short_ids=True),
    Manner(True, "text", short_ids=True),
    Manner(calls=False),
    Manner(calls=False, role="user"),
)


@dataclass(frozen=True, slots=True)
class Turns:
    """Messages to what a template walks. Each text goes through `escape`. Roles without a form take text."""

    manner: Manner
    forms: dict[str, Form]
    escape: Escape

    def of(self, messages: Sequence[ChatMessage]) -> list[dict[str, Any]]:
        turns = map(self._turn, messages)
        return list(turns if self.manner.role == "tool" else _joined(turns))

    def _turn(self, message: ChatMessage) -> dict[str, Any]:
        turn: dict[str, Any] = {"role": message.role, "content": self._content(message)}
        if message.name is not None:
            turn["name"] = self.escape(message.name)
        if message.reasoning is not None:
            turn["reasoning_content"] = turn["thinking"] = self.escape(message.reasoning)
        if message.tool_call_id is not None:
            turn["tool_call_id"] = self._identifier(message.tool_call_id)
        if message.tool_calls and self.manner.calls:
            turn["tool_calls"] = [self._call(call) for call in message.tool_calls]
            if message.content is None and self.manner.empty == "left out":
                del turn["content"]
        if message.role == "tool" and self.manner.role != "tool":
            answer = f"<tool_response>\n{self._text(message)}\n</tool_response>"
            return {"role": "user", "content": _parts([answer]) if self.forms.get("user") == "parts" else answer}
        return turn

    def _content(self, message: ChatMessage) -> str | list[dict[str, str]] | None:
        if message.content is None and message.tool_calls and self.manner.calls and self.manner.empty == "null":
            return None
        form = self.forms.get(message.role, "text")
        if form == "text" or (form == "either" and not isinstance(message.content, tuple)):
            return self._text(message)
        texts = [self._text(message)]
        if isinstance(message.content, tuple) and (self.manner.calls or not message.tool_calls):
            texts = [self.escape(part) for part in message.content]
        return _parts(texts)

    def _text(self, message: ChatMessage) -> str:
        content = message.content or ""
        text = self.escape(content if isinstance(content, str) else "".join(content))
        if self.manner.calls or not message.tool_calls:
            return text
        return "\n".join([*filter(None, [text]), *map(self._call_text, message.tool_calls)])

    # --- calls

    def _call(self, call: ToolCall) -> dict[str, Any]:
        function = {"name": self.escape(call.name), "arguments": self._arguments(call.arguments)}
        return {"id": self._identifier(call.id), "type": "function", "function": function}

    def _call_text(self, call: ToolCall) -> str:
        arguments = self._arguments(call.arguments)
        shown = arguments if isinstance(arguments, Arguments) else tojson(arguments)
        return f'<tool_call>\n{{"name": {tojson(self.escape(call.name))}, "arguments": {shown}}}\n</tool_call>'

    def _arguments(self, text: str) -> Arguments | str:
        try:
            value = escaped(json.loads(text), lambda part: self.escape(mended(part)))
        except (ValueError, RecursionError):  # a model may write anything
            value = None
        # the text is escaped as it stands: what a value says in \u escapes is none of it
        shown = self.escape(text)
        return Arguments(value, shown) if isinstance(value, dict) else shown

    def _identifier(self, text: str) -> str:
        if self.manner.short_ids:
            return hashlib.sha256(text.encode()).hexdigest()[:SHORT_ID]
        return self.escape(text)


def mended(text: str) -> str:
    """With U+FFFD for halves of a character and for NUL, which JSON inside JSON may hold: an answer that was cut,
    say."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").replace("\0", "\ufffd")


def escaped(value: Any, escape: Escape) -> Any:
    """JSON with each of its texts escaped."""
    if isinstance(value, str):
        return escape(value)
    if isinstance(value, list):
        return [escaped(item, escape) for item in value]
    if isinstance(value, dict):
        return {escape(key): escaped(item, escape) for key, item in value.items()}
    return value


def definitions(tools: Sequence[Tool], escape: Escape) -> list[Any]:
    """As templates take them: as transformers makes them of functions."""
    return [escaped(json.loads(tool.definition), escape) for tool in tools]


def explained(
    messages: Sequence[ChatMessage], tools: Sequence[Tool], calls: Calls, *, system: bool
) -> Sequence[ChatMessage]:
    """A conversation that explains tools to a model whose template does not, in the words in which Hermes and Qwen
    models learned it: in the first system message, or (not `system`) the first one of a user."""
    said = "\n".join(tool.definition for tool in tools)
    given = _GIVEN[calls.arguments].replace("MARK", calls.mark)
    call = f"{calls.first}{calls.head[0]}<function-name>{calls.head[1]}{given}{calls.foot}{calls.last}"
    text = (
        "# Tools\n\nYou may call one or more functions to assist with the user query.\n\nYou are provided with "
        f"function signatures within <tools></tools> XML tags:\n<tools>\n{said}\n</tools>\n\nFor each function call, "
        f"write its name and arguments like this:\n{call}"
    )
    role = "system" if system else "user"
    at = next((i for i, message in enumerate(messages) if message.role == role), -1)
    if at < 0:
        return (ChatMessage("system" if system else "user", text), *messages)
    first = messages[at]
    content = first.content if isinstance(first.content, str) else "".join(first.content or ())
    whole = f"{content}\n\n{text}" if system else f"{text}\n\n{content}"
    return (*messages[:at], ChatMessage(first.role, whole, first.name), *messages[at + 1 :])


def tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as transformers' templates have it: Jinja's own escapes it for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _joined(turns: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Templates without a tool's role want user and assistant in turn."""
    for role, several in groupby(turns, key=lambda turn: turn["role"]):
        alike = list(several)
        contents = [turn["content"] for turn in alike]
        if role != "user" or len(alike) == 1:
            yield from alike
        elif all(isinstance(content, str) for content in contents):
            yield {"role": role, "content": "\n".join(contents)}
        else:
            lists = [_parts([content]) if isinstance(content, str) else content for content in contents]
            yield {"role": role, "content": [part for parts in lists for part in parts]}


def _parts(texts: Sequence[str]) -> list[dict[str, str]]:
    return [{"type": "text", "text": text} for text in texts]
