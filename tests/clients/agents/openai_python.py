# after the snippet of docs/clients.md: `client`
import json

import pydantic

MODEL = "smollm2-135m-instruct"


class Weather(pydantic.BaseModel):
    city: str = pydantic.Field(max_length=20)
    days: int = pydantic.Field(ge=1, le=9)


class Clock(pydantic.BaseModel):
    zone: str = pydantic.Field(max_length=20)


tools = [openai.pydantic_function_tool(Weather, name="weather"), openai.pydantic_function_tool(Clock, name="clock")]
messages = [{"role": "user", "content": "What is the weather in Cologne, and what time is it there?"}]


def ask(**more):
    return client.chat.completions.create(model=MODEL, messages=messages, max_tokens=200, seed=1, **more)


answer = ask(tools=tools, tool_choice={"type": "function", "function": {"name": "weather"}}, parallel_tool_calls=False)
assert answer.choices[0].finish_reason == "tool_calls"
(call,) = answer.choices[0].message.tool_calls
Weather.model_validate_json(call.function.arguments)
messages += [answer.choices[0].message, {"role": "tool", "tool_call_id": call.id, "content": "It rains."}]
assert ask(tools=tools, tool_choice="none").choices[0].message.content

with client.chat.completions.stream(
    model=MODEL, messages=messages, tools=tools, tool_choice="required", max_tokens=400, seed=2
) as stream:
    kinds = [event.type for event in stream]
    final = stream.get_final_completion()
assert "tool_calls.function.arguments.delta" in kinds and "tool_calls.function.arguments.done" in kinds
for call in final.choices[0].message.tool_calls:
    assert isinstance(call.function.parsed_arguments, Weather | Clock)

parsed = client.chat.completions.parse(model=MODEL, messages=messages, response_format=Weather, max_tokens=200)
assert isinstance(parsed.choices[0].message.parsed, Weather)
assert isinstance(json.loads(ask(response_format={"type": "json_object"}).choices[0].message.content), dict)
try:
    ask(response_format={"type": "json_schema", "json_schema": {"name": "a", "schema": {"not": {}}}})
except openai.BadRequestError as e:
    assert e.code == "schema_unsupported" and "not" in e.message
else:
    raise AssertionError("no answer can be held to it")
print("openai", openai.__version__)
