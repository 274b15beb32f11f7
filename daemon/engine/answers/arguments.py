"""A call's arguments, however a model writes them, as JSON: pure, text in and JSON out, as early as it is certain.

`json`   as they stand
`gemma`  `{name:VALUE,…}`: names without quotes, texts between marks of their own
`xml`    `<parameter=NAME>` VALUE `</parameter>`, one after the other: a text as it stands, everything else JSON
"""

import json
import re
from collections.abc import Callable, Collection
from typing import Protocol

# of JSON between the characters that matter to its end
_PLAIN = re.compile(r'[^{}\[\]"]+')
_STRING = re.compile(r'[^"\\]+')
_STOP = re.compile(r"[,{}\[\]]")
_INSIDE = re.compile(r'(?:[^"\\]|\\.)*', re.DOTALL)


class Arguments(Protocol):
    """`read` says what of the text it has taken, and what that is in JSON; `ended`: they are whole."""

    ended: bool

    def read(self, text: str) -> tuple[int, str]: ...


def overlap(text: str, mark: str) -> int:
    """The length of the longest end of `text` that `mark` begins with."""
    for size in range(min(len(text), len(mark) - 1), 0, -1):
        if text.endswith(mark[:size]):
            return size
    return 0


def _quoted(text: str) -> str:
    """Without the quotes."""
    return json.dumps(text, ensure_ascii=False)[1:-1]


def _value(text: str) -> str:
    """JSON where it is, else a text."""
    try:
        json.loads(text)
    except ValueError:
        return json.dumps(text, ensure_ascii=False)
    return text.strip()


def _taken(step: Callable[[str], tuple[int, str]], text: str) -> tuple[int, str]:
    """Step by step, until one takes nothing."""
    at, out = 0, ""
    while True:
        took, made = step(text[at:])
        at, out = at + took, out + made
        if not took:
            return at, out


class _Search:
    """In a text that waits for what ends it, and grows meanwhile: what was looked at is not looked at again."""

    def __init__(self) -> None:
        self._seen = 0  # characters

    def find(self, text: str, mark: str) -> int:
        begin = max(0, self._seen - len(mark) + 1)
        at = text[begin:].find(mark)
        self._seen = 0 if at >= 0 else len(text)
        return begin + at if at >= 0 else -1

    def stop(self, text: str) -> int:
        """Where a word ends."""
        found = _STOP.search(text, self._seen)
        self._seen = 0 if found else len(text)
        return found.start() if found else -1

    def quote(self, text: str) -> int:
        """Behind the text in double quotes that it begins with."""
        inside = _INSIDE.match(text, max(1, self._seen))
        end = inside.end() if inside else 1
        closed = end < len(text) and text[end] == '"'
        self._seen = 0 if closed else end
        return end + 1 if closed else -1


class Json:
    """Up to the end of an object."""

    def __init__(self) -> None:
        self.ended = False
        self._depth, self._string, self._escaped = 0, False, False

    def read(self, text: str) -> tuple[int, str]:
        at = 0
        while at < len(text) and not self.ended:
            at = self._step(text, at)
        return at, text[:at]

    def _step(self, text: str, at: int) -> int:
        if self._escaped:
            self._escaped = False
            return at + 1
        skipped = (_STRING if self._string else _PLAIN).match(text, at)
        at = skipped.end() if skipped else at
        if at == len(text):
            return at
        if self._string:
            self._escaped, self._string = text[at] == "\\", text[at] != '"'
            return at + 1
        self._string = text[at] == '"'
        self._depth += {"{": 1, "[": 1, "}": -1, "]": -1}.get(text[at], 0)
        self.ended = self._depth == 0 and not self._string
        return at + 1


