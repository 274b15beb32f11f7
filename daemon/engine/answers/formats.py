"""How models write calls of tools and what they think: the formats that are known, as data.

A call is read token by token of its format (`Word`), between which blanks may stand, so that a reader knows at every
byte whether it goes on, and a grammar is the same tokens in the format's own spacing.
"""

import re
from dataclasses import dataclass
from enum import Enum


class Name(Enum):
    """A tool's name, or an identifier: in double quotes, or as it stands."""

    QUOTED = 1
    BARE = 2


QUOTED, BARE = Name.QUOTED, Name.BARE
# a word that must come: one of several texts, or a name
Word = tuple[str, ...] | Name


@dataclass(frozen=True, slots=True)
class Calls:
    """How calls are written. For the reader: `heads` lead from a trigger to the arguments (one of several ways, each
    begins with its trigger), `tail` follows them, then `more` leads to the next call's, where calls are a list, and
    `end` ends that. For the grammar, text by text: `first` (before the first call), `head` (before the name, and
    between it and the arguments), `foot` (after them), `between`, `last`, `says` and `again`."""

    name: str
    heads: tuple[tuple[Word, ...], ...]
    tail: tuple[Word, ...]
    head: tuple[str, str]
    foot: str
    more: tuple[Word, ...] = ()
    end: tuple[Word, ...] = ()
    first: str = ""
    between: str = ""
    last: str = ""
    arguments: str = "json"  # how they are written (`arguments.py`)
    mark: str = ""  # what begins and ends a text in them, where that is no double quote
    says: str = ""  # before a text
    again: str = ""  # behind what was thought
    parallel: bool = True  # one answer may have several
    beside: str = ""  # before a call where the answer may be JSON as well
    at_start: bool = False  # a call is a whole answer: what begins otherwise has none
    dropped: tuple[str, ...] = ()  # what surrounds a text or a call and is no part of it

    @property
    def triggers(self) -> tuple[str, ...]:
        first = [head[0] for head in self.heads]
        return tuple(dict.fromkeys(text for word in first if isinstance(word, tuple) for text in word))


@dataclass(frozen=True, slots=True)
class Thinking:
    """What begins and ends it."""

    begin: str
    end: str


class Thoughts(Enum):
    """Whether a model thinks before it answers."""

    MAY = 1
    BEGUN = 2  # by its prompt
    NONE = 3  # it is told not to


_NAME: tuple[Word, ...] = (("{",), ('"name"',), (":",), QUOTED, (",",))
_ARGUMENTS: Word = ('"arguments"', '"parameters"')
_JSON: tuple[Word, ...] = (*_NAME, _ARGUMENTS, (":",))

