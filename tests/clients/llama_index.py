# after the snippet of docs/clients.md: `model`
from importlib.metadata import version

from llama_index.core.llms import MessageRole

model.temperature = 0
turns = [ChatMessage("Be brief.", role=MessageRole.SYSTEM), ChatMessage("Hello!")]
answer = model.chat(turns)
first = answer.raw.usage.prompt_tokens
again = model.chat([*turns, answer.message, ChatMessage("Again?")])
assert again.raw.usage.prompt_tokens > first + 8

parts = list(model.stream_chat([*turns, answer.message, ChatMessage("Again?")]))
assert parts[-1].message.content

call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Cologne"}'}}
asked = ChatMessage(None, role=MessageRole.ASSISTANT, additional_kwargs={"tool_calls": [call]})
told = ChatMessage("It rains in Cologne.", role=MessageRole.TOOL, additional_kwargs={"tool_call_id": "call_1"})
assert model.chat([*turns, asked, told]).raw.usage.prompt_tokens > first + 25
assert model.complete("Hello!").text
print("llama-index-llms-openai-like", version("llama-index-llms-openai-like"))
