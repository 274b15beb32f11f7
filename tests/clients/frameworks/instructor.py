import ssl
import warnings
from collections.abc import Iterable

import instructor
import openai
import pydantic

warnings.simplefilter("ignore")
context = ssl.create_default_context(cafile="ca.crt")
context.load_cert_chain("alice.crt", "alice.key")
http = openai.DefaultHttpxClient(verify=context)
client = openai.OpenAI(base_url="https://127.0.0.1:8443/v1", api_key="none", http_client=http)


class Person(pydantic.BaseModel):
    name: str = pydantic.Field(max_length=20)
    age: int = pydantic.Field(ge=0, le=150)


JSON = '{"name": "Ann", "age": 41}'
CALL = '<tool_call>\n{"name": "Person", "arguments": ' + JSON + "}\n</tool_call>"
SAID = {
    "TOOLS": CALL, "TOOLS_STRICT": CALL, "FUNCTIONS": None, "PARALLEL_TOOLS": CALL + "\n" + CALL, "JSON": JSON,
    "JSON_SCHEMA": JSON, "MD_JSON": f"```json\n{JSON}\n```", "JSON_O1": JSON,
}  # fmt: skip
done = []
for name, said in SAID.items():
    if said is None or not hasattr(instructor.Mode, name):
        continue
    asked = instructor.from_openai(client, mode=instructor.Mode[name])
    messages = [{"role": "user", "content": f"Ann is 41. ⟦{said}⟧"}]
    more = {"model": "smollm2-135m-instruct", "messages": messages, "max_tokens": 200, "max_retries": 0}
    if name == "PARALLEL_TOOLS":
        people = list(asked.chat.completions.create(response_model=Iterable[Person], **more))
    else:
        people = [asked.chat.completions.create(response_model=Person, **more)]
    assert people and all(person.model_dump() == {"name": "Ann", "age": 41} for person in people), (name, people)
    done.append(name)
print("instructor", *done)
