"""The grammar of each format allows what the format's reader reads, and nothing else; on the real vocabulary."""

import json
import re
from typing import Any

import pytest
from written_answers import ANSWERS, ARGUMENTS, Meant, call, read, same, thinking_of

from llmd.daemon.engine.answers import grammar
from llmd.daemon.engine.answers.formats import CALLS, HERMES, LLAMA, THINKINGS, Calls, Syntax, Thinking, Thoughts
from llmd.daemon.engine.answers.matching import Grammars, Masks
from llmd.daemon.engine.llama.runner import LlamaRunner
from llmd.daemon.engine.types import Lexicon
from llmd.daemon.errors import AnswerInvalid, SchemaTooComplex, SchemaUnsupported
from llmd.daemon.wire.work import Tool, Wanted

WEATHER = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "array"}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOLS = (
    Tool("weather", "{}", json.dumps(WEATHER), strict=True),
    Tool("time.now", "{}", '{"type": "object"}'),
)
NAMES = frozenset(tool.name for tool in TOOLS)
JSON = '{"city": "Köln", "days": []}'


@pytest.fixture(scope="module")
def lexicon(runner: LlamaRunner) -> Lexicon:
    return runner.vocabulary.lexicon()


@pytest.fixture(scope="module")
def grammars(lexicon: Lexicon) -> Grammars:
    return Grammars(lexicon)


class Held:
    """A model whose answers are held to something."""

    def __init__(self, grammars: Grammars, lexicon: Lexicon, runner: LlamaRunner) -> None:
        self.grammars, self.tokens, self.runner = grammars, lexicon.tokens(), runner
        self.eos = min(lexicon.ends)

    def allows(self, syntax: Syntax, wanted: Wanted, text: str, thoughts: Thoughts = Thoughts.MAY) -> bool:
        """Whether an answer may be this text, and end with it."""
        matcher = self.grammars.compiled(grammar.answer(syntax, wanted, self.tokens, thoughts)).start()
        try:
            for token in self.runner.vocabulary.tokenize(text, add_special=False, parse_special=False):
                matcher.accept(token)
            if not matcher.ended:
                matcher.accept(self.eos)
        except AnswerInvalid:
            return False
        return True


@pytest.fixture(scope="module")
def held(grammars: Grammars, lexicon: Lexicon, runner: LlamaRunner) -> Held:
    return Held(grammars, lexicon, runner)


@pytest.mark.parametrize(
    ("calls", "kind", "text", "meaning"), ANSWERS, ids=[f"{calls.name}: {kind}" for calls, kind, _, _ in ANSWERS]
)
def test_what_the_reader_reads_may_be_written(held: Held, calls: Calls, kind: str, text: str, meaning: Meant) -> None:
    thinking, called = thinking_of(calls), bool(meaning.calls)
    syntax, thinks = Syntax(calls), Syntax(calls, thinking)
    behind = f"Hm.{thinking.end}{calls.again or chr(10) * 2}{text}"
    for wanted in (Wanted(None, TOOLS), Wanted(None, TOOLS, must_call=True)):
        may = called and not meaning.said if wanted.must_call else True
        assert held.allows(syntax, wanted, text) == may
        assert held.allows(thinks, wanted, thinking.begin + behind) == may
        assert held.allows(thinks, wanted, behind, Thoughts.BEGUN) == may
        assert held.allows(thinks, wanted, text, Thoughts.NONE) == may
        assert not held.allows(thinks, wanted, thinking.begin + behind, Thoughts.NONE)
    single = Wanted(None, TOOLS, parallel=False)
    assert held.allows(syntax, single, text) == (len(meaning.calls) < 2)


@pytest.mark.parametrize("calls", CALLS.values(), ids=list(CALLS))
def test_json_may_stand_in_for_a_call(held: Held, calls: Calls) -> None:
    wanted, beside = Wanted(json.dumps(WEATHER), TOOLS), Wanted(json.dumps(WEATHER))
    called = calls.first + calls.beside + call(calls, "weather") + calls.last
    assert held.allows(Syntax(calls), wanted, called) and held.allows(Syntax(calls), wanted, calls.says + JSON)
    assert same(read(Syntax(calls), [called], NAMES), Meant(calls=(("weather", ARGUMENTS),)))
    assert read(Syntax(calls), [calls.says + JSON], NAMES) == Meant(JSON)
    assert held.allows(Syntax(calls), beside, calls.says + JSON) and not held.allows(Syntax(calls), beside, called)
    assert not held.allows(Syntax(calls), wanted, calls.says + "It is warm.")


