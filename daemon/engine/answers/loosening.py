"""What of a schema calls are held to where not all of it need hold: what is refused is left out, and takes nothing else
away. Pure, but for who refuses.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from typing import Any

from llmd.daemon.engine.answers.places import ROOT, Schema, below, circular, lost, move_back, moved, parts, refers

# whether no value can be held to a schema
Refuses = Callable[[Schema], bool]

# schemas that are tried, those of more characters count as several; what is undecided then is left out
MAX_TRIALS = 1000
TRIAL_CHARS = 4096

# --- what keywords hold: makes of a value what of it has that shape, None of one that has none of it


def shaped(schema: Schema) -> Schema:
    """A schema without what no keyword holds in any draft: null where a list belongs, say."""
    found = {}
    for keyword, value in schema.items():
        shape = _SHAPES.get(keyword)
        made = shape(value) if shape else value
        if made is not None or shape is None:
            found[keyword] = made
    return found


def _schema(value: Any) -> Schema | bool | None:
    if isinstance(value, dict):
        return shaped(value)
    return value if isinstance(value, bool) else None


def _entry(value: Any) -> Schema | bool:
    made = _schema(value)
    return {} if made is None else made


def _schemas(value: Any) -> list[Schema | bool] | None:
    return [_entry(part) for part in value] if isinstance(value, list) and value else None


def _items(value: Any) -> list[Schema | bool] | Schema | bool | None:
    return _schemas(value) if isinstance(value, list) else _schema(value)


def _named(value: Any) -> dict[str, Schema | bool] | None:
    if value == []:  # how PHP and Lua write an object without members
        return {}
    return {name: _entry(part) for name, part in value.items()} if isinstance(value, dict) else None


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _texts(value: Any) -> list[str] | None:
    return [text for text in value if isinstance(text, str)] if isinstance(value, list) else None


def _kind(value: Any) -> str | list[str] | None:
    return value if isinstance(value, str) else _texts(value) or None


def _values(value: Any) -> list[Any] | None:
    return value if isinstance(value, list) and value else None


def _number(value: Any) -> float | None:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _bound(value: Any) -> float | None:
    """Draft 4 has true and false here."""
    return value if isinstance(value, int | float) else None


def _count(value: Any) -> int | None:
    return int(value) if _number(value) is not None and value >= 0 and value == int(value) else None


_SHAPES: dict[str, Callable[[Any], Any]] = {
    **dict.fromkeys(("properties", "patternProperties", "$defs", "definitions", "dependentSchemas"), _named),
    **dict.fromkeys(("allOf", "anyOf", "oneOf", "prefixItems"), _schemas),
    **dict.fromkeys((
        "additionalProperties", "additionalItems", "contains", "not", "if", "then", "else", "propertyNames",
        "unevaluatedItems", "unevaluatedProperties",
    ), _schema),
    **dict.fromkeys(("pattern", "format", "$ref", "$schema", "$id", "$anchor", "title", "description"), _text),
    **dict.fromkeys(("minimum", "maximum", "multipleOf"), _number),
    **dict.fromkeys(("exclusiveMinimum", "exclusiveMaximum"), _bound),
    **dict.fromkeys((
        "minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties",
    ), _count),
    "items": _items, "required": _texts, "type": _kind, "enum": _values,
}  # fmt: skip

# --- what is refused

# of which each piece is tried by itself, and is none that others depend on
_PIECES = frozenset({"type", "required", "allOf", "patternProperties", "properties", "$defs", "definitions"})
# these first, in this order, and `required` last: of two that do not go together the later one is left out
_FIRST = ("$defs", "definitions", "type", "$ref", "properties", "additionalProperties", "enum", "const")


class Loosening:
    """Some schemas, with one number of trials."""

    def __init__(self, refuses: Refuses) -> None:
        self._refuses, self._left = refuses, MAX_TRIALS
        self._root: Schema = {}

    def of(self, schema: Schema) -> Schema:
        """A schema without what is refused of it; itself where nothing is."""
        whole = deepcopy(schema)
        led = [*lost(whole)]
        for part in led:
            del part["$ref"]
        for part in circular(whole):
            led.append(part)
            part.pop("$ref", None)
        self._root = moved(whole)
        if not led and not self._refuses(self._tried([*parts(self._root)])) and not self._refuses(schema):
            return schema
        self._loosen(self._root)
        move_back(self._root)
        return self._root

    def first_refused(self, schema: Schema) -> tuple[tuple[str, ...], str, bool]:
        """The way to the innermost schema in one that is refused, the keyword with which it is, and whether by itself
        too; "": none."""
        self._root = moved(schema)
        part, way = self._root, tuple[str, ...]()
        while found := next(
            (one for one in below(part) if isinstance(one[1], dict) and self._is_refused([one[1]])), None
        ):
            way, part = (*way, *found[0]), found[1]
        tried: Schema = {}
        for keyword, value in sorted(part.items(), key=_turn):
            tried[keyword] = value
            if self._is_refused([tried]):
                return way, keyword, self._is_refused([{keyword: value}])
        return way, "", False

    def _loosen(self, part: Schema) -> None:
        """In its place: others may refer to it."""
        inner = [child for _, child in below(part) if isinstance(child, dict)]
        # what refers to others is looked at behind them
        for refers_ in (False, True):
            for child in self._refused([child for child in inner if refers(child) == refers_]):
                self._loosen(child)
        if not self._is_refused([part]):
            return
        pairs = sorted(part.items(), key=_turn)
        part.clear()
        for keyword, value in pairs:
            part[keyword] = value
            if self._is_refused([part]):
                del part[keyword]
                self._add_pieces(part, keyword, value)

    def _add_pieces(self, part: Schema, keyword: str, value: Any) -> None:
        if keyword not in _PIECES or not isinstance(value, list | dict):
            return
        whole, kept = value, type(value)()
        for piece in value.items() if isinstance(value, dict) else value:
            more = {**kept, piece[0]: piece[1]} if isinstance(kept, dict) else [*kept, piece]
            part[keyword] = more
            kept = kept if self._is_refused([part]) else more
        part[keyword] = kept
        if not kept:
            del part[keyword]
        if keyword == "patternProperties" and len(kept) < len(whole):
            part.pop("additionalProperties", None)  # the names that are left out are others' now

    def _refused(self, among: Sequence[Schema]) -> Iterator[Schema]:
        """Those that are, or hold one that is, each found before the next is looked for."""
        if not among or not self._is_refused([one for part in among for one in parts(part)]):
            return
        if len(among) == 1:
            yield among[0]
            return
        half = len(among) // 2
        yield from self._refused(among[:half])
        yield from self._refused(among[half:])

    def _is_refused(self, some: Sequence[Schema]) -> bool:
        """Whether one of them is; all are where there have been too many trials."""
        tried = self._tried(some)
        self._left -= 1 + len(json.dumps(tried)) // TRIAL_CHARS
        return self._left < 0 or self._refuses(tried)

    def _tried(self, some: Sequence[Schema]) -> Schema:
        """What has a value for each."""
        properties = {str(i): part for i, part in enumerate(some)}
        tried = {"type": "object", "properties": properties, "required": [*properties], "additionalProperties": False}
        return {**tried, "$defs": {ROOT: self._root}} if any(map(refers, some)) else tried


def _turn(pair: tuple[str, Any]) -> int:
    if pair[0] == "required":
        return len(_FIRST) + 1
    return _FIRST.index(pair[0]) if pair[0] in _FIRST else len(_FIRST)
