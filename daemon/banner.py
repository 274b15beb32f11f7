"""What `llmd serve` prints once it can answer: a first request, ready to paste."""

import json
import shlex
import sys
from pathlib import Path

from llmd.daemon.config import Config

_PYTHON = """\
{python} - <<'EOF'
import ssl, openai
tls = ssl.create_default_context(cafile={ca!r})
tls.load_cert_chain({cert!r}, {key!r})
client = openai.OpenAI(base_url="{url}/v1", api_key="none", http_client=openai.DefaultHttpxClient(verify=tls))
for part in client.chat.completions.create(
        model={model!r}, messages=[{{"role": "user", "content": "Name three primary colours."}}], max_tokens=64,
        stream=True):
    print(part.choices[0].delta.content or "", end="", flush=True)
print()
EOF"""


def text(config: Config, model: str) -> str:
    """Where the demo client's certificate is, and curl and openai snippets that use it."""
    pki = config.state.absolute() / "pki"
    ca, cert, key = (str(pki / part) for part in ("ca.crt", "clients/demo.crt", "clients/demo.key"))
    url = config.url
    messages = [{"role": "user", "content": "Hello!"}]
    body = json.dumps({"model": model, "messages": messages, "max_tokens": 64, "stream": True})
    curl = [
        "curl", "-sN", "--cacert", ca, "--cert", cert, "--key", key, f"{url}/v1/chat/completions",
        "-H", "Content-Type: application/json", "-d", body,
    ]  # fmt: skip
    python = _PYTHON.format(python=shlex.quote(sys.executable), ca=ca, cert=cert, key=key, url=url, model=model)
    here = Path(sys.executable).with_name("llmctl")
    llmctl = shlex.join([str(here) if here.exists() else "llmctl", "--socket", str(config.admin_path), "status"])
    return f"""
llmd serves {model} on {url}

The demo client's certificate: {cert}
                      its key: {key}
         the CA's certificate: {ca}

With curl:

{shlex.join(curl)}

It is administered with:

{llmctl}

With the openai package (pip install openai):

{python}
"""
