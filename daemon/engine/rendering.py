"""A chat as its model's own template lays it out, and how that model writes. What a template costs is bounded where
this runs: `renderers.py`."""

import json
import os
import re
import secrets
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple, Protocol

from llmd.daemon.engine.answers.detecting import named as named_syntax
from llmd.daemon.engine.answers.formats import Syntax
from llmd.daemon.engine.templates import ChatTemplate, chat_template
from llmd.daemon.engine.turns import escaped
from llmd.daemon.errors import BadRequest, ContextExceeded
from llmd.daemon.wire.work import Chat

# the most characters of a prompt where the tokenizer sets no bound
MAX_CHARS = 32 * 1024 * 1024


def overflow(context: int, tokens: int, what: str, *, least: bool = False) -> ContextExceeded:
    """The one error of a prompt that is too long, in the words by which OpenAI's clients know it. `least`: there are
    more."""
    return ContextExceeded(
        f"This model's maximum context length is {context} tokens. However, your {what} resulted in "
        f"{'more than ' if least else ''}{tokens} tokens, and an answer needs at least one more. Please reduce the "
        f"length of the {what}.",
        param=what,
    )


@dataclass(frozen=True, slots=True)
class Terms:
    """What is to be known of a model to render for it."""

    template: str
    bos_text: str  # of the tokens that begin and end a text; "" where there is none
    eos_text: str
    special: tuple[str, ...] = ()  # texts of special tokens: in a message, they are none
    context: int = 0  # tokens
    longest_token: int = 0  # characters; 0: unknown
    most: int = MAX_CHARS  # characters of a prompt, whatever the tokens
    syntax: str = ""  # how it writes, where an admin says so (`answers/detecting.py`); else its template does
    tool_template: str = ""  # for conversations with tools, where it is another one
    # stands for the text of a special token; random, so that no client can write it
    mark: str = field(default_factory=lambda: secrets.token_hex(8))

    def template_of(self, chat: Chat) -> str:
        """As transformers chooses it: one that is named `tool_use` where tools are given."""
        return (self.tool_template if chat.tools else "") or self.template

    def check(self, size: int, what: str) -> None:
        """A text's length in characters, at most as many as its bytes. Raises ContextExceeded for a text that would be
        more tokens than the context holds even if each were the longest one: it is not worth tokenizing."""
        if self.longest_token and size > self.context * self.longest_token:
            raise overflow(self.context, self.context, what, least=True)
        if size > self.most:
            raise BadRequest(f"the {what} are more than {self.most} characters", param=what)


def any_of(texts: Sequence[str]) -> re.Pattern[str]:
    """One of the texts, the longest that fits. What begins alike is looked at once: some vocabularies have thousands of
    special tokens, and every `<` of a message would be held against each."""
    try:
        return re.compile(_any_of(texts))
    except RecursionError:  # each begins as the one before it goes on
        return re.compile("|".join(map(re.escape, sorted(texts, reverse=True))))


def _any_of(texts: Iterable[str]) -> str:
    alike: dict[str, list[str]] = {}
    for text in texts:
        alike.setdefault(text[0], []).append(text)
    return "|".join(map(_of_alike, alike.values()))


def _of_alike(texts: list[str]) -> str:
    """A pattern of texts that have their first character in common."""
    begin = os.path.commonprefix(texts)
    rest = {text[len(begin) :] for text in texts}
    longer = sorted(rest - {""})
    return re.escape(begin) + (f"(?:{_any_of(longer)}){'?' if '' in rest else ''}" if longer else "")


class Written(NamedTuple):
    """A prompt. `special` are the texts of special tokens that stood in messages: for the n-th stands `MARKn;` in it.
    `done`: what was done to the conversation for the template to take it."""

    text: str
    special: list[str]
    done: str


class Renders(Protocol):
    """What renders for one model."""

    @property
    def terms(self) -> Terms: ...
    @property
    def syntax(self) -> Syntax:
        """How the model writes. Raises ModelInvalid for what its template does."""
        ...

    def text(self, chat: Chat) -> Written:
        """Raises BadRequest and ModelInvalid for what the template does."""
        ...


class Rendering:
    """Renders in this process: whatever the template takes, it takes here."""

    def __init__(self, terms: Terms) -> None:
        self.terms = terms
        self._special = any_of(terms.special) if terms.special else None
        self._given = {"bos_token": terms.bos_text, "eos_token": terms.eos_text, "documents": None}

    @cached_property
    def syntax(self) -> Syntax:
        if self.terms.syntax:
            return named_syntax(self.terms.syntax)
        plain = chat_template(self.terms.template).syntax(self._given) if self.terms.template else Syntax()
        if not self.terms.tool_template:
            return plain
        tools = chat_template(self.terms.tool_template, for_tools=True).syntax(self._given)
        return Syntax(tools.written, plain.thinking or tools.thinking)

    def _template(self, chat: Chat) -> ChatTemplate:
        """Not the one for tools where an admin says that calls are written otherwise than it shows them."""
        if chat.tools and self.terms.tool_template:
            tools = chat_template(self.terms.tool_template, for_tools=True)
            shown = tools.syntax(self._given).calls
            if not self.terms.template or shown in (None, self.syntax.calls):
                return tools
        return chat_template(self.terms.template)

    def text(self, chat: Chat) -> Written:
        found: list[str] = []

        def escape(text: str) -> str:
            return self._special.sub(mark, text) if self._special else text

        def mark(match: re.Match[str]) -> str:
            found.append(match.group())
            return f"{self.terms.mark}{len(found) - 1};"

        def check(size: int) -> None:
            self.terms.check(size - 2 * len(self.terms.mark) * len(found), "messages")

        syntax = self.syntax if chat.tools else None
        template = self._template(chat)
        given = json.loads(chat.arguments or "{}")
        for told, last in _told(chat):
            found.clear()
            asked = {**escaped(given, escape), **told}
            try:
                text, layout = template.laid_out(chat.messages, escape, check, chat.tools, syntax, asked, **self._given)
                return Written(text, found, layout.done)
            except BadRequest:
                if last:
                    raise
        raise AssertionError("the last one returns or raises")


def _told(chat: Chat) -> Iterator[tuple[dict[str, Any], bool]]:
    """What a template is told of how much to think, and whether that is all to be tried: some take two or three efforts
    and refuse every other."""
    told = {} if chat.thinks is None else {"enable_thinking": chat.thinks, "thinking": chat.thinks}
    if chat.reasoning_effort is not None:
        yield {**told, "reasoning_effort": chat.reasoning_effort}, False
    yield told, True
