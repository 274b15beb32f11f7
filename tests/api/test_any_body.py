"""Whatever a client sends: an answer, or an error that says what is wrong with it. Never a fault of ours, and never
another worker. 2,000 bodies, the same each time; --hypothesis-seed=N makes others."""

import http.client
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf_writer as gguf
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from real_daemon import Llmd, start_llmd
from schema_families import SCHEMAS, random_schemas

BODIES = 2000
FULL = """{%- if tools %}TOOLS {{ tools | tojson }}{% endif %}
{%- for m in messages %}[{{ m.role }}]{{ m.content if m.content is string else '' }}
{%- for c in m.tool_calls or [] %}<tool_call>
{"name": {{ c.function.name | tojson }}, "arguments": {{ c.function.arguments | tojson }}}
</tool_call>{% endfor %}{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}
{%- endfor %}[assistant]"""
PARTS = """{%- for m in messages %}{{ m.role }}: {% for part in m.content %}{{ part.text }}{% endfor %}
{% endfor %}assistant:"""
# a model each: its template, and how it writes where that is said
MODELS = {
    "hermes": (FULL, "auto"),
    "gemma": (FULL, "gemma+gemma"),
    "xml": (FULL, "qwen"),
    "mistral": (FULL, "mistral-args"),
    "parts": (PARTS, "auto"),
    "plain": ("{{ messages[-1].content }}", "harmony"),
}

# --- what bodies are made of

ODD = (
    "",
    " ",
    "\uffff",
    "\u202e",
    "</s>",
    "<tool_call>",
    "</tool_call>",
    "<|im_end|>",
    "{{ 7 }}",
    "\U0001f642",
    "a" * 99,
)
TEXT = st.one_of(st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=12), st.sampled_from(ODD))
NAME = st.sampled_from(["weather", "a", "b.c-d", "time_of"])
JSON: st.SearchStrategy[Any] = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), TEXT, st.sampled_from("\0\ud83d")),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
# as models write them: JSON, some of it cut or broken, with halves of characters in escapes
ARGUMENTS = st.one_of(
    JSON.map(json.dumps), TEXT,
    st.sampled_from(['{"a": "\\ud83d"}', '{"a":', "[1]", "{}", '{"a": 1e999}', "nul", '{"a": {"b": ["c", null]}}']),
)  # fmt: skip
SCHEMA = st.one_of(st.sampled_from(SCHEMAS), st.sampled_from(SCHEMAS), random_schemas())


def some(always: dict[str, Any], /, **perhaps: Any) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries(always, optional=perhaps)


CALL = some({"id": TEXT, "type": st.just("function"), "function": some({"name": NAME | TEXT, "arguments": ARGUMENTS})})
CONTENT = st.one_of(TEXT, st.lists(some({"type": st.just("text"), "text": TEXT}), min_size=1, max_size=3))
TURN = st.one_of(
    some({"role": st.just("user"), "content": CONTENT}, name=NAME),
    some({"role": st.sampled_from(["system", "developer"]), "content": CONTENT}),
    some({"role": st.just("assistant"), "content": CONTENT | st.none()}, reasoning_content=TEXT, refusal=TEXT,
         tool_calls=st.lists(CALL, max_size=2), function_call=some({"name": NAME, "arguments": ARGUMENTS})),
    some({"role": st.just("tool"), "content": CONTENT, "tool_call_id": TEXT}, name=NAME),
)  # fmt: skip
PARAMETERS = some(
    {"type": st.just("object"), "properties": st.dictionaries(TEXT, SCHEMA, max_size=4)},
    additionalProperties=st.booleans(),
)
TOOL = some({
    "type": st.just("function"),
    "function": some({"name": NAME}, description=TEXT, strict=st.booleans(), parameters=PARAMETERS | random_schemas()),
})  # fmt: skip
CHOICE = st.one_of(
    st.sampled_from(["none", "auto", "required"]), some({"type": st.just("function"), "function": some({"name": NAME})})
)
FORM = st.one_of(
    some({"type": st.sampled_from(["text", "json_object"])}),
    some({"type": st.just("json_schema"), "json_schema": some({"name": st.just("a"), "schema": SCHEMA})}),
)
SAMPLING: dict[str, Any] = {
    "temperature": st.floats(0, 2), "top_p": st.floats(0, 1), "top_k": st.integers(-1, 50),
    "min_p": st.floats(0, 1), "seed": st.integers(-(2**63), 2**63 - 1), "repeat_penalty": st.floats(0.1, 10),
    "presence_penalty": st.floats(-2, 2), "frequency_penalty": st.floats(-2, 2),
    "stop": st.one_of(TEXT, st.lists(TEXT, max_size=3)), "ignore_eos": st.booleans(), "n": st.integers(1, 2),
    "logit_bias": st.dictionaries(st.integers(0, 259).map(str), st.floats(-100, 100), max_size=3),
    "stream": st.booleans(), "user": TEXT,
}  # fmt: skip
MODEL, MOST, TURNS = st.sampled_from(list(MODELS)), st.integers(1, 16), st.lists(TURN, min_size=1, max_size=5)
CHAT = some(
    {"model": MODEL, "messages": TURNS, "max_tokens": MOST}, **SAMPLING, response_format=FORM,
    reasoning_effort=st.sampled_from(["none", "low", "max"]),
)  # fmt: skip
LIKELY = some(
    {"model": MODEL, "messages": TURNS, "max_tokens": MOST, "logprobs": st.just(True)}, **SAMPLING,
    top_logprobs=st.integers(0, 20),
)  # fmt: skip
TOOLS = st.lists(TOOL, min_size=1, max_size=3).map(
    lambda tools: list({tool["function"]["name"]: tool for tool in tools}.values())
)
CALLING = some(
    {"model": MODEL, "messages": TURNS, "max_tokens": MOST, "tools": TOOLS}, **SAMPLING, tool_choice=CHOICE,
    parallel_tool_calls=st.booleans(), response_format=FORM,
)  # fmt: skip
TOKENS = st.lists(st.integers(0, 259), min_size=1, max_size=9)
COMPLETION = some(
    {"model": MODEL, "prompt": st.one_of(TEXT, TOKENS, st.lists(TEXT, min_size=1, max_size=3)), "max_tokens": MOST},
    **SAMPLING, logprobs=st.integers(0, 20),
)  # fmt: skip
FIELD = st.sampled_from(["messages", "tools", "stop", "response_format", "tool_choice", "temperature", "n", "odd"])
# one field, or one turn, is anything
SPOILT = st.one_of(
    st.tuples(CHAT | CALLING, FIELD, JSON).map(lambda given: {**given[0], given[1]: given[2]}),
    st.tuples(CHAT, JSON).map(lambda given: {**given[0], "messages": [*given[0]["messages"], given[1]]}),
    st.tuples(CHAT, JSON).map(lambda given: {**given[0], "messages": [{"role": "user", "content": given[1]}]}),
)
CHATS = st.one_of(CHAT, CALLING, CALLING, LIKELY, SPOILT)
ASKED = st.one_of(
    CHATS.map(lambda body: ("/v1/chat/completions", body)),
    CHATS.map(lambda body: ("/v1/chat/completions", body)),
    CHATS.map(lambda body: ("/v1/chat/completions", body)),
    COMPLETION.map(lambda body: ("/v1/completions", body)),
    st.tuples(MODEL, TEXT).map(lambda given: ("/tokenize", {"model": given[0], "prompt": given[1]})),
    st.tuples(MODEL, TOKENS).map(lambda given: ("/detokenize", {"model": given[0], "tokens": given[1]})),
)


