"""What answers cannot be held to is refused by name; what they are held to, they are held against."""

import json
from typing import Any

import pytest

from llmd.daemon.engine.answers.judge import answer
from llmd.daemon.engine.answers.schemas import UNSUPPORTED, parsed
from llmd.daemon.engine.answers.validating import Validator
from llmd.daemon.errors import AnswerInvalid, SchemaUnsupported
from llmd.daemon.kept import Kept


def asked(schema: Any, *, strict: bool = True) -> dict[str, Any]:
    return answer(json.dumps(["schemas", [[json.dumps(schema), "response_format", strict]], ""]).encode(), Kept(1, 1))


@pytest.mark.parametrize("keyword", sorted(UNSUPPORTED))
@pytest.mark.parametrize("wrap", [
    lambda s: s, lambda s: {"properties": {"a": s}}, lambda s: {"items": {"anyOf": [{}, s]}},
    lambda s: {"$defs": {"a": s}}, lambda s: {"additionalProperties": {"allOf": [s]}}, lambda s: {"prefixItems": [s]},
])  # fmt: skip
def test_a_keyword_that_is_not_held_is_refused_by_name_wherever_it_stands(keyword: str, wrap: Any) -> None:
    said = asked(wrap({keyword: True}))
    assert not said["ok"] and said["code"] == "schema_unsupported" and keyword in said["message"]


@pytest.mark.parametrize("name", sorted(UNSUPPORTED))
def test_a_property_may_be_named_like_a_keyword(name: str) -> None:
    assert asked({"type": "object", "properties": {name: {"type": "string"}}, "required": [name]})["ok"]
    assert asked({"enum": [{name: True}]})["ok"]


@pytest.mark.parametrize(
    ("schema", "named"),
    [
        ({"type": "wizard"}, "/type"),
        ({"type": ["x"]}, "/type"),
        ({"type": "string", "pattern": "(?<=x)"}, "/pattern"),
        ({"type": "string", "pattern": "(?:"}, "/pattern"),
        ({"type": "string", "pattern": r"(a)\1"}, "/pattern"),
        ({"type": "string", "pattern": r"\bword\b"}, "word boundary"),
        ({"$ref": "http://169.254.169.254/a"}, "$ref"),
        ({"$ref": "file:///etc/passwd"}, "$ref"),
        ({"properties": {"a": {"$ref": "other.json#/a"}}}, "/properties/a"),
        ({"$ref": "#/a"}, "/a"),
        ({"$ref": "#"}, "$ref leads back"),
        ({"anyOf": [{"type": "null"}, {"allOf": [{"$ref": "#"}]}]}, "$ref leads back"),
        ({"$defs": {str(i): {"$ref": f"#/$defs/{i + 1}"} for i in range(300)}}, "$ref leads back"),
        (
            {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "items": {"$ref": "#/$defs/a"}},
            "/$defs/b",
        ),
        ({"$defs": {"a/b~": {"$ref": "#/$defs/a~1b~0"}}}, "/$defs/a/b~"),
        ({"items": [{}]}, "items"),
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "oneOf"),
        ({"properties": 3}, "/properties"),
        ({"minLength": -1}, "/minLength"),
        ({"enum": []}, "response_format"),
        ([], "object"),
        (False, "object"),
        ("x", "object"),
    ],
)
def test_what_no_answer_can_be_held_to_is_refused(schema: Any, named: str) -> None:
    said = asked(schema)
    assert not said["ok"] and said["code"] == "schema_unsupported" and said["param"] == "response_format"
    assert named in said["message"] and len(said["message"]) < 500 and said["message"].isprintable()


@pytest.mark.parametrize(
    "schema",
    [
        True, {}, {"type": "object"}, {"$ref": "#a", "$defs": {"b": {"$anchor": "a", "type": "null"}}},
        {"properties": {"a": {"$ref": "#"}}},
        {"x-vendor": 1, "title": "t", "description": "d", "examples": [1]},
        {"$schema": "http://json-schema.org/draft-07/schema#", "definitions": {"a": {"type": "string"}},
         "properties": {"a": {"$ref": "#/definitions/a"}}},
        {"type": "string", "pattern": "(a+)+b"}, {"type": "string", "format": "date-time"},
        {"oneOf": [{"type": "integer"}, {"type": "string"}]}, {"type": ["string", "null"]},
    ],
)  # fmt: skip
def test_what_answers_can_be_held_to(schema: Any) -> None:
    assert asked(schema) == {"ok": True}


