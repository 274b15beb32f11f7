"""Bodies as clients send them, and what they ask the engine for."""

import json
from typing import Any

import pytest

from llmd.api.openai.bodies import ChatBody, CompletionBody
from llmd.daemon import limits
from llmd.daemon.errors import BadRequest
from llmd.daemon.wire.work import Chat, ChatMessage, RawText, Tokens, Tool, ToolCall, Wanted

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
        assert given.params() == body().params() and given.prompts() == body().prompts() and given.wanted() is None


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
    assert body.params() == chat().params() and body.wanted() is None
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


def test_no_share_of_the_tokens_is_the_likeliest() -> None:
    for given in ({"top_p": 0}, {"top_p": 0.0, "temperature": 1.5}):
        params = chat(**given).params()
        assert params.temperature == 0 and params.top_p == 0
    assert chat(top_p=0.1).params().temperature is None


@pytest.mark.parametrize("size", [0, 1, 257, 4096])
def test_a_calls_identifier_may_be_long(size: int) -> None:
    called = {"id": "x" * size, "type": "function", "function": {"name": "f", "arguments": "{}"}}
    body = chat(messages=[
        {"role": "user", "content": "a"}, {"role": "assistant", "tool_calls": [called]},
        {"role": "tool", "tool_call_id": "x" * size, "content": "b"},
    ])  # fmt: skip
    (prompt,) = body.prompts()
    assert isinstance(prompt, Chat)
    assert [c.id for c in prompt.messages[1].tool_calls] == ["x" * size] == [prompt.messages[2].tool_call_id]


@pytest.mark.parametrize("content", [None, [], ""])
@pytest.mark.parametrize("role", ["tool", "function"])
def test_a_tool_may_answer_nothing(role: str, content: Any) -> None:
    body = chat(messages=[{"role": role, "name": "f", "content": content} | (
        {"tool_call_id": "1"} if role == "tool" else {}
    )])  # fmt: skip
    (prompt,) = body.prompts()
    assert isinstance(prompt, Chat) and prompt.messages[0].content == "" and prompt.messages[0].role == "tool"


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


FOREIGN: dict[str, list[Any]] = {
    "reasoning_details": [[{"type": "reasoning.text", "text": "6 sevens"}], []],
    "thinking_blocks": [[], [{"thinking": "x"}]],
    "provider_specific_fields": [{"refusal": None}, {}], "cache_control": [{"type": "ephemeral"}], "images": [[]],
    "annotations": [[], [{}], None], "type": ["message", "text"], "id": ["msg_1", 5], "extra_content": [{"google": {}}],
    "anything": [None, []],
}  # fmt: skip


@pytest.mark.parametrize("field", FOREIGN)
@pytest.mark.parametrize("role", ["system", "user", "assistant", "tool"])
def test_what_others_keep_in_a_history_changes_nothing(role: str, field: str) -> None:
    said = {"role": role, "content": "a"} | ({"tool_call_id": "1"} if role == "tool" else {})
    part = {"type": "text", "text": "a"}
    for value in FOREIGN[field]:
        assert turns(said | {field: value}) == turns(said)
        if field != "type":
            assert turns(said | {"content": [part | {field: value}]}) == turns(said | {"content": [part]})
    if role == "assistant":
        whole = said | {"tool_calls": [CALL]}
        for value in FOREIGN[field]:
            function = {"name": "f", "arguments": "{}", field: value}
            assert turns(said | {"tool_calls": [CALL | {"function": function}]}) == turns(whole)
            if field not in ("id", "type"):
                assert turns(said | {"tool_calls": [CALL | {field: value}]}) == turns(whole)


def test_thoughts_have_two_names() -> None:
    said = {"role": "assistant", "content": "42"}
    for given in ({"reasoning": "x"}, {"reasoning_content": "x"}, {"reasoning": "y", "reasoning_content": "x"},
                  {"reasoning": "x", "reasoning_content": None}):  # fmt: skip
        assert turns(said | given)[0].reasoning == "x"
    assert turns(said | {"reasoning": None})[0].reasoning is None


@pytest.mark.parametrize(
    "message",
    [
        {"role": "user", "content": "a", "contnet": "b"}, {"role": "user", "content": "a", "images": ["x"]},
        {"role": "user", "content": "a", "reasoning": "b"}, {"role": "user", "content": "a", "tool_calls": [CALL]},
        {"role": "user", "content": [{"type": "text", "text": "a", "imgae_url": "x"}]},
        {"role": "assistant", "content": "a", "tool_calls": [CALL | {"argument": "{}"}]},
        {"role": "assistant", "content": "a", "resoning": "b"}, {"role": "user", "content": "a", "contnet": False},
        {"role": "user", "content": "a", "contnet": 0}, {"role": "user", "content": "a", "contnet": ""},
    ],
)  # fmt: skip
def test_a_misspelt_field_is_still_named(message: dict[str, Any]) -> None:
    with pytest.raises(BadRequest, match="contnet|images|reasoning|tool_calls|imgae_url|argument|resoning") as e:
        turns(message)
    assert e.value.param == "messages"