@pytest.fixture(scope="module")
def served(model_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Llmd]:
    folder = tmp_path_factory.mktemp("any")
    llmd = start_llmd(folder / "state", model_file, "slots = 2\ncontext = 256\n")
    llmd.llmctl("undeploy", "smol")
    for name, (template, syntax) in MODELS.items():
        file = gguf.tiny()
        file.keys["llama.context_length"] = (gguf.U32, 4096)
        file.keys["tokenizer.chat_template"] = (gguf.STR, template)
        (folder / f"{name}.gguf").write_bytes(file.bytes())
        llmd.llmctl("model", "import", str(folder / f"{name}.gguf"), "--name", name)
        llmd.llmctl("model", "syntax", name, syntax)
        llmd.llmctl("deploy", name, "--slots", "2", "--ctx", "4096")
    yield llmd
    assert llmd.stop() == 0


class Sender:
    """One connection, as long as it is kept."""

    def __init__(self, llmd: Llmd) -> None:
        self._llmd, self._connection = llmd, self._connected(llmd)

    def _connected(self, llmd: Llmd) -> http.client.HTTPSConnection:
        return http.client.HTTPSConnection("127.0.0.1", llmd.port, context=llmd.tls(), timeout=60)

    def ask(self, path: str, body: bytes) -> tuple[int, bytes]:
        self._connection.request("POST", path, body, {"Content-Type": "application/json"})
        answer = self._connection.getresponse()
        return answer.status, answer.read()

    def close(self) -> None:
        self._connection.close()


OURS = re.compile(rb'"code": ?"(internal_error|worker_lost|gpu_lost|deadline_exceeded)"')


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_any_body_is_answered_or_refused(served: Llmd, pytestconfig: pytest.Config) -> None:
    pids = {model["model"]: model["pid"] for model in served.llmctl("status")["models"]}
    seen: dict[int, int] = {}
    sender = Sender(served)

    @given(ASKED)
    @settings(
        max_examples=BODIES, deadline=None, database=None, suppress_health_check=list(HealthCheck),
        derandomize=pytestconfig.getoption("--hypothesis-seed") is None,
    )  # fmt: skip
    def ask(asked: tuple[str, dict[str, Any]]) -> None:
        path, body = asked
        status, answer = sender.ask(path, json.dumps(body).encode())
        seen[status] = seen.get(status, 0) + 1
        assert status in (200, 400, 422), (path, body, answer[:500])
        assert not OURS.search(answer), (path, body, answer[:500])

    ask()
    sender.close()
    assert seen[200] > BODIES / 3 and seen[400] > BODIES / 10, seen
    assert {model["model"]: model["pid"] for model in served.llmctl("status")["models"]} == pids
    assert " failed: " not in (served.state / "log").read_text()
