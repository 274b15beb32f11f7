"""The templates of real models against transformers' own rendering: the same text, or the same refusal.

Where transformers loses a part of a conversation (a template that knows no tools, or prints a list of parts as it is)
or cannot take it, ours shows it.
"""

import subprocess
from pathlib import Path
from typing import Any

import jinja2
import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from llmd.daemon.engine.messages import ChatMessage, ToolCall
from llmd.daemon.engine.templates import ChatTemplate
from llmd.daemon.errors import BadRequest, LlmdError

VALUES: dict[str, Any] = {"bos_token": "<s>", "eos_token": "</s>"}
USER = {"role": "user", "content": "What is <b> & why?"}
CONVERSATIONS: dict[str, tuple[list[dict[str, Any]], tuple[ChatMessage, ...], tuple[str, ...]]] = {
    "question": ([USER], (ChatMessage("user", "What is <b> & why?"),), ("What is <b> & why?",)),
    "turns": (
        [USER, {"role": "assistant", "content": "Bold."}, {"role": "user", "content": "Thanks!"}],
        (ChatMessage("user", "What is <b> & why?"), ChatMessage("assistant", "Bold."), ChatMessage("user", "Thanks!")),
        ("What is <b> & why?", "Bold.", "Thanks!"),
    ),
    "system": (
        [{"role": "system", "content": "Be brief."}, USER],
        (ChatMessage("system", "Be brief."), ChatMessage("user", "What is <b> & why?")),
        ("Be brief.", "What is <b> & why?"),
    ),
    "reasoning": (
        [USER, {"role": "assistant", "content": "Bold.", "reasoning_content": "HTML."}],
        (ChatMessage("user", "What is <b> & why?"), ChatMessage("assistant", "Bold.", reasoning="HTML.")),
        ("What is <b> & why?", "Bold."),
    ),
    "parts": (
        [{"role": "user", "content": [{"type": "text", "text": "What is <b>"}, {"type": "text", "text": " & why?"}]}],
        (ChatMessage("user", ("What is <b>", " & why?")),),
        ("What is <b>", "& why?"),
    ),
    "tools": (
        [
            USER,
            {"role": "assistant", "tool_calls": [{"id": "call_0123456789", "type": "function", "function": {
                "name": "lookup", "arguments": {"tag": "<b>", "deep": [1, {"a": None}]}}}]},
            {"role": "tool", "name": "lookup", "tool_call_id": "call_0123456789", "content": "It is bold."},
        ],
        (
            ChatMessage("user", "What is <b> & why?"),
            ChatMessage("assistant", None, tool_calls=(
                ToolCall("call_0123456789", "lookup", '{"tag": "<b>", "deep": [1, {"a": null}]}'),)),
            ChatMessage("tool", "It is bold.", name="lookup", tool_call_id="call_0123456789"),
        ),
        ("What is <b> & why?", "lookup", "tag", "<b>", "deep", "It is bold."),
    ),
}  # fmt: skip
# ours shows these where transformers cannot
MORE = ("parts", "tools")


@pytest.fixture(scope="module")
def templates() -> dict[str, tuple[str, ChatTemplate]]:
    """Name to source and compiled template."""
    script = Path(__file__).parents[3] / "packaging" / "templates.sh"
    done = subprocess.run([script], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    sources = {file.name: file.read_text() for file in sorted(Path(done.stdout.strip()).glob("*.jinja"))}
    assert len(sources) > 60
    return {name: (source, ChatTemplate(source)) for name, source in sources.items()}


def theirs(source: str, messages: list[dict[str, Any]]) -> str | Exception:
    try:
        rendered = render_jinja_template([messages], chat_template=source, add_generation_prompt=True, **VALUES)
    except Exception as e:
        return e
    return str(rendered[0][0])


def ours(template: ChatTemplate, messages: tuple[ChatMessage, ...]) -> str | LlmdError:
    try:
        return template.render(messages, str, lambda size: None, documents=None, **VALUES)
    except LlmdError as e:
        return e


@pytest.mark.slow
@pytest.mark.parametrize("kind", CONVERSATIONS)
def test_the_same_text_or_the_same_refusal(templates: dict[str, tuple[str, ChatTemplate]], kind: str) -> None:
    given, messages, words = CONVERSATIONS[kind]
    wrong, equal = [], 0
    for name, (source, template) in templates.items():
        want, got = theirs(source, given), ours(template, messages)
        equal += want == got
        if isinstance(got, str) and want != got:
            # what transformers loses or refuses is shown
            right = kind in MORE and _whole(got, words) and not (isinstance(want, str) and _whole(want, words))
        else:
            right = want == got or isinstance(want, Exception) and isinstance(got, BadRequest) and _same(want, got)
        if not right:
            wrong.append((name, want, got))
    assert not wrong
    assert equal > {"parts": 20, "tools": 40}.get(kind, 60)


def _whole(text: str, words: tuple[str, ...]) -> bool:
    return all(word in text for word in words) and "'text':" not in text and '"text": "' not in text


def _same(want: Exception, got: BadRequest) -> bool:
    return not isinstance(want, jinja2.TemplateError) or str(want.message)[:500] in got.message
