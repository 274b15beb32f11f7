"""What the audit log says of a request: a hash of all that was asked but the prompt, and a keyed one of the prompt."""

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from llmd.daemon.serving.ask import Ask
from llmd.daemon.wire.work import (
    AtOnce,
    Chat,
    ChatMessage,
    Detokenize,
    Generate,
    Prompt,
    RawText,
    SamplingWish,
    Tokenize,
    Tokens,
    Tool,
    Wanted,
    Work,
)

CHAT = Chat((ChatMessage("user", "x"),), tools=(Tool("f", "{}", "{}"),))
FULL = Generate((CHAT,), SamplingWish(1), 1, Wanted("{}", (Tool("f", "{}", "{}"),)))


def digests(work: Work) -> tuple[str, bytes]:
    ask = Ask("", "m", work)
    return ask.parameters(), ask.prompt()


def other(value: Any, kind: str) -> Any:
    """Another value of its kind."""
    known: dict[str, Any] = {
        "stop": ("x",), "logit_bias": ((1, 2.0),), "tools": (), "prompts": (RawText("y"),),
        "messages": (ChatMessage("user", "y"),), "schema": '{"type": "null"}', "reasoning_effort": "low",
        "enable_thinking": True,
        "wanted": None, "params": SamplingWish(2),
    }  # fmt: skip
    if kind in known:
        return known[kind]
    if isinstance(value, bool):
        return not value
    return value + "y" if isinstance(value, str) else (value or 0) + 1


def changed() -> Iterator[tuple[str, Work]]:
    """A request with one of its fields another one, each in turn."""
    replace = msgspec.structs.replace
    for field in Generate.__struct_fields__:
        yield field, replace(FULL, **{field: other(getattr(FULL, field), field)})
    for one in dataclasses.fields(SamplingWish):
        params = dataclasses.replace(FULL.params, **{one.name: other(getattr(FULL.params, one.name), one.name)})
        yield f"params.{one.name}", replace(FULL, params=params)
    wanted = FULL.wanted
    assert wanted
    for field in Wanted.__struct_fields__:
        yield f"wanted.{field}", replace(FULL, wanted=replace(wanted, **{field: other(getattr(wanted, field), field)}))
    for field in Chat.__struct_fields__:
        yield f"chat.{field}", replace(FULL, prompts=(replace(CHAT, **{field: other(getattr(CHAT, field), field)}),))
    for field in Tool.__struct_fields__:
        tool = replace(wanted.tools[0], **{field: other(getattr(wanted.tools[0], field), field)})
        prompts = (replace(CHAT, tools=(tool,)),)
        yield f"tool.{field}", replace(FULL, prompts=prompts, wanted=replace(wanted, tools=(tool,)))
    yield "tokenize.special", Tokenize("x", True)


@pytest.mark.parametrize("name", dict(changed()))
def test_whatever_is_asked_is_in_one_of_the_hashes(name: str) -> None:
    work = dict(changed())[name]
    assert digests(work) != digests(Tokenize("x") if isinstance(work, Tokenize) else FULL)
    assert digests(work) == digests(msgspec.structs.replace(work))


class MoreToSay(Generate, frozen=True):
    """A parameter that there is not yet."""

    sweetness: int = 0


class Weigh(AtOnce, frozen=True):
    """A kind of work that there is not yet."""

    texts: tuple[str, ...]

    def spelled(self) -> bytes:
        return json.dumps(self.texts).encode()


def test_a_kind_that_samples_nothing_is_asked_without_a_word() -> None:
    ask = Ask("/weigh", "m", Weigh(("a", "b")))  # type: ignore[arg-type]
    assert (ask.prompt(), ask.schemas(), ask.seconds, ask.work.sequences) == (b'["a", "b"]', [], 60.0, 1)
    assert ask.held_to({}) is ask and ask.work.most_tokens == 0


def test_a_kind_of_work_says_how_much_it_asks_for() -> None:
    work = Generate((RawText("a"), RawText("b")), SamplingWish(7), 3)
    assert (work.sequences, work.most_tokens, Ask("", "m", work).seconds) == (6, 42, 3600.0)
    assert Ask("", "m", work, 5.0).seconds == 5.0


def test_a_new_parameter_is_in_it_without_a_word() -> None:
    def hashed(sweetness: int) -> str:
        return Ask("", "m", MoreToSay((CHAT,), SamplingWish(1), sweetness=sweetness)).parameters()

    assert hashed(0) == Ask("", "m", Generate((CHAT,), SamplingWish(1))).parameters() != hashed(1)


def test_equal_parameters_have_equal_hashes_whatever_the_prompt() -> None:
    def hashed(most: int, prompt: Prompt) -> str:
        return Ask("", "m", Generate((prompt,), SamplingWish(most))).parameters()

    assert hashed(3, RawText("a")) == hashed(3, Tokens((1, 2))) != hashed(4, RawText("a"))
    assert Ask("", "m", Detokenize((1,))).parameters() == Ask("", "m", Tokenize("x")).parameters() == ""
    # as it was in every row before
    plain = hashlib.sha256(json.dumps(dataclasses.asdict(SamplingWish(3)), sort_keys=True).encode()).hexdigest()
    assert hashed(3, RawText("a")) == plain


def prompt(*prompts: Prompt) -> bytes:
    return Ask("", "m", Generate(prompts, SamplingWish(1))).prompt()


def test_one_text_is_its_own_bytes_and_nothing_else_is_spelled_by_one() -> None:
    for text in ("Hello", "", "ü", '["a","b"]', "[1,2]", "\x00"):
        assert prompt(RawText(text)) == text.encode()
    a, b, one, two = RawText("a"), RawText("b"), Tokens((1,)), Tokens((2,))
    others: list[tuple[Prompt, ...]]
    texts = [RawText(text) for text in ('["a","b"]', "[1,2]", "[1]", "[2]", '["a"', '"b"]', "a,b")]
    others = [(a, b), (one, two), (a, one), (Tokens((1, 2)),), (texts[2], texts[3]), (texts[4], texts[5])]
    others += [(text,) for text in texts]
    assert len({prompt(*prompts) for prompts in others}) == len(others)


def test_what_it_is_held_to_instead_changes_nothing_else() -> None:
    tools = tuple(Tool(name, "{}", '{"a": 1}', strict=name == "b") for name in "abc")
    ask = Ask("/", "m", msgspec.structs.replace(FULL, choices=2, wanted=Wanted("{}", tools, must_call=True)))
    assert ask.held_to({}) is ask
    held = ask.held_to({2: "{}"})
    assert isinstance(held.work, Generate) and held.work.wanted
    assert held.work.wanted == Wanted("{}", (*tools[:2], Tool("c", "{}", "{}")), must_call=True)
    assert msgspec.structs.replace(held.work, wanted=None) == msgspec.structs.replace(ask.work, wanted=None)
    assert dataclasses.replace(held, work=ask.work) == ask
