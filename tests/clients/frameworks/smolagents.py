import ssl

import openai
from smolagents import CodeAgent, OpenAIModel, ToolCallingAgent, tool

context = ssl.create_default_context(cafile="ca.crt")
context.load_cert_chain("alice.crt", "alice.key")
model = OpenAIModel(
    "smollm2-135m-instruct",
    api_base="https://127.0.0.1:8443/v1",
    api_key="none",
    max_tokens=200,
    temperature=0,
    client_kwargs={"http_client": openai.DefaultHttpxClient(verify=context)},
)


@tool
def weather(city: str) -> str:
    """The weather in a city.

    Args:
        city: its name
    """
    return f"It rains in {city}."


def call(name, arguments):
    return '<tool_call>\n{"name": "' + name + '", "arguments": ' + arguments + "}\n</tool_call>"


said = "⟦" + call("weather", '{"city": "Bonn"}') + "⟧⟦" + call("final_answer", '{"answer": "An umbrella."}') + "⟧"
found = ToolCallingAgent([weather], model, max_steps=3, verbosity_level=0).run(f"Weather? {said}")
assert found == "An umbrella.", found
code = '⟦Thought: ask.\n<code>\nprint(weather(city="Bonn"))\n</code>⟧⟦<code>\nfinal_answer("An umbrella.")\n</code>⟧'
found = CodeAgent([weather], model, max_steps=3, verbosity_level=0).run(f"Weather? {code}")
assert found == "An umbrella.", found
print("smolagents")
