"""Structured answers and tools as a client sees them: over mutual TLS, streamed and not, on the real model."""

import json
from collections.abc import Iterator
from typing import Any

import jsonschema_rs
import openai
import pytest
from gguf_writer import STR, tiny
from real_daemon import Llmd

MODEL = "smol"
ASKED = [{"role": "user", "content": "What is the weather in Cologne?"}]
PARAMETERS = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 20, "pattern": "^[A-Za-z]+$"},
        "days": {"type": "integer", "minimum": 1, "maximum": 9},
    },
    "required": ["city", "days"],
    "additionalProperties": False,
}
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": PARAMETERS, "strict": True}}
CLOCK = {"type": "function", "function": {"name": "time.now", "description": "the time of a zone"}}


@pytest.fixture(scope="module")
def client(llmd: Llmd) -> Iterator[openai.OpenAI]:
    http = openai.DefaultHttpxClient(verify=llmd.tls())
    with openai.OpenAI(base_url=llmd.url + "/v1", api_key="none", http_client=http, max_retries=0) as client:
        yield client


def ask(llmd: Llmd, **fields: Any) -> tuple[int, dict[str, Any]]:
    status, _, answer = llmd.post("/v1/chat/completions", {"messages": ASKED, "max_tokens": 200, "seed": 1, **fields})
    return status, answer


def form(schema: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "a", "schema": schema, "strict": True}}


def test_json_is_json_and_ends_by_itself(llmd: Llmd) -> None:
    status, answer = ask(llmd, response_format=form(PARAMETERS))
    (choice,) = answer["choices"]
    assert status == 200 and choice["finish_reason"] == "stop"
    assert jsonschema_rs.is_valid(PARAMETERS, json.loads(choice["message"]["content"]))
    choices = []  # a small model does not know when to stop with every seed
    for seed in range(1, 5):
        status, answer = ask(llmd, response_format={"type": "json_object"}, max_tokens=200, seed=seed)
        assert status == 200
        choices += answer["choices"]
    ended = [choice["message"]["content"] for choice in choices if choice["finish_reason"] == "stop"]
    assert ended and all(isinstance(json.loads(text), dict) for text in ended)


def test_several_choices_are_held_each(llmd: Llmd) -> None:
    status, answer = ask(llmd, response_format=form(PARAMETERS), n=4, temperature=2.0)
    assert status == 200
    for choice in answer["choices"]:
        assert jsonschema_rs.is_valid(PARAMETERS, json.loads(choice["message"]["content"]))


def test_every_way_to_sample_is_held(llmd: Llmd) -> None:
    for fields in (
        {"temperature": 0}, {"top_k": -1}, {"repeat_penalty": 1.5}, {"logit_bias": {"0": 100, "2": 100}},
        {"presence_penalty": 2, "frequency_penalty": -2}, {"logprobs": True, "top_logprobs": 3}, {"ignore_eos": True},
    ):  # fmt: skip
        status, answer = ask(llmd, response_format=form(PARAMETERS), **fields)
        (choice,) = answer["choices"]
        assert status == 200 and choice["finish_reason"] == "stop", fields
        assert jsonschema_rs.is_valid(PARAMETERS, json.loads(choice["message"]["content"])), fields
        if choice["logprobs"]:
            shown = choice["logprobs"]["content"]
            assert b"".join(bytes(t["bytes"]) for t in shown).decode() == choice["message"]["content"]
            assert all(t["logprob"] > -100 for t in shown), "the model's own, before anything is forbidden"


def test_an_answer_that_is_cut_says_so(llmd: Llmd) -> None:
    status, answer = ask(llmd, response_format=form(PARAMETERS), max_tokens=4)
    assert status == 200 and answer["choices"][0]["finish_reason"] == "length"


