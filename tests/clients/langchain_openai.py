# after the snippet of docs/clients.md: `connection`, `model`
import asyncio
from importlib.metadata import version

from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_openai import OpenAI

model.temperature = 0
turns = [SystemMessage("Be brief."), HumanMessage("Hello!")]
answer = model.invoke(turns)
first = answer.usage_metadata["input_tokens"]
again = model.invoke([*turns, answer, HumanMessage("Again?")])
assert again.usage_metadata["input_tokens"] > first + 8

parts = list(model.stream([*turns, answer, HumanMessage("Again?")]))
assert "".join(part.text for part in parts)


async def streamed():
    return "".join([part.text async for part in model.astream(turns)])


assert asyncio.run(streamed())

call = {"name": "weather", "args": {"city": "Cologne"}, "id": "call_1", "type": "tool_call"}
history = [*turns, AIMessage("", tool_calls=[call]), ToolMessage("It rains in Cologne.", tool_call_id="call_1")]
assert model.invoke(history).usage_metadata["input_tokens"] > first + 25

plain = OpenAI(model="smollm2-135m-instruct", max_tokens=4, **connection)
several = plain.generate(["1 2 3", "A B C", "The capital of France is"])
assert len(several.generations) == 3 and all(g[0].text for g in several.generations)
assert all(plain.batch(["1 2 3", "A B C"]))
print("langchain-openai", version("langchain-openai"))
