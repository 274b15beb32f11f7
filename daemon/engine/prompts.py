"""A request's messages or text to tokens: the model's own chat template in a sandbox, then the tokenizer.

It runs in the worker, which may die of a hostile template. Output and time are capped.
"""

import re
import secrets
from collections.abc import Callable
from functools import cached_property
from typing import Any, Protocol

from llmd.daemon.engine.answers.detecting import named as named_syntax
from llmd.daemon.engine.answers.formats import Syntax
from llmd.daemon.engine.deadline import Deadline, Timeout
from llmd.daemon.engine.messages import Chat, Prompt
from llmd.daemon.engine.templates import chat_template
from llmd.daemon.engine.turns import Escape
from llmd.daemon.engine.types import Runner
from llmd.daemon.errors import BadRequest, ContextExceeded, ModelInvalid

# the most characters of a prompt where the tokenizer sets no bound
MAX_CHARS = 32 * 1024 * 1024
# stands for special-token text that a client wrote; random, so that no client can write it
_MARK = secrets.token_hex(8)


def overflow(context: int, tokens: int, what: str, *, least: bool = False) -> ContextExceeded:
    """The one error of a prompt that is too long, in the words by which OpenAI's clients know it. `least`: there are
    more."""
    return ContextExceeded(
        f"This model's maximum context length is {context} tokens. However, your {what} resulted in "
        f"{'more than ' if least else ''}{tokens} tokens, and an answer needs at least one more. Please reduce the "
        f"length of the {what}.",
        param=what,
    )


def named(prompt: Prompt) -> str:
    """The request's field that a prompt comes from."""
    return "messages" if isinstance(prompt, Chat) else "prompt"


class Specials(Protocol):
    """The texts of the tokens that begin and end a text; "" where there is none."""

    @property
    def bos_text(self) -> str: ...
    @property
    def eos_text(self) -> str: ...


def rendered(
    template: str,
    chat: Chat,
    specials: Specials,
    deadline: Deadline,
    escape: Escape,
    check: Callable[[int], None],
    syntax: Syntax | None = None,
) -> str:
    """A chat as the model's template lays it out. Raises BadRequest and ModelInvalid for what the template does, and
    what `check` raises."""
    given = _given(specials)
    if chat.reasoning_effort is not None:
        given["reasoning_effort"] = chat.reasoning_effort
        given["enable_thinking"] = given["thinking"] = chat.reasoning_effort != "none"
    try:
        with deadline:
            return chat_template(template).render(chat.messages, escape, check, chat.tools, syntax, **given)
    except Timeout as e:
        raise ModelInvalid("the model's chat template takes too long") from e


def _given(specials: Specials) -> dict[str, Any]:
    return {"bos_token": specials.bos_text, "eos_token": specials.eos_text, "documents": None}


def syntax_of(template: str | None, specials: Specials, deadline: Deadline) -> Syntax:
    """How a model with this template writes. Raises ModelInvalid for one that cannot be compiled, or takes too long."""
    if not template:
        return Syntax()
    try:
        with deadline:
            return chat_template(template).syntax(_given(specials))
    except Timeout as e:
        raise ModelInvalid("the model's chat template takes too long") from e


class Prompts:
    """Renders and tokenizes for one runner. `syntax`: how the model writes, where an admin says so (`detecting.py`);
    else its template does."""

    def __init__(self, runner: Runner, deadline: Deadline, syntax: str = "") -> None:
        self._runner, self._deadline = runner, deadline
        self._said = named_syntax(syntax) if syntax else None
        self._special = [re.escape(text) for text in runner.special_texts()]
        self._find_special = re.compile("|".join(self._special)) if self._special else None

    def from_text(self, text: str) -> list[int]:
        """A raw prompt: special tokens in it are read as such, because its author lays out the template by hand."""
        self.check_length(text, "prompt")
        return self._runner.tokenize(text, add_special=not self._begins(text), parse_special=True)

    @cached_property
    def syntax(self) -> Syntax:
        """How the model writes. Raises ModelInvalid for what its template does."""
        return self._said or syntax_of(self._runner.info.chat_template, self._runner.info, self._deadline)

    def from_chat(self, chat: Chat) -> tuple[list[int], bool]:
        """A chat, and whether its prompt begins what the model thinks. Special-token text inside a message stays plain
        text: a user cannot end their turn and speak as the system.

        Raises BadRequest when the model has no template or the template refuses these messages.
        """
        template = self._runner.info.chat_template
        if not template:
            raise BadRequest("this model has no chat template; use /v1/completions with a prompt", param="messages")
        escaped: list[str] = []
        text = self.render(template, chat, escaped)
        thinking = self.syntax.thinking
        thinks = thinking is not None and text.rstrip().endswith(thinking.begin)
        return self._tokenize(text, escaped, add_special=not self._begins(text)), thinks

    def _begins(self, text: str) -> bool:
        """Whether it has the token that begins texts: that comes once."""
        bos = self._runner.info.bos_text
        return bool(bos) and text.startswith(bos)

    def render(self, template: str, chat: Chat, escaped: list[str]) -> str:
        """The prompt's text; what it says of special tokens goes to `escaped`, and marks stand for it."""

        def escape(text: str) -> str:
            return self._escape(text, escaped)

        def check(size: int) -> None:
            self._check_size(size - 2 * len(_MARK) * len(escaped), "messages")

        syntax = self.syntax if chat.tools else None
        return rendered(template, chat, self._runner.info, self._deadline, escape, check, syntax)

    def check_length(self, text: str, what: str) -> None:
        """Raises ContextExceeded for a text that would be more tokens than the context holds even if each were the
        longest one: it is not worth tokenizing."""
        self._check_size(len(text), what)

    def _check_size(self, size: int, what: str) -> None:
        """A text's length in characters, at most as many as its bytes."""
        info = self._runner.info
        if info.longest_token and size > info.context * info.longest_token:
            raise overflow(info.context, info.context, what, least=True)
        if size > MAX_CHARS:
            raise BadRequest(f"the {what} are more than {MAX_CHARS} characters", param=what)

    def _escape(self, text: str, escaped: list[str]) -> str:
        if self._find_special is None:
            return text

        def mark(match: re.Match[str]) -> str:
            escaped.append(match.group())
            return f"{_MARK}{len(escaped) - 1};"

        return self._find_special.sub(mark, text)

    def _tokenize(self, text: str, escaped: list[str], *, add_special: bool) -> list[int]:
        if not escaped:
            return self._runner.tokenize(text, add_special=add_special, parse_special=True)
        tokens: list[int] = []
        for i, part in enumerate(re.split(f"{_MARK}(\\d+);", text)):
            if i % 2:
                tokens += self._going_on(escaped[int(part)], parse_special=False)
            elif i == 0:
                tokens += self._runner.tokenize(part, add_special=add_special, parse_special=True)
            elif part:
                tokens += self._going_on(part, parse_special=True)
        return tokens

    def _going_on(self, text: str, *, parse_special: bool) -> list[int]:
        """A text that is not the first: behind a line's end, which is taken away again, no blank is put before it."""
        tokenize = self._runner.tokenize
        if self._runner.info.space_prefix:
            line = tokenize("\n", add_special=False, parse_special=False)
            tokens = tokenize("\n" + text, add_special=False, parse_special=parse_special)
            if tokens[: len(line)] == line:
                return tokens[len(line) :]
        return tokenize(text, add_special=False, parse_special=parse_special)
