import json
import ssl
import sys
from pathlib import Path

import httpx

context = ssl.create_default_context(cafile="ca.crt")
context.load_cert_chain("alice.crt", "alice.key")


class Client(httpx.AsyncClient):
    """guidellm has no option for a client's certificate."""

    def __init__(self, **given):
        super().__init__(**given | {"verify": context})


httpx.AsyncClient = Client
WORDS = "One two three four five six."

if __name__ == "__main__":
    from guidellm.cli import cli

    rows = [{"prompt": f"Say {i}. ⟦{WORDS}⟧", "output_tokens_count": 8} for i in range(4)]
    Path("prompts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    arguments = {
        "backend": "kind=openai_http,target=https://127.0.0.1:8443,model=smollm2-135m-instruct",
        "profile": "kind=concurrent,streams=2", "constraint": "kind=max_requests,count=4",
        "data": "kind=json_file,path=prompts.jsonl", "output": "kind=json,path=found.json",
    }  # fmt: skip
    sys.argv = ["guidellm", "run", "--disable-progress", *(f"--{name}={value}" for name, value in arguments.items())]
    try:
        cli()
    except SystemExit as e:
        assert not e.code, e.code
    (found,) = json.loads(Path("found.json").read_text())["benchmarks"]
    totals = found["metrics"]["request_totals"]
    assert totals["successful"] == 4 and not totals["errored"], totals
    assert found["metrics"]["output_token_count"]["successful"]["total_sum"] > 0, found["metrics"]["output_token_count"]
    print("guidellm", totals)
