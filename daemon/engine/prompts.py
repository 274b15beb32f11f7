"""A request's messages or text to tokens: the model's own chat template in a sandbox, then the tokenizer.

It runs in the worker, which may die of a hostile template. Output and time are capped.
"""

import re
import secrets
from collections.abc import Iterator, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any

import jinja2
import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment

from llmd.daemon.engine.deadline import Deadline, TemplateTimeout
from llmd.daemon.engine.messages import ChatMessage
from llmd.daemon.engine.types import Runner
from llmd.daemon.errors import BadRequest, LlmdError, ModelInvalid

# a rendered prompt may be this many times longer than the context's tokens are, in characters
CHARS_PER_TOKEN = 16
# stands for special-token text that a client wrote; random, so that no client can write it
_MARK = secrets.token_hex(8)


class _Sandbox(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset({"*", "**"})

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if not isinstance(left, int | float) or not isinstance(right, int | float) or operator == "**":
            raise jinja2.exceptions.SecurityError("the template multiplies text or raises to a power")
        return super().call_binop(context, operator, left, right)


class Prompts:
    """Renders and tokenizes for one runner."""

    def __init__(self, runner: Runner, deadline: Deadline) -> None:
        self._runner, self._deadline = runner, deadline
        self._special = [re.escape(text) for text in runner.special_texts()]
        self._find_special = re.compile("|".join(self._special)) if self._special else None
        self._max_chars = runner.info.context * CHARS_PER_TOKEN

    def from_text(self, text: str) -> list[int]:
        """A raw prompt: special tokens in it are read as such, because its author lays out the template by hand."""
        self.check_length(text)
        return self._runner.tokenize(text, add_special=True, parse_special=True)

    def from_messages(self, messages: Sequence[ChatMessage]) -> list[int]:
        """A chat. Special-token text inside a message stays plain text: a user cannot end their turn and speak as the
        system.

        Raises BadRequest when the model has no template or the template refuses these messages.
        """
        template = self._runner.info.chat_template
        if not template:
            raise BadRequest("this model has no chat template; use /v1/completions with a prompt", param="messages")
        escaped: list[str] = []
        safe = [{"role": m.role, "content": self._escape(m.content, escaped)} for m in messages]
        text = self.render(template, safe)
        bos = self._runner.info.bos_text
        return self._tokenize(text, escaped, add_special=not (bos and text.startswith(bos)))

    def render(self, template: str, messages: list[dict[str, Any]]) -> str:
        try:
            with self._deadline:
                return "".join(self._parts(template, messages))
        except LlmdError:
            raise
        except TemplateTimeout as e:
            raise ModelInvalid("the model's chat template takes too long") from e
        except (SyntaxError, jinja2.TemplateSyntaxError, jinja2.exceptions.SecurityError) as e:
            # Python's own: a template of 25 nested loops is more than its compiler takes
            raise ModelInvalid(f"the model's chat template does not work: {type(e).__name__}") from e
        except jinja2.TemplateError as e:
            raise BadRequest(f"the model's chat template refuses these messages: {e.message}", param="messages") from e
        except Exception as e:  # it is the template's code: whatever it does, the next prompt is none of its business
            raise BadRequest("the model's chat template cannot handle these messages", param="messages") from e

    def _parts(self, template: str, messages: list[dict[str, Any]]) -> Iterator[str]:
        info, size = self._runner.info, 0
        stream = _compile(template).generate(
            messages=messages,
            add_generation_prompt=True,
            bos_token=info.bos_text,
            eos_token=info.eos_text,
            tools=None,
            documents=None,
        )
        for part in stream:
            size += len(part)
            self.check_length(size)
            yield part

    def check_length(self, text: str | int) -> None:
        """A text, or its length in characters. Raises BadRequest for more than the context's tokens can hold."""
        size = text if isinstance(text, int) else len(text)
        if size > self._max_chars:
            raise BadRequest(
                f"the prompt has {size} characters or more; this model's context of {self._runner.info.context} tokens "
                f"holds {self._max_chars} at most"
            )

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
                tokens += self._runner.tokenize(escaped[int(part)], add_special=False, parse_special=False)
            elif part or i == 0:
                tokens += self._runner.tokenize(part, add_special=add_special and i == 0, parse_special=True)
        return tokens


@lru_cache(maxsize=8)
def _compile(template: str) -> jinja2.Template:
    def refuse(message: str) -> None:
        raise jinja2.TemplateError(str(message)[:500])

    environment = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols])
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment.from_string(template)