def test_what_need_not_hold_is_passed_over() -> None:
    assert asked({"type": "object", "not": {}, "properties": {"a": {"format": "wizard"}}}, strict=False)["ok"]
    said = asked({"type": "wizard", "properties": {"a": {"type": "null"}}}, strict=False)
    assert said["ok"] and json.loads(said["held"][0]) == {"type": "object", "properties": {"a": {"type": "null"}}}


def test_a_client_cannot_loosen_the_grammar() -> None:
    """`x-guidance` is the grammar library's own."""
    assert not asked({"x-guidance": {"coerce_one_of": True}, "oneOf": [{"type": "integer"}, {"type": "number"}]})["ok"]


@pytest.mark.parametrize(
    ("schema", "text", "fits"),
    [
        ({"type": "integer"}, "5", True),
        ({"type": "integer"}, '"5"', False),
        ({"type": "integer"}, "5 6", False),
        ({"type": "integer"}, "", False),
        ({"type": "string", "format": "date"}, '"2024-02-30"', False),
        ({"type": "string", "format": "date"}, '"2024-02-29"', True),
        ({"type": "string", "pattern": "^(a+)+b$"}, json.dumps("a" * 100_000), False),
        ({"type": "array", "items": {"type": "null"}}, "[" * 5000, False),
        ({"$schema": "http://json-schema.org/draft-07/schema#", "type": "null"}, "null", True),
    ],
)
def test_an_answer_fits_or_does_not(schema: Any, text: str, fits: bool) -> None:
    validator = Validator(parsed(json.dumps(schema), "response_format"), "response_format")
    if fits:
        validator.check(text, "the answer")
    else:
        with pytest.raises(AnswerInvalid, match="does not fit"):
            validator.check(text, "the answer")


@pytest.mark.parametrize(
    "pattern",
    [
        r"^(?!\.)\d*\.?\d*$",
        "([",
        r"\bword\b",
        r"^a\Z",
        r"(a)\1",
        r"a$b\d",
        r"\p{Foo}'",
        r"\\(",
        r"^\d+(?=x)" + r"\d" * 500,
    ],
)
@pytest.mark.parametrize("strict_tool", [False, True])
def test_an_error_shows_a_pattern_as_it_was_sent(pattern: str, strict_tool: bool) -> None:
    where = "tools.f" if strict_tool else "response_format"
    for schema, at in (
        ({"properties": {"a": {"pattern": pattern}}}, "/properties/a/pattern"),
        ({"patternProperties": {pattern: {}}}, "/patternProperties"),
    ):
        said = answer(json.dumps(["schemas", [[json.dumps(schema), where, True]], ""]).encode(), Kept(1, 1))
        begin = f"{where}: '{at}': answers cannot be held to the pattern '{pattern[:120]}': "
        assert said["message"].startswith(begin) and said["message"].removeprefix(begin).isprintable()
        assert "[0-9]" not in said["message"], "what the library made of it"
        assert len(said["message"]) > len(begin) + 3


def test_an_error_shows_other_words_as_they_were_sent() -> None:
    for schema, shown in (
        ({"properties": {r"a\b": {"not": {}}}}, r"'/properties/a\b'"),
        ({"properties": {"a\n\u00e4": {"not": {}}}}, r"'/properties/a\n\xe4'"),
        ({"properties": {"a": {"pattern": "^a{1000000}$"}}}, "'^a{1000000}$' is not a"),
        ({"properties": {"a": {"type": "C:\\d"}}}, r"'C:\d' is not"),
    ):
        assert shown in asked(schema)["message"]


def test_an_error_names_the_tool() -> None:
    with pytest.raises(SchemaUnsupported, match="tools.weather: '/properties/a': answers cannot be held to not") as e:
        parsed('{"properties": {"a": {"not": {}}}}', "tools.weather")
    assert e.value.param == "tools"
