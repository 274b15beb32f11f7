"""What a model writes is read the same however it is cut, and nothing it may write is an error."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from written_answers import ANSWERS, ARGUMENTS, NO_ARGUMENTS, TOOLS, Meant, call, meant, read, same, thinking_of

from llmd.daemon.engine.answers.formats import (
    CALLS,
    GEMMA,
    HERMES,
    LLAMA,
    MISTRAL,
    MISTRAL_ARGS,
    QWEN,
    THINKINGS,
    Calls,
    Syntax,
)
from llmd.daemon.engine.answers.reader import Argued, Called, Reader, Said

IDS = [f"{calls.name}: {kind}" for calls, kind, _, _ in ANSWERS]
THINK = THINKINGS["think"]


@pytest.mark.parametrize(("calls", "kind", "text", "meaning"), ANSWERS, ids=IDS)
def test_an_answer_is_read_the_same_at_every_cut(calls: Calls, kind: str, text: str, meaning: Meant) -> None:
    syntax = Syntax(calls)
    for at in range(len(text) + 1):
        assert same(read(syntax, [text[:at], text[at:]], TOOLS), meaning)
    assert same(read(syntax, list(text), TOOLS), meaning)


@pytest.mark.parametrize(("calls", "kind", "text", "meaning"), ANSWERS, ids=IDS)
@pytest.mark.parametrize("thinks", [False, True], ids=["it begins", "the prompt begins"])
def test_what_is_thought_comes_first(calls: Calls, kind: str, text: str, meaning: Meant, thinks: bool) -> None:
    thinking = thinking_of(calls)
    begin = "" if thinks else thinking.begin
    whole = f"{begin}\nHm, {{x}} or <y>?\n{thinking.end}{calls.again or chr(10) * 2}{text}"
    want = Meant(meaning.said, "Hm, {x} or <y>?", meaning.calls)
    for at in range(len(whole) + 1):
        assert same(read(Syntax(calls, thinking), [whole[:at], whole[at:]], TOOLS, thinks=thinks), want)
    assert same(read(Syntax(calls, thinking), list(whole), TOOLS, thinks=thinks), want)


JSON_CALLS = {name: calls for name, calls in CALLS.items() if calls.arguments == "json"}
OTHERS = {name: calls for name, calls in CALLS.items() if calls.arguments != "json"}


@pytest.mark.parametrize("calls", OTHERS.values(), ids=list(OTHERS))
def test_arguments_that_are_no_json_become_json_as_they_come(calls: Calls) -> None:
    reader = Reader(Syntax(calls), TOOLS, texts={"weather": {"city"}})
    shown = [reader.push(char) for char in calls.first + call(calls, "weather")]
    argued = [piece.text for pieces in shown for piece in pieces if isinstance(piece, Argued)]
    named = next(i for i, pieces in enumerate(shown) if any(isinstance(piece, Called) for piece in pieces))
    assert any(isinstance(piece, Argued) for piece in shown[named]), "the first of them comes with the name"
    assert json.loads("".join(argued)) == json.loads(ARGUMENTS)
    assert sum("ö" in text or "l" in text for text in argued) >= 2, "a text comes letter by letter"


@pytest.mark.parametrize(
    ("calls", "written", "meant"),
    [
        (GEMMA, '{a:-1.5e3,b:true,c:null,f:<|"|><|"|>}', {"a": -1500.0, "b": True, "c": None, "f": ""}),
        (GEMMA, "{d:[],e:{}}", {"d": [], "e": {}}),
        (GEMMA, '{ a : bare word , "b":"x, y", <|"|>c d<|"|>:1 }', {"a": "bare word ", "b": "x, y", "c d": 1}),
        (GEMMA, '{a:<|"|>"\n\\{}<|"|>,l:[<|"|>x<|"|>,[1,2]]}', {"a": '"\n\\{}', "l": ["x", [1, 2]]}),
        (QWEN, "<parameter=city>\n5\n</parameter>\n<parameter=n>\n5\n</parameter>\n</function>", {"city": "5", "n": 5}),
        (QWEN, '<parameter=city>\na\n</p\n"b"\n</parameter>\n</function>', {"city": 'a\n</p\n"b"'}),
        (QWEN, "<parameter=n>\nno json\n</parameter> odd </function>", {"n": "no json"}),
    ],
)  # fmt: skip
def test_what_arguments_say_in_other_ways(calls: Calls, written: str, meant: object) -> None:
    for texts in ([written], list(written)):
        reader = Reader(Syntax(calls), TOOLS, texts={"weather": {"city"}})
        text = calls.head[0] + "weather" + calls.head[1]
        pieces = [piece for part in (text, *texts, calls.foot) for piece in reader.push(part)]
        assert json.loads("".join(piece.text for piece in pieces if isinstance(piece, Argued))) == meant


@pytest.mark.parametrize("calls", JSON_CALLS.values(), ids=list(JSON_CALLS))
def test_the_first_of_the_arguments_comes_with_the_next_token_after_the_name(calls: Calls) -> None:
    reader = Reader(Syntax(calls), TOOLS)
    begin = calls.first + calls.head[0] + "weather" + calls.head[1]
    assert not any(isinstance(piece, Called | Argued) for piece in reader.push(begin))
    assert reader.push("{") == [Called(0, "weather"), Argued(0, "{")]
    assert reader.push('"ci') == [Argued(0, '"ci')]


@pytest.mark.parametrize("calls", JSON_CALLS.values(), ids=list(JSON_CALLS))
def test_arguments_that_end_early_are_what_there_is_of_them(calls: Calls) -> None:
    begun = calls.first + call(calls, "weather", '{"city": "Co')
    begun = begun[: len(begun) - len(calls.foot)]
    assert read(Syntax(calls), [begun], TOOLS) == Meant(calls=(("weather", '{"city": "Co'),))


@pytest.mark.parametrize("calls", CALLS.values(), ids=list(CALLS))
def test_a_tool_that_there_is_not_is_not_called(calls: Calls) -> None:
    text = calls.first + call(calls, "wizard") + calls.last
    found = read(Syntax(calls), list(text), TOOLS)
    assert found.calls == () and "wizard" in found.said and "Köln" in found.said


@pytest.mark.parametrize(
    ("calls", "text"),
    [
        (HERMES, "<tool_call>"),
        (HERMES, '<tool_call>\n{"name": 5}\n</tool_call>'),
        (HERMES, '<tool_call>\n{"arguments": {}, "name": "weather"}\n</tool_call>'),
        (HERMES, '<tool_call>\n{"name": "weather", "arguments": "{}"}\n</tool_call>'),
        (HERMES, "<tool_call>" + " " * 5000 + "{"),
        (HERMES, "a <tool_cal and <tool_cale"),
        (LLAMA, '{"answer": 5}'),
        (LLAMA, 'It is {"name": "weather", "parameters": {}}'),
        (MISTRAL, "[TOOL_CALLS] none"),
        (MISTRAL_ARGS, "[TOOL_CALLS]weather[ARGS] none"),
    ],
)
def test_what_is_no_call_is_text_as_it_was_written(calls: Calls, text: str) -> None:
    assert read(Syntax(calls), [text], TOOLS) == Meant(text)
    assert read(Syntax(calls), list(text), TOOLS) == Meant(text)


def test_blanks_and_other_keys_do_not_matter() -> None:
    hermes = '<tool_call>{ "name" :"weather" ,\n "parameters": {"city": "x"} }  </tool_call>'
    assert read(Syntax(HERMES), list(hermes), TOOLS) == Meant(calls=(("weather", '{"city": "x"}'),))
    mistral = (
        '[TOOL_CALLS] [{"name": "weather", "arguments": {}, "id": "123456789"}, {"name": "weather", "arguments": {}}]'
    )
    assert read(Syntax(MISTRAL), list(mistral), TOOLS) == Meant(calls=(("weather", "{}"), ("weather", "{}")))
    identified = "[TOOL_CALLS]weather[CALL_ID]123456789[ARGS]{}"
    assert read(Syntax(MISTRAL_ARGS), list(identified), TOOLS) == Meant(calls=(("weather", "{}"),))
    python = '<|python_tag|>{"type": "function", "name": "weather", "parameters": {}}'
    assert read(Syntax(LLAMA), list(python), TOOLS).calls == ()  # a type stands only at the beginning
    assert read(Syntax(LLAMA), list(python[14:]), TOOLS) == Meant(calls=(("weather", "{}"),))


def test_without_tools_everything_is_text() -> None:
    text = call(HERMES, "weather")
    assert read(Syntax(HERMES), list(text), frozenset()) == Meant(text)


def test_a_text_is_shown_as_soon_as_it_is_certain() -> None:
    reader = Reader(Syntax(HERMES, THINK), TOOLS)
    assert reader.push("A < b") == [Said("A < b")]
    assert reader.push(" <to") == [Said(" ")]
    assert reader.push("ad") == [Said("<toad")]


def test_thoughts_that_do_not_end_are_thoughts() -> None:
    assert read(Syntax(HERMES, THINK), ["<think>", "so ", "it </th"], TOOLS) == Meant(thought="so it </th")
    assert read(Syntax(HERMES, THINK), ["<think></think>", "\n\n", "Yes."], TOOLS) == Meant("Yes.")


@given(
    st.lists(
        st.one_of(
            st.text(max_size=8),
            st.sampled_from(sorted({mark for c in CALLS.values() for mark in Syntax(c, THINK).marks})),
            st.sampled_from(['{"a": 1}', "weather", '"name": "weather"', '"arguments": {', "}", "]", ", "]),
        ),
        max_size=12,
    ),
    st.sampled_from(sorted(CALLS)),
    st.booleans(),
    st.data(),
)
def test_whatever_a_model_writes_is_read_alike_in_any_pieces(
    parts: list[str], name: str, thinks: bool, data: st.DataObject
) -> None:
    syntax, text = Syntax(CALLS[name], THINK), "".join(parts)
    whole = read(syntax, [text], TOOLS, thinks=thinks)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert read(syntax, pieces, TOOLS, thinks=thinks) == whole
    assert read(syntax, list(text), TOOLS, thinks=thinks) == whole


@given(
    st.recursive(
        st.none() | st.booleans() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
    )
)
def test_any_arguments_are_read_whole(value: object) -> None:
    arguments = json.dumps({"a": value}, ensure_ascii=False)
    for calls in JSON_CALLS.values():
        text = calls.first + call(calls, "weather", arguments) + calls.last
        assert read(Syntax(calls), [text], TOOLS) == Meant(calls=(("weather", arguments),))


@pytest.mark.parametrize("calls", CALLS.values(), ids=CALLS)
def test_no_thought_and_no_call_waits_for_a_stop_string(calls: Calls) -> None:
    """Of what is thought and called every character is shown as it comes; of what is said those that no stop string may
    have."""
    thinking = thinking_of(calls)
    reader = Reader(Syntax(calls, thinking), TOOLS, thinks=True, stop=("Hm", "city", "END of it"))
    for char in f"Hm, city END {thinking.end[:3]}":
        reader.push(char)
        assert reader.thinking and reader.shown == reader._pushed
    reader.push(thinking.end + calls.again)
    for char in (calls.first + call(calls, "weather")).rpartition("Köln")[0]:
        reader.push(char)
    assert reader.calls == 1 and reader.shown == reader._pushed
    said = Reader(Syntax(HERMES), TOOLS, stop=("END of it",))
    shown = [said.push(text) for text in ("a EN", "D of", "f END of", " it b")]
    assert shown == [[Said("a ")], [], [Said("END off ")], []]
    assert said.stopped and said.shown == len("a END off ") and said.end() == []


def test_a_stop_string_has_no_parts_on_both_sides_of_a_call() -> None:
    text = f"ab{call(HERMES, 'weather', NO_ARGUMENTS)}cd"
    for size in (1, 5, len(text)):
        pieces = [text[at : at + size] for at in range(0, len(text), size)]
        reader = Reader(Syntax(HERMES), TOOLS, stop=("bc", "b<", "abcd"))
        got = meant([piece for part in pieces for piece in reader.push(part)] + reader.end())
        assert got == Meant("abcd", calls=(("weather", NO_ARGUMENTS),)) and not reader.stopped
