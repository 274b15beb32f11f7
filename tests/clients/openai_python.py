# after the snippet of docs/clients.md: `client`, `messages`, `answer`
MODEL = "smollm2-135m-instruct"


def ask(messages, **more):
    return client.chat.completions.create(model=MODEL, messages=messages, max_tokens=16, temperature=0, **more)


first = answer.usage.prompt_tokens
for sent_back in (answer.choices[0].message, answer.choices[0].message.model_dump()):
    again = ask([*messages, sent_back, {"role": "user", "content": "Again?"}])
    assert again.usage.prompt_tokens > first + 8 and again.choices[0].message.content

with client.chat.completions.stream(model=MODEL, messages=messages, max_tokens=16) as stream:
    stream.until_done()
    sent_back = stream.current_completion_snapshot.choices[0].message
assert ask([*messages, sent_back, {"role": "user", "content": "Again?"}]).usage.prompt_tokens > first + 8

parts = list(ask(messages, stream=True, stream_options={"include_usage": True}))
assert "".join(p.choices[0].delta.content or "" for p in parts if p.choices) and parts[-1].usage.completion_tokens

call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Cologne"}'}}
history = [
    *messages,
    {"role": "assistant", "content": None, "tool_calls": [call]},
    {"role": "tool", "tool_call_id": "call_1", "content": "It rains in Cologne."},
]
assert ask(history).usage.prompt_tokens > first + 25
tool = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
assert ask(history, tools=[tool], tool_choice="none", parallel_tool_calls=False).choices

several = client.completions.create(model=MODEL, prompt=["1 2 3", "A B C"], max_tokens=4, n=2)
assert [c.index for c in several.choices] == [0, 1, 2, 3]

try:
    ask([{"role": "user", "content": "word " * 20_000}])
except openai.BadRequestError as e:
    assert e.code == "context_length_exceeded"
else:
    raise AssertionError("it does not fit")
print("openai", openai.__version__)
