"""Which format a model writes in: what its chat template shows of a call is read by the reader of each format, and the
one that finds the call is the model's own."""

import json
import re
from collections.abc import Sequence
from itertools import chain

from llmd.daemon.engine.answers.formats import (
    CALLS,
    THINKINGS,
    Calls,
    Syntax,
    Thinking,
    name_of_thinking,
    thinking_named,
)
from llmd.daemon.engine.answers.reader import Argued, Called, Reader
from llmd.daemon.errors import BadRequest

_ANY_TAG = r"<[\w:.\-]+>"


def calls_in(shown: str, name: str, arguments: dict[str, str]) -> Calls | None:
    """The format in which a text shows a call of `name`; None: it shows none that is known."""
    return next((calls for calls in CALLS.values() if _reads(calls, shown, name, arguments)), None)


def _reads(calls: Calls, shown: str, name: str, arguments: dict[str, str]) -> bool:
    if calls.at_start:  # what stands before it is other people's
        if calls.head[1] not in shown:
            return False
        shown = shown[max(0, shown.rfind("{", 0, shown.rfind(name))) :]
    reader = Reader(Syntax(calls), frozenset({name}))
    pieces = [*reader.push(shown), *reader.end()]
    given = "".join(piece.text for piece in pieces if isinstance(piece, Argued))
    try:
        return any(isinstance(piece, Called) for piece in pieces) and json.loads(given) == arguments
    except ValueError:
        return False


def begins_thinking(prompt: str, thinking: Thinking) -> bool:
    return prompt.rstrip().endswith(thinking.begin)


def thinking_in(template: str, prompts: Sequence[str] = ()) -> Thinking | None:
    """How a model thinks whose template begins it in one of these prompts, or takes it out of earlier answers."""
    begun = (t for t in THINKINGS.values() if any(begins_thinking(prompt, t) for prompt in prompts))
    tags = (thinking_named(tag) for prompt in prompts for tag in re.findall(f"{_ANY_TAG}$", prompt.rstrip()))
    spelled = (t for t in THINKINGS.values() if t.begin in template or (t.end[1] == "/" and t.end in template))
    return next(chain(begun, filter(None, tags), spelled), None)


def named(name: str) -> Syntax:
    """What an admin said: a format of calls, `+` one of thoughts. Raises BadRequest."""
    calls, plus, thinking = name.partition("+")
    if calls not in CALLS or (plus and not thinking_named(thinking)):
        thoughts = [*THINKINGS, "a tag like <thought>"]
        raise BadRequest(f"there is no such format: give {_list(list(CALLS))}, and perhaps +{_list(thoughts)}")
    return Syntax(CALLS[calls], thinking_named(thinking))


def name_of(syntax: Syntax) -> str:
    """`named` of it; "" where the template is for neither."""
    thinking = name_of_thinking(syntax.thinking)
    calls = syntax.calls.name if syntax.calls else ""
    return f"{calls}+{thinking}" if thinking else calls


def _list(names: Sequence[str]) -> str:
    return ", ".join(names[:-1]) + f" or {names[-1]}"
