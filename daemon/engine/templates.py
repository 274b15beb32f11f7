"""A model's chat template: compiled in a sandbox, in the dialect that transformers offers to templates, and given a
conversation in the manner in which it shows all of it.

What a template shows of small conversations tells which of MANNERS is its own, and which form of a text. For one that
knows no tools, calls and answers are text; where it shows a user's text in no form, that is an error.
"""

import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any

import jinja2
import jinja2.ext
from jinja2.nodes import CallBlock, Node
from jinja2.sandbox import ImmutableSandboxedEnvironment

from llmd.daemon.engine.answers.detecting import calls_in, thinking_in
from llmd.daemon.engine.answers.formats import Calls, Syntax
from llmd.daemon.engine.layouts import LAYOUTS, Layout, shows
from llmd.daemon.engine.turns import MANNERS, Escape, Form, Manner, Turns, definitions, explained, tojson
from llmd.daemon.errors import BadRequest, LlmdError, ModelInvalid
from llmd.daemon.wire.work import ChatMessage, Tool, ToolCall

# characters that a template may make of a conversation of a few words
MAX_PROBE = 1_000_000
FORMS: tuple[Form, ...] = ("text", "parts")

# told the prompt's length as it grows, in characters; raises the LlmdError that ends it
Check = Callable[[int], None]

# a probe's words must be found in what a template shows
_TEXT, _NAME, _KEY, _VALUE, _ANSWER = (
    word + secrets.token_hex(4) for word in ("text", "name", "key", "value", "answer")
)
_PRINTED = (f"'text': '{_TEXT}", f'"text": "{_TEXT}')
_ARGUMENTS = tojson({_KEY: _VALUE})
_PARAMETERS = {"type": "object", "properties": {_KEY: {"type": "string", "description": _KEY}}, "required": [_KEY]}
_FUNCTION = {"name": _NAME, "description": _TEXT, "parameters": _PARAMETERS}
_TOOL = Tool(_NAME, tojson({"type": "function", "function": _FUNCTION}), tojson(_PARAMETERS))


_QUESTION = "What is it like outside?"

NOTHING: Mapping[str, Any] = {}


def _short(size: int) -> None:
    """The check of a probe."""
    if size > MAX_PROBE:
        raise BadRequest("the model's chat template makes very much of very little", param="messages")


def _calling(name: str, arguments: str, answer: str) -> tuple[ChatMessage, ...]:
    call = ToolCall("call_0123456789", name, arguments)
    return (
        ChatMessage("user", _QUESTION),
        ChatMessage("assistant", None, tool_calls=(call,)),
        ChatMessage("tool", answer, name=name, tool_call_id=call.id),
    )


def _speaking(role: str, text: str) -> tuple[ChatMessage, ...]:
    """A conversation in which `role` says it."""
    asked = ChatMessage("user", "And now?")
    match role:
        case "user":
            return (ChatMessage("user", text),)
        case "system":
            return (ChatMessage("system", text), asked)
    return (ChatMessage("user", "Hello."), ChatMessage(role, text), asked)


_PLACE = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = Tool(
    "weather",
    tojson({"type": "function", "function": {"name": "weather", "description": "How it is.", "parameters": _PLACE}}),
    tojson(_PLACE),
)
# what a model's template is tried with before it serves
CONVERSATIONS = {
    "a question": _speaking("user", "Hello."),
    "two turns": _speaking("assistant", "Hello! How are you?"),
    "a system message": _speaking("system", "Be brief."),
    "content in parts": (ChatMessage("user", ("Hello.", " How are you?")),),
    "tool calls": _calling("weather", '{"city": "Cologne"}', "It rains."),
    "two users in a row": (ChatMessage("user", "Hello."), ChatMessage("user", "Anybody there?")),
    "two answers in a row": (*_speaking("assistant", "Yes?")[:2], *_speaking("assistant", "Hello!")[1:]),
    "a system message in the middle": (*_speaking("assistant", "Yes?")[:2], *_speaking("system", "Be brief.")),
    "two system messages": (ChatMessage("system", "Be brief."), *_speaking("system", "Be kind.")),
    "an assistant who speaks first": _speaking("assistant", "How can I help?")[1:],
    "a system message alone": _speaking("system", "Say hello.")[:1],
}


class _Lost(Exception):
    """A template does not show a text."""


@dataclass(frozen=True, slots=True)
class _Given:
    """What one prompt is made with. `values` are the model's: with them alone it is found out what the template shows;
    `all` is everything that it gets beside the messages."""

    values: dict[str, Any]
    all: dict[str, Any]
    escape: Escape
    check: Check


