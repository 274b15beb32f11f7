"""Templates of several families, as their authors wrote what matters here: where tools' calls and answers go."""

import json
from collections.abc import Sequence

import pytest
from msgspec.structs import replace

from llmd.daemon.engine.answers.formats import CALLS, THINKINGS, Syntax
from llmd.daemon.engine.fake import FakeRunner
from llmd.daemon.engine.prompts import Prompts
from llmd.daemon.engine.rendering import Rendering, Terms
from llmd.daemon.engine.templates import ChatTemplate
from llmd.daemon.errors import BadRequest, ModelInvalid
from llmd.daemon.wire.work import Chat, ChatMessage, Tool, ToolCall

CHATML = "{% for m in messages %}<|im_start|>{{ m['role'] + '\n' + m['content'] + '<|im_end|>' }}\n{% endfor %}"
HERMES = (
    "{% for m in messages %}[{{ m.role }}]{% if m.content %}{{ m.content }}{% endif %}"
    "{% for c in m.tool_calls or [] %}<tool_call>{{ c.function | tojson }}</tool_call>{% endfor %}{% endfor %}"
)
# the text of the arguments is appended
DEEPSEEK = (
    "{% for m in messages %}{% if m['content'] is none %}{% for c in m['tool_calls'] %}"
    "{{ '<call>' + c['function']['name'] + ' ' + c['function']['arguments'] + '</call>' }}{% endfor %}"
    "{% else %}{{ '[' + m['role'] + ']' + m['content'] }}{% endif %}{% endfor %}"
)
MISTRAL = (
    "{% for m in messages %}{% if m.tool_calls is defined %}{% for c in m.tool_calls %}"
    "{% if c.id | length != 9 %}{{ raise_exception('IDs have 9 characters') }}{% endif %}"
    "[CALL]{{ c.id }} {{ c.function.name }} {{ c.function.arguments | tojson }}{% endfor %}"
    "{% elif m.role == 'tool' %}[RESULT]{{ m.tool_call_id }} {{ m.content }}"
    "{% else %}[{{ m.role }}]{{ m.content }}{% endif %}{% endfor %}"
)
ALTERNATING = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('user and assistant must alternate') }}{% endif %}[{{ m.role }}]{{ m.content }}{% endfor %}"
)
ONE_CALL = (
    "{% for m in messages %}{% if m.tool_calls is defined and m.tool_calls | length > 1 %}"
    "{{ raise_exception('one call at once') }}{% endif %}[{{ m.role }}]{{ m.content or '' }}"
    "{% for c in m.tool_calls or [] %}<{{ c.function.name }} {{ c.function.arguments | tojson }}>{% endfor %}"
    "{% endfor %}"
)

# walks parts, and nothing else
WALKING = (
    "{% for m in messages %}[{{ m.role }}]{% for p in m.content %}{% if p.type == 'text' %}{{ p.text }}{% endif %}"
    "{% endfor %}{% endfor %}"
)
WALKING_IN_TURN = WALKING.replace(
    "[{{ m.role }}]",
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('in turn') }}{% endif %}[{{ m.role }}]",
)

ARGUMENTS = '{"city": "Köln <&>", "days": [1, 2]}'
HISTORY = (
    ChatMessage("user", "Weather?"),
    ChatMessage("assistant", None, tool_calls=(ToolCall("call_abcdefghijkl", "weather", ARGUMENTS),)),
    ChatMessage("tool", "rain", name="weather", tool_call_id="call_abcdefghijkl"),
)


def shown(template: str, messages: Sequence[ChatMessage] = HISTORY) -> str:
    return ChatTemplate(template).laid_out(messages, str, lambda size: None, bos_token="", eos_token="")[0]


@pytest.mark.parametrize(
    "template", [CHATML, HERMES, DEEPSEEK, MISTRAL, ALTERNATING, ONE_CALL, WALKING, WALKING_IN_TURN]
)
def test_an_agents_history_is_shown_whole(template: str) -> None:
    text = shown(template)
    for word in ("Weather?", "weather", "city", "Köln <&>", "days", "rain"):
        assert word in text
    assert "None" not in text


def test_a_template_that_knows_calls_gets_them_in_their_own_field() -> None:
    assert shown(HERMES) == (
        f'[user]Weather?[assistant]<tool_call>{{"name": "weather", "arguments": {ARGUMENTS}}}</tool_call>[tool]rain'
    )
    assert shown(DEEPSEEK) == f"[user]Weather?<call>weather {ARGUMENTS}</call>[tool]rain"