CITY = "<parameter=city>\nx\n</parameter>\n"
# of each kind of arguments: a tool, what it is given, and whether it may be
GIVEN = {
    "json": (
        ("weather", '{"city": 5}', False), ("weather", '{"days": []}', False),
        ("weather", '{"city": "x", "other": 1}', False), ("weather", "[]", False),
        ("time.now", '{"whatever": [1, {}]}', True), ("time.now", "[]", False), ("wizard", "{}", False),
    ),
    "gemma": (
        ("weather", "{city:MARKxMARK}", True), ("weather", "{city:5}", False), ("weather", "{days:[]}", False),
        ("weather", "{city:MARKxMARK,other:1}", False), ("weather", "{city:MARKxMARK,days:{}}", False),
        ("time.now", "{whatever:[1,{}]}", True), ("time.now", "[]", False), ("wizard", "{}", False),
    ),
    "xml": (
        ("weather", f"{CITY}</function>", True), ("weather", "</function>", False),
        ("weather", f"{CITY}<parameter=days>\n[1]\n</parameter>\n</function>", True),
        ("weather", f"{CITY}<parameter=days>\nsoon\n</parameter>\n</function>", False),
        ("weather", f"{CITY}<parameter=other>\n1\n</parameter>\n</function>", False),
        ("time.now", f"{CITY}</function>", True), ("wizard", "</function>", False),
    ),
}  # fmt: skip


@pytest.mark.parametrize("calls", CALLS.values(), ids=list(CALLS))
@pytest.mark.parametrize("must", [False, True], ids=["auto", "required"])
def test_arguments_are_held_to_their_schema_from_where_the_call_begins(held: Held, calls: Calls, must: bool) -> None:
    wanted = Wanted(None, TOOLS, must_call=must)
    for name, arguments, may in GIVEN[calls.arguments]:
        text = calls.first + call(calls, name, arguments.replace("MARK", calls.mark)) + calls.last
        assert held.allows(Syntax(calls), wanted, text) == may, (name, arguments)


@pytest.mark.parametrize("thinking", THINKINGS.values(), ids=THINKINGS)
@pytest.mark.parametrize("wanted", [Wanted(None, TOOLS), Wanted('{"type": "object"}'), Wanted(None, TOOLS[:1], True)])
def test_who_is_told_not_to_think_does_not(held: Held, thinking: Thinking, wanted: Wanted) -> None:
    syntax = Syntax(HERMES, thinking)
    said = "{}" if wanted.schema else call(HERMES, "weather", JSON) if wanted.must_call else "Well, <a [b <|c."
    thought = f"{thinking.begin}Hm.{thinking.end}\n"
    assert held.allows(syntax, wanted, said, Thoughts.NONE) and held.allows(syntax, wanted, thought + said)
    assert not held.allows(syntax, wanted, thought + said, Thoughts.NONE)
    assert not held.allows(syntax, wanted, f"Well, {thought}{said}", Thoughts.NONE)


def test_a_text_may_hold_what_only_begins_like_a_call(held: Held) -> None:
    wanted = Wanted(None, TOOLS)
    assert held.allows(Syntax(HERMES), wanted, "a < b, <tool_cal and <tool>")
    assert not held.allows(Syntax(HERMES), wanted, "a <tool_call> b")
    assert not held.allows(Syntax(LLAMA), wanted, '{"a": 1}')