class ChatTemplate:
    """One template. It is anybody's code: it may do and raise what it likes. `for_tools`: it is there to show tools,
    whatever is found of it. Raises ModelInvalid where it does not compile."""

    def __init__(self, source: str, *, for_tools: bool = False) -> None:
        try:
            self._template = _compile(source)
        except jinja2.TemplateSyntaxError as e:
            where = f"line {e.lineno}: {str(e.message)[:200]}"
            raise ModelInvalid(f"the model's chat template cannot be compiled: {where}") from e
        except (SyntaxError, RecursionError, ValueError) as e:
            # Python's own: a template of 25 nested loops is more than its compiler takes
            raise ModelInvalid(f"the model's chat template cannot be compiled: {type(e).__name__}") from e
        self._source, self._for_tools = source, for_tools
        self._forms: dict[str, Form] | None = None
        self._manners: tuple[Manner, ...] | None = None
        self._syntax: Syntax | None = None
        self._defines: bool | None = None

    def laid_out(
        self,
        messages: Sequence[ChatMessage],
        escape: Escape,
        check: Check,
        tools: Sequence[Tool] = (),
        syntax: Syntax | None = None,
        asked: Mapping[str, Any] = NOTHING,
        **values: Any,
    ) -> tuple[str, Layout]:
        """The prompt, in the first of LAYOUTS and the first manner that the template does not refuse and shows all of,
        and that layout. Each text of a message and of a tool goes through `escape`. Tools that it does not show are
        explained, in the way that `syntax` has them called (None: its own). `values` are a model's, `asked` are this
        prompt's alone: what it shows of probes is not found out with those.

        Raises ModelInvalid and BadRequest for what the template does, what `check` raises, and MemoryError.
        """
        try:
            values = self._alone(values)
            given, shown = self._with_tools(messages, escape, tools, syntax, values)
            return self._first_taken(given, _Given(values, {**asked, **values, "tools": shown}, escape, check))
        except (LlmdError, MemoryError):
            raise
        except jinja2.exceptions.SecurityError as e:
            raise ModelInvalid(f"the model's chat template does not work: {type(e).__name__}") from e
        except _Lost as e:
            raise BadRequest("the model's chat template does not show all of these messages", param="messages") from e
        except jinja2.TemplateError as e:
            said = str(e.message)[:500]
            raise BadRequest(f"the model's chat template refuses these messages: {said}", param="messages") from e
        except Exception as e:  # whatever it was, the next prompt is none of its business
            raise BadRequest("the model's chat template cannot handle these messages", param="messages") from e

    def _first_taken(self, messages: Sequence[ChatMessage], given: "_Given") -> tuple[str, Layout]:
        """Raises what it met first where it takes none."""
        tried: list[tuple[ChatMessage, ...]] = []
        met: Exception | None = None
        for layout in LAYOUTS:
            laid = layout.of(messages)
            if laid in tried:
                continue
            tried.append(laid)
            try:
                return self._rendered(laid, given), layout
            except (LlmdError, MemoryError, jinja2.exceptions.SecurityError):
                raise
            except Exception as e:
                met = met or e
        assert met is not None
        raise met

    def _with_tools(
        self,
        messages: Sequence[ChatMessage],
        escape: Escape,
        tools: Sequence[Tool],
        syntax: Syntax | None,
        values: dict[str, Any],
    ) -> tuple[Sequence[ChatMessage], list[Any] | None]:
        """The messages, and the tools that the template is given."""
        if not tools:
            return messages, None
        own = self.syntax(values)
        shows = self._for_tools or (own.calls and self._shows_definitions(values))
        if shows and (syntax is None or own.calls in (None, syntax.calls)):
            return messages, definitions(tools, escape)
        system = self._shows_text("system", self._text_forms(values), values)
        return explained(messages, tools, (syntax or own).written, system=system), [] if self._for_tools else None

    def _rendered(self, messages: Sequence[ChatMessage], given: "_Given") -> str:
        forms = self._text_forms(given.values)
        manners = self._tool_manners(given.values) if _uses_tools(messages) else MANNERS[:1]
        for manner in manners[:-1]:
            try:
                return self._whole(messages, Turns(manner, forms, given.escape), given)
            except (jinja2.TemplateError, TypeError, _Lost):
                continue  # it takes one call a turn, say
        return self._whole(messages, Turns(manners[-1], forms, given.escape), given)

    def _whole(self, messages: Sequence[ChatMessage], turns: Turns, given: "_Given") -> str:
        """Raises _Lost where a text is missing."""
        walked = turns.of(messages)
        prompt = self._walked(walked, given.check, given.all)
        if not shows(walked, prompt):
            raise _Lost
        return prompt

    def _shown(self, messages: Sequence[ChatMessage], turns: Turns, check: Check, values: dict[str, Any]) -> str:
        return self._walked(turns.of(messages), check, values)

    def _walked(self, walked: list[dict[str, Any]], check: Check, values: dict[str, Any]) -> str:
        parts, size = [], 0
        for part in self._template.generate(messages=walked, add_generation_prompt=True, **values):
            size += len(part)
            check(size)
            parts.append(part)
        return "".join(parts)

    # --- what it shows

    def syntax(self, values: dict[str, Any]) -> Syntax:
        """In which format a model writes that learned with it; of one that shows no conversation, none."""
        if self._syntax is None:
            try:
                calls = self._calls(self._alone(values))
            except MemoryError:
                raise
            except Exception:  # whatever it was, every request will be told
                calls = None
            self._syntax = Syntax(calls, thinking_in(self._source, self._prompts(self._alone(values))))
        return self._syntax

    def _alone(self, values: dict[str, Any]) -> dict[str, Any]:
        """What it is tried with: no tools, but where it is there for them."""
        return {**values, "tools": definitions((WEATHER,), str) if self._for_tools else None}

    def _prompts(self, values: dict[str, Any]) -> list[str]:
        """Of a question, and of one that is to be thought about."""
        told = values | {"enable_thinking": True, "thinking": True, "reasoning_effort": "high"}
        try:
            return [self._tried(_speaking("user", _TEXT), MANNERS[0], given) for given in (values, told)]
        except BadRequest:  # it shows no question
            return []

    def _calls(self, values: dict[str, Any]) -> Calls | None:
        """The format of the first call that it shows."""
        for manner in self._tool_manners(values):
            if manner.calls:
                shown = self._tried(_calling(_NAME, _ARGUMENTS, _ANSWER), manner, values)
                # what stands before the question may tell in words how to call
                if found := calls_in(shown[max(0, shown.find(_QUESTION)) :], _NAME, {_KEY: _VALUE}):
                    return found
        return None

    def _shows_definitions(self, values: dict[str, Any]) -> bool:
        if self._defines is None:
            shown = self._tried(
                _speaking("user", "Hello."), MANNERS[0], {**values, "tools": definitions((_TOOL,), str)}
            )
            self._defines = all(word in shown for word in (_NAME, _KEY, _TEXT))
        return self._defines

    def _tried(self, messages: Sequence[ChatMessage], manner: Manner, values: dict[str, Any]) -> str:
        """What it shows; "" where it refuses."""
        try:
            return self._probe(messages, Turns(manner, self._text_forms(values), str), values)
        except MemoryError:
            raise
        except Exception:
            return ""

    def _text_forms(self, values: dict[str, Any]) -> dict[str, Form]:
        """Each role's form of a text. Raises BadRequest where a user's is shown in none."""
        if self._forms is None:
            forms: dict[str, Form] = {}
            for role in ("user", "system", "assistant"):
                shown = [form for form in FORMS if self._shows_text(role, {**forms, role: form}, values)]
                forms[role] = "either" if len(shown) == 2 else shown[0] if shown else "text"
                if role == "user" and not shown:
                    self._probe(_speaking("user", _TEXT), Turns(MANNERS[0], {}, str), values)  # its own refusal
                    raise BadRequest("the model's chat template does not show what a user says", param="messages")
            # a tool's answer is written as the others' texts are
            self._forms = forms | {"tool": "parts" if forms["user"] == "parts" else "text"}
        return self._forms

    def _shows_text(self, role: str, forms: dict[str, Form], values: dict[str, Any]) -> bool:
        try:
            shown = self._probe(_speaking(role, _TEXT), Turns(MANNERS[0], forms, str), values)
        except MemoryError:
            raise
        except Exception:  # its way to say no
            return False
        # one that prints the list of parts as it is shows nothing
        return _TEXT in shown and not any(printed in shown for printed in _PRINTED)

    def _tool_manners(self, values: dict[str, Any]) -> tuple[Manner, ...]:
        """The manners with which it shows the whole of a conversation; the last one, plain turns, needs no trial."""
        if self._manners is None:
            self._manners = (*(m for m in MANNERS[:-1] if self._shows_tools(m, values)), MANNERS[-1])
        return self._manners

    def _shows_tools(self, manner: Manner, values: dict[str, Any]) -> bool:
        shown = self._tried(_calling(_NAME, _ARGUMENTS, _ANSWER), manner, values)
        return all(word in shown for word in (_NAME, _KEY, _VALUE, _ANSWER))

    def _probe(self, messages: Sequence[ChatMessage], turns: Turns, values: dict[str, Any]) -> str:
        return self._shown(messages, turns, _short, values)


@lru_cache(maxsize=8)
def chat_template(source: str, *, for_tools: bool = False) -> ChatTemplate:
    """Compiled once."""
    return ChatTemplate(source, for_tools=for_tools)


def _uses_tools(messages: Iterable[ChatMessage]) -> bool:
    return any(m.role == "tool" or m.tool_calls for m in messages)


# --- what transformers offers (its utils/chat_template_utils.py), and no more


class _Generation(jinja2.ext.Extension):
    """{% generation %} … {% endgeneration %} marks, for training, what an assistant wrote: it is what it encloses."""

    tags = {"generation"}

    def parse(self, parser: Any) -> Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return CallBlock(self.call_method("_enclosed"), [], [], body).set_lineno(line)

    def _enclosed(self, caller: Callable[[], str]) -> str:
        return caller()


class _Namespace(jinja2.utils.Namespace):
    """Jinja's own, without attributes that begin with an underscore."""

    def __setitem__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            raise jinja2.exceptions.SecurityError("the template sets an attribute that begins with an underscore")
        super().__setitem__(name, value)


def _refuse(message: Any) -> None:
    raise jinja2.TemplateError(str(message))


def _compile(source: str) -> jinja2.Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    environment.globals["namespace"] = _Namespace
    return environment.from_string(source)