def test_empty_lists_are_nothing() -> None:
    assert turns({"role": "user", "content": "a", "tool_calls": []}) == turns({"role": "user", "content": "a"})
    said = {"role": "assistant", "content": "a"}
    assert turns(said | {"tool_calls": [], "annotations": [], "reasoning_details": []}) == turns(said)


def test_repetition_penalty_is_repeat_penalty() -> None:
    assert chat(repetition_penalty=1.5).params() == chat(repeat_penalty=1.5).params()
    assert complete(repetition_penalty=1.5, repeat_penalty=1.5).params().repeat_penalty == 1.5
    assert chat(repetition_penalty=None, repeat_penalty=1.2).params().repeat_penalty == 1.2
    with pytest.raises(BadRequest, match="send one"):
        chat(repetition_penalty=1.5, repeat_penalty=1.2).params()


def given(**fields: Any) -> Chat:
    (prompt,) = chat(**fields).prompts()
    assert isinstance(prompt, Chat)
    return prompt


@pytest.mark.parametrize(
    ("fields", "thinks"),
    [
        ({}, None), ({"enable_thinking": None}, None), ({"chat_template_kwargs": None}, None),
        ({"enable_thinking": False}, False), ({"enable_thinking": True}, True),
        ({"chat_template_kwargs": {"enable_thinking": False}}, False),
        ({"chat_template_kwargs": {"thinking": True}}, True),
        ({"chat_template_kwargs": {"enable_thinking": True}, "enable_thinking": False}, False),
        ({"chat_template_kwargs": {"enable_thinking": None}}, None),
        ({"reasoning_effort": "none", "enable_thinking": True}, False),
        ({"reasoning_effort": "low", "enable_thinking": False}, True),
        ({"reasoning_effort": "low", "chat_template_kwargs": {"enable_thinking": False}}, True),
    ],
)  # fmt: skip
def test_whether_to_think_has_several_names(fields: dict[str, Any], thinks: bool | None) -> None:
    assert given(**fields).thinks == thinks


def test_what_a_chat_template_is_given() -> None:
    more = {"custom": "a<|im_end|>", "deep": {"a": [1, None]}, "nothing": None}
    assert json.loads(given(chat_template_kwargs=more).arguments) == {"custom": "a<|im_end|>", "deep": {"a": [1, None]}}
    assert given(chat_template_kwargs={}).arguments == given(chat_template_kwargs={"a": None}).arguments == ""


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        *(({name: 1}, f"{name} is set by this server") for name in (
            "messages", "tools", "bos_token", "eos_token", "add_generation_prompt", "documents", "raise_exception",
            "self")),
        ({"a-b": 1}, "'a-b' is no name"), ({"_a": 1}, "is no name"), ({"": 1}, "is no name"),
        ({"a" * 65: 1}, "is no name"),
        ({f"a{i}": 1 for i in range(17)}, "at most 16"), ({"a": "x" * 20_000}, "at most 16384 characters"),
    ],
)  # fmt: skip
def test_what_a_chat_template_is_not_given(arguments: dict[str, Any], match: str) -> None:
    with pytest.raises(BadRequest, match=match) as e:
        chat(chat_template_kwargs=arguments).prompts()
    assert e.value.param == "chat_template_kwargs"


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


# --- what an answer is held to

PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}


