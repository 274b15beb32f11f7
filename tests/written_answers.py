"""Answers as models of each format write them, and what each says, thinks and calls."""

import json
from dataclasses import dataclass

from llmd.daemon.engine.answers.formats import CALLS, HARMONY, THINKINGS, Calls, Syntax, Thinking
from llmd.daemon.engine.answers.reader import Argued, Called, Piece, Reader, Said, Thought

ARGUMENTS = '{"city": "Köln {} \\" ]}", "days": [1, {"a": "<tool_call>"}]}'
NO_ARGUMENTS = "{}"
# the same as each kind of arguments writes them; MARK is the format's own
WRITTEN = {
    "json": (ARGUMENTS, NO_ARGUMENTS),
    "gemma": ('{city:MARKKöln {} " ]}MARK,days:[1,{a:MARK<tool_call>MARK}]}', "{}"),
    "xml": (
        '<parameter=city>\nKöln {} " ]}\n</parameter>\n<parameter=days>\n[1, {"a": "<tool_call>"}]\n</parameter>\n'
        "</function>",
        "</function>",
    ),
}
THOUGHT = "Hm, {x} or <y>?"


@dataclass(frozen=True)
class Meant:
    said: str = ""
    thought: str = ""
    calls: tuple[tuple[str, str], ...] = ()


def read(syntax: Syntax, texts: list[str], tools: frozenset[str], *, thinks: bool = False) -> Meant:
    """What an answer means that comes in these texts."""
    reader = Reader(syntax, tools, thinks=thinks)
    pieces = [piece for text in texts for piece in reader.push(text)]
    return meant([*pieces, *reader.end()])


def meant(pieces: list[Piece]) -> Meant:
    said = thought = ""
    calls: list[tuple[str, str]] = []
    for piece in pieces:
        match piece:
            case Said(text):
                said += text
            case Thought(text):
                thought += text
            case Called(number, name):
                assert number == len(calls)
                calls.append((name, ""))
            case Argued(number, text):
                calls[number] = (calls[number][0], calls[number][1] + text)
    return Meant(said, thought, tuple(calls))


def thinking_of(calls: Calls) -> Thinking:
    return THINKINGS["harmony" if calls is HARMONY else "think"]


def call(calls: Calls, name: str, arguments: str = ARGUMENTS) -> str:
    if arguments in (ARGUMENTS, NO_ARGUMENTS):
        arguments = WRITTEN[calls.arguments][arguments == NO_ARGUMENTS].replace("MARK", calls.mark)
    return calls.head[0] + name + calls.head[1] + arguments + calls.foot


def same(found: Meant, want: Meant) -> bool:
    """With arguments that are the same JSON."""
    loaded = [tuple((name, json.loads(arguments)) for name, arguments in one.calls) for one in (found, want)]
    return (found.said, found.thought, loaded[0]) == (want.said, want.thought, loaded[1])


def written(calls: Calls) -> dict[str, tuple[str, Meant]]:
    """Each kind of answer, without thoughts."""
    kinds = {
        "a text": (calls.says + "It is warm.", Meant("It is warm.")),
        "a call": (calls.first + call(calls, "weather") + calls.last, Meant(calls=(("weather", ARGUMENTS),))),
    }
    if calls.parallel:
        two = calls.first + call(calls, "weather") + calls.between + call(calls, "time.now", NO_ARGUMENTS) + calls.last
        kinds["two calls"] = (two, Meant(calls=(("weather", ARGUMENTS), ("time.now", NO_ARGUMENTS))))
    if not calls.at_start and not calls.says:
        behind = "Let me see.\n" + calls.first + call(calls, "weather") + calls.last
        kinds["a call behind a text"] = (behind, Meant("Let me see.\n", calls=(("weather", ARGUMENTS),)))
    return kinds


TOOLS = frozenset({"weather", "time.now"})
ANSWERS = [(calls, kind, text, meaning) for calls in CALLS.values() for kind, (text, meaning) in written(calls).items()]
