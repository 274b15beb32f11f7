# after the snippet of docs/clients.md: `client`, `messages`, `answer`
from importlib.metadata import version


def ask(messages, **more):
    return litellm.completion(
        "openai/smollm2-135m-instruct", messages, client=client, max_tokens=16, temperature=0, **more
    )


first = answer.usage.prompt_tokens
sent_back = answer.choices[0].message
for message in (sent_back, sent_back.model_dump()):
    again = ask([*messages, message, {"role": "user", "content": "Again?"}])
    assert again.usage.prompt_tokens > first + 8

parts = list(ask(messages, stream=True))
assert "".join(part.choices[0].delta.content or "" for part in parts)

call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Cologne"}'}}
history = [
    *messages,
    {"role": "assistant", "content": None, "tool_calls": [call]},
    {"role": "tool", "tool_call_id": "call_1", "name": "weather", "content": "It rains in Cologne."},
]
assert ask(history).usage.prompt_tokens > first + 25

for size in (20_000, 200_000):
    try:
        ask([{"role": "user", "content": "word " * size}])
    except litellm.ContextWindowExceededError:
        pass
    else:
        raise AssertionError("it does not fit")
print("litellm", version("litellm"))
