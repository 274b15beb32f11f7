"""A model's chat template: compiled in a sandbox, with what transformers offers to templates, and given a conversation
in the manner in which it shows all of it.

Templates differ in what they take for a tool call and for a tool's answer, and say so nowhere. What a template shows of
a small conversation tells: the first of MANNERS with which nothing of it is lost is the template's own. For one that
knows no tools, calls and answers are text, as Hermes writes them.
"""

import hashlib
import json
import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from itertools import groupby
from typing import Any

import jinja2
import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment

from llmd.daemon.engine.deadline import TemplateTimeout
from llmd.daemon.engine.messages import ChatMessage, ToolCall
from llmd.daemon.errors import BadRequest, LlmdError, ModelInvalid

# of the identifiers that Mistral's templates take
SHORT_ID = 9

Escape = Callable[[str], str]


class _Sandbox(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset({"*", "**"})

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if not isinstance(left, int | float) or not isinstance(right, int | float) or operator == "**":
            raise jinja2.exceptions.SecurityError("the template multiplies text or raises to a power")
        return super().call_binop(context, operator, left, right)


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
    """`calls`: in a field of their own, else as text; `empty`: the content of a message that has none; `short_ids`:
    calls have identifiers of nine letters and digits; `role`: whose turn a tool's answer is."""

    calls: bool
    empty: str | None
    short_ids: bool = False
    role: str = "tool"


MANNERS = (
    Manner(calls=True, empty=None),
    Manner(calls=True, empty=""),
    Manner(calls=True, empty=None, short_ids=True),
    Manner(calls=True, empty="", short_ids=True),
    Manner(calls=False, empty=""),
    Manner(calls=False, empty="", role="user"),
)

# each of these words must be found in what a template shows
_NAME, _KEY, _VALUE, _ANSWER = (f"{word}{secrets.token_hex(4)}" for word in ("name", "key", "value", "answer"))
_PROBE = (
    ChatMessage("user", "?"),
    ChatMessage("assistant", None, tool_calls=(ToolCall("call_0123456789", _NAME, json.dumps({_KEY: _VALUE})),)),
    ChatMessage("tool", _ANSWER, name=_NAME, tool_call_id="call_0123456789"),
)


class ChatTemplate:
    """One template. It is anybody's code: it may do and raise what it likes. Raises ModelInvalid where it does not
    compile."""

    def __init__(self, source: str) -> None:
        try:
            self._template = _compile(source)
        except (SyntaxError, jinja2.TemplateSyntaxError) as e:
            # Python's own: a template of 25 nested loops is more than its compiler takes
            raise ModelInvalid(f"the model's chat template does not work: {type(e).__name__}") from e
        self._manners: tuple[Manner, ...] | None = None

    def render(
        self, messages: Sequence[ChatMessage], escape: Escape, check: Callable[[int], None], **values: Any
    ) -> str:
        """The prompt, in the first manner that the template does not refuse. Each text of a message goes through
        `escape`; `check` is told the prompt's length as it grows, in characters, and raises the LlmdError that ends it.

        Raises ModelInvalid and BadRequest for what the template does, and TemplateTimeout.
        """
        try:
            return self._rendered(messages, escape, check, values)
        except (LlmdError, TemplateTimeout):
            raise
        except jinja2.exceptions.SecurityError as e:
            raise ModelInvalid(f"the model's chat template does not work: {type(e).__name__}") from e
        except jinja2.TemplateError as e:
            raise BadRequest(f"the model's chat template refuses these messages: {e.message}", param="messages") from e
        except Exception as e:  # whatever it was, the next prompt is none of its business
            raise BadRequest("the model's chat template cannot handle these messages", param="messages") from e

    def _rendered(
        self, messages: Sequence[ChatMessage], escape: Escape, check: Callable[[int], None], values: dict[str, Any]
    ) -> str:
        manners = self._showing(check, values) if _uses_tools(messages) else MANNERS[:1]
        for manner in manners[:-1]:
            try:
                return self._shown(messages, manner, escape, check, values)
            except (jinja2.TemplateError, TypeError):
                continue  # it takes one call a turn, say
        return self._shown(messages, manners[-1], escape, check, values)

    def _shown(
        self,
        messages: Sequence[ChatMessage],
        manner: Manner,
        escape: Escape,
        check: Callable[[int], None],
        values: dict[str, Any],
    ) -> str:
        turns = list(_Shape(manner, escape).turns(messages))
        parts, size = [], 0
        for part in self._template.generate(messages=turns, add_generation_prompt=True, **values):
            size += len(part)
            check(size)
            parts.append(part)
        return "".join(parts)

    def _showing(self, check: Callable[[int], None], values: dict[str, Any]) -> tuple[Manner, ...]:
        """The manners with which it shows the whole of a conversation; the last one, plain turns, needs no trial."""
        if self._manners is None:
            found = tuple(manner for manner in MANNERS[:-1] if self._shows(manner, check, values))
            self._manners = (*found, MANNERS[-1])
        return self._manners

    def _shows(self, manner: Manner, check: Callable[[int], None], values: dict[str, Any]) -> bool:
        try:
            shown = self._shown(_PROBE, manner, str, check, values)
        except TemplateTimeout:
            raise
        except Exception:  # its way to say no
            return False
        return all(word in shown for word in (_NAME, _KEY, _VALUE, _ANSWER))


@lru_cache(maxsize=8)
def chat_template(source: str) -> ChatTemplate:
    """Compiled once."""
    return ChatTemplate(source)


def _uses_tools(messages: Iterable[ChatMessage]) -> bool:
    return any(m.role == "tool" or m.tool_calls for m in messages)


@dataclass(frozen=True, slots=True)
class _Shape:
    """Messages as a template gets them."""

    manner: Manner
    escape: Escape

    def turns(self, messages: Sequence[ChatMessage]) -> Iterator[dict[str, Any]]:
        turns = map(self._turn, messages)
        if self.manner.role == "tool":
            yield from turns
            return
        # templates without a tool's role want user and assistant in turn
        for role, several in groupby(turns, key=lambda turn: turn["role"]):
            if role == "user":
                yield {"role": role, "content": "\n".join(turn["content"] for turn in several)}
            else:
                yield from several

    def _turn(self, message: ChatMessage) -> dict[str, Any]:
        content = self.manner.empty if message.tool_calls else ""
        if message.content is not None:
            content = self.escape(message.content)
        turn: dict[str, Any] = {"role": message.role, "content": content}
        if message.name is not None:
            turn["name"] = self.escape(message.name)
        if message.reasoning is not None:
            turn["reasoning_content"] = self.escape(message.reasoning)
        if message.tool_call_id is not None:
            turn["tool_call_id"] = self._identifier(message.tool_call_id)
        if message.tool_calls and self.manner.calls:
            turn["tool_calls"] = [self._call(call) for call in message.tool_calls]
        elif message.tool_calls:
            turn["content"] = "\n".join([*filter(None, [content]), *map(self._call_text, message.tool_calls)])
        if message.role == "tool" and self.manner.role != "tool":
            return {"role": self.manner.role, "content": f"<tool_response>\n{content}\n</tool_response>"}
        return turn

    def _call(self, call: ToolCall) -> dict[str, Any]:
        function = {"name": self.escape(call.name), "arguments": self._arguments(call.arguments)}
        return {"id": self._identifier(call.id), "type": "function", "function": function}

    def _call_text(self, call: ToolCall) -> str:
        arguments = self._arguments(call.arguments)
        shown = arguments if isinstance(arguments, Arguments) else _tojson(arguments)
        return f'<tool_call>\n{{"name": {_tojson(self.escape(call.name))}, "arguments": {shown}}}\n</tool_call>'

    def _arguments(self, text: str) -> Arguments | str:
        try:
            value = self._escaped(json.loads(text))
        except (ValueError, RecursionError):  # a model may write anything
            value = None
        # the text is escaped as it stands: what a value says in \u escapes is none of it
        shown = self.escape(text)
        return Arguments(value, shown) if isinstance(value, dict) else shown

    def _escaped(self, value: Any) -> Any:
        if isinstance(value, str):
            return self.escape(value)
        if isinstance(value, list):
            return [self._escaped(item) for item in value]
        if isinstance(value, dict):
            return {self.escape(key): self._escaped(item) for key, item in value.items()}
        return value

    def _identifier(self, text: str) -> str:
        if self.manner.short_ids:
            return hashlib.sha256(text.encode()).hexdigest()[:SHORT_ID]
        return self.escape(text)


# --- what transformers offers


def _tojson(value: Any, **options: Any) -> str:
    """JSON as it is: Jinja's own escapes it for HTML."""
    return json.dumps(value, **{"ensure_ascii": False, **options})


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(str(message)[:500])


def _compile(source: str) -> jinja2.Template:
    environment = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols])
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment.from_string(source)
