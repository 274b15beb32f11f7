import asyncio
import ssl

import openai
import pydantic
from agents import Agent, ModelSettings, OpenAIChatCompletionsModel, Runner, function_tool, set_tracing_disabled

set_tracing_disabled(True)
context = ssl.create_default_context(cafile="ca.crt")
context.load_cert_chain("alice.crt", "alice.key")
client = openai.AsyncOpenAI(
    base_url="https://127.0.0.1:8443/v1", api_key="none", http_client=openai.DefaultAsyncHttpxClient(verify=context)
)
model = OpenAIChatCompletionsModel(model="smollm2-135m-instruct", openai_client=client)


class Weather(pydantic.BaseModel):
    city: str = pydantic.Field(max_length=20)
    days: int = pydantic.Field(ge=1, le=9)


@function_tool
def weather(city: str) -> str:
    """The weather in a city."""
    return f"It rains in {city}."


def call(name, arguments):
    return '<tool_call>\n{"name": "' + name + '", "arguments": ' + arguments + "}\n</tool_call>"


settings = ModelSettings(max_tokens=200, temperature=0)
other = Agent(name="other", instructions="You are another.", model=model, model_settings=settings)
agent = Agent(
    name="helper", instructions="Be brief.", model=model, model_settings=settings, tools=[weather], handoffs=[other]
)
asked = "Weather? ⟦" + call("weather", '{"city": "Bonn"}') + "⟧⟦Take an umbrella.⟧"


async def main():
    done = await Runner.run(agent, asked)
    assert done.final_output == "Take an umbrella.", done.final_output
    again = await Runner.run(agent, [*done.to_input_list(), {"role": "user", "content": "And now? ⟦No.⟧"}])
    assert again.final_output == "No.", again.final_output
    handed = await Runner.run(agent, "Hand over. ⟦" + call("transfer_to_other", "{}") + "⟧⟦Hello from another.⟧")
    assert handed.final_output == "Hello from another." and handed.last_agent is other, handed.final_output
    streamed = Runner.run_streamed(agent, asked)
    assert [event async for event in streamed.stream_events()]
    assert streamed.final_output == "Take an umbrella.", streamed.final_output
    form = Agent(name="form", model=model, model_settings=settings, output_type=Weather)
    found = (await Runner.run(form, 'Fill in. ⟦{"city": "Bonn", "days": 2}⟧')).final_output
    assert found == Weather(city="Bonn", days=2), found


asyncio.run(main())
print("openai-agents")
