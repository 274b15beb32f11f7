"""What is said to be the least that fits a schema is no more than that."""

import json
from typing import Any

import pytest
from schema_families import SCHEMAS

from llmd.daemon.engine.answers.least import least

TEXT = {"type": "string", "minLength": 3}


@pytest.mark.parametrize(
    ("schema", "size"),
    [
        (True, 1), ({}, 1), ({"type": "null"}, 4), ({"type": "integer"}, 1), (TEXT, 5),
        ({"type": ["string", "null"]}, 2),
        ({"minLength": 9}, 1), ({"enum": ["abc", 12]}, 2), ({"const": "ä"}, 3), ({"enum": []}, 1),
        ({"type": "array", "minItems": 10**9}, 2 + 10**9 + 10**9 - 1),
        ({"type": "array", "minItems": 3, "items": TEXT}, len('["aaa","aaa","aaa"]')),
        ({"type": "array", "minItems": 2, "prefixItems": [TEXT]}, len('["aaa",0]')),
        ({"type": "array", "minItems": 1, "prefixItems": [TEXT, TEXT]}, len('["aaa"]')),
        ({"type": "array", "items": TEXT}, 2),
        ({"type": "object", "minProperties": 2}, len('{"":0,"":0}')),
        ({"type": "object", "properties": {"a": TEXT, "b": TEXT}, "required": ["a"]}, len('{"a":"aaa"}')),
        ({"type": "object", "required": ["a"], "minProperties": 2}, len('{"a":0,"":0}')),
        ({"anyOf": [TEXT, {"type": "null"}]}, 4), ({"allOf": [TEXT, {"minLength": 1}]}, 5),
        ({"oneOf": [TEXT, TEXT]}, 5),
        ({"$ref": "#/$defs/a", "$defs": {"a": TEXT}}, 5), ({"$ref": "#"}, 1), ({"$ref": "#/$defs/none"}, 1),
        ({"type": "array", "minItems": 2, "items": {"$ref": "#"}}, len("[0,0]")),
    ],
)  # fmt: skip
def test_the_least(schema: Any, size: int) -> None:
    assert least(schema) == size


def test_each_part_is_looked_at_once() -> None:
    definitions = {
        str(i): {"type": "array", "minItems": 2, "prefixItems": [{"$ref": f"#/$defs/{i + 1}"}] * 2} for i in range(40)
    }
    assert least({"$ref": "#/$defs/0", "$defs": definitions}) > 2**39


@pytest.mark.parametrize("number", range(len(SCHEMAS)))
def test_no_answer_is_shorter(number: int) -> None:
    """Of those that a grammar lets through: the shortest values of each kind are tried."""
    from llmd.daemon.engine.answers.validating import Validator

    validator = Validator(SCHEMAS[number], "a")._validator
    values = ["", "a", "ab", 0, 1, None, True, [], [0], ["a"], {}, {"a": ""}, {"a": 1}, {"b": ""}, [[]], 1.5]
    for value in values:
        if validator.is_valid(value):
            assert least(SCHEMAS[number]) <= len(json.dumps(value, separators=(",", ":")))