def test_what_cannot_be_held_is_refused_and_named(llmd: Llmd) -> None:
    status, answer = ask(llmd, response_format=form({"type": "array", "contains": {}}))
    assert status == 400 and answer["error"]["code"] == "schema_unsupported"
    assert answer["error"]["param"] == "response_format" and "contains" in answer["error"]["message"]
    strict = {"name": "f", "strict": True, "parameters": {"type": "object", "properties": {"a": {"not": {}}}}}
    status, answer = ask(llmd, tools=[{"type": "function", "function": strict}])
    assert status == 400 and answer["error"]["param"] == "tools" and "tools.f" in answer["error"]["message"]
    status, _ = ask(llmd, tools=[{"type": "function", "function": strict | {"strict": False}}], max_tokens=2)
    assert status == 200


def test_what_no_answer_in_the_context_can_be_is_refused_at_once(llmd: Llmd) -> None:
    for schema in (
        {"type": "array", "minItems": 10**9}, {"type": "string", "minLength": 10**9},
        {"type": "object", "minProperties": 10**9, "additionalProperties": {"type": "null"}},
        {"type": "object", "properties": {"a": {"type": "array", "minItems": 10**5, "items": {"const": "x" * 100}}},
         "required": ["a"]},
    ):  # fmt: skip
        status, answer = ask(llmd, response_format=form(schema))
        assert status == 400 and answer["error"]["code"] == "schema_unsupported", answer
        assert answer["error"]["param"] == "response_format" and "context of" in answer["error"]["message"]
    optional = {"type": "object", "properties": {"a": {"type": "array", "minItems": 10**9}}}
    assert ask(llmd, response_format=form(optional), max_tokens=2)[0] == 200


def test_the_first_request_after_a_schema_that_killed_its_process_is_answered(llmd: Llmd) -> None:
    assert ask(llmd, response_format=form({"const": "first"}))[0] == 200


ODD: dict[str, Any] = {
    "look-ahead": {"city": {"type": "string", "pattern": r"^(?!\.)\d*$"}},
    "null": None,
    "elsewhere": {"city": {"$ref": "https://example.com/place.json"}},
}


@pytest.mark.parametrize("what", ODD)
def test_one_odd_tool_takes_nothing_but_its_oddity_away(llmd: Llmd, what: str) -> None:
    days = {"type": "integer", "minimum": 1, "maximum": 9}
    properties = ODD[what] and {"days": days, **ODD[what]}
    parameters = {"type": ["object", "null"], "properties": properties, "required": ["days"]}
    odd: dict[str, Any] = {"type": "function", "function": {"name": "odd", "parameters": parameters}}
    status, answer = ask(llmd, tools=[CLOCK, WEATHER, odd], max_tokens=2)
    assert status == 200, answer
    named = {"type": "function", "function": {"name": "odd"}}
    status, answer = ask(llmd, tools=[CLOCK, odd], tool_choice=named, max_tokens=60)
    assert status == 200, answer
    if answer["choices"][0]["finish_reason"] == "tool_calls" and ODD[what]:
        (call,) = answer["choices"][0]["message"]["tool_calls"]
        arguments = json.loads(call["function"]["arguments"])
        assert 1 <= arguments["days"] <= 9 and arguments.keys() <= {"days", "city"}
    odd["function"]["strict"] = True
    status, answer = ask(llmd, tools=[CLOCK, odd])
    assert status == 400 and answer["error"]["param"] == "tools"


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
def test_a_tool_is_called(llmd: Llmd, choice: Any) -> None:
    tools = [WEATHER] if choice == "required" else [CLOCK, WEATHER]
    status, answer = ask(llmd, tools=tools, tool_choice=choice, parallel_tool_calls=False)
    (found,) = answer["choices"]
    message = found["message"]
    assert status == 200 and found["finish_reason"] == "tool_calls" and message["content"] is None
    (call,) = message["tool_calls"]
    assert call["type"] == "function" and call["function"]["name"] == "weather" and call["id"].startswith("call_")
    assert jsonschema_rs.is_valid(PARAMETERS, json.loads(call["function"]["arguments"]))