class Gemma:
    """`mark` is what begins and ends a text."""

    def __init__(self, mark: str) -> None:
        self.ended = False
        self._mark, self._open = mark, ""  # the brackets that are open
        self._inside = False  # of a text
        self._key = False  # a name comes
        self._search = _Search()

    def read(self, text: str) -> tuple[int, str]:
        return _taken(self._step, text)

    def _step(self, text: str) -> tuple[int, str]:
        if self.ended:
            return 0, ""
        return self._inner(text) if self._inside else self._outer(text)

    def _inner(self, text: str) -> tuple[int, str]:
        end = text.find(self._mark)
        if end >= 0:
            self._inside = False
            return end + len(self._mark), _quoted(text[:end]) + '"'
        size = len(text) - overlap(text, self._mark)
        return size, _quoted(text[:size])

    def _outer(self, text: str) -> tuple[int, str]:
        if not text:
            return 0, ""
        if text[0].isspace():
            return 1, ""
        if self._key and text[0] not in "}":
            end = self._search.find(text, ":")
            self._key = end < 0
            if end < 0:
                return 0, ""
            name = text[:end].strip().replace(self._mark, "").strip('"')
            return end + 1, json.dumps(name, ensure_ascii=False) + ":"
        if text.startswith(self._mark):
            self._inside = True
            return len(self._mark), '"'
        if self._mark.startswith(text):
            return 0, ""  # it may become one
        return self._bracket(text) if text[0] in "{}[]," else self._word(text)

    def _bracket(self, text: str) -> tuple[int, str]:
        char = text[0]
        if char in "{[":
            self._open += char
        elif char in "}]":
            self._open = self._open[:-1]
            self.ended = not self._open
        self._key = char in "{," and self._open.endswith("{")
        return 1, char

    def _word(self, text: str) -> tuple[int, str]:
        """A number, a word, or a text in double quotes."""
        end = self._search.quote(text) if text[0] == '"' else self._search.stop(text)
        return (0, "") if end < 0 else (end, _value(text[:end]))


class Xml:
    """`texts`: the parameters whose values are texts as they stand."""

    END, BEGIN, VALUE = "</function>", "<parameter=", "\n</parameter>"

    def __init__(self, texts: Collection[str] = ()) -> None:
        self.ended = False
        self._texts, self._count = texts, -1  # parameters so far; -1: nothing is written yet
        self._inside = ""  # `text`, `value` or between them
        self._search = _Search()

    def read(self, text: str) -> tuple[int, str]:
        begin = "{" if self._count < 0 else ""
        self._count = max(self._count, 0)
        took, made = _taken(self._step, text)
        return took, begin + made

    def _step(self, text: str) -> tuple[int, str]:
        if self.ended:
            return 0, ""
        return self._inner(text) if self._inside else self._outer(text)

    def _inner(self, text: str) -> tuple[int, str]:
        inside = self._inside
        end = self._search.find(text, self.VALUE) if inside == "value" else text.find(self.VALUE)
        if end < 0:
            size = len(text) - overlap(text, self.VALUE) if inside == "text" else 0
            return size, _quoted(text[:size])
        self._inside = ""
        value = _quoted(text[:end]) + '"' if inside == "text" else _value(text[:end])
        return end + len(self.VALUE), value

    def _outer(self, text: str) -> tuple[int, str]:
        if text[:1].isspace():
            return len(text) - len(text.lstrip()), ""
        if text.startswith(self.END):
            self.ended = True
            return len(self.END), "}"
        end = self._search.find(text, ">\n") if text.startswith(self.BEGIN) else -1
        if end < 0:
            known = any(mark.startswith(text[: len(mark)]) for mark in (self.BEGIN, self.END))
            return (0 if known or not text else 1), ""  # what is neither is passed over
        name = text[len(self.BEGIN) : end]
        self._inside = "text" if name in self._texts else "value"
        self._count += 1
        key = f"{', ' if self._count > 1 else ''}{json.dumps(name, ensure_ascii=False)}: "
        return end + 2, key + ('"' if self._inside == "text" else "")
