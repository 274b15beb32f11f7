# after the snippet of docs/clients.md: `client`
import json
from importlib.metadata import version

PARAMETERS = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 20},
        "days": {"type": "integer", "minimum": 1, "maximum": 9},
    },
    "required": ["city", "days"],
    "additionalProperties": False,
}
tools = [{"type": "function", "function": {"name": "weather", "parameters": PARAMETERS, "strict": True}}]
messages = [{"role": "user", "content": "What is the weather in Cologne?"}]


def ask(**more):
    return litellm.completion(
        "openai/smollm2-135m-instruct", messages, client=client, max_tokens=300, seed=1, tools=tools, **more
    )


answer = ask(tool_choice="required")
message = answer.choices[0].message
assert answer.choices[0].finish_reason == "tool_calls"
assert set(json.loads(message.tool_calls[0].function.arguments)) == {"city", "days"}
messages.append(message)
messages += [{"role": "tool", "tool_call_id": call.id, "content": "It rains."} for call in message.tool_calls]
assert ask(tool_choice="none").choices[0].message.content

parts = list(ask(tool_choice="required", stream=True))
built = litellm.stream_chunk_builder(parts, messages=messages)
assert set(json.loads(built.choices[0].message.tool_calls[0].function.arguments)) == {"city", "days"}
form = {"type": "json_schema", "json_schema": {"name": "weather", "schema": PARAMETERS, "strict": True}}
tools = None
assert set(json.loads(ask(response_format=form).choices[0].message.content)) == {"city", "days"}
print("litellm", version("litellm"))