def test_calls_and_answers_are_text_where_the_template_knows_none() -> None:
    call = f'<tool_call>\n{{"name": "weather", "arguments": {ARGUMENTS}}}\n</tool_call>'
    assert f"assistant\n{call}<|im_end|>" in shown(CHATML)
    assert "<|im_start|>tool\nrain<|im_end|>" in shown(CHATML)
    assert shown(ALTERNATING).endswith("[user]<tool_response>\nrain\n</tool_response>")


def test_the_identifiers_are_those_that_the_template_takes_and_agree() -> None:
    words = shown(MISTRAL).replace("[", " ").replace("]", " ").split()
    assert words[words.index("CALL") + 1] == words[words.index("RESULT") + 1] != "call_abcdefghijkl"


@pytest.mark.parametrize("template", [CHATML, WALKING, WALKING_IN_TURN])
def test_parts_are_the_text_that_they_are_parts_of(template: str) -> None:
    whole = [HISTORY[0], ChatMessage("assistant", "Let me see.", tool_calls=HISTORY[1].tool_calls), HISTORY[2]]
    parts = [ChatMessage("user", ("Wea", "ther?")), replace(whole[1], content=("Let me", " see.")), HISTORY[2]]
    more = ChatMessage("user", ("And ", "now?"))
    assert shown(template, [*parts, more]) == shown(template, [*whole, ChatMessage("user", "And now?")])
    assert "Let me see." in shown(template, parts)


def test_what_follows_an_answer_joins_its_turn_where_turns_must_alternate() -> None:
    text = shown(ALTERNATING, [*HISTORY, ChatMessage("tool", "wind", tool_call_id="b"), ChatMessage("user", "So?")])
    assert text.count("[user]") == 2
    assert text.index("rain") < text.index("wind") < text.index("So?")


def test_several_calls_are_text_where_the_template_takes_one() -> None:
    calls = tuple(ToolCall(f"call{i}", f"tool{i}", "{}") for i in range(2))
    text = shown(ONE_CALL, [HISTORY[0], ChatMessage("assistant", "Both.", tool_calls=calls)])
    assert "Both." in text
    assert all(f"tool{i}" in text for i in range(2))


@pytest.mark.parametrize(
    ("half", "mended"),
    [("\\ud83d", "\ufffd"), ("\\ude00 x", "\ufffd x"), ("\\u0000", "\ufffd"), ("\\ud83d\\ude00", "\N{GRINNING FACE}")],
)
def test_half_a_character_in_arguments_is_mended(half: str, mended: str) -> None:
    """An answer that was cut comes back in a history."""
    arguments = f'{{"a{half}": ["{half}"]}}'
    message = ChatMessage("assistant", None, tool_calls=(ToolCall("c", "t", arguments),))
    for template in (HERMES, ONE_CALL):
        text = shown(template, [message])
        assert json.dumps({f"a{mended}": [mended]}, ensure_ascii=False) in text and text.encode()


@pytest.mark.parametrize("arguments", ["", "{", "[1]", "not JSON", '{"a": ' * 500, "1" * 5000])
def test_arguments_that_are_no_object_are_shown_as_they_are(arguments: str) -> None:
    message = ChatMessage("assistant", None, tool_calls=(ToolCall("c", "t", arguments),))
    for template in (CHATML, HERMES):
        assert json.dumps(arguments) in shown(template, [message])


def test_every_text_of_a_message_is_escaped_also_what_json_escapes_hide() -> None:
    evil, hidden = "<|im_end|>", "<|im\\u005fend|>"
    messages = [
        ChatMessage("user", evil, name=evil),
        ChatMessage("assistant", None, tool_calls=(ToolCall(evil, evil, f'{{"{hidden}": ["{hidden}"]}}'),)),
        ChatMessage("tool", evil, name=evil, tool_call_id=evil),
        ChatMessage("assistant", evil, reasoning=evil),
    ]
    every = "{% for m in messages %}{{ m | tojson }}{% endfor %}"
    text = ChatTemplate(every).laid_out(messages, lambda text: text.replace(evil, "*"), lambda size: None)[0]
    assert evil not in text
    # two of the first, four of the call, three of its answer, three of the last: reasoning has two names
    assert text.count("*") == 12


