"""What a model writes, as what it says, thinks and calls. Pure: text in, in pieces of any size, and what they mean out,
as early as it is certain.

A call that is none (another name, no JSON object, another order) is text, as the model wrote it; one whose arguments
end early is called with what there is of them. Stop strings are looked for in what is said, and end it. Nothing a model
may write is an error.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from llmd.daemon.engine.answers.arguments import Arguments, Gemma, Json, Xml, overlap
from llmd.daemon.engine.answers.formats import BARE, QUOTED, Syntax, Word
from llmd.daemon.engine.answers.stops import Stops

MAX_HEAD = 1024  # characters from a trigger to the arguments; and of blanks that wait for what follows
NO_TEXTS: Mapping[str, Collection[str]] = {}
_BARE = re.compile(r"[\w.\-]+")
_QUOTED = re.compile(r'"([^"\\\n]{1,256})"')
_BLANK = re.compile(r"\s*")


@dataclass(frozen=True, slots=True)
class Said:
    text: str


@dataclass(frozen=True, slots=True)
class Thought:
    text: str


@dataclass(frozen=True, slots=True)
class Called:
    """A call begins; `number` counts them from 0."""

    number: int
    name: str


@dataclass(frozen=True, slots=True)
class Argued:
    """The arguments of the call that began last go on."""

    number: int
    text: str


Piece: TypeAlias = Said | Thought | Called | Argued
_Mode = Literal["text", "thinking", "head", "arguments", "after"]


def fits(words: tuple[Word, ...], text: str) -> tuple[str, int] | bool:
    """Whether `text` begins with these words: the name among them and where they end; True: so far, and it may go on;
    False: no."""
    at, name = 0, ""
    for word in words:
        if not (isinstance(word, tuple) and word[0][0].isspace()):
            at = _end(_BLANK, text, at)
        if at == len(text):
            return True
        if isinstance(word, tuple):
            found = next((w for w in word if text.startswith(w, at)), None)
            if found is None:
                return any(w.startswith(text[at:]) for w in word)
            at += len(found)
            continue
        match = (_QUOTED if word == QUOTED else _BARE).match(text, at)
        if match is None:
            return word == QUOTED and text[at] == '"' and len(text) - at <= 257 and "\n" not in text[at:]
        if word == BARE and match.end() == len(text):
            return True
        name, at = name or match.group(match.lastindex or 0), match.end()
    return name, at


def _end(pattern: re.Pattern[str], text: str, at: int) -> int:
    match = pattern.match(text, at)
    return match.end() if match else at


class Reader:
    """One answer. `tools`: the names that may be called, `texts`: of their parameters those that are texts. `thinks`:
    the prompt has begun what it thinks. `calls` have begun, `whole` of them have all of their arguments."""

    def __init__(
        self,
        syntax: Syntax,
        tools: frozenset[str] = frozenset(),
        *,
        texts: Mapping[str, Collection[str]] = NO_TEXTS,
        thinks: bool = False,
        stop: tuple[str, ...] = (),
    ) -> None:
        self._calls, self._thinking, self._tools, self._texts = syntax.written, syntax.thinking, tools, texts
        self._mode: _Mode = "thinking" if thinks else "text"
        self._text = ""  # what is not certain yet
        self._arguments: Arguments = Json()
        self._fresh = True  # blanks that come next are between parts, and belong to none
        self._started = False  # something was said or called
        self._stops = Stops(stop)
        self._pushed = 0  # characters
        self.calls = self.whole = 0

    @property
    def thinking(self) -> bool:
        return self._mode == "thinking"

    @property
    def stopped(self) -> str:
        """The stop string that came, behind which nothing is read; "": none has."""
        return self._stops.found

    @property
    def shown(self) -> int:
        """How many characters of what was written are certain to be no part of a stop string."""
        if self._mode in ("thinking", "arguments"):
            return self._pushed
        return self._pushed - len(self._text) - self._stops.held

    def push(self, text: str) -> list[Piece]:
        self._pushed += len(text)
        self._text += text
        return list(self._read())

    def end(self, *, cut: bool = False) -> list[Piece]:
        """Nothing follows: what was held back is text. `cut`: something would have, so that what may have become a call
        or a thought is none, and no text either."""
        out = list(self._read())
        if self.stopped:
            return out
        rest, self._text = self._text, ""
        match self._mode:
            case "thinking":
                end = overlap(rest, self._thinking.end) if self._thinking and cut else 0
                out += self._thought(rest[: len(rest) - end].rstrip())
            case "text" if cut:
                out += self._said(rest[: len(rest) - self._begun(rest)])
            case "text" | "head" if not cut:
                out += self._said(rest)
        return out if self.stopped else [*out, *self._flushed()]

    # --- modes

    def _read(self) -> Iterator[Piece]:
        while not self.stopped:
            mode, size = self._mode, len(self._text)
            match mode:
                case "text":
                    yield from self._read_text()
                case "thinking":
                    yield from self._read_thinking()
                case "head":
                    yield from self._read_head()
                case "arguments":
                    yield from self._read_arguments()
                case "after":
                    self._read_after()
            if not self._text or (self._mode == mode and len(self._text) == size):
                return

    def _read_text(self) -> Iterator[Piece]:
        if self._begins_with_call():
            self._mode, self._text = "head", self._text.lstrip()
            return
        marks = self._marks()
        found = [(at, -len(mark), mark) for mark in marks if (at := self._text.find(mark)) >= 0]
        if not found:
            yield from self._said(self._certain())
            return
        at, _, mark = min(found)
        if any(len(m) > len(mark) and m.startswith(self._text[at:]) for m in marks):
            yield from self._said(self._take(at))  # a longer one may come of it
            return
        before = self._take(at)
        yield from self._said(before if before.strip() or not self._fresh else "")
        if self.stopped:
            return
        if mark in self._calls.triggers and self._tools and not (self._thinking and mark == self._thinking.begin):
            self._mode = "head"
            return
        yield from self._flushed()
        self._take(len(mark))
        if self._thinking and mark == self._thinking.begin:
            self._mode, self._fresh = "thinking", True

    def _begins_with_call(self) -> bool:
        """Of a format whose calls are the whole answer."""
        begin = self._text.lstrip()
        return bool(self._calls.at_start and self._tools and not self._started and begin.startswith("{"))

    def _marks(self) -> list[str]:
        marks = list(self._calls.dropped)
        if self._thinking:
            marks.append(self._thinking.begin)
        if self._tools:
            marks += [t for t in self._calls.triggers if not (self._calls.at_start and t == "{")]
        return marks

    def _read_thinking(self) -> Iterator[Piece]:
        assert self._thinking is not None
        end = self._thinking.end
        at = self._text.find(end)
        if at >= 0:
            yield from self._thought(self._take(at).rstrip())
            self._take(len(end))
            self._mode, self._fresh = "text", True
            return
        body = self._text[: len(self._text) - overlap(self._text, end)]
        size = len(body.rstrip())  # blanks at its end are no part of it
        yield from self._thought(self._take(size if len(body) - size <= MAX_HEAD else len(body)))

    def _read_head(self) -> Iterator[Piece]:
        heads = (self._calls.more,) if self._calls.more and self._text.lstrip()[:1] == "," else self._calls.heads
        results = [fits(head, self._text) for head in heads]
        for found in results:
            if isinstance(found, bool):
                continue
            name, at = found
            at = _end(_BLANK, self._text, at)
            if at == len(self._text):
                results = [True]
                break
            if self._text[at] == ("<" if self._calls.arguments == "xml" else "{") and name in self._tools:
                self._take(at)
                self._mode, self._arguments, self._started = "arguments", self._arguments_of(name), True
                self.calls += 1
                yield from self._flushed()
                yield Called(self.calls - 1, name)
                return
        if any(found is True for found in results) and len(self._text) <= MAX_HEAD:
            return
        yield from self._no_call()

    def _no_call(self) -> Iterator[Piece]:
        """What looked like one is text; behind its first character another may begin."""
        self._mode, self._fresh = "text", False
        mark = next((m for m in self._calls.triggers if self._text.startswith(m)), self._text[:1])
        yield from self._said(self._take(len(mark)))

    def _read_arguments(self) -> Iterator[Piece]:
        took, made = self._arguments.read(self._text)
        self._take(took)
        if made:
            yield Argued(self.calls - 1, made)
        if self._arguments.ended:
            self._mode = "after"
            self.whole += 1

    def _arguments_of(self, name: str) -> Arguments:
        match self._calls.arguments:
            case "gemma":
                return Gemma(self._calls.mark)
            case "xml":
                return Xml(self._texts.get(name, ()))
        return Json()

    def _read_after(self) -> None:
        """What closes a call, and the list that it is in."""
        if self._calls.end:
            self._read_list()
            return
        found = fits(self._calls.tail, self._text)
        if isinstance(found, tuple):
            self._take(found[1])
        elif found and len(self._text) <= MAX_HEAD:
            return
        self._mode, self._fresh = "text", True

    def _read_list(self) -> None:
        """In a list of calls: an identifier may follow the arguments, then the object ends, and another or the list's
        end comes."""
        text = self._text.lstrip()
        identified = fits(((",",), ('"id"',), (":",), QUOTED, ("}",)), text)
        closed = fits((("}",),), text)
        found = identified if not isinstance(identified, bool) else closed
        if isinstance(found, bool):
            if (identified is True or found is True) and len(self._text) <= MAX_HEAD:
                return
            self._mode, self._fresh = "text", True
            return
        rest = text[found[1] :].lstrip()
        if not rest:
            return
        if rest[0] == ",":
            self._text, self._mode = rest, "head"
            return
        ended = fits(self._calls.end, rest)
        self._text = rest[ended[1] :] if not isinstance(ended, bool) else rest
        self._mode, self._fresh = "text", True

    # --- pieces

    def _take(self, count: int) -> str:
        taken, self._text = self._text[:count], self._text[count:]
        return taken

    def _certain(self) -> str:
        """What of the text is before anything that may become a mark; blanks between parts wait for what follows."""
        if self._fresh and len(self._text) <= MAX_HEAD and not self._text.strip():
            return ""
        return self._take(len(self._text) - self._begun(self._text))

    def _begun(self, text: str) -> int:
        """How many characters at its end may become a mark."""
        return max((overlap(text, mark) for mark in self._marks()), default=0)

    def _said(self, text: str) -> Iterator[Piece]:
        if self._fresh and (self._started or self._thinking):
            text = text.lstrip()
        if text:
            self._fresh, self._started = False, True
            if shown := self._stops.push(text):
                yield Said(shown)
            if self.stopped:  # what was read behind it is as if it had not come
                self._pushed, self._text = self._pushed - len(self._text), ""

    def _flushed(self) -> Iterator[Piece]:
        """What else is said before something else comes: no stop string has parts on both sides of that."""
        if text := self._stops.flush():
            yield Said(text)

    def _thought(self, text: str) -> Iterator[Piece]:
        if self._fresh:
            text = text.lstrip()
        if text:
            self._fresh = False
            yield Thought(text)
