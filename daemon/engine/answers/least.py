"""How many characters JSON that fits a schema has at least: pure."""

import json
from collections.abc import Iterator
from typing import Any

from llmd.daemon.engine.answers.places import Schema, at

# of values of some types
_SHORTEST = {"null": 4, "boolean": 4}
MAX_DEPTH = 100
_PAIR = 4  # characters of the shortest: "":0


def least(schema: Any) -> int:
    """A lower bound: what it does not know of a schema has no length."""
    return _Least(schema).of(schema)


class _Least:
    """Of the parts of one schema: each is looked at once; what leads back to itself, or lies deep, is a character."""

    def __init__(self, root: Any) -> None:
        self._root = root
        self._found: dict[int, int] = {}
        self._depth = 0

    def of(self, schema: Any) -> int:
        if not isinstance(schema, dict) or self._depth >= MAX_DEPTH:
            return 1
        if id(schema) not in self._found:
            self._found[id(schema)] = 1
            self._depth += 1
            self._found[id(schema)] = max(self._each(schema))
            self._depth -= 1
        return self._found[id(schema)]

    def _each(self, schema: Schema) -> Iterator[int]:
        """For what each of its keywords makes the least."""
        yield _named(schema)
        yield min((self._typed(kind, schema) for kind in _kinds(schema.get("type"))), default=1)
        if isinstance(schema.get("$ref"), str):
            yield self.of(at(self._root, schema["$ref"]))
        for key in ("anyOf", "oneOf"):
            if isinstance(schema.get(key), list):
                yield min(map(self.of, schema[key]), default=1)
        yield from map(self.of, schema["allOf"] if isinstance(schema.get("allOf"), list) else ())

    def _typed(self, kind: str, schema: Schema) -> int:
        match kind:
            case "string":
                return 2 + _count(schema, "minLength")
            case "array":
                return self._list(schema)
            case "object":
                return self._object(schema)
        return _SHORTEST.get(kind, 1)

    def _list(self, schema: Schema) -> int:
        """Brackets, items, and a comma between them."""
        size, first = _count(schema, "minItems"), schema.get("prefixItems")
        items = [self.of(item) for item in first[:size]] if isinstance(first, list) else []
        rest = size - len(items)
        return 2 + sum(items) + rest * self.of(schema.get("items", True)) + max(0, size - 1)

    def _object(self, schema: Schema) -> int:
        properties, required = schema.get("properties"), schema.get("required")
        known = properties if isinstance(properties, dict) else {}
        names = [name for name in required if isinstance(name, str)] if isinstance(required, list) else []
        pairs = [len(name) + 3 + self.of(known.get(name, True)) for name in names]
        more = max(0, _count(schema, "minProperties") - len(pairs))
        return 2 + sum(pairs) + more * _PAIR + max(0, len(pairs) + more - 1)


def _named(schema: Schema) -> int:
    values = schema.get("enum", [schema["const"]] if "const" in schema else None)
    return min((len(json.dumps(v, ensure_ascii=False)) for v in values), default=1) if isinstance(values, list) else 1


def _kinds(given: Any) -> list[str]:
    return [kind for kind in (given if isinstance(given, list) else [given]) if isinstance(kind, str)]


def _count(schema: Schema, keyword: str) -> int:
    value = schema.get(keyword, 0)
    return int(value) if isinstance(value, int | float) and value > 0 else 0
