"""0 answers that do not fit, 0 schemas that run without being held: on schemas of every family, and on random ones,
with a model that writes whatever its grammar lets it."""

import datetime
import decimal
import enum
import ipaddress
import json
import random
import uuid
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pydantic
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schema_families import SCHEMAS, UNSUPPORTED, Schema, random_schemas

from llmd.daemon.engine.answers import grammar
from llmd.daemon.engine.answers.formats import Syntax
from llmd.daemon.engine.answers.judge import answer
from llmd.daemon.engine.answers.matching import Grammars, Masks
from llmd.daemon.engine.answers.schemas import parsed
from llmd.daemon.engine.answers.validating import Validator
from llmd.daemon.engine.llama.runner import LlamaRunner
from llmd.daemon.engine.types import Lexicon
from llmd.daemon.errors import AnswerInvalid, SchemaUnsupported
from llmd.daemon.kept import Kept
from llmd.daemon.wire.work import Wanted

MAX_TOKENS = 300


class Writer:
    """A model without a mind: it takes any token that its grammar allows, and ends as soon as it may."""

    def __init__(self, lexicon: Lexicon) -> None:
        self.lexicon, self.grammars = lexicon, Grammars(lexicon)
        self.masks = Masks(1, len(lexicon.pieces))

    def write(self, schema: Any, seed: int) -> str | None:
        """An answer that is whole; None: it did not end. Raises SchemaUnsupported, AnswerInvalid."""
        dice = random.Random(seed)
        matcher = self.grammars.compiled(grammar.answer(Syntax(), Wanted(json.dumps(schema)), {})).start()
        out = b""
        for _ in range(MAX_TOKENS):
            if matcher.ended or (matcher.whole and dice.random() < 0.5):
                return out.decode()
            token = self._any(matcher, dice)
            if token in self.lexicon.ends:
                return out.decode()
            matcher.accept(token)
            out += self.lexicon.pieces[token]
        return None

    def _any(self, matcher: Any, dice: random.Random) -> int:
        """One that is likely to come to an end: short ones first, most of the time."""
        words = self.masks.of([(matcher, 0)])[0]
        allowed = np.flatnonzero(np.unpackbits(words.view(np.uint8), bitorder="little")[: len(self.lexicon.pieces)])
        if not len(allowed):
            raise AnswerInvalid("nothing is allowed")
        if dice.random() < 0.6:
            closing = [t for t in allowed[:3000] if self.lexicon.pieces[t] in (b'"', b"}", b"]", b'"}', b'"]', b"1")]
            if closing:
                return int(dice.choice(closing))
        return int(dice.choice(allowed))


@pytest.fixture(scope="module")
def writer(runner: LlamaRunner) -> Writer:
    return Writer(runner.vocabulary.lexicon())


def check(schema: Any) -> dict[str, Any]:
    return answer(json.dumps(["schemas", [[json.dumps(schema), "response_format", True]], ""]).encode(), Kept(1, 1))


def of_grammar(schema: Any, said: dict[str, Any]) -> Any:
    """What a grammar is made of."""
    return json.loads(said.get("held", {}).get(0, json.dumps(schema)))


def fits(schema: Any, text: str) -> bool:
    try:
        Validator(parsed(json.dumps(schema), "response_format"), "response_format").check(text, "it")
    except AnswerInvalid:
        return False
    return True


def test_there_are_about_two_hundred() -> None:
    assert len(SCHEMAS) > 180 and len({json.dumps(schema) for schema in SCHEMAS}) == len(SCHEMAS)


@pytest.mark.parametrize("number", range(len(SCHEMAS)))
def test_every_answer_fits(writer: Writer, number: int) -> None:
    schema = SCHEMAS[number]
    assert check(schema) == {"ok": True}, schema
    ended = 0
    for seed in range(4):
        text = writer.write(schema, seed)
        if text is not None:
            ended += 1
            assert fits(schema, text), (schema, text)
    assert ended or "format" in str(schema), schema  # a name of a host made of any letters may go on for long


