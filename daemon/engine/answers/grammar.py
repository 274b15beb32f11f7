"""What an answer may be, as a grammar in llguidance's variant of Lark: what is thought, a text or JSON, calls of tools,
in the format that the model writes.

A text that the model's vocabulary has as one token of its own is that token, everything else is bytes.
"""

import json
import re
from collections.abc import Iterator, Mapping

from llmd.daemon.engine.answers.formats import Syntax, Thinking, Thoughts
from llmd.daemon.engine.answers.schemas import prepared
from llmd.daemon.engine.answers.spelling import GemmaRules, XmlRules
from llmd.daemon.wire.work import Tool, Wanted

MAX_CALLS = 32  # of one answer
MAX_BLANKS = 8  # between its parts

# any text, one that no call begins with, and what no text is that is held to have no thought
TEXT = r"/(.|\n)*/"
NO_CALL = r"/[^{ \n](.|\n)*/"
THOUGHT = r"/(.|\n)*BEGIN(.|\n)*/"

# text to the token that it is
Tokens = Mapping[str, int]


class Grammar:
    """`text`: the grammar."""

    def __init__(self, syntax: Syntax, wanted: Wanted, tokens: Tokens, thoughts: Thoughts) -> None:
        self._calls, self._wanted = syntax.written, wanted
        marks = syntax.marks
        self._tokens = {text: token for text, token in tokens.items() if any(text in mark for mark in marks)}
        self._split = re.compile("(" + "|".join(map(re.escape, self._tokens)) + ")") if self._tokens else None
        self._rules: dict[str, str] = {}
        body = " | ".join(self._body())
        self._rules["body"] = body
        self._rules["start"] = self._start(syntax.thinking, thoughts)
        rules = "\n".join(f"{name}: {rule}" for name, rule in self._rules.items())
        said = self._said(syntax.thinking, thoughts)
        self.text = f"%llguidance {{}}\n{rules}\nTEXT: {TEXT}\n{said}\nBLANKS: /[ \\n\\r\\t]{{0,{MAX_BLANKS}}}/\n"

    def _start(self, thinking: Thinking | None, thoughts: Thoughts) -> str:
        if thinking is None or thoughts == Thoughts.NONE:
            return "body"
        self._rules[f"thought{self._lazy(thinking.end)}"] = self._until(thinking.end)
        again = self._literal(self._calls.again)
        if thoughts == Thoughts.BEGUN:
            return f"thought {again} BLANKS body"
        whole = f"{self._literal(thinking.begin)} thought {again} BLANKS"
        return f"({whole})* body" if again else f"({whole})? body"

    def _said(self, thinking: Thinking | None, thoughts: Thoughts) -> str:
        """The text of an answer, of a format whose calls are a whole answer one that is no call."""
        text = NO_CALL if self._calls.at_start and self._wanted.tools else TEXT
        if thinking is None or thoughts != Thoughts.NONE:
            return f"SAID: {text}"
        return f"SAID: {text} & ~{THOUGHT.replace('BEGIN', re.escape(thinking.begin))}"

    def _body(self) -> Iterator[str]:
        wanted = self._wanted
        says = self._literal(self._calls.says)
        if wanted.schema is not None and not wanted.must_call:
            self._rules["answer"] = "%json " + prepared(wanted.schema, "response_format", strict=True)
            yield f"{says} answer"
        elif not wanted.must_call:
            yield f"{says} SAID"
        if wanted.tools:
            yield self._called(text=wanted.schema is None and not wanted.must_call)

    # --- calls

    def _called(self, *, text: bool) -> str:
        """One call or several; `text`: behind a text."""
        calls, tools, spelled = self._calls, self._wanted.tools, self._spelled()
        for i, tool in enumerate(tools):
            schema = prepared(tool.parameters, f"tools.{tool.name}", strict=tool.strict)
            held = spelled.arguments(json.loads(schema), f"arguments_{i}") if spelled else f"%json {schema}"
            self._rules[f"arguments_of_{i}"] = held
            self._rules[f"call_{i}"] = self._call(tool, calls.head[0], i)
        self._rules["call"] = " | ".join(f"call_{i}" for i in range(len(tools)))
        more = ""
        if calls.parallel and self._wanted.parallel:
            more = f"({self._literal(calls.between)} call){{0,{MAX_CALLS - 1}}}"
        last = self._literal(calls.last)
        if not text or calls.at_start or calls.says:
            beside = calls.beside if self._wanted.schema is not None and not self._wanted.must_call else ""
            return f"{self._literal(calls.first + beside)} call {more} {last}"
        # behind the text: its end is where the first call begins
        begin = calls.first + calls.head[0]
        trigger = next(self._parts(calls.first)) if calls.first else calls.triggers[0]
        self._rules[f"until{self._lazy(trigger)}"] = self._until(trigger, "SAID")
        rest = begin.removeprefix(trigger)
        for i, tool in enumerate(tools):
            self._rules[f"rest_{i}"] = self._call(tool, rest, i)
        self._rules["rest"] = " | ".join(f"rest_{i}" for i in range(len(tools)))
        return f"until rest {more} {last}"

    def _spelled(self) -> GemmaRules | XmlRules | None:
        """What writes arguments otherwise than as JSON."""
        match self._calls.arguments:
            case "gemma":
                mark = self._calls.mark
                return GemmaRules(self._rules, self._literal, mark, (self._lazy(mark), self._until(mark)))
            case "xml":
                return XmlRules(self._rules, self._literal)
        return None

    def _call(self, tool: Tool, begin: str, i: int) -> str:
        calls = self._calls
        return f"{self._literal(begin + tool.name + calls.head[1])} arguments_of_{i} {self._literal(calls.foot)}"

    # --- texts

    def _parts(self, text: str) -> Iterator[str]:
        yield from filter(None, self._split.split(text) if self._split else [text])

    def _literal(self, text: str) -> str:
        return " ".join(
            f"<[{self._tokens[part]}]>" if part in self._tokens else json.dumps(part, ensure_ascii=False)
            for part in self._parts(text)
        )

    def _lazy(self, end: str) -> str:
        return "" if end in self._tokens else "[lazy]"

    def _until(self, end: str, text: str = "TEXT") -> str:
        """A text, and what ends it."""
        return f"{text} {self._literal(end)}"


def answer(syntax: Syntax, wanted: Wanted, tokens: Tokens, thoughts: Thoughts = Thoughts.MAY) -> str:
    """Raises SchemaUnsupported."""
    return Grammar(syntax, wanted, tokens, thoughts).text
