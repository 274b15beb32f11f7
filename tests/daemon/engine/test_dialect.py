"""The templates of real models against transformers' own rendering: the same text, or the same refusal.

Where transformers loses a part of a conversation (a template that knows no tools, or prints a list of parts as it is)
or cannot take it, ours shows it. The histories that agents write are shown whole by every template.
"""

import json
import subprocess
from pathlib import Path
from typing import Any

import jinja2
import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from llmd.daemon.engine.templates import CONVERSATIONS as TRIED
from llmd.daemon.engine.templates import ChatTemplate
from llmd.daemon.errors import BadRequest, LlmdError
from llmd.daemon.wire.work import ChatMessage, ToolCall

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
# a template for tools alone: without any it does not work
TOOLS_ALONE = {
    "CohereForAI-c4ai-command-r-plus-tool_use.jinja", "NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use.jinja",
    "NousResearch-Hermes-3-Llama-3.1-8B-tool_use.jinja", "fireworks-ai-llama-3-firefunction-v2.jinja",
}  # fmt: skip
CALLED = ToolCall("call_0123456789", "weather", '{"city": "Bonn"}'), ToolCall("call_1123456789", "weather", "{}")
AGENTS: dict[str, tuple[ChatMessage, ...]] = {
    **TRIED,
    "a group chat": (
        ChatMessage("system", "Be brief."), ChatMessage("user", "Hello.", name="ann"),
        ChatMessage("user", "Hello too.", name="bob"),
    ),
    "a reminder at the end": (
        ChatMessage("user", "Hello."), ChatMessage("assistant", "Hi."), ChatMessage("system", "Answer in French."),
    ),
    "many reminders": tuple(
        message for i in range(3) for message in (
            ChatMessage("system", f"Rule {i}."), ChatMessage("user", f"  Question {i}?\n"),
            ChatMessage("assistant", f"<think>\nHm {i}.\n</think>\n\nAnswer {i}.\n\nMore."),
            ChatMessage("system", "So:"),
        )
    ),
    "switches": (ChatMessage("system", "Brief. /no_think"), ChatMessage("user", "Hello /think you? /no_think")),
    "several calls": (
        ChatMessage("system", "S."), ChatMessage("user", "Weather?"),
        ChatMessage("assistant", "Let me see.", tool_calls=CALLED),
        ChatMessage("tool", '{"sky": "blue \\"x\\""}', name="weather", tool_call_id="call_1123456789"),
        ChatMessage("tool", "rain", name="weather", tool_call_id="call_0123456789"),
        ChatMessage("user", "And then?"), ChatMessage("user", "Well?"),
    ),
    "calls answered nothing": (
        ChatMessage("user", "Weather?"), ChatMessage("assistant", None, tool_calls=CALLED[:1]),
        ChatMessage("tool", "", tool_call_id="call_0123456789"), ChatMessage("system", "Go on."),
    ),
}  # fmt: skip


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
        return template.laid_out(messages, str, lambda size: None, documents=None, **VALUES)[0]
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
            right = _whole(got, words) and not (isinstance(want, str) and _whole(want, words))
        else:
            right = want == got or isinstance(want, Exception) and isinstance(got, BadRequest) and _same(want, got)
        if not right:
            wrong.append((name, want, got))
    assert not wrong
    assert equal > {"parts": 20, "tools": 40}.get(kind, 60)


@pytest.mark.parametrize("kind", AGENTS)
def test_every_template_shows_what_agents_write(templates: dict[str, tuple[str, ChatTemplate]], kind: str) -> None:
    """Whatever it insists on; each text once, and in order where the template itself has an order."""
    for name, (_, template) in templates.items():
        if name in TOOLS_ALONE:
            continue
        got = ours(template, AGENTS[kind])
        assert isinstance(got, str), (name, got)
        for message in AGENTS[kind]:
            for text in (message.content or "",) if isinstance(message.content, str | None) else message.content:
                whole = text.rpartition("</think>")[2].partition("/")[0].strip()
                assert whole in got or json.dumps(whole)[1:-1] in got, (name, whole, got)


def _whole(text: str, words: tuple[str, ...]) -> bool:
    return all(word in text for word in words) and "'text':" not in text and '"text": "' not in text


def _same(want: Exception, got: BadRequest) -> bool:
    return not isinstance(want, jinja2.TemplateError) or str(want.message)[:500] in got.message
