"""Conversations that a template does not take as they come are laid out anew, with all of their text."""

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmd.daemon.engine.layouts import LAYOUTS, Layout, shows
from llmd.daemon.engine.templates import ChatTemplate
from llmd.daemon.errors import BadRequest, ContextExceeded
from llmd.daemon.wire.work import ChatMessage, ToolCall

AS_SENT, JOINED, OPENED, FIRST, FIRST_OPENED, USER, USER_OPENED = LAYOUTS


def turns(text: str) -> tuple[ChatMessage, ...]:
    """`s Be brief. | u Hello.`: a role's letter and what it says."""
    roles = {"s": "system", "u": "user", "a": "assistant", "t": "tool"}
    said = [one.strip().partition(" ") for one in text.split("|")]
    return tuple(ChatMessage(roles[role], words) for role, _, words in said)


def written(messages: Sequence[ChatMessage]) -> str:
    return " | ".join(f"{m.role[0]} {m.content}".replace("\n\n", " + ").strip() for m in messages)


@pytest.mark.parametrize(
    ("layout", "given", "laid"),
    [
        (AS_SENT, "u A | u B", "u A | u B"),
        (JOINED, "u A | u B | a C | a D | u E", "u A + B | a C + D | u E"),
        (JOINED, "s A | s B | u C | t D | t E", "s A + B | u C | t D | t E"),
        (OPENED, "a A | u B", "u | a A | u B"),
        (OPENED, "s A | a B | u C", "s A | u | a B | u C"),
        (OPENED, "s A | u B", "s A | u B"),
        (OPENED, "s A", "s A"),
        (FIRST, "s A | u B | a C | s D | u E", "s A + D | u B | a C | u E"),
        (FIRST, "u B | s D | u E", "s D | u B + E"),
        (FIRST, "u B | a C | s D", "u B | a C | u D"),
        (FIRST, "u B | a C | s D | s E", "u B | a C | u D + E"),
        (FIRST, "u B | s D", "s D | u B"),
        (FIRST, "u A | t B | s C", "s C | u A | t B"),
        (FIRST_OPENED, "a A | s B | u C", "s B | u | a A | u C"),
        (USER, "s A | u B | a C | s D | u E", "u A + B | a C | u D + E"),
        (USER, "s A", "u A"),
        (USER, "u A | s B", "u A + B"),
        (USER_OPENED, "a A | s B", "u | a A | u B"),
    ],
)
def test_a_layout(layout: Layout, given: str, laid: str) -> None:
    assert written(layout.of(turns(given))) == laid


def test_what_is_joined_keeps_all_of_it() -> None:
    call = [ToolCall(str(i), "f", "{}") for i in range(3)]
    given = (
        ChatMessage("assistant", "A", tool_calls=(call[0],), reasoning="x"),
        ChatMessage("assistant", None, tool_calls=(call[1], call[2]), reasoning="y"),
        ChatMessage("assistant", ("B", "C")),
    )
    assert JOINED.of(given) == (ChatMessage("assistant", ("A", "\n\n", "B", "C"), None, tuple(call), None, "x\n\ny"),)
    assert JOINED.of(given[1:2]) == given[1:2]
    said = (ChatMessage("user", "A", "ann"), ChatMessage("user", "B", "ann"), ChatMessage("user", "C", "bob"))
    assert JOINED.of(said[:2]) == (ChatMessage("user", "A\n\nB", "ann"),)
    assert JOINED.of(said) == (ChatMessage("user", "A\n\nB\n\nC"),)
    nothing = (ChatMessage("assistant", None, tool_calls=(call[0],)), ChatMessage("assistant", None, reasoning="z"))
    assert JOINED.of(nothing) == (ChatMessage("assistant", None, None, (call[0],), None, "z"),)


IN_TURN = """{% set head = '' %}{% set rest = messages %}{% if messages[0].role == 'system' %}\
{% set head = messages[0].content + ' ' %}{% set rest = messages[1:] %}{% endif %}{% for m in rest %}\
{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('user and assistant take turns') }}{% endif %}\
[{{ m.role }} {{ head if loop.first else '' }}{{ m.content | trim }}]{% endfor %}"""
SYSTEM_FIRST = """{% for m in messages %}{% if m.role == 'system' and not loop.first %}\
{{ raise_exception('a system message comes first') }}{% endif %}[{{ m.role }} {{ m.content }}]{% endfor %}"""
NO_SYSTEM = """{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}\
[{{ m.role }} {{ m.content }}]{% endfor %}"""
# loses what it does not expect, and says nothing of it
LOSES = """{% for m in messages %}{% if m.role != 'system' or loop.first %}[{{ m.role }} {{ m.content | tojson }}]\
{% endif %}{% endfor %}"""
USERS_ALONE = "{% for m in messages %}{% if m.role == 'user' %}[user {{ m.content }}]{% endif %}{% endfor %}"


def laid_out(template: str, given: str | Sequence[ChatMessage]) -> tuple[str, Layout]:
    messages = turns(given) if isinstance(given, str) else given
    prompt, layout = ChatTemplate(template).laid_out(messages, str, lambda size: None)
    return prompt.replace("\\n", "\n").replace("\n\n", " + ").replace('"', ""), layout