@pytest.mark.parametrize("number", range(len(UNSUPPORTED)))
def test_what_cannot_be_held_is_refused_wherever_it_stands(number: int) -> None:
    schema: Schema = UNSUPPORTED[number]
    inside = {"type": "object", "properties": {"a": {"type": "array", "items": schema}}}
    for one in (
        schema,
        inside,
        {"anyOf": [{"type": "null"}, schema]},
        {"$defs": {"a": schema}, "items": {"$ref": "#/$defs/a"}},
    ):
        said = check(one)
        assert not said["ok"] and said["code"] == "schema_unsupported", one


@given(random_schemas(), st.integers(0, 2**16))
@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_random_schema_is_held_or_refused(writer: Writer, schema: Any, seed: int) -> None:
    """Never anything between: an answer that comes to its end fits, or is none (422), or the request was a 400."""
    said = check(schema)
    if not said["ok"]:
        assert said["code"] == "schema_unsupported" and said["param"] == "response_format"
        return
    try:
        text = writer.write(of_grammar(schema, said), seed)
    except (AnswerInvalid, SchemaUnsupported):
        return
    if text is not None and not fits(schema, text):
        assert _counts_names(text) or '"uniqueItems": true' in json.dumps(schema), (schema, text)


def _counts_names(text: str) -> bool:
    """One way in which an answer that the grammar allows does not fit: two properties of one name. The other is what is
    held against the whole answer alone."""
    names: list[list[str]] = []
    json.loads(text, object_pairs_hook=lambda pairs: names.append([name for name, _ in pairs]))
    return any(len(set(found)) < len(found) for found in names)


# --- what pydantic and zod write


class Kind(enum.Enum):
    A = "a"
    B = "b"


class Cat(pydantic.BaseModel):
    kind: Literal["cat"] = "cat"
    lives: int


class Dog(pydantic.BaseModel):
    kind: Literal["dog"] = "dog"
    age: int


class Node(pydantic.BaseModel):
    v: bool
    kids: list["Node"] = []


Text = Annotated[str, pydantic.Field(max_length=4)]
TYPES: dict[str, Any] = {
    "int": int, "float": float, "bool": bool, "str": Text, "None": None, "Optional": int | None, "list": list[bool],
    "set of choices": set[Literal["a", "b", "c"]], "set of an Enum": set[Kind], "frozenset": frozenset[bool],
    "conset": Annotated[set[Kind], pydantic.Field(min_length=1, max_length=1)], "tuple": tuple[int, Text],
    "dict": dict[Text, bool], "dict by Enum": dict[Kind, int], "dict by Literal": dict[Literal["x", "y"], bool],
    "dict by UUID": dict[uuid.UUID, bool], "dict by date": dict[datetime.date, bool],
    "dict by pattern": dict[Annotated[str, pydantic.Field(pattern="^a+$")], bool], "dict by length": dict[Text, bool],
    "Enum": Kind, "Literal": Literal["a", 1, None], "datetime": datetime.datetime, "date": datetime.date,
    "time": datetime.time, "timedelta": datetime.timedelta, "UUID": uuid.UUID, "UUID4": pydantic.UUID4,
    "IPv4Address": ipaddress.IPv4Address, "Decimal": decimal.Decimal, "bytes": bytes, "Path": Path,
    "SecretStr": pydantic.SecretStr, "Base64Bytes": pydantic.Base64Bytes, "Json": pydantic.Json[int],
    "tagged union": Annotated[Cat | Dog, pydantic.Field(discriminator="kind")], "union": Cat | Dog, "Node": Node,
    "IPv4Network": ipaddress.IPv4Network, "HttpUrl": pydantic.HttpUrl, "Any": Any,
}  # fmt: skip
DECIMAL = {"anyOf": [{"type": "number"}, {"type": "string", "pattern": r"^(?!^[-+.]*$)[+-]?0*\d*\.?\d*$"}]}
# what zod 4.6's toJSONSchema makes of z.object({a: z.NAME()})
ZOD = Path(__file__).parents[3] / "zod_schemas.json"
EVERYDAY: dict[str, Schema] = {
    **{name: pydantic.create_model("M", a=(kind, ...)).model_json_schema() for name, kind in TYPES.items()},
    "Decimal of 2.12 and 2.13": {"type": "object", "properties": {"a": DECIMAL}, "required": ["a"]},
    **{f"zod: {name}": schema for name, schema in json.loads(ZOD.read_text()).items() if name != "emoji"},
}  # fmt: skip
# of these nothing but the whole answer tells whether it fits
WHOLE = ("zod: isoduration", "zod: hostname")