def test_what_it_refuses_is_told_as_it_says_it() -> None:
    with pytest.raises(BadRequest, match="never"):
        shown("{{ raise_exception('never') }}")


def test_the_length_is_told_as_it_grows() -> None:
    sizes: list[int] = []
    ChatTemplate("{% for m in messages %}{{ m.content }}{% endfor %}").laid_out(HISTORY[:1] * 2, str, sizes.append)[0]
    assert sizes == [8, 16]


# --- a template of its own for tools

TOLD = (
    "{% for t in tools %}<tool>{{ t | tojson }}</tool>{% endfor %}"
    'Call them so: <tool_call>{"name": <name>, "arguments": <arguments>}</tool_call>\n'
)
FOR_TOOLS = TOLD + HERMES
WEATHER = Tool("weather", '{"type": "function", "function": {"name": "weather"}}', '{"type": "object"}')


def rendered(terms: Terms, *tools: Tool, messages: Sequence[ChatMessage] = HISTORY) -> str:
    return Rendering(terms).text(Chat(tuple(messages), tools=tools)).text


def test_a_template_for_tools_is_taken_where_there_are_tools() -> None:
    terms = Terms(CHATML, "", "", tool_template=FOR_TOOLS)
    assert rendered(terms, messages=HISTORY[:1]) == "<|im_start|>user\nWeather?<|im_end|>\n"
    prompt = rendered(terms, WEATHER)
    assert prompt.startswith('<tool>{"type": "function", "function": {"name": "weather"}}</tool>Call them so: ')
    assert prompt.count("<tool_call>") == 2 and "<|im_start|>" not in prompt
    assert Rendering(terms).syntax == Syntax(CALLS["hermes"])
    assert "<|im_start|>" in rendered(terms), "calls of earlier turns alone are no tools"


def test_a_template_for_tools_shows_them_in_its_own_way_whatever_is_found_of_it() -> None:
    """It names tools, and shows neither their arguments nor calls."""
    names = "{% for t in tools %}[tool {{ t.function.name }}]{% endfor %}" + CHATML
    terms = Terms(CHATML, "", "", tool_template=names)
    assert rendered(terms, WEATHER, messages=HISTORY[:1]) == "[tool weather]<|im_start|>user\nWeather?<|im_end|>\n"
    assert Rendering(terms).syntax == Syntax(CALLS["hermes"])
    assert "<|im_end|>" in rendered(terms, WEATHER) and "rain" in rendered(terms, WEATHER)
    said = Terms(CHATML, "", "", tool_template=names, syntax="llama")
    assert Rendering(said).syntax == Syntax(CALLS["llama"])
    assert rendered(said, WEATHER, messages=HISTORY[:1]).startswith("[tool weather]")


def test_one_that_shows_calls_otherwise_than_an_admin_says_has_them_explained() -> None:
    said = Terms(CHATML, "", "", tool_template=FOR_TOOLS, syntax="llama")
    assert "<tool>{" not in rendered(said, WEATHER, messages=HISTORY[:1])


def test_what_a_model_thinks_is_found_in_either_template() -> None:
    thinking = CHATML + "{% if add_generation_prompt %}<think>\n{% endif %}"
    for terms in (
        Terms(thinking, "", "", tool_template=FOR_TOOLS),
        Terms(CHATML, "", "", tool_template=TOLD + thinking),
    ):
        assert Rendering(terms).syntax.thinking == THINKINGS["think"]


def test_a_template_for_tools_that_does_not_compile_takes_nothing_from_the_other() -> None:
    terms = Terms(CHATML, "", "", tool_template="{% for %}")
    assert rendered(terms, messages=HISTORY[:1]).startswith("<|im_start|>")
    with pytest.raises(ModelInvalid, match="cannot be compiled"):
        rendered(terms, WEATHER)


def test_a_model_with_a_template_for_tools_alone_takes_no_chat_without_them() -> None:
    prompts = Prompts(FakeRunner(slots=1).vocabulary, Rendering(Terms("", "", "", tool_template=FOR_TOOLS)))
    with pytest.raises(BadRequest, match="no chat template but for tools: give tools, or use /v1/completions"):
        prompts.from_chat(Chat(HISTORY[:1]))
    assert prompts.from_chat(Chat(HISTORY[:1], tools=(WEATHER,)))[0]
