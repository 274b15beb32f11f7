"""What an answer is held against is what it said and called, choice by choice, once it has ended by itself."""

from llmd.daemon.serving.holding import Held, held
from llmd.daemon.wire.events import Event, Finished, Text, ToolCalled
from llmd.daemon.wire.work import Tool, Wanted

STRICT = Tool("weather", "{}", '{"type": "object"}', strict=True)
LOOSE = Tool("clock", "{}", '{"type": "object"}')


def said(text: str, choice: int = 0) -> Event:
    return Text(1, choice, text, 1, 0)


def called(number: int, name: str, arguments: str) -> Event:
    return ToolCalled(1, 0, number, name, arguments, 1, 0)


def end(reason: str = "stop", choice: int = 0, calls: int = 0) -> Event:
    return Finished(1, choice, reason, 1, 0, calls=calls)


def test_only_what_has_a_schema_is_held() -> None:
    assert held(None) is None and held(Wanted(None, (LOOSE,))) is None
    assert held(Wanted("{}")) and held(Wanted(None, (LOOSE, STRICT)))


def test_each_choice_is_held_as_it_ends() -> None:
    one = Held(Wanted("{}"))
    assert not any(one.note(e) for e in (said("[1"), said("{", 1), said("]"), said("}", 1)))
    assert one.note(end(choice=1)) == [("{}", "response_format", "{}", "the answer")]
    assert one.note(end()) == [("{}", "response_format", "[1]", "the answer")]


def test_what_is_cut_is_not_held() -> None:
    one = Held(Wanted("{}"))
    one.note(said("[1"))
    assert one.note(end("length")) == []


def test_the_strict_tools_calls_are_held() -> None:
    one = Held(Wanted(None, (LOOSE, STRICT)))
    events = [called(0, "weather", ""), called(0, "", '{"a"'), called(0, "", ": 1}"), called(1, "clock", ""),
              called(1, "", "{}"), called(2, "weather", "[]")]  # fmt: skip
    assert not any(map(one.note, events))
    wanted = [(STRICT.parameters, "tools.weather", text, "a call's arguments") for text in ('{"a": 1}', "[]")]
    assert one.note(end("stop", calls=3)) == wanted


def test_of_calls_that_are_cut_the_whole_ones_are_held() -> None:
    for calls in range(3):
        one = Held(Wanted("{}", (STRICT,)))
        for event in (called(0, "weather", "[1]"), called(1, "weather", "[2]"), called(2, "weather", "[3")):
            one.note(event)
        assert [text for _, _, text, _ in one.note(end("length", calls=calls))] == ["[1]", "[2]"][:calls]


def test_a_call_stands_in_for_the_answer() -> None:
    one = Held(Wanted("{}", (LOOSE,)))
    one.note(said(" "))
    one.note(called(0, "clock", "{}"))
    assert one.note(end("stop", calls=1)) == []