HERMES = Calls(
    "hermes",
    heads=((("<tool_call>",), *_JSON),),
    tail=(("}",), ("</tool_call>",)),
    head=('<tool_call>\n{"name": "', '", "arguments": '),
    foot="}\n</tool_call>",
    between="\n",
)
LLAMA = Calls(
    "llama",
    heads=(
        _JSON,
        (("{",), ('"type"',), (":",), ('"function"',), (",",), *_JSON[1:]),
        (("<|python_tag|>",), *_JSON),
    ),
    tail=(("}",),),
    head=('{"name": "', '", "parameters": '),
    foot="}",
    beside="<|python_tag|>",
    parallel=False,
    at_start=True,
)
MISTRAL = Calls(
    "mistral",
    heads=((("[TOOL_CALLS]",), ("[",), *_JSON),),
    tail=(),
    more=((",",), *_JSON),
    end=(("]",),),
    first="[TOOL_CALLS][",
    head=('{"name": "', '", "arguments": '),
    foot="}",
    between=", ",
    last="]",
)
MISTRAL_ARGS = Calls(
    "mistral-args",
    heads=(
        (("[TOOL_CALLS]",), BARE, ("[ARGS]",)),
        (("[TOOL_CALLS]",), BARE, ("[CALL_ID]",), BARE, ("[ARGS]",)),
    ),
    tail=(),
    head=("[TOOL_CALLS]", "[ARGS]"),
    foot="",
)
_DEEPSEEK = ("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>")
DEEPSEEK = Calls(
    "deepseek",
    heads=((("<｜tool▁call▁begin｜>",), BARE, ("<｜tool▁sep｜>",)),),
    tail=(("<｜tool▁call▁end｜>",),),
    first=_DEEPSEEK[0],
    head=("<｜tool▁call▁begin｜>", "<｜tool▁sep｜>"),
    foot="<｜tool▁call▁end｜>",
    last=_DEEPSEEK[1],
    dropped=_DEEPSEEK,
)
DEEPSEEK_R1 = Calls(
    "deepseek-r1",
    heads=((("<｜tool▁call▁begin｜>",), ("function",), ("<｜tool▁sep｜>",), BARE, ("```json",)),),
    tail=(("```",), ("<｜tool▁call▁end｜>",)),
    first=_DEEPSEEK[0],
    head=("<｜tool▁call▁begin｜>function<｜tool▁sep｜>", "\n```json\n"),
    foot="\n```<｜tool▁call▁end｜>",
    between="\n",
    last=_DEEPSEEK[1],
    dropped=_DEEPSEEK,
)
HARMONY = Calls(
    "harmony",
    heads=tuple(
        (*start, *constrained, ("<|message|>",))
        for start in (
            (("<|channel|>commentary to=functions.",), BARE),
            (("<|channel|>analysis to=functions.",), BARE),
            (("<|start|>assistant to=functions.",), BARE, ("<|channel|>",), ("commentary", "analysis")),
            ((" to=functions.",), BARE, ("<|channel|>",), ("commentary", "analysis")),
        )
        for constrained in ((), (("<|constrain|>",), ("json",)), (("json",),))
    ),
    tail=(),
    head=("<|channel|>commentary to=functions.", " <|constrain|>json<|message|>"),
    foot="",  # a token that ends the text comes
    says="<|channel|>final<|message|>",
    again="<|start|>assistant",
    parallel=False,
    dropped=(
        "<|start|>assistant", "<|channel|>final<|message|>", "<|channel|>commentary<|message|>", "<|end|>",
        "<|return|>", "<|call|>",
    ),
)  # fmt: skip
GEMMA = Calls(
    "gemma",
    heads=((("<|tool_call>",), ("call:",), BARE),),
    tail=(("<tool_call|>",),),
    head=("<|tool_call>call:", ""),
    foot="<tool_call|>",
    arguments="gemma",
    mark='<|"|>',
)
FUNCTION_GEMMA = Calls(
    "functiongemma",
    heads=((("<start_function_call>",), ("call:",), BARE),),
    tail=(("<end_function_call>",),),
    head=("<start_function_call>call:", ""),
    foot="<end_function_call>",
    arguments="gemma",
    mark="<escape>",
)
QWEN = Calls(
    "qwen",
    heads=((("<tool_call>",), ("<function=",), BARE, (">",)),),
    tail=(("</tool_call>",),),
    head=("<tool_call>\n<function=", ">\n"),
    foot="\n</tool_call>",
    between="\n",
    arguments="xml",
)
_ALL = (
    HERMES, QWEN, LLAMA, MISTRAL, MISTRAL_ARGS, DEEPSEEK, DEEPSEEK_R1, HARMONY, GEMMA, FUNCTION_GEMMA,
)  # fmt: skip
CALLS = {calls.name: calls for calls in _ALL}

THINKINGS = {
    "think": Thinking("<think>", "</think>"),
    "[think]": Thinking("[THINK]", "[/THINK]"),
    "harmony": Thinking("<|channel|>analysis<|message|>", "<|end|>"),
    "seed": Thinking("<seed:think>", "</seed:think>"),
    "gemma": Thinking("<|channel>thought", "<channel|>"),
    "cohere": Thinking("<|START_THINKING|>", "<|END_THINKING|>"),
    "minimax": Thinking("<mm:think>", "</mm:think>"),
}
# a tag of a model's own, which a template may have for other reasons too
TAG = re.compile(r"<([\w:.\-]*(?:think|thought|reason)[\w:.\-]*)>")


def thinking_named(name: str) -> Thinking | None:
    """One of THINKINGS, or a tag such as `<thought>`."""
    tag = TAG.fullmatch(name)
    return THINKINGS.get(name) or (Thinking(name, f"</{tag.group(1)}>") if tag else None)


def name_of_thinking(thinking: Thinking | None) -> str:
    """`thinking_named` of it; "" for none."""
    own = thinking.begin if thinking else ""
    return next((name for name, t in THINKINGS.items() if t == thinking), own)


@dataclass(frozen=True, slots=True)
class Syntax:
    """How one model writes. `calls` None: its chat template knows no tools, so they are explained to it, and called in
    `HERMES`. `thinking` None: it says what it thinks as text, or nothing."""

    calls: Calls | None = None
    thinking: Thinking | None = None

    @property
    def written(self) -> Calls:
        return self.calls or HERMES

    @property
    def marks(self) -> tuple[str, ...]:
        """Every text that has a meaning of its own."""
        calls = self.written
        words = [word for words in (*calls.heads, calls.tail) for word in words if isinstance(word, tuple)]
        thought = (self.thinking.begin, self.thinking.end) if self.thinking else ()
        written = (*calls.head, calls.first, calls.foot, calls.last, calls.says, calls.again, calls.mark)
        found = (*(text for word in words for text in word), *calls.dropped, *thought, *written)
        return tuple(dict.fromkeys(filter(None, found)))
