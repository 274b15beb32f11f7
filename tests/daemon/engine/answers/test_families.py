"""0 answers that do not fit, 0 schemas that run without being held: on schemas of every family, and on random ones,
with a model that writes whatever its grammar lets it."""

import json
import random
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schema_families import SCHEMAS, UNSUPPORTED, Schema, random_schemas

from llmd.daemon.engine.answers import grammar
from llmd.daemon.engine.answers.check import answer
from llmd.daemon.engine.answers.formats import Syntax
from llmd.daemon.engine.answers.matching import Grammars, Masks
from llmd.daemon.engine.answers.schemas import Validator, parsed
from llmd.daemon.engine.llama import LlamaRunner
from llmd.daemon.engine.messages import Wanted
from llmd.daemon.engine.types import Lexicon
from llmd.daemon.errors import AnswerInvalid, SchemaUnsupported
from llmd.daemon.kept import Kept

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
    return Writer(runner.lexicon())


def check(schema: Any) -> dict[str, Any]:
    return answer(json.dumps(["schemas", [[json.dumps(schema), "response_format", True]], ""]).encode(), Kept(1, 1))


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
        text = writer.write(schema, seed)
    except (AnswerInvalid, SchemaUnsupported):
        return
    if text is not None and not fits(schema, text):
        assert _counts_names(schema, text), (schema, text)


def _counts_names(schema: Any, text: str) -> bool:
    """The one way in which an answer that the grammar allows does not fit: two properties of one name."""
    names: list[list[str]] = []
    json.loads(text, object_pairs_hook=lambda pairs: names.append([name for name, _ in pairs]))
    return any(len(set(found)) < len(found) for found in names)
