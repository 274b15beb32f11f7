# after the snippet of docs/clients.md: `model`
from importlib.metadata import version

import pydantic
from langchain.agents import create_agent
from langchain.agents.middleware import wrap_model_call
from langchain_core.messages import AIMessage, ToolMessage
from langchain_core.tools import tool

asked = []


@tool
def weather(city: str) -> str:
    """The weather in a city."""
    asked.append(("weather", city))
    return f"It rains in {city}."


@tool
def clock(zone: str) -> str:
    """The time in a zone."""
    asked.append(("clock", zone))
    return "It is noon."


@wrap_model_call
def first_a_call(request, handler):
    """A model of this size does not choose well: it calls once, and then it answers."""
    called = any(isinstance(message, ToolMessage) for message in request.messages)
    return handler(request.override(tool_choice="none" if called else "required"))


model.max_tokens, model.seed = 300, 1
agent = create_agent(model, tools=[weather, clock], middleware=[first_a_call])
done = agent.invoke({"messages": [("user", "What is the weather in Cologne?")]})
assert asked and all(name in ("weather", "clock") and isinstance(value, str) for name, value in asked)
assert isinstance(done["messages"][-1], AIMessage) and done["messages"][-1].text and not done["messages"][-1].tool_calls

asked.clear()
steps = list(agent.stream({"messages": [("user", "What time is it?")]}, stream_mode="messages"))
assert asked and any(getattr(part, "tool_call_chunks", None) for part, _ in steps)


class Weather(pydantic.BaseModel):
    """The weather."""

    city: str = pydantic.Field(max_length=20)
    days: int = pydantic.Field(ge=1, le=9)


assert isinstance(model.with_structured_output(Weather).invoke("The weather in Cologne?"), Weather)
assert isinstance(model.with_structured_output(Weather, method="function_calling").invoke("The weather?"), Weather)
print("langchain", version("langchain"))
