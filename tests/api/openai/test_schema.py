"""Bodies as clients send them, and what they ask the engine for."""

import json
from typing import Any

import pytest

from llmd.api.openai.schema import ChatBody, CompletionBody
from llmd.daemon import limits
from llmd.daemon.engine.messages import Chat, ChatMessage, RawText, Tokens, ToolCall
from llmd.daemon.errors import BadRequest

HELLO = {"role": "user", "content": "hi"}
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}


def chat(**fields: Any) -> ChatBody:
    return ChatBody.model_validate(json.loads(json.dumps({"messages": [HELLO], **fields})), strict=True)


def complete(**fields: Any) -> CompletionBody:
    return CompletionBody.model_validate(json.loads(json.dumps({"prompt": "hi", **fields})), strict=True)


def turns(*messages: dict[str, Any]) -> tuple[ChatMessage, ...]:
    (prompt,) = chat(messages=list(messages)).prompts()
    assert isinstance(prompt, Chat)
    return prompt.messages


def test_null_is_not_given_in_every_field() -> None:
    for kind, body in ((ChatBody, chat), (CompletionBody, complete)):
        fields = kind.model_fields.keys() - {"messages", "prompt"}
        given = body(**dict.fromkeys(fields))
        assert given.params() == body().params() and given.prompts() == body().prompts()


def test_null_is_no_value_of_what_must_be_given_and_no_name_is_unknown_for_it() -> None:
    for fields in ({"messages": None}, {"grammar_file": None}, {"messages": [None]}, {"stop": [None]}):
        with pytest.raises(ValueError):
            chat(**fields)


@pytest.mark.parametrize(
    "fields",
    [
        {"tool_choice": "none"}, {"tool_choice": "auto"}, {"tools": []}, {"functions": []}, {"function_call": "none"},
        {"tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": "none"},
        {"functions": [{"name": "f", "parameters": {}}], "function_call": "none"},
        {"parallel_tool_calls": True}, {"modalities": ["text"]}, {"prompt_cache_key": "k"},
        {"prompt_cache_retention": "24h"}, {"prompt_cache_options": {"mode": "implicit"}}, {"safety_identifier": "s"},
        {"verbosity": "low"}, {"reasoning_effort": "none"}, {"response_format": {"type": "text"}}, {"store": False},
        {"metadata": {"a": "b"}}, {"service_tier": "flex"}, {"user": "u"}, {"prediction": {"type": "content",
        "content": "x"}}, {"stream_options": {"include_obfuscation": False}},
    ],
    ids=str,
)  # fmt: skip
def test_what_asks_for_nothing_else_changes_nothing(fields: dict[str, Any]) -> None:
    body = chat(**fields)
    assert body.params() == chat().params()
    (prompt,) = body.prompts()
    assert isinstance(prompt, Chat) and prompt.messages == turns(HELLO)


def test_what_widespread_clients_mean_by_the_values_for_none() -> None:
    nothing = chat(max_tokens=-1, stop="", top_k=-1).params()
    assert (nothing.max_tokens, nothing.stop, nothing.top_k) == (limits.MAX_TOKENS, (), 0)
    assert chat(stop=[]).params().stop == chat(stop=["", ""]).params().stop == ()
    assert chat(stop=["", "x"]).params().stop == ("x",)
    assert chat(top_k=0).params().top_k == 0
    assert complete(max_tokens=-1).params().max_tokens == chat(max_completion_tokens=-1).params().max_tokens
    for fields in ({"max_tokens": 0}, {"max_completion_tokens": 0}):
        with pytest.raises(BadRequest, match="1 or more"):
            chat(**fields).params()


def test_the_newer_limit_is_the_one_that_counts() -> None:
    assert chat(max_tokens=5, max_completion_tokens=7).params().max_tokens == 7


def test_an_answer_can_be_sent_back() -> None:
    answered: dict[str, Any] = {"role": "assistant", "content": "Hi!", "annotations": []}
    answered |= dict.fromkeys(("refusal", "audio", "function_call", "tool_calls"))
    assert turns(HELLO, answered)[1] == ChatMessage("assistant", "Hi!")
    kept = {"parsed": {"a": 1}, "provider_specific_fields": None, "tool_calls": [
        CALL | {"function": {"name": "f", "arguments": "{}", "parsed_arguments": {}}}]}  # fmt: skip
    assert turns(answered | kept)[0].tool_calls == (ToolCall("c1", "f", "{}"),)
    assert turns({"role": "assistant", "content": None, "refusal": "No."})[0].content == "No."
    assert turns({"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]})[0].content == ("No.",)
    assert turns({"role": "assistant", "content": None, "refusal": None})[0].content is None


def test_calls_and_answers_of_tools_are_turns() -> None:
    said = turns(
        {"role": "developer", "content": "Be brief."},
        {"role": "assistant", "content": None, "tool_calls": [
            CALL | {"index": 0}, {"id": "c2", "type": "custom", "custom": {"name": "sh", "input": "ls"}}]},
        {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": t} for t in ("a", "b")]},
        {"role": "assistant", "function_call": {"name": "g", "arguments": "{"}},
        {"role": "function", "name": "g", "content": None},
    )  # fmt: skip
    assert said == (
        ChatMessage("system", "Be brief."),
        ChatMessage("assistant", None, tool_calls=(ToolCall("c1", "f", "{}"), ToolCall("c2", "sh", "ls"))),
        ChatMessage("tool", ("a", "b"), tool_call_id="c1"),
        ChatMessage("assistant", None, tool_calls=(ToolCall("", "g", "{"),)),
        ChatMessage("tool", "", name="g"),
    )


@pytest.mark.parametrize("kind", ["image_url", "input_audio", "file"])
def test_a_part_that_no_model_here_reads_is_named(kind: str) -> None:
    with pytest.raises(BadRequest, match=f"messages.0.content.1: .*not {kind}"):
        turns({"role": "user", "content": [{"type": "text", "text": "What is it?"}, {"type": kind, kind: {}}]})


def test_a_field_of_another_role_is_named() -> None:
    with pytest.raises(BadRequest, match="messages.1: a message of role user has no tool_calls"):
        turns(HELLO, HELLO | {"tool_calls": [CALL]})
    assert turns(HELLO | {"tool_calls": None})


def test_prompts_one_or_several() -> None:
    assert complete(prompt="a").prompts() == complete(prompt=["a"]).prompts() == [RawText("a")]
    assert complete(prompt=["a", "b"]).prompts() == [RawText("a"), RawText("b")]
    assert complete(prompt=[1, 2]).prompts() == complete(prompt=[[1, 2]]).prompts() == [Tokens((1, 2))]
    assert complete(prompt=[[1], [2, 3]]).prompts() == [Tokens((1,)), Tokens((2, 3))]
    assert complete(best_of=2, n=2, echo=False, suffix="").prompts()