@pytest.mark.parametrize("name", EVERYDAY)
def test_everyday_types_are_held(writer: Writer, name: str) -> None:
    schema = EVERYDAY[name]
    said = check(schema)
    assert said["ok"], said
    for seed in range(4):
        text = writer.write(of_grammar(schema, said), seed)
        if text is not None and not fits(schema, text):
            assert name in WHOLE or _counts_names(text), (schema, text)


def test_what_a_grammar_cannot_say_is_held_against_the_whole_answer() -> None:
    for schema, right, wrong in (
        ({"type": "array", "items": {"type": "string"}, "uniqueItems": True}, '["a", "b"]', '["a", "a"]'),
        ({"type": "object", "propertyNames": {"pattern": "^a", "maxLength": 2}}, '{"ab": 1}', '{"b": 1}'),
        ({"type": "string", "format": "regex"}, '"a+"', '"("'),
        ({"type": "string", "format": "idn-email"}, '"a@b.de"', '"a"'),
        ({"type": "string", "format": "hostname", "pattern": "^(?!a)"}, '"b.de"', '"a.de"'),
        (EVERYDAY["tagged union"], '{"a": {"kind": "cat", "lives": 1}}', '{"a": {"lives": 1, "age": 2}}'),
        (EVERYDAY["set of choices"], '{"a": ["b", "a"]}', '{"a": ["a", "a"]}'),
        (EVERYDAY["dict by Enum"], '{"a": {"b": 1}}', '{"a": {"c": 1}}'),
        (EVERYDAY["Decimal of 2.12 and 2.13"], '{"a": "1.5"}', '{"a": "."}'),
    ):
        assert check(schema)["ok"] and fits(schema, right) and not fits(schema, wrong), schema


def test_an_annotation_is_a_remark() -> None:
    for schema in ({"format": "binary"}, {"format": "int32", "type": "integer"}, {"contentEncoding": "base64"},
                   {"contentMediaType": "application/json", "contentSchema": {"type": "integer"}},
                   {"format": "path", "writeOnly": True, "deprecated": True}):  # fmt: skip
        assert check(schema)["ok"] and fits(schema, "5" if "type" in schema else '"anything"')


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ({"properties": {"a": {"oneOf": [{"type": "string"}, {"type": "string", "maxLength": 3}]}}},
         "response_format: '/properties/a': answers cannot be held to 'oneOf' as it stands: its choices may overlap"),
        ({"type": "object", "properties": {"a": {"type": "integer", "minimum": 5, "maximum": 1}}, "required": ["a"]},
         "response_format: '/properties/a': no value fits all that is said here; 'maximum' leaves none"),
        ({"anyOf": [{"type": "null"}, {"pattern": "(?=a)"}]},
         "response_format: '/anyOf/1/pattern': answers cannot be held to the pattern '(?=a)'"),
        ({"anyOf": [{"type": "integer"}, {"type": "string", "pattern": "(?=a)"}]},
         "response_format: '/anyOf/1/pattern': answers cannot be held to the pattern '(?=a)'"),
        ({"items": {"multipleOf": 0}}, "response_format: '/items/multipleOf' is no JSON schema"),
    ],
)  # fmt: skip
def test_an_error_is_in_the_schemas_own_words(schema: Schema, said: str) -> None:
    message = check(schema)["message"]
    assert message.startswith(said), message
