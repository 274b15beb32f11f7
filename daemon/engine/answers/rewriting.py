"""What a schema says in words that no grammar has, in words that grammars have: pure.

What is written holds answers to as much as can be held; the rest of what the schema says is held against the whole
answer, or is a remark.
"""

import re
from collections.abc import Iterator
from copy import deepcopy
from itertools import combinations
from typing import Any

from llmd.daemon.engine.answers.places import Schema, at, parts

# of `format`: what grammars know; what else says something of a value is held against the whole answer, or a remark
FORMATS = frozenset({
    "date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri",
})  # fmt: skip
# names that others give to one of them
ALIKE = {f"uuid{version}": "uuid" for version in range(1, 9)}
# of values in a list that has none twice: their lists, in order, are written out
MAX_UNIQUE = 6
# names of a format, as a pattern; narrower than the format
NAMES = {
    "uuid": "^[0-9a-f]{8}-[0-9a-f]{4}-[1-5][0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$",
    "date": r"^[12][0-9]{3}-(0[1-9]|1[0-2])-(0[1-9]|1[0-9]|2[0-8])$",
    "ipv4": r"^((25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])\.){3}(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])$",
}
_REMARKS = frozenset({"title", "description", "type", "examples", "default", "deprecated", "$comment"})


def rewritten(schema: Schema) -> Schema:
    """A copy."""
    root = deepcopy(schema)
    for part in list(parts(root)):
        _name_format(part)
        _spell_lists(part, root)
        _name_names(part, root)
        _tag(part, root)
    return root


def _led(part: Any, root: Schema) -> Schema:
    """A schema, or what it refers to; {}: there is none."""
    if isinstance(part, dict) and isinstance(part.get("$ref"), str) and not part.keys() - _REMARKS - {"$ref"}:
        part = at(root, part["$ref"])
    return part if isinstance(part, dict) else {}


def _name_format(part: Schema) -> None:
    name = part.get("format")
    if not isinstance(name, str) or name in FORMATS:
        return
    if name in ALIKE and "pattern" not in part:
        part["format"] = ALIKE[name]
    else:
        del part["format"]


# --- lists that have nothing twice


def _spell_lists(part: Schema, root: Schema) -> None:
    if part.pop("uniqueItems", False) is not True:
        return
    values = _values(_led(part.get("items"), root))
    if values is None or len(values) > MAX_UNIQUE or "prefixItems" in part:
        return
    least, most = part.get("minItems", 0), part.get("maxItems", len(values))
    if not isinstance(least, int) or not isinstance(most, int):
        return
    lists = [list(some) for size in range(least, min(most, len(values)) + 1) for some in combinations(values, size)]
    if lists and part.get("type", "array") == "array":
        for keyword in ("items", "minItems", "maxItems", "type"):
            part.pop(keyword, None)
        part["enum"] = lists


def _values(schema: Schema) -> list[Any] | None:
    """All that fit a schema; None: they are not named."""
    if schema.get("type") == "boolean" and not schema.keys() - _REMARKS:
        return [False, True]
    named = schema.get("enum", [schema["const"]] if "const" in schema else None)
    if not isinstance(named, list) or schema.keys() - _REMARKS - {"enum", "const"}:
        return None
    return list(dict.fromkeys(named)) if all(isinstance(v, str | int | float | None) for v in named) else None


# --- names of properties


def _name_names(part: Schema, root: Schema) -> None:
    given = part.pop("propertyNames", True)
    others = part.get("additionalProperties", True)
    if given is True or part.get("patternProperties") or others is False:
        return
    names = _led(given, root)
    rest = names.keys() - _REMARKS
    own = part.get("properties") or {}
    if not isinstance(own, dict):
        return
    if rest and not rest - {"enum", "const"}:
        listed = names.get("enum", [names.get("const")])
        if isinstance(listed, list):
            part["properties"] = {name: own.get(name, others) for name in listed if isinstance(name, str)}
            part["additionalProperties"] = False
    elif not own and (pattern := _pattern(names, rest)):
        part["patternProperties"] = {pattern: others}
        part["additionalProperties"] = False


def _pattern(names: Schema, rest: set[str]) -> str:
    """Of such names; "": none is known."""
    if rest == {"pattern"} and isinstance(names["pattern"], str):
        return str(names["pattern"])
    if rest == {"format"}:
        return NAMES.get(ALIKE.get(str(names["format"]), str(names["format"])), "")
    sizes = names.get("minLength", 0), names.get("maxLength", "")
    if rest and not rest - {"minLength", "maxLength"} and re.fullmatch(r"\d+,\d*", f"{sizes[0]},{sizes[1]}"):
        return rf"^[^\x00-\x1f]{{{sizes[0]},{sizes[1]}}}$"
    return ""


# --- choices that a tag tells apart


def _tag(part: Schema, root: Schema) -> None:
    """A tag that need not be there, because it has a default, is written: with it the choices do not overlap."""
    choices = part.get("oneOf")
    if not isinstance(choices, list) or len(choices) < 2:
        return
    several = [_led(choice, root) for choice in choices]
    if tag := next(_tags(several), None):
        for choice, led in zip(choices, several, strict=True):
            required = led.get("required", [])
            if isinstance(required, list) and tag not in required:
                choice["required"] = [*required, tag]


def _tags(choices: list[Schema]) -> Iterator[str]:
    """The properties of which each choice has a text of its own."""
    shared = set.intersection(*(set(_properties(choice)) for choice in choices))
    for name in _properties(choices[0]):
        if name not in shared:
            continue
        values = [_text(_properties(choice)[name]) for choice in choices]
        if None not in values and len(set(values)) == len(values):
            yield name


def _properties(choice: Schema) -> dict[str, Any]:
    found = choice.get("properties")
    return found if isinstance(found, dict) else {}


def _text(schema: Any) -> str | None:
    """The only one that fits."""
    named = schema.get("enum", [schema.get("const")]) if isinstance(schema, dict) else []
    return named[0] if isinstance(named, list) and len(named) == 1 and isinstance(named[0], str) else None
