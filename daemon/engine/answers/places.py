"""Where schemas stand in a JSON schema, and where its references lead. Pure."""

from collections.abc import Iterator
from copy import deepcopy
from typing import Any, TypeAlias
from urllib.parse import unquote

Schema: TypeAlias = dict[str, Any]

MAX_REFS = 200  # that lead to one another
# what says nothing of a value but where references lead
_BASES = frozenset({"$schema", "$id"})
CHOICES = ("allOf", "anyOf", "oneOf")
ROOT = "root"
_INTO = f"#/$defs/{ROOT}"


def below(schema: Schema) -> Iterator[tuple[tuple[str, ...], Any]]:
    """What stands in a schema where schemas do, with the steps to it. Their depth is a request body's."""
    for key in ("items", "additionalProperties"):
        yield (key,), schema.get(key)
    for key in (*CHOICES, "prefixItems"):
        several = schema.get(key)
        for i, part in enumerate(several if isinstance(several, list) else ()):
            yield (key, str(i)), part
    for key in ("properties", "patternProperties", "$defs", "definitions"):
        named = schema.get(key)
        for name, part in named.items() if isinstance(named, dict) else ():
            yield (key, name), part


def parts(schema: Any) -> Iterator[Schema]:
    """It, and every schema in it."""
    if isinstance(schema, dict):
        yield schema
        for _, part in below(schema):
            yield from parts(part)


def at(root: Any, ref: str) -> Any:
    """What a pointer into a schema leads to (RFC 6901); None: nothing, or it is the name of an anchor."""
    found = root if ref == "#" or ref.startswith("#/") else None
    for step in ref.removeprefix("#").split("/")[1:]:
        step = unquote(step).replace("~1", "/").replace("~0", "~")
        if isinstance(found, list) and step.isdecimal() and int(step) < len(found):
            found = found[int(step)]
        elif isinstance(found, dict):
            found = found.get(step)
        else:
            return None
    return found


def refers(schema: Schema) -> bool:
    return any("$ref" in part for part in parts(schema))


def lost(root: Schema) -> Iterator[Schema]:
    """The schemas in it whose reference leads to no schema in it."""
    anchors = {f"#{part.get('$anchor')}" for part in parts(root)}
    for part in parts(root):
        ref = part.get("$ref", "#")
        if not isinstance(ref, str) or not (ref in anchors or isinstance(at(root, ref), dict | bool)):
            yield part


def circular(root: Schema) -> Iterator[Schema]:
    """The schemas in it whose reference leads back to where one came from, by references and choices alone, or from
    there to more than MAX_REFS others: that is every value to one reader and none to another. Each is looked at once.
    """
    under_way, done = set[int](), set[int]()

    def follow(part: Any, last: Schema) -> Iterator[Schema]:
        if not isinstance(part, dict) or id(part) in done:
            return
        if id(part) in under_way or len(under_way) > MAX_REFS:
            yield last
            return
        under_way.add(id(part))
        for key in CHOICES:
            for choice in part[key] if isinstance(part.get(key), list) else ():
                yield from follow(choice, last)
        if "$ref" in part:
            yield from follow(at(root, str(part["$ref"])), part)
        under_way.discard(id(part))
        done.add(id(part))

    for part in parts(root):
        yield from follow(part, part)


def moved(schema: Schema) -> Schema:
    """A copy of a schema, or of a part of one, whose references lead to what stands under ROOT in `$defs`."""
    copy = deepcopy(schema)
    for part in list(parts(copy)):
        ref = part.get("$ref")
        if isinstance(ref, str) and (ref == "#" or ref.startswith("#/")):
            part["$ref"] = _INTO + ref[1:]
        for base in _BASES & part.keys():
            del part[base]
    return copy


def move_back(schema: Schema) -> None:
    for part in list(parts(schema)):
        ref = part.get("$ref")
        if isinstance(ref, str) and (ref == _INTO or ref.startswith(_INTO + "/")):
            part["$ref"] = "#" + ref.removeprefix(_INTO)