@pytest.mark.parametrize("whole", [False, True])
def test_a_control_token_is_written_as_itself(lexicon: Lexicon, whole: bool) -> None:
    """Where a vocabulary has the format's words as control tokens, they are these tokens, and nothing spells them."""
    words = ["<tool_call>", "</tool_call>"] if whole else ["<tool_call>"]
    pieces = [b"<end>", *(bytes([n]) for n in range(256)), *(word.encode() for word in words)]
    control = frozenset({0, *range(257, len(pieces))})
    own = Lexicon(pieces, control, frozenset({0}))
    text = grammar.answer(Syntax(HERMES), Wanted(None, TOOLS), own.tokens())
    matcher = Grammars(own).compiled(text).start()
    masks = Masks(1, len(pieces))

    def allowed() -> set[int]:
        mask = masks.of([(matcher, 0)])[0]
        return {token for token in range(len(pieces)) if int(mask[token // 32]) >> token % 32 & 1}

    assert {0, 257, 1 + ord("a"), 1 + ord("<")} <= allowed()
    matcher.accept(257)
    assert allowed() == {1 + ord("\n")}
    for byte in b'\n{"name": "weather", "arguments": {"city": "x"}}\n':
        matcher.accept(1 + byte)
    assert allowed() == ({258} if whole else {1 + ord("<")})


def test_several_masks_are_those_of_each(grammars: Grammars, lexicon: Lexicon) -> None:
    texts = [grammar.answer(Syntax(), Wanted(json.dumps({"const": n})), {}) for n in ("a", "b", 1)]
    matchers = [grammars.compiled(text).start() for text in texts]
    masks = Masks(4, len(lexicon.pieces))
    together = masks.of([(matcher, slot) for slot, matcher in enumerate(matchers)])
    together = {slot: mask.copy() for slot, mask in together.items()}
    for slot, matcher in enumerate(matchers):
        assert (masks.of([(matcher, slot)])[slot] == together[slot]).all()


@pytest.mark.parametrize(
    "schema",
    [{"type": "string", "minLength": 5, "maxLength": 2}, {"enum": []}, {"minimum": 3, "maximum": 1, "type": "integer"}],
)
def test_what_no_answer_fits_is_refused(grammars: Grammars, schema: dict[str, Any]) -> None:
    with pytest.raises(SchemaUnsupported):
        grammars.compiled(grammar.answer(Syntax(), Wanted(json.dumps(schema)), {}))


def test_a_grammar_that_leaves_no_way_on_is_told(grammars: Grammars) -> None:
    matcher = grammars.compiled(grammar.answer(Syntax(), Wanted('{"const": 1}'), {})).start()
    with pytest.raises(AnswerInvalid, match="cannot go on"):
        matcher.accept(100)


def test_compiled_once(grammars: Grammars) -> None:
    text = grammar.answer(Syntax(), Wanted('{"const": "once"}'), {})
    first, second = grammars.compiled(text), grammars.compiled(text)
    assert first._matcher is second._matcher
    one, other = first.start(), second.start()
    one.accept(grammars._tokenizer.tokenize_str('"once"')[0])
    assert not one.ended and other.matcher is not one.matcher


def test_for_each_client(grammars: Grammars) -> None:
    """How long it takes tells nobody what others asked."""
    text = grammar.answer(Syntax(), Wanted('{"const": "each"}'), {})
    alices, bobs = grammars.compiled(text, None, "alice"), grammars.compiled(text, None, "bob")
    assert alices._matcher is not bobs._matcher
    assert grammars.compiled(text, None, "alice")._matcher is alices._matcher


EVERY = {
    "type": "object",
    "properties": {
        "colour": {"enum": ["red", "dark blue", ""]}, "n": {"type": "integer"}, "x": {"type": "number"},
        "yes": {"type": "boolean"}, "none": {"type": "null"}, "const": {"const": 5},
        "list": {"type": "array", "items": {
            "type": "object", "properties": {"a": {"type": "string"}, "b": {"$ref": "#/$defs/c"}}}},
        "any": {}, "deep": {"type": "object"},
    },
    "$defs": {"c": {"type": "integer"}},
}  # fmt: skip


@pytest.mark.parametrize("required", [[], ["n"], ["colour", "deep"], ["any"]])
@pytest.mark.parametrize("calls", [c for c in CALLS.values() if c.arguments != "json"], ids=lambda calls: calls.name)
def test_other_arguments_have_every_kind_of_value(held: Held, calls: Calls, required: list[str]) -> None:
    """Each property may be there or not, in its order, unless it must."""
    tool = Tool("every", "{}", json.dumps({**EVERY, "required": required}), strict=True)
    wanted = Wanted(None, (tool,), must_call=True)
    values: dict[str, Any] = {
        "colour": "dark blue", "n": -3, "x": 1.5, "yes": True, "none": None, "const": 5, "list": [{"a": "x"}, {}],
        "any": ["y", {"z": 1}], "deep": {"k": "v"},
    }  # fmt: skip

    def spelled(value: Any) -> str:
        if isinstance(value, str):
            return calls.mark + value + calls.mark
        if isinstance(value, list):
            return "[" + ",".join(map(spelled, value)) + "]"
        if isinstance(value, dict):
            return "{" + ",".join(f"{name}:{spelled(item)}" for name, item in value.items()) + "}"
        return json.dumps(value)

    def arguments(given: dict[str, Any]) -> str:
        if calls.arguments == "gemma":
            return spelled(given)
        shown = ((n, v if isinstance(v, str) else json.dumps(v)) for n, v in given.items())
        return "".join(f"<parameter={n}>\n{v}\n</parameter>\n" for n, v in shown) + "</function>"

    for names in ([*values], [], ["n"], ["colour", "deep"], ["any"], ["x", "any"], ["colour", "n", "deep"]):
        given = {name: values[name] for name in values if name in names}
        may = set(required) <= given.keys()
        text = call(calls, "every", arguments(given))
        assert held.allows(Syntax(calls), wanted, text) == may, text
        if may:
            found = read(Syntax(calls), [text], frozenset({"every"}))
            assert json.loads(found.calls[0][1]) == given
    wrong = call(calls, "every", arguments(values | {"colour": "pink"}))
    assert not held.allows(Syntax(calls), wanted, wrong)


def many(count: int, **schema: Any) -> Wanted:
    properties = {f"p{i}": {"type": "integer"} for i in range(count)}
    return Wanted(
        None, (Tool("many", "{}", json.dumps({"properties": properties, **schema}), strict=True),), must_call=True
    )


@pytest.mark.parametrize("calls", [c for c in CALLS.values() if c.arguments != "json"], ids=lambda calls: calls.name)
def test_a_grammar_grows_with_its_schema_and_no_faster(lexicon: Lexicon, calls: Calls) -> None:
    """As text, and in how deep its rules lead into one another: what compiles them calls itself for each."""
    tokens = lexicon.tokens()

    def made(wanted: Wanted) -> dict[str, str]:
        rules = grammar.Grammar(Syntax(calls), wanted, tokens, Thoughts.MAY)._rules
        return {name.partition("[")[0]: rule for name, rule in rules.items()}

    def size(wanted: Wanted) -> int:
        return sum(map(len, made(wanted).values()))

    def depth(rules: dict[str, str], name: str) -> int:
        bare = re.sub(r'"[^"]*"', "", rules[name])  # without texts
        words = {word for word in re.findall("[a-z_0-9]+", bare) if re.match("body|call|arguments", word)}
        return 1 + max((depth(rules, word) for word in words & rules.keys()), default=0)

    assert size(many(200)) < 2.5 * size(many(100)) and size(many(20_000)) < 25_000
    assert depth(made(many(250)), "start") < 60
    deep = {"$defs": {"d": {"enum": [f"e{i}" for i in range(10_000)]}}}
    if calls.arguments == "xml":
        properties = {f"p{i}": {"$ref": "#/$defs/d"} for i in range(100)}
        with pytest.raises(SchemaTooComplex):
            made(many(0, **deep, properties=properties))


@pytest.mark.parametrize("required", [[], ["p0"], ["p40"], ["p15", "p16", "p17"], ["p99"]])
def test_any_of_many_properties_may_be_there(held: Held, required: list[str]) -> None:
    calls = CALLS["gemma"]
    wanted = many(100, required=required)
    for names in ([], [0], [40], [99], [15, 16, 17], [0, 40, 99], [*range(100)], [*range(0, 100, 7)], [16, 15]):
        text = call(calls, "many", "{" + ",".join(f"p{n}:5" for n in names) + "}")
        may = names == sorted(names) and set(required) <= {f"p{n}" for n in names}
        assert held.allows(Syntax(calls), wanted, text) == may, names
    assert not held.allows(Syntax(calls), wanted, call(calls, "many", "{p0:5,}"))