def test_a_conversation_with_tools(client: openai.OpenAI) -> None:
    """A call, its answer in the history, and then a text; the message objects go back as they are."""
    messages: list[Any] = list(ASKED)
    asked: dict[str, Any] = {"model": MODEL, "tools": [WEATHER], "max_tokens": 200, "seed": 1}
    called = client.chat.completions.create(
        messages=messages, tool_choice="required", parallel_tool_calls=False, **asked
    )
    message = called.choices[0].message
    assert message.tool_calls
    messages += [message, {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "It rains."}]
    asked |= {"max_tokens": 8, "extra_body": {"ignore_eos": True}}
    said = client.chat.completions.create(messages=messages, tool_choice="none", **asked)
    assert said.choices[0].message.content and not said.choices[0].message.tool_calls
    assert said.usage and said.usage.completion_tokens_details
    assert said.usage.completion_tokens_details.reasoning_tokens == 0


def test_a_streamed_call_is_the_same_call(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {
        "model": MODEL, "messages": ASKED, "tools": [CLOCK, WEATHER], "tool_choice": "required", "seed": 3,
        "max_tokens": 300,
    }  # fmt: skip
    whole = client.chat.completions.create(**asked).choices[0]
    calls: dict[int, dict[str, str]] = {}
    finish = None
    for chunk in client.chat.completions.create(**asked, stream=True):
        for choice in chunk.choices:
            finish = choice.finish_reason or finish
            for delta in choice.delta.tool_calls or ():
                call = calls.setdefault(delta.index, {"name": "", "arguments": "", "id": ""})
                call["id"] += delta.id or ""
                if delta.function:
                    call["name"] += delta.function.name or ""
                    call["arguments"] += delta.function.arguments or ""
    assert whole.message.tool_calls and finish == whole.finish_reason
    want = [
        (call.function.name, call.function.arguments) for call in whole.message.tool_calls if call.type == "function"
    ]
    assert [(call["name"], call["arguments"]) for call in calls.values()] == want
    assert all(call["id"].startswith("call_") for call in calls.values())


def test_left_to_the_model_an_answer_is_a_text_or_a_call(llmd: Llmd) -> None:
    for seed in range(4):
        status, answer = ask(llmd, tools=[WEATHER, CLOCK], seed=seed, temperature=1.5, max_tokens=60)
        (choice,) = answer["choices"]
        assert status == 200 and choice["finish_reason"] in ("stop", "length", "tool_calls")
        cut = choice["finish_reason"] == "length"
        assert cut or choice["message"]["content"] or choice["message"]["tool_calls"]


def called(llmd: Llmd, client: openai.OpenAI, **fields: Any) -> tuple[dict[str, Any], list[Any]]:
    """A choice of an answer that must call, whole, and the deltas of the same one streamed."""
    asked = {"tools": [WEATHER], "tool_choice": "required", "parallel_tool_calls": False, **fields}
    status, answer = ask(llmd, **asked)
    assert status == 200, answer
    more: dict[str, Any] = {"model": MODEL, "messages": ASKED, "seed": 1, **asked}
    parts = list(client.chat.completions.create(**more, stream=True))
    choices = [choice for part in parts for choice in part.choices]
    assert choices[-1].finish_reason == answer["choices"][0]["finish_reason"]
    return answer["choices"][0], [choice.delta for choice in choices]


def test_of_a_call_that_is_cut_there_is_nothing_but_what_was_streamed(llmd: Llmd, client: openai.OpenAI) -> None:
    whole, _ = called(llmd, client, max_tokens=200)
    (call,) = whole["message"]["tool_calls"]
    began = False
    for most in (1, 11, 30):
        choice, deltas = called(llmd, client, max_tokens=most)
        if choice["finish_reason"] == "tool_calls":
            break
        assert choice["finish_reason"] == "length" and not choice["message"]["content"]
        for kept in choice["message"].get("tool_calls", ()):  # only what closes it was cut
            assert kept["function"] == call["function"]
        assert not any(delta.content for delta in deltas)
        sent = "".join(c.function.arguments or "" for d in deltas for c in d.tool_calls or () if c.function)
        assert call["function"]["arguments"].startswith(sent)
        began = began or bool(sent)
    assert began


def test_a_stop_string_ends_no_call(llmd: Llmd, client: openai.OpenAI) -> None:
    whole, _ = called(llmd, client, max_tokens=200)
    for stop in ('"', "<tool_call>"):
        choice, _ = called(llmd, client, max_tokens=200, stop=[stop])
        assert choice["finish_reason"] == "tool_calls"
        assert choice["message"]["tool_calls"][0]["function"] == whole["message"]["tool_calls"][0]["function"]


def test_the_audit_log_hashes_what_an_answer_is_held_to(llmd: Llmd) -> None:
    ask(llmd, response_format=form({"const": 1}))
    ask(llmd, response_format=form({"const": 2}))
    ask(llmd, response_format=form({"const": 2}))
    rows = [row for row in llmd.llmctl("audit", "tail", "-n", "6") if row["kind"] == "admit"]
    hashes = [row["body"]["params"] if "body" in row else row["params"] for row in rows[-3:]]
    assert hashes[0] != hashes[1] and hashes[1] == hashes[2]


@pytest.fixture(scope="module")
def thinker(llmd: Llmd, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A model without a mind, whose chat template begins what it thinks."""
    file = tiny()
    file.keys["tokenizer.chat_template"] = (STR, "{{ messages[-1].content }}<think>\n")
    path = tmp_path_factory.mktemp("thinker") / "thinker.gguf"
    path.write_bytes(file.bytes())
    llmd.llmctl("model", "import", str(path), "--name", "thinker")
    llmd.llmctl("deploy", "thinker", "--slots", "2")
    yield "thinker"
    llmd.llmctl("undeploy", "thinker")
    llmd.llmctl("model", "rm", "thinker")


def test_what_is_thought_is_apart_streamed_and_not(llmd: Llmd, client: openai.OpenAI, thinker: str) -> None:
    status, answer = ask(llmd, model=thinker, max_tokens=8, ignore_eos=True)
    assert status == 200, answer
    (choice,) = answer["choices"]
    assert status == 200 and choice["message"]["content"] == "" and choice["message"]["reasoning_content"]
    assert answer["usage"]["completion_tokens_details"]["reasoning_tokens"] == answer["usage"]["completion_tokens"] == 8
    asked: dict[str, Any] = {"model": thinker, "messages": ASKED, "max_tokens": 8, "seed": 1}
    parts = list(client.chat.completions.create(**asked, stream=True, extra_body={"ignore_eos": True}))
    thought = "".join(getattr(c.delta, "reasoning_content", None) or "" for part in parts for c in part.choices)
    assert thought == choice["message"]["reasoning_content"]
    assert not any(c.delta.content for part in parts for c in part.choices)


def test_a_stop_string_ends_no_thought(llmd: Llmd, thinker: str) -> None:
    asked: dict[str, Any] = {"model": thinker, "max_tokens": 8, "ignore_eos": True}
    thought = ask(llmd, **asked)[1]["choices"][0]["message"]["reasoning_content"]
    for stop in (thought[:1], thought[-3:], thought):
        (choice,) = ask(llmd, **asked, stop=[stop])[1]["choices"]
        assert choice["finish_reason"] == "length" and choice["message"]["reasoning_content"] == thought


def test_who_is_told_not_to_think_does_not(llmd: Llmd, thinker: str) -> None:
    """Though the template begins a thought whatever it is told."""
    status, answer = ask(llmd, model=thinker, reasoning_effort="none", response_format=form({"const": 1}))
    assert status == 200, answer
    message = answer["choices"][0]["message"]
    assert message["content"] == "1" and "reasoning_content" not in message
    assert answer["usage"]["completion_tokens_details"]["reasoning_tokens"] == 0


def test_json_comes_behind_what_is_thought(llmd: Llmd, thinker: str) -> None:
    """Its grammar begins with a thought of any length: this model ends it by chance, or is cut."""
    for seed in range(3):
        status, answer = ask(llmd, model=thinker, seed=seed, max_tokens=200, response_format=form({"const": 1}))
        (choice,) = answer["choices"]
        assert status == 200
        assert choice["message"]["content"] == ("1" if choice["finish_reason"] == "stop" else "")
        assert choice["message"].get("reasoning_content")
