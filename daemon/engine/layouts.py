"""Conversations that a chat template does not take as they came, laid out anew by stated rules, with all of their text;
and whether a prompt shows all of it. Pure.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal

from llmd.daemon.engine.answers.formats import THINKINGS
from llmd.daemon.wire.work import ChatMessage

BETWEEN = "\n\n"  # texts that become one
# lines at the end of an answer of which a template must show one: it may leave out what was thought before
LAST_LINES = 8
# what some templates take out of texts, and do
SWITCHES = ("/no_think", "/think")


@dataclass(frozen=True, slots=True)
class Layout:
    """`done` is what it does, for people. `joined`: neighbours of one role are one message. `system`: where system
    messages go, before that. `opened`: an assistant who speaks first answers an empty message of a user."""

    done: str = ""
    joined: bool = True
    system: Literal["kept", "first", "user"] = "kept"
    opened: bool = False

    def of(self, messages: Sequence[ChatMessage]) -> tuple[ChatMessage, ...]:
        turns = tuple(messages)
        match self.system:
            case "first":
                turns = _system_first(turns)
            case "user":
                turns = tuple(_as_user(turn) if turn.role == "system" else turn for turn in turns)
        if self.joined:
            turns = tuple(_join(turns))
        return _opened(turns) if self.opened else turns


_JOINED = "messages of one role in a row are joined"
_FIRST = f"later system messages go to the first one, and {_JOINED}"
_USER = f"system messages go into the user's turn, and {_JOINED}"
_OPENED = "; an empty message of a user comes before an assistant's that is the first"
# in this order, the first that a template takes and shows
LAYOUTS = (
    Layout(joined=False),
    Layout(_JOINED),
    Layout(_JOINED + _OPENED, opened=True),
    Layout(_FIRST, system="first"),
    Layout(_FIRST + _OPENED, system="first", opened=True),
    Layout(_USER, system="user"),
    Layout(_USER + _OPENED, system="user", opened=True),
)


def _as_user(turn: ChatMessage) -> ChatMessage:
    return ChatMessage("user", turn.content)


def _system_first(turns: tuple[ChatMessage, ...]) -> tuple[ChatMessage, ...]:
    """One that follows the last answer is a user's: somebody is to be answered."""
    rest = [i for i, turn in enumerate(turns) if turn.role != "system"]
    last = rest[-1] if rest and turns[rest[-1]].role == "assistant" else len(turns)
    first = [turn for turn in turns[:last] if turn.role == "system"]
    others = [turns[i] for i in rest]
    return (*first, *others, *map(_as_user, turns[last + 1 :]))


def _join(turns: Iterable[ChatMessage]) -> Iterator[ChatMessage]:
    for role, several in groupby(turns, key=lambda turn: turn.role):
        alike = list(several)
        if role == "tool" or len(alike) == 1:
            yield from alike
        else:
            yield _one(alike)


def _one(alike: Sequence[ChatMessage]) -> ChatMessage:
    names = {turn.name for turn in alike}
    contents = [turn.content for turn in alike if turn.content]
    thoughts = [turn.reasoning for turn in alike if turn.reasoning]
    return ChatMessage(
        alike[0].role,
        _content(contents) if contents else alike[0].content,
        names.pop() if len(names) == 1 else None,
        tuple(call for turn in alike for call in turn.tool_calls),
        None,
        BETWEEN.join(thoughts) if thoughts else None,
    )


def _content(contents: Sequence[str | tuple[str, ...]]) -> str | tuple[str, ...]:
    texts = [content for content in contents if isinstance(content, str)]
    if len(texts) == len(contents):
        return BETWEEN.join(texts)
    parts: list[str] = []
    for content in contents:
        parts += [BETWEEN] if parts else []
        parts += [content] if isinstance(content, str) else content
    return tuple(parts)


def _opened(turns: tuple[ChatMessage, ...]) -> tuple[ChatMessage, ...]:
    at = next((i for i, turn in enumerate(turns) if turn.role != "system"), len(turns))
    if at == len(turns) or turns[at].role != "assistant":
        return turns
    return (*turns[:at], ChatMessage("user", ""), *turns[at:])


# --- what a prompt shows


def shows(turns: Sequence[dict[str, Any]], prompt: str) -> bool:
    """Whether the texts of what a template walks are in what it made of it, in their order, trimmed, and perhaps as
    JSON has them. System messages are looked for by themselves, for some templates put them elsewhere; so are tools'
    answers, in any order."""
    ends = {"system": 0, "tool": 0}
    said = 0
    for turn in turns:
        role = turn["role"]
        for text in _texts(turn.get("content")):
            end = _shown(text, role, prompt, ends.get(role, said))
            if end < 0 and role == "tool":
                end = _shown(text, role, prompt, 0)
            if end < 0:
                return False
            if role in ends:
                ends[role] = end
            else:
                said = end
    return True


def _texts(content: Any) -> list[str]:
    if isinstance(content, str):
        return [content]
    return [part["text"] for part in content or ()]


def _shown(text: str, role: str, prompt: str, begin: int) -> int:
    """Where it ends; -1: it is not there."""
    end = _find(text, prompt, begin)
    if end >= 0:
        return end
    if role == "assistant":
        for mark in {thinking.end for thinking in THINKINGS.values()}:
            text = text.rpartition(mark)[2]
        lines = [line for line in text.rsplit("\n", LAST_LINES)[-LAST_LINES:] if line.strip()]
        ends = (_find(line, prompt, begin) for line in reversed(lines))
        return next((end for end in ends if end >= 0), -1) if lines else begin
    for switch in SWITCHES:
        text = text.replace(switch, "\0")
    end = begin if "\0" in text else -1
    for part in text.split("\0") if end >= 0 else ():
        end = _find(part, prompt, end) if end >= 0 else -1
    return end


def _find(text: str, prompt: str, begin: int) -> int:
    text = text.strip()
    if not text:
        return begin
    at = prompt.find(text, begin)
    if at < 0:
        text = json.dumps(text, ensure_ascii=False)[1:-1]
        at = prompt.find(text, begin)
    return at + len(text) if at >= 0 else -1
