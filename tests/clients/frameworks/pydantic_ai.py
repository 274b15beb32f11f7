import asyncio
import ssl

import openai
import pydantic
from pydantic_ai import Agent, NativeOutput, PromptedOutput, ToolOutput
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

context = ssl.create_default_context(cafile="ca.crt")
context.load_cert_chain("alice.crt", "alice.key")
client = openai.AsyncOpenAI(
    base_url="https://127.0.0.1:8443/v1", api_key="none", http_client=openai.DefaultAsyncHttpxClient(verify=context)
)
model = OpenAIChatModel("smollm2-135m-instruct", provider=OpenAIProvider(openai_client=client))


class Weather(pydantic.BaseModel):
    city: str = pydantic.Field(max_length=20)
    days: set[str] = set()


JSON = '{"city": "Bonn", "days": ["Monday"]}'


def call(name, arguments):
    return '<tool_call>\n{"name": "' + name + '", "arguments": ' + arguments + "}\n</tool_call>"


settings = {"max_tokens": 200, "temperature": 0}
agent = Agent(model, instructions="Be brief.", model_settings=settings)


@agent.tool_plain
def weather(city: str, days: int | None = None) -> str:
    """The weather in a city."""
    return f"It rains in {city}."


asked = "Weather? ⟦" + call("weather", '{"city": "Bonn"}') + "⟧⟦Take an umbrella.⟧"


async def main():
    result = await agent.run(asked)
    assert result.output == "Take an umbrella.", result.output
    again = await agent.run("And now? ⟦No.⟧", message_history=result.all_messages())
    assert again.output == "No.", again.output
    async with agent.run_stream("Say. ⟦One two three.⟧") as run:
        said = [text async for text in run.stream_text(delta=True)]
    assert "".join(said) == "One two three.", said
    for kind, said in (
        (ToolOutput(Weather), call("final_result", JSON)), (NativeOutput(Weather), JSON),
        (PromptedOutput(Weather), JSON),
    ):  # fmt: skip
        found = (await Agent(model, output_type=kind, model_settings=settings).run(f"Weather? ⟦{said}⟧")).output
        assert found == Weather(city="Bonn", days={"Monday"}), (kind, found)


asyncio.run(main())
print("pydantic-ai")
