"""JSON schemas that answers are held to: which can be. Pure.

Draft 2020-12 as `matching.py` can turn it into a grammar, with what `rewriting.py` makes of it. What neither a grammar
says nor is worth to be held against the whole answer alone is refused by name, and never passed over: UNSUPPORTED are
such keywords of any draft. Words of no draft, and what 2020-12 calls annotations, are remarks.
"""

import json
from collections.abc import Iterator
from typing import Any, TypeAlias

from llmd.daemon.engine.answers.places import below, circular
from llmd.daemon.errors import SchemaUnsupported, printable, quoted

MAX_NAMED = 120  # characters of the client's own words that an error repeats
MAX_SAID = 200
UNSUPPORTED = frozenset({
    "not", "if", "then", "else", "dependentRequired", "dependentSchemas", "dependencies",
    "unevaluatedProperties", "unevaluatedItems", "contains", "minContains", "maxContains", "additionalItems",
    "$dynamicRef", "$recursiveRef", "$dynamicAnchor", "$recursiveAnchor", "$vocabulary", "extends", "disallow",
    "divisibleBy",
})  # fmt: skip

# values that answers are held to, and the largest whole number that a grammar and everybody's JSON keep to the digit
_VALUES = ("enum", "const")
MAX_WHOLE = 1 << 53

# where a schema stands in another: the way there, and the last step
_Path: TypeAlias = "tuple[_Path, str] | None"

# blanks between values: a small model may write them for ever
_GUIDANCE = {"whitespace_pattern": r"[\x20\x0A\x0D\x09]{1,40}"}

# the digit before the last of a time's seconds
_SECONDS = {"time": "^.{6}[0-5]", "date-time": "^.{17}[0-5]"}


def parsed(text: str, param: str) -> dict[str, Any]:
    """Raises SchemaUnsupported for what no answer can be held to."""
    schema = json.loads(text)
    if schema is True:
        schema = {}
    if not isinstance(schema, dict):
        raise SchemaUnsupported(f"{param}: a schema is a JSON object", param=field(param))
    for path, part in _parts(schema, None):
        _check(path, part, param)
    _check_refs(schema, param)
    return schema


def _parts(schema: Any, path: _Path) -> Iterator[tuple[_Path, dict[str, Any]]]:
    """Every schema in a schema, with where it stands. Their depth is a request body's."""
    if not isinstance(schema, dict):
        return
    yield path, schema
    for steps, part in below(schema):
        at = path
        for step in steps:
            at = at, step
        yield from _parts(part, at)


def _shown(path: _Path) -> str:
    return quoted(_pointer(path) or "/", MAX_NAMED)


def _pointer(path: _Path) -> str:
    steps: list[str] = []
    while path:
        path, step = path
        steps.append("/" + step[:MAX_NAMED])
    return "".join(reversed(steps))[:MAX_NAMED]


def places(schema: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every schema in a schema, with a pointer to it, at most MAX_NAMED characters of that."""
    for path, part in _parts(schema, None):
        yield _pointer(path), part


def _check(path: _Path, schema: dict[str, Any], param: str) -> None:
    where = f"{param}: {_shown(path)}"
    for keyword in schema:
        if keyword in UNSUPPORTED:
            raise SchemaUnsupported(f"{where}: answers cannot be held to {keyword}; remove it", param=field(param))
    for keyword in _VALUES:
        if _too_long(schema.get(keyword)):
            raise SchemaUnsupported(
                f"{where}: answers cannot be held to whole numbers beyond {MAX_WHOLE} in {keyword}, which are rounded "
                "on their way; write them as texts",
                param=field(param),
            )
    if isinstance(schema.get("items"), list):
        raise SchemaUnsupported(f"{where}: items is a list; write prefixItems", param=field(param))
    ref = schema.get("$ref")
    if ref is not None and not (isinstance(ref, str) and ref.startswith("#")):
        raise SchemaUnsupported(
            f"{where}: $ref leads out of the schema; write what it refers to into $defs", param=field(param)
        )


def _too_long(value: Any) -> bool:
    """Whether a number of it is rounded on its way. Its depth is a request body's."""
    if isinstance(value, list | dict):
        return any(map(_too_long, value.values() if isinstance(value, dict) else value))
    return isinstance(value, int) and abs(value) > MAX_WHOLE


def _check_refs(root: dict[str, Any], param: str) -> None:
    for part in circular(root):
        path = next(path for path, one in _parts(root, None) if one is part)
        raise SchemaUnsupported(f"{param}: {_shown(path)}: $ref leads back to itself", param=field(param))


def field(param: str) -> str:
    """A request's own field."""
    return param.partition(".")[0]


def line(text: str) -> str:
    """What a library says, as an error repeats it."""
    return printable(" ".join(text.split())[:MAX_SAID])


def prepared(text: str, param: str, *, strict: bool) -> str:
    """The schema as a grammar takes it, with what it is to make of it. Not `strict`: what it cannot hold answers to is
    passed over. Raises SchemaUnsupported."""
    schema = parsed(text, param) if strict else _lenient(text)
    for _, part in list(_parts(schema, None)):
        _without_leap_seconds(part)
    return json.dumps({**schema, "x-guidance": {**_GUIDANCE, "lenient": not strict}})


def _without_leap_seconds(schema: dict[str, Any]) -> None:
    """The grammar of times has a second 60 in every minute; there is one in some years."""
    pattern = _SECONDS.get(str(schema.get("format")))
    if pattern is not None and isinstance(schema.get("allOf", []), list):
        schema["allOf"] = [*schema.get("allOf", []), {"pattern": pattern}]


def _lenient(text: str) -> dict[str, Any]:
    schema = json.loads(text)
    return schema if isinstance(schema, dict) else {}


def texts_of(parameters: str) -> frozenset[str]:
    """The parameters that are texts, and nothing else."""
    properties = json.loads(parameters).get("properties")
    kinds = properties.items() if isinstance(properties, dict) else ()
    return frozenset(name for name, kind in kinds if is_text(kind))


def is_text(schema: Any) -> bool:
    """Whether every value that fits it is a text, as far as it says so itself."""
    if not isinstance(schema, dict):
        return False
    choices = schema.get("enum", [schema["const"]] if "const" in schema else None)
    if isinstance(choices, list) and choices:
        return all(isinstance(choice, str) for choice in choices)
    return bool(schema.get("type") == "string")
