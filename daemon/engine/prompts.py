"""A request's messages or text to tokens: what the model's own chat template makes of them, then the tokenizer."""

import re

from llmd.daemon.engine.answers.detecting import begins_thinking
from llmd.daemon.engine.answers.formats import Syntax, Thoughts
from llmd.daemon.engine.protocols import Vocabulary
from llmd.daemon.engine.rendering import Renders, Terms
from llmd.daemon.errors import BadRequest, ModelInvalid
from llmd.daemon.wire.work import Chat, Prompt


def named(prompt: Prompt) -> str:
    """The request's field that a prompt comes from."""
    return "messages" if isinstance(prompt, Chat) else "prompt"


def terms(of: Vocabulary, context: int, syntax: str = "") -> Terms:
    """What is to be known of a model to render for it."""
    return Terms(
        of.chat_template or "", of.bos_text, of.eos_text, tuple(of.special_texts()), context, of.longest,
        syntax=syntax, tool_template=of.tool_template or "",
    )  # fmt: skip


class Prompts:
    """Tokenizes what `renders` gives."""

    def __init__(self, vocabulary: Vocabulary, renders: Renders) -> None:
        self._vocabulary, self._renders = vocabulary, renders

    def from_text(self, text: str) -> list[int]:
        """A raw prompt: special tokens in it are read as such, because its author lays out the template by hand."""
        self.check_length(text, "prompt")
        return self._vocabulary.tokenize(text, add_special=not self._begins(text), parse_special=True)

    @property
    def syntax(self) -> Syntax:
        """How the model writes. Raises ModelInvalid for what its template does."""
        return self._renders.syntax

    def from_chat(self, chat: Chat) -> tuple[list[int], Thoughts]:
        """A chat, and whether its model thinks. One that is told not to and whose prompt begins a thought all the same
        finds it ended. Special-token text inside a message stays plain text: a user cannot end their turn and speak as
        the system.

        Raises BadRequest when the model has no template or the template refuses these messages.
        """
        if not self._renders.terms.template_of(chat):
            only = self._renders.terms.tool_template
            what = "no chat template but for tools: give tools, or" if only else "no chat template;"
            raise BadRequest(f"this model has {what} use /v1/completions with a prompt", param="messages")
        text, escaped, _ = self._renders.text(chat)
        thinking, thoughts = self.syntax.thinking, Thoughts.NONE if chat.thinks is False else Thoughts.MAY
        if thinking is not None and begins_thinking(text, thinking):
            if thoughts == Thoughts.NONE:
                text += f"\n{thinking.end}\n\n" if text.endswith("\n") else thinking.end
            else:
                thoughts = Thoughts.BEGUN
        return self._tokenize(text, escaped, add_special=not self._begins(text)), thoughts

    def _begins(self, text: str) -> bool:
        """Whether it has the token that begins texts: that comes once."""
        bos = self._vocabulary.bos_text
        return bool(bos) and text.startswith(bos)

    def check_length(self, text: str, what: str) -> None:
        """Raises ContextExceeded for a text that is not worth tokenizing."""
        self._renders.terms.check(len(text), what)

    def _tokenize(self, text: str, escaped: list[str], *, add_special: bool) -> list[int]:
        if not escaped:
            return self._vocabulary.tokenize(text, add_special=add_special, parse_special=True)
        tokens: list[int] = []
        marked = {str(number): special for number, special in enumerate(escaped)}
        for i, part in enumerate(re.split(f"{self._renders.terms.mark}(\\d+);", text)):
            if i % 2:
                if part not in marked:
                    raise ModelInvalid("the model's chat template changes texts that it is to show")
                tokens += self._vocabulary.continued(marked[part], parse_special=False)
            elif i == 0:
                tokens += self._vocabulary.tokenize(part, add_special=add_special, parse_special=True)
            elif part:
                tokens += self._vocabulary.continued(part, parse_special=True)
        return tokens