def tool(name: str = "weather", **function: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": PARAMETERS, **function}}


def named(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


def wanted(**fields: Any) -> Wanted:
    found = chat(**fields).wanted()
    assert found is not None
    return found


def test_a_response_format_is_a_schema() -> None:
    assert wanted(response_format={"type": "json_object"}) == Wanted('{"type": "object"}')
    schema = {"name": "a", "schema": PARAMETERS}
    for more in ({}, {"strict": True}, {"strict": False, "description": "d"}):
        assert wanted(response_format={"type": "json_schema", "json_schema": schema | more}).schema == json.dumps(
            PARAMETERS
        )
    assert wanted(response_format={"type": "json_schema", "json_schema": {"name": "a"}}).schema == '{"type": "object"}'
    with pytest.raises(BadRequest, match="json_schema is missing"):
        chat(response_format={"type": "json_schema"}).wanted()


def test_a_schema_without_a_name() -> None:
    """As llama-server's clients write it."""
    schema = {"type": "object", "properties": {"a": {"type": "null"}}}
    for kind in ("json_object", "json_schema"):
        assert json.loads(wanted(response_format={"type": kind, "schema": schema}).schema or "") == schema
        assert wanted(response_format={"type": "json_object", "schema": None}).schema == '{"type": "object"}'
    for wrong in (
        {"type": "text", "schema": schema}, {"type": "json_schema", "schema": None},
        {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}, "schema": schema},
    ):  # fmt: skip
        with pytest.raises(BadRequest) as e:
            chat(response_format=wrong).wanted()
        assert e.value.param == "response_format"


def test_tools_go_to_the_prompt_and_to_what_the_answer_is_held_to() -> None:
    body = chat(tools=[tool(description="of a city", strict=True), {"type": "function", "function": {"name": "now"}}])
    (prompt,) = body.prompts()
    found = body.wanted()
    assert isinstance(prompt, Chat) and found is not None and prompt.tools == found.tools
    weather, now = found.tools
    assert (weather.name, weather.strict) == ("weather", True)
    assert json.loads(weather.parameters) == PARAMETERS | {"additionalProperties": False}
    assert json.loads(weather.definition) == tool(description="of a city")
    assert not now.strict and json.loads(now.parameters) == {"type": "object", "additionalProperties": False}
    assert json.loads(now.definition)["function"]["parameters"] == {"type": "object", "properties": {}}
    assert (found.must_call, found.parallel, found.schema) == (False, True, None)


@pytest.mark.parametrize(
    ("parameters", "closed"),
    [
        ({"type": "object"}, False), ({"type": "object", "properties": {}}, True), ({}, True),
        (PARAMETERS | {"additionalProperties": {"type": "string"}}, False), (PARAMETERS | {"$ref": "#/$defs/a"}, False),
        (PARAMETERS | {"additionalProperties": False}, True), (PARAMETERS | {"anyOf": [{}]}, False),
    ],
)  # fmt: skip
def test_a_call_gives_what_the_function_names_unless_it_may_give_more(parameters: Any, closed: bool) -> None:
    (made,) = wanted(tools=[tool(parameters=parameters)]).tools
    assert (json.loads(made.parameters).get("additionalProperties") is False) == closed


def test_the_choice_of_a_tool() -> None:
    tools = [tool("a"), tool("b")]

    def chosen(choice: Any, **more: Any) -> tuple[list[str], bool]:
        found = wanted(tools=tools, tool_choice=choice, **more)
        return [t.name for t in found.tools], found.must_call

    assert chosen("auto") == (["a", "b"], False) == chosen(None)
    assert chosen("required") == (["a", "b"], True)
    assert chosen(named("b")) == (["b"], True) and not wanted(tools=tools, tool_choice=named("b")).parallel
    allowed = {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [named("a")]}}
    assert chosen(allowed) == (["a"], False)
    allowed["allowed_tools"] = {"mode": "required", "tools": [named("b"), named("a")]}
    assert chosen(allowed) == (["a", "b"], True)
    assert wanted(tools=tools, parallel_tool_calls=False).parallel is False
    none = chat(tools=tools, tool_choice="none")
    (prompt,) = none.prompts()
    assert none.wanted() is None and isinstance(prompt, Chat) and prompt.tools == ()


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"tools": [tool("a"), tool("a")]}, "same name"),
        ({"tools": [tool()], "tool_choice": named("wizard")}, "not among tools"),
        ({"tool_choice": "required"}, "no tools"),
        ({"tool_choice": named("a")}, "no tools"),
        ({"tools": [tool(parameters={"type": "array"}, strict=True)]}, "their type is object"),
        ({"functions": [{"name": "f"}]}, "send tools"),
        ({"function_call": {"name": "f"}}, "send tools"),
    ],
)
def test_what_no_answer_can_be_is_refused(fields: dict[str, Any], match: str) -> None:
    with pytest.raises(BadRequest, match=match):
        body = chat(**fields)
        body.prompts()
        body.wanted()


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": [tool('a"b')]}, {"tools": [tool("a\nb")]}, {"tools": [tool("")]}, {"tools": [tool("a" * 129)]},
        {"tools": [{"type": "custom", "custom": {"name": "a"}}]}, {"tools": [{"type": "web_search"}]},
        {"tools": [tool()] * 129}, {"tools": [tool(parameters=[])]}, {"tool_choice": "wizard"},
        {"tools": [tool(strict="yes")]}, {"response_format": {"type": "wizard"}}, {"response_format": "json_object"},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "a b", "schema": {}}}},
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {}}}},
    ],
    ids=lambda fields: str(fields)[:60],
)  # fmt: skip
def test_what_is_no_tool_and_no_format_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        chat(**fields)


def test_a_tool_is_a_plain_value() -> None:
    (made,) = wanted(tools=[tool()]).tools
    assert isinstance(made, Tool) and hash(made)