@pytest.mark.parametrize(
    ("template", "given", "prompt", "layout"),
    [
        (IN_TURN, "s A | u B | a C | u D", "[user A B][assistant C][user D]", AS_SENT),
        (IN_TURN, "s A | u B | u C", "[user A B + C]", JOINED),
        (IN_TURN, "u A | a B | a C | u D", "[user A][assistant B + C][user D]", JOINED),
        (IN_TURN, "a A | u B", "[user ][assistant A][user B]", OPENED),
        (IN_TURN, "s A | u B | a C | s D | u E", "[user A + D B][assistant C][user E]", FIRST),
        (IN_TURN, "u A | a B | s C", "[user A][assistant B][user C]", FIRST),
        (IN_TURN, "s A", "[user A]", USER),
        (SYSTEM_FIRST, "u A | u B | a C", "[user A][user B][assistant C]", AS_SENT),
        (SYSTEM_FIRST, "s A | s B | u C", "[system A + B][user C]", JOINED),
        (SYSTEM_FIRST, "u A | a B | s C | u D", "[system C][user A][assistant B][user D]", FIRST),
        (NO_SYSTEM, "s A | u B | a C | s D | u E", "[user A + B][assistant C][user D + E]", USER),
        (LOSES, "s A | u B | a C | s D | u E", "[system A + D][user B][assistant C][user E]", FIRST),
        (LOSES, "u B | s D", "[system D][user B]", FIRST),
    ],
)
def test_a_template_gets_what_it_takes(template: str, given: str, prompt: str, layout: Layout) -> None:
    assert laid_out(template, given) == (prompt, layout)


@pytest.mark.parametrize("given", ["u A | a B | u C", "u A | a B"])
def test_what_no_layout_shows_is_an_error(given: str) -> None:
    with pytest.raises(BadRequest, match="does not show all of these messages"):
        laid_out(USERS_ALONE, given)
    assert laid_out(USERS_ALONE, "s A | u B | u C") == ("[user A + B + C]", USER)


def test_what_is_refused_in_every_layout_is_told_as_it_was_at_first() -> None:
    short = "{% if messages | length == 1 and messages[0].content is string %}{{ messages[0].content }}{% else %}"
    source = short + "{{ raise_exception('no: ' ~ messages | length) }}{% endif %}"
    with pytest.raises(BadRequest, match="refuses these messages: no: 3"):
        laid_out(source, "u A | a B | u C")


def test_a_prompt_that_is_too_long_is_not_laid_out_anew() -> None:
    tried: list[int] = []

    def check(size: int) -> None:
        tried.append(size)
        if size > 3:
            raise ContextExceeded("too long")

    with pytest.raises(ContextExceeded):
        ChatTemplate("{% for m in messages %}{{ m.content }}{% endfor %}").laid_out(turns("u AAAA | u B"), str, check)
    assert tried == [4]


def said(*parts: tuple[str, Any]) -> list[dict[str, Any]]:
    return [{"role": role, "content": content} for role, content in parts]


@pytest.mark.parametrize(
    ("given", "prompt", "shown"),
    [
        (said(("user", " a \n")), "<a>", True),
        (said(("user", 'a "b"\n\tc\\d')), r"a \"b\"\n\tc\\d", True),
        (said(("user", "Köln")), "Köln", True),
        (said(("user", "a b")), "a", False),
        (said(("user", "a"), ("assistant", "b"), ("user", "a")), "a b a", True),
        (said(("user", "a"), ("assistant", "b"), ("user", "a")), "a b", False),
        (said(("user", "a"), ("assistant", "b")), "b a", False),
        (said(("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "c")), "a b s c", True),
        (said(("system", "s"), ("system", "t"), ("user", "a")), "t s a", False),
        (said(("user", "a"), ("tool", "x"), ("tool", "y"), ("user", "b")), "a y x b", True),
        (said(("user", "a"), ("tool", "x")), "a", False),
        (said(("assistant", "<think>\nh\n</think>\n\nyes")), "yes", True),
        (said(("assistant", "<think>\nh\n</think>\n\n")), "", True),
        (said(("assistant", "Steps:\nhm\n[ANSWER]\nyes")), "yes", True),
        (said(("assistant", "Steps:\nhm\n[ANSWER]\nyes")), "no", False),
        (said(("user", "Steps:\nhm\n[ANSWER]\nyes")), "yes", False),
        (said(("user", "Why? /no_think"), ("user", "/think So?")), "Why? So?", True),
        (said(("user", "Why? /no_think because")), "Why?", False),
        (said(("user", [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}])), "a b", True),
        (said(("user", [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}])), "a", False),
        (said(("assistant", None), ("user", ""), ("tool", [])), "", True),
        ([{"role": "assistant"}], "", True),
    ],
)
def test_what_a_prompt_shows(given: list[dict[str, Any]], prompt: str, shown: bool) -> None:
    assert shows(given, prompt) == shown


ROLES = st.sampled_from(["system", "user", "assistant"])
TEXTS = st.text("ab \n", min_size=1, max_size=4)
HISTORY = st.lists(st.tuples(ROLES, TEXTS, st.booleans()), min_size=1, max_size=8)


@given(HISTORY, st.sampled_from([IN_TURN, SYSTEM_FIRST, NO_SYSTEM, LOSES]))
def test_any_history_is_shown_whole(history: list[tuple[str, str, bool]], template: str) -> None:
    """Every template of these insists on something, or loses something; none of a text is lost."""
    given = [
        ChatMessage(role, (f"<{i}>{text}", "</>") if parts else f"<{i}>{text}</>")
        for i, (role, text, parts) in enumerate(history)
    ]
    prompt, _ = ChatTemplate(template).laid_out(given, str, lambda size: None)
    for i, (_, text, _) in enumerate(history):
        whole = f"<{i}>{text}</>"
        assert whole in prompt or whole.replace("\n", "\\n") in prompt
