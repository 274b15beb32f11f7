"""Some two hundred small schemas of our own over the families of JSONSchemaBench: what real schemas are made of, each
by itself and inside another; and random ones."""

from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

Schema = dict[str, Any]

STRINGS: list[Schema] = [
    {"type": "string", "maxLength": 12},
    {"type": "string", "minLength": 3, "maxLength": 5},
    *({"type": "string", "pattern": pattern} for pattern in (
        "^[a-z]{2,6}$", "^[A-Z]{2}-[0-9]{4}$", "^(a|b|cd)+$", r"^\d{3}$", r"^\S+$", "^$", "^#[0-9a-f]{6}$",
        "^[^@]{1,5}@[a-z]{1,5}$", r"^v\d+\.\d+$", "^.{2,4}$", "^[ -~]{1,9}$", "^(?:x|yy)$", r"^\p{Lu}\p{Ll}{1,5}$",
    )),
    *({"type": "string", "format": name} for name in (
        "date", "time", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri",
    )),
]  # fmt: skip
NUMBERS: list[Schema] = [
    {"type": "integer"}, {"type": "integer", "minimum": 0}, {"type": "integer", "minimum": -5, "maximum": 5},
    {"type": "integer", "exclusiveMinimum": 0, "exclusiveMaximum": 3}, {"type": "integer", "multipleOf": 5},
    {"type": "integer", "minimum": 1000, "maximum": 99999}, {"type": "integer", "maximum": -1},
    {"type": "number"}, {"type": "number", "minimum": 0, "maximum": 1}, {"type": "number", "exclusiveMinimum": 0},
    {"type": "number", "minimum": -2.5, "maximum": 2.5}, {"type": "number", "multipleOf": 0.25},
    {"type": ["integer", "null"]}, {"type": "boolean"}, {"type": "null"},
]  # fmt: skip
CHOICES: list[Schema] = [
    {"enum": ["red", "green"]}, {"enum": [1, "1", None, True, 1.5]}, {"const": "a"}, {"const": {"a": [1, 2]}},
    {"const": None}, {"enum": [[], {}, [1]]}, {"enum": ["ä", "\n", '"', "\\"]},
    {"anyOf": [{"type": "integer"}, {"type": "string", "maxLength": 3}]},
    {"anyOf": [{"const": 1}, {"const": 2}, {"type": "null"}]},
    {"oneOf": [{"type": "integer"}, {"type": "boolean"}]},
    {"oneOf": [{"const": "a"}, {"const": "b"}]},
    {"allOf": [{"type": "integer", "minimum": 3}, {"maximum": 7}]},
    {"allOf": [{"type": "string", "minLength": 2}, {"maxLength": 4}]},
    {"type": ["string", "boolean"], "maxLength": 4},
]  # fmt: skip
A: Schema = {"type": "string", "maxLength": 6}
ARRAYS: list[Schema] = [
    {"type": "array", "items": A, "maxItems": 3},
    {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 4},
    {"type": "array", "maxItems": 0}, {"type": "array", "items": False},
    {"type": "array", "prefixItems": [A, {"type": "integer"}], "items": False, "minItems": 2},
    {"type": "array", "prefixItems": [{"const": 1}], "items": {"const": 2}, "maxItems": 4},
    {"type": "array", "items": {"type": "array", "items": {"enum": [0, 1]}, "maxItems": 2}, "maxItems": 2},
    {"type": "array", "items": {"anyOf": [A, {"type": "null"}]}, "minItems": 1, "maxItems": 3},
]  # fmt: skip
OBJECTS: list[Schema] = [
    {"type": "object", "properties": {"a": A}, "required": ["a"], "additionalProperties": False},
    {"type": "object", "properties": {"a": A, "b": {"type": "integer"}}, "additionalProperties": False},
    {"type": "object", "properties": {"a": A, "b": A, "c": A}, "required": ["b"], "additionalProperties": False},
    {"type": "object", "properties": {"b": A, "a": A}, "required": ["a", "b"], "additionalProperties": False},
    {"type": "object", "additionalProperties": {"type": "integer"}, "maxProperties": 1},
    {"type": "object", "maxProperties": 0}, {"type": "object", "additionalProperties": False},
    {"type": "object", "patternProperties": {"^x[0-9]$": {"type": "boolean"}}, "additionalProperties": False,
     "maxProperties": 1},
    {"type": "object", "properties": {"a": {"type": "object", "properties": {"b": A}, "required": ["b"],
     "additionalProperties": False}}, "required": ["a"], "additionalProperties": False},
    {"type": "object", "properties": {'"': A, "\\": A, "ü \n": A}, "required": ['"', "\\", "ü \n"],
     "additionalProperties": False},
    {"type": "object", "required": ["z"], "properties": {"y": A}, "additionalProperties": {"const": 1}},
    {"type": "object", "properties": {"not": {"type": "null"}, "if": {"type": "null"}}, "required": ["not", "if"],
     "additionalProperties": False},
]  # fmt: skip
REFERENCES: list[Schema] = [
    {"$defs": {"n": {"type": "integer", "minimum": 0, "maximum": 9}}, "$ref": "#/$defs/n"},
    {"definitions": {"s": A}, "type": "array", "items": {"$ref": "#/definitions/s"}, "maxItems": 2},
    {"$defs": {"a/b": {"const": 1}}, "properties": {"x": {"$ref": "#/$defs/a~1b"}}, "required": ["x"], "type": "object",
     "additionalProperties": False},
    {"type": "object", "properties": {"v": {"enum": [0, 1]}, "next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}},
     "required": ["v", "next"], "additionalProperties": False},
    {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "t", "description": "d", "type": "boolean",
     "default": True, "examples": [False], "x-vendor": {}},
]  # fmt: skip
BARE: list[Schema] = [*STRINGS, *NUMBERS, *CHOICES, *ARRAYS, *OBJECTS, *REFERENCES]


def _wrapped() -> Iterator[Schema]:
    """Each one that refers to nothing, as a property and in a list."""
    for schema in BARE:
        if "$defs" in schema or "definitions" in schema or "#" in str(schema.get("properties", "")):
            continue
        yield {"type": "object", "properties": {"id": {"const": 1}, "value": schema}, "required": ["id", "value"],
               "additionalProperties": False}  # fmt: skip
        yield {"type": "array", "items": {"anyOf": [schema, {"const": "none of it"}]}, "minItems": 1, "maxItems": 2}


SCHEMAS: list[Schema] = [*BARE, *_wrapped()]
# one of each keyword that nothing is held to, with what it says in a schema that has others beside it
UNSUPPORTED: list[Schema] = [
    {"type": "array", "contains": A}, {"not": {"type": "string"}}, {"if": {"type": "string"}, "then": {"minLength": 1}},
    {"type": "object", "dependentRequired": {"a": ["b"]}}, {"type": "object", "dependencies": {"a": ["b"]}},
    {"type": "object", "properties": {"a": A}, "unevaluatedProperties": False},
    {"type": "array", "prefixItems": [A], "unevaluatedItems": False}, {"type": "string", "pattern": "(?=a)b"},
    {"type": "string", "pattern": r"\bx"},
    {"oneOf": [{"type": "integer"}, {"minimum": 3}]}, {"type": "array", "items": [A]}, {"$dynamicRef": "#a"},
    {"type": "object", "dependentSchemas": {"a": {"required": ["b"]}}}, {"$ref": "https://example.com/schema"},
    {"enum": [1, 2**53 + 1]}, {"const": {"a": [-(2**60)]}},
]  # fmt: skip


# --- any at all

_TYPES = st.sampled_from(["string", "integer", "number", "boolean", "null", "wizard"])
_VALUES = st.none() | st.booleans() | st.integers() | st.text(max_size=3)
_LIMITS: dict[str, st.SearchStrategy[Any]] = {
    "minLength": st.integers(-1, 4), "maxLength": st.integers(0, 5), "minimum": st.integers(-9, 9),
    "maximum": st.integers(-9, 9), "multipleOf": st.integers(0, 4), "format": st.sampled_from(["date", "ipv4", "odd"]),
    "pattern": st.sampled_from(["^a+$", "b", "(?=c)", "[", "^.{1,3}$"]), "uniqueItems": st.booleans(),
}  # fmt: skip
_LEAVES = st.one_of(
    st.fixed_dictionaries({"type": _TYPES}, optional=_LIMITS),
    st.fixed_dictionaries({"enum": st.lists(_VALUES, max_size=3)}),
    st.fixed_dictionaries({"const": st.none() | st.integers(-99, 99) | st.text(max_size=3)}),
    st.sampled_from([{}, {"$ref": "#"}, {"$ref": "#/properties/a"}, {"$ref": "x"}, {"not": {}}]),
)
_NAMES = st.sampled_from(["a", "b", "c d", "ü"])


def _larger(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(
        st.fixed_dictionaries({
            "type": st.just("object"), "properties": st.dictionaries(_NAMES, inner, max_size=3)}, optional={
            "required": st.lists(_NAMES, max_size=2, unique=True), "additionalProperties": st.booleans() | inner,
            "minProperties": st.integers(0, 2), "maxProperties": st.integers(0, 3)}),
        st.fixed_dictionaries({"type": st.just("array"), "items": inner}, optional={
            "minItems": st.integers(0, 2), "maxItems": st.integers(0, 3), "contains": inner}),
        st.fixed_dictionaries({"anyOf": st.lists(inner, max_size=3)}),
        st.fixed_dictionaries({"oneOf": st.lists(inner, max_size=2)}),
        st.fixed_dictionaries({"allOf": st.lists(inner, max_size=2)}),
    )  # fmt: skip


def random_schemas() -> st.SearchStrategy[Any]:
    """Of all kinds, the wrong ones too."""
    return st.recursive(_LEAVES, _larger, max_leaves=6)
