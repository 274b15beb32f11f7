"""The service as its clients use it: a real daemon, real mutual TLS, the openai package, curl, and bad input."""

import json
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam
from real_daemon import Llmd

CHAT: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Say hello."}]


@pytest.fixture(scope="module")
def client(llmd: Llmd) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(
        base_url=f"{llmd.url}/v1",
        api_key="none",
        max_retries=0,
        http_client=openai.DefaultHttpxClient(verify=llmd.tls()),
    ) as client:
        yield client


def test_chat_with_the_openai_package(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="smol", messages=CHAT, max_tokens=16, temperature=0)
    assert answer.choices[0].message.content and answer.choices[0].finish_reason in ("stop", "length")
    assert answer.usage is not None and answer.usage.prompt_tokens > 10 and answer.usage.completion_tokens <= 16


def test_a_stream_is_the_same_text_with_usage_at_its_end(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model="smol", messages=CHAT, max_completion_tokens=24, temperature=0)
    parts = list(client.chat.completions.create(
        model="smol", messages=CHAT, max_completion_tokens=24, temperature=0, stream=True,
        stream_options={"include_usage": True}))  # fmt: skip
    text = "".join(p.choices[0].delta.content or "" for p in parts if p.choices)
    assert text == whole.choices[0].message.content
    assert parts[0].choices[0].delta.role == "assistant"
    assert parts[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    assert parts[-1].usage is not None and whole.usage is not None and not parts[-1].choices
    assert parts[-1].usage.completion_tokens == whole.usage.completion_tokens


def test_the_same_seed_gives_the_same_text(client: openai.OpenAI) -> None:
    def say(seed: int) -> str | None:
        answer = client.chat.completions.create(model="smol", messages=CHAT, max_tokens=24, temperature=1.2, seed=seed)
        return answer.choices[0].message.content

    assert say(11) == say(11) != say(12)


def test_completions_stop_strings_and_logprobs(client: openai.OpenAI) -> None:
    answer = client.completions.create(
        model="smol", prompt="1 2 3 4 5", max_tokens=40, temperature=0, stop=["9"], logprobs=2
    )
    choice = answer.choices[0]
    assert "9" not in choice.text and choice.text.startswith(" 6") and choice.finish_reason == "stop"
    assert choice.logprobs is not None and choice.logprobs.top_logprobs and len(choice.logprobs.top_logprobs[0]) == 2


def test_several_choices(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="smol", messages=CHAT, n=3, max_tokens=8, temperature=1.5, seed=1)
    assert [c.index for c in answer.choices] == [0, 1, 2]
    assert len({c.message.content for c in answer.choices}) > 1
    indices = {
        p.choices[0].index
        for p in client.chat.completions.create(model="smol", messages=CHAT, n=3, max_tokens=4, stream=True)
        if p.choices
    }
    assert indices == {0, 1, 2}


def test_chat_logprobs(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="smol", messages=CHAT, max_tokens=4, temperature=0, logprobs=True, top_logprobs=3
    )
    assert answer.choices[0].logprobs is not None and answer.choices[0].logprobs.content is not None
    for token in answer.choices[0].logprobs.content:
        assert len(token.top_logprobs) == 3 and token.top_logprobs[0].token == token.token


def test_models(client: openai.OpenAI) -> None:
    assert [m.id for m in client.models.list().data] == ["smol"]
    assert client.models.retrieve("smol").id == "smol"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nope")


def test_tokenize_and_detokenize(llmd: Llmd) -> None:
    _, _, made = llmd.post("/tokenize", {"model": "smol", "prompt": "hello 🙂"})
    assert made["count"] == len(made["tokens"]) > 0 and made["max_model_len"] == 1024
    _, _, text = llmd.post("/detokenize", {"tokens": made["tokens"]})
    assert text["prompt"] == "hello 🙂"
    answer = llmd.post("/v1/completions", {"model": "smol", "prompt": made["tokens"], "max_tokens": 1})
    assert answer[2]["usage"]["prompt_tokens"] == made["count"]


def test_what_the_banner_prints_works_as_printed(llmd: Llmd) -> None:
    lines = llmd.banner.splitlines()
    curl = next(line for line in lines if line.startswith("curl "))
    done = subprocess.run(curl, shell=True, capture_output=True, text=True, timeout=60)
    assert done.stdout.rstrip().endswith("data: [DONE]") and '"finish_reason":"' in done.stdout
    python = "\n".join(lines[next(i for i, line in enumerate(lines) if line.endswith("<<'EOF'")) :])
    done = subprocess.run(python, shell=True, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stdout.endswith("\n"), done.stderr


def test_health_and_metrics(llmd: Llmd, tmp_path: Path) -> None:
    assert llmd.get("/livez")[0] == 200
    status, _, ready = llmd.get("/readyz")
    assert status == 200 and ready["models"][0]["token_age"] is not None
    assert llmd.get("/metrics")[0] == 403
    llmd.llmctl("client", "issue", "prometheus", "--role", "operator", "--out", str(tmp_path))
    done = subprocess.run(_curl(llmd, "/metrics", tmp_path / "prometheus"), capture_output=True, text=True, timeout=60)
    metrics = done.stdout
    for name in ("llmd_requests_total", "llmd_output_tokens_total", "llmd_time_to_first_token_seconds_count",
                 "llmd_inter_token_seconds_count", "llmd_kv_used_ratio", "llmd_waiting", "llmd_running"):  # fmt: skip
        assert f'{name}{{model="smol"' in metrics
    ends = dict(re.findall(r'llmd_certificate_end_timestamp_seconds{client="(.*)",kind=.*} (.*)', metrics))
    kinds = set(re.findall(r'llmd_certificate_end_timestamp_seconds{.*kind="(.*?)"', metrics))
    assert kinds == {"root", "issuer", "server", "list", "client"}
    assert float(ends["demo"]) > time.time() + 80 * 86400


def _curl(llmd: Llmd, route: str, client: Path | None = None) -> list[str]:
    client = client or llmd.state / "pki" / "clients" / "demo"
    return ["curl", "-s", "--cacert", str(llmd.state / "pki" / "ca.crt"), "--cert", f"{client}.crt",
            "--key", f"{client}.key", llmd.url + route]  # fmt: skip


def test_nothing_is_answered_without_a_certificate(llmd: Llmd) -> None:
    for route in ("/livez", "/readyz", "/metrics", "/v1/models", "/openapi.json", "/docs"):
        done = subprocess.run(["curl", "-sk", llmd.url + route], capture_output=True, timeout=60)
        assert done.returncode != 0 and done.stdout == b""


def test_a_slash_that_is_spelled_otherwise_makes_no_route(llmd: Llmd) -> None:
    for path in ("/v1%2fmodels", "/v1%2Fmodels", "/%2fv1/models", "/v1/models%2f", "/v1/models/smol%2f..%2fsmol"):
        status, _, answer = llmd.get(path)
        assert (status, answer["error"]["code"]) == (404, "not_found"), path
    assert llmd.get("/v1/models?after=a%2Fb")[0] != 404 and llmd.get("/v1/models")[0] == 200


def test_prefixes_are_shared_inside_one_principal_only(llmd: Llmd, tmp_path: Path) -> None:
    alice, bob = llmd.issue("alice", tmp_path), llmd.issue("bob", tmp_path)
    prompt = {
        "model": "smol",
        "prompt": "A long story about clocks and the people who collect them. " * 12,
        "max_tokens": 2,
    }

    def cached(who: Any) -> int:
        return int(llmd.post("/v1/completions", prompt, who)[2]["usage"]["prompt_tokens_details"]["cached_tokens"])

    assert [cached(alice), cached(bob)] == [0, 0]
    assert cached(alice) > 100 and cached(bob) > 100


def test_an_answer_that_is_there_at_once_is_whole(llmd: Llmd) -> None:
    for _ in range(30):
        answer = llmd.post("/v1/completions", {"prompt": "1 2 3 4", "max_tokens": 1, "temperature": 0})[2]
        assert answer["choices"][0]["text"] == " " and answer["choices"][0]["finish_reason"] == "length"


def test_a_prompt_over_the_context_is_refused_with_the_numbers(llmd: Llmd) -> None:
    status, _, answer = llmd.post("/v1/completions", {"model": "smol", "prompt": "word " * 3000})
    assert status == 400 and answer["error"]["code"] == "context_length_exceeded"
    assert "3001 tokens" in answer["error"]["message"] and "1024" in answer["error"]["message"]
    for size in (5_000, 60_000, 1_300_000):
        status, _, answer = llmd.post(
            "/v1/chat/completions", chat(messages=[{"role": "user", "content": "x y" * size}])
        )
        assert (status, answer["error"]["code"]) == (400, "context_length_exceeded")
        assert answer["error"]["message"].startswith("This model's maximum context length is 1024 tokens.")


def test_a_prompt_that_fits_is_served_however_many_characters_it_has(llmd: Llmd) -> None:
    status, _, answer = llmd.post("/v1/completions", {"model": "smol", "prompt": "-" * 60_000, "max_tokens": 1})
    assert status == 200 and 900 < answer["usage"]["prompt_tokens"] < 1024


HISTORY = [
    {"role": "user", "content": "Weather in Cologne?"},
    {"role": "assistant", "content": None, "tool_calls": [
        {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Cologne"}'}}]},
    {"role": "tool", "tool_call_id": "call_1", "content": "It rains."},
]  # fmt: skip


def test_the_answer_is_sent_back_as_the_client_has_it(client: openai.OpenAI) -> None:
    messages: list[Any] = [*CHAT]
    for _ in range(2):
        answer = client.chat.completions.create(model="smol", messages=messages, max_tokens=8, temperature=0)
        messages += [answer.choices[0].message, {"role": "user", "content": "And again?"}]
    dumped: list[Any] = [m if isinstance(m, dict) else m.model_dump() for m in messages]
    assert dumped[1]["tool_calls"] is None
    again = client.chat.completions.create(model="smol", messages=dumped, max_tokens=8, temperature=0)
    assert again.usage is not None and answer.usage is not None
    assert again.usage.prompt_tokens > answer.usage.prompt_tokens


def test_an_agents_history_is_in_the_prompt(llmd: Llmd) -> None:
    counts = [
        llmd.post("/v1/chat/completions", chat(messages=HISTORY[:size]))[2]["usage"]["prompt_tokens"]
        for size in (1, 2, 3)
    ]
    assert counts[0] + 15 < counts[1] < counts[2] - 5
    call = {"name": "weather", "arguments": "{}"}
    older = [HISTORY[0], {"role": "assistant", "content": None, "function_call": call},
             {"role": "function", "name": "weather", "content": "It rains."}]  # fmt: skip
    assert llmd.post("/v1/chat/completions", chat(messages=older))[2]["usage"]["prompt_tokens"] > counts[0] + 15


def test_several_prompts_are_answered_each(llmd: Llmd) -> None:
    given = {"model": "smol", "max_tokens": 6, "temperature": 0.7, "seed": 3}
    prompts = ["1 2 3 4", "The capital of France", "A B C"]
    alone = [llmd.post("/v1/completions", {**given, "prompt": p, "n": 2})[2] for p in prompts]
    _, _, answer = llmd.post("/v1/completions", {**given, "prompt": prompts, "n": 2})
    assert [c["index"] for c in answer["choices"]] == [*range(6)]
    assert [c["text"] for c in answer["choices"]] == [c["text"] for a in alone for c in a["choices"]]
    for count in ("prompt_tokens", "completion_tokens"):
        assert answer["usage"][count] == sum(a["usage"][count] for a in alone)
    tokens = [llmd.post("/tokenize", {"prompt": p})[2]["tokens"] for p in prompts]
    assert llmd.post("/v1/completions", {**given, "prompt": tokens, "n": 2})[2]["choices"] == answer["choices"]


def test_several_prompts_stream_under_their_numbers(client: openai.OpenAI) -> None:
    given: dict[str, Any] = {"model": "smol", "prompt": ["1 2 3 4", "A B C"], "max_tokens": 6, "temperature": 0}
    texts = ["", ""]
    for part in client.completions.create(**given, stream=True):
        texts[part.choices[0].index] += part.choices[0].text
    assert texts == [c.text for c in client.completions.create(**given).choices]


def test_a_prompt_that_does_not_fit_names_the_length_also_among_others(llmd: Llmd) -> None:
    status, _, answer = llmd.post("/v1/completions", {"model": "smol", "prompt": ["hi", "word " * 3000]})
    assert (status, answer["error"]["code"], answer["error"]["param"]) == (400, "context_length_exceeded", "prompt")


SMILES = "Repeat: 😀😃😄😁 😀😃😄😁 😀😃😄😁 😀"


@pytest.mark.parametrize("size", range(1, 7))
def test_a_text_ends_before_a_character_that_the_limit_cuts(client: openai.OpenAI, size: int) -> None:
    given: dict[str, Any] = {"model": "smol", "prompt": SMILES, "max_tokens": size, "temperature": 0, "logprobs": 1}
    whole = client.completions.create(**given).choices[0]
    streamed = [part.choices[0] for part in client.completions.create(**given, stream=True)]
    assert "".join(part.text for part in streamed) == whole.text
    assert "\ufffd" not in whole.text
    for shown in [whole.logprobs]:
        assert shown is None or (shown.tokens and shown.text_offset)
        for token, at in zip(shown.tokens or [], shown.text_offset or [], strict=True) if shown else ():
            assert token.startswith("bytes:") or whole.text[at : at + len(token)] == token


def chat(**fields: Any) -> dict[str, Any]:
    return {"model": "smol", "messages": CHAT, "max_tokens": 1, **fields}


URL = "http://169.254.169.254/"
BAD_VALUES: dict[str, list[Any]] = {
    "temperature": [-1, 1e30, "1", True, [], {}],
    "top_p": [-0.1, -1, 2, "x"],
    "top_k": [-5, 10**9, 1.5],
    "min_p": [-1, 2],
    "max_tokens": [0, -2, 2**31, 2**63, 2**64, 1.0, "1", True],
    "n": [0, 5, 1_000_000, "1"],
    "best_of": [2],
    "echo": [True],
    "suffix": ["x"],
    "stop": [["a"] * 100_000, "x" * 1_000_000, 1, [1]],
    "logprobs": [1, "x"],
    "top_logprobs": [5],
    "seed": [2**63, 1.5, "x"],
    "presence_penalty": [3],
    "frequency_penalty": [-3],
    "repeat_penalty": [0],
    "logit_bias": [{"x": 1}, {"1": 1000}, {"999999999": 1}, [1], {"-1": 1}, {str(i): 1 for i in range(2000)}],
    "tools": [[{"type": "function"}]],
    "tool_choice": ["required", {"type": "function", "function": {"name": "f"}}, "some"],
    "functions": [[{"name": "f"}]],
    "function_call": [{"name": "f"}],
    "response_format": [{"type": "wizard"}, {"type": "json_schema"}, "json", {"type": "text", "json_schema": {}}],
    "modalities": [["text", "audio"], ["video"], "text"],
    "audio": [{"voice": "alloy", "format": "wav"}],
    "store": [True],
    "service_tier": ["priority", "gold"],
    "web_search_options": [{}],
    "reasoning_effort": ["much"],
    "verbosity": ["none"],
    "stream": ["yes"],
    "user": ["u" * 1_000_000],
    "stream_options": [{"x": 1}],
    "model": ["../../etc/passwd", "m" * 10_000, "smоl", "", 1],
    "messages": [
        [], "x", [{"role": "x", "content": "a"}], [{"role": "user"}], [{"role": "user", "content": None}],
        [CHAT[0]] * 100_000, [{"role": None, "content": "a"}], [{"role": "tool", "content": "a"}],
        [{"role": "user", "content": "a", "tool_calls": [{}]}], [{"role": "function", "content": "a"}],
        [{"role": "assistant", "content": "a", "audio": {"id": "a"}}],
        [{"role": "assistant", "tool_calls": [{"id": "1", "type": "function"}]}],
        [{"role": "user", "content": [{"type": "text"}]}], [{"role": "user", "content": []}],
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": URL}}]}],
        [{"role": "user", "content": [{"type": "text", "text": "x"}] * 5000}],
    ],
    **{k: [1] for k in ("n_discard", "cache_prompt", "id_slot", "grammar", "grammar_file", "lora", "mirostat", "foo")},
}  # fmt: skip
BAD_FIELDS: list[dict[str, Any]] = [{key: value} for key, values in BAD_VALUES.items() for value in values]
BAD_FIELDS.append({"logprobs": True, "top_logprobs": 10**6})


@pytest.mark.parametrize("fields", BAD_FIELDS, ids=lambda f: str(f)[:40])
def test_a_bad_field_is_named(llmd: Llmd, fields: dict[str, Any]) -> None:
    status, _, answer = llmd.post("/v1/chat/completions", chat(**fields))
    assert 400 <= status < 500, answer
    error = answer["error"]
    assert error["message"] and error["type"] and len(error["message"]) < 500
    if error["code"] not in ("model_not_found", "body_too_large") and "holds more than" not in error["message"]:
        assert any(key in error["message"] or key == error["param"] for key in fields)


BAD_BODIES = [
    b"", b"null", b"[]", b'"x"', b"{}", b"{} x", b"[" * 100_000, b'{"a":' * 33 + b"1" + b"}" * 33, b"\xff\xfe{",
    '{"model": "smol"}'.encode("utf-16"), b'{"model": "smol", "model": "smol"}', b'{"temperature": NaN}',
    b'{"temperature": -Infinity}', b'{"temperature": 1e999}', b'{"seed": ' + b"1" * 10_000 + b"}",
    b'{"messages": [{"role": "user", "content": "\\ud800"}]}',
    b'{"messages": [{"role": "user", "content": "\\u0000"}]}',
    b'{"logit_bias": {' + b",".join(b'"%d":1' % i for i in range(200_000)) + b"}}", b"[" + b"1," * 1_000_000 + b"1]",
    b"x" * 5_000_000, b'{"\\ud800": 1}',
]  # fmt: skip


@pytest.mark.parametrize("body", BAD_BODIES, ids=lambda b: repr(b[:30]))
@pytest.mark.parametrize("route", ["/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize"])
def test_a_bad_body_is_a_client_error(llmd: Llmd, route: str, body: bytes) -> None:
    status, headers, answer = llmd.post(route, body)
    assert 400 <= status < 500 and answer["error"]["message"], answer
    assert headers["content-type"] == "application/json"


@pytest.mark.parametrize(
    "header", ["text/plain", "multipart/form-data; boundary=x", "application/json; charset=utf-16"]
)
def test_other_content_types_are_refused(llmd: Llmd, header: str) -> None:
    command = [*_curl(llmd, "/v1/completions"), "-H", f"Content-Type: {header}", "-d", "{}"]
    done = subprocess.run(command, capture_output=True, timeout=60)
    assert json.loads(done.stdout)["error"]["code"] == "unsupported_media_type"
    done = subprocess.run(
        [*_curl(llmd, "/v1/completions"), "-H", "Content-Type: application/json", "-H", "Content-Encoding: gzip",
         "-d", "{}"],
        capture_output=True, timeout=60)  # fmt: skip
    assert json.loads(done.stdout)["error"]["code"] == "unsupported_media_type"


ODD_TEXTS = ["", "\uffff", "\u202eabc", "e" + "\u0301" * 5000, "<|im_end|>" * 50, "a" * 10_000, " \n\t", "🙂" * 100]


@pytest.mark.parametrize("text", ODD_TEXTS, ids=lambda t: ascii(t[:12]))
def test_odd_texts_are_answered_or_refused(llmd: Llmd, text: str) -> None:
    assert llmd.post("/v1/chat/completions", chat(messages=[{"role": "user", "content": text}]))[0] in (200, 400)
    assert llmd.post("/v1/completions", {"model": "smol", "prompt": text, "max_tokens": 1})[0] in (200, 400)
    assert llmd.post("/tokenize", {"prompt": text})[0] == 200


@pytest.mark.parametrize("tokens", [[-1], [49152], [2**31], [], ["a", 1], [1.5], [[]], [[1], "a"], [[1], []]])
def test_tokens_that_are_none_are_refused(llmd: Llmd, tokens: list[Any]) -> None:
    assert llmd.post("/v1/completions", {"model": "smol", "prompt": tokens, "max_tokens": 1})[0] == 400
    if tokens:
        assert llmd.post("/detokenize", {"tokens": tokens})[0] == 400


def test_penalties_in_pairs_at_their_ends(llmd: Llmd) -> None:
    ends = {"presence_penalty": (-2, 2), "frequency_penalty": (-2, 2), "repeat_penalty": (0.01, 10)}
    for a, left in ends.items():
        for b, right in ends.items():
            for x, y in zip(left, right, strict=True):
                assert llmd.post("/v1/chat/completions", chat(**{a: x, b: y, "max_tokens": 3}))[0] == 200


def test_every_request_is_in_the_audit_log_without_its_text(llmd: Llmd) -> None:
    secret = "canary-7f3a2b"
    status, headers, _ = llmd.post(
        "/v1/completions", {"model": "smol", "prompt": f"{secret} {secret}", "max_tokens": 3, "ignore_eos": True}
    )
    assert status == 200
    for _ in range(50):
        rows = llmd.llmctl("audit", "query", "--request", headers["x-request-id"])
        if len(rows) == 2:
            break
        time.sleep(0.05)
    admit, finish = rows
    assert admit["kind"] == "admit" and finish["kind"] == "finish" and finish["body"]["outcome"] == "length"
    assert (
        admit["body"]["principal"] == "demo"
        and admit["body"]["address"] == "127.0.0.1"
        and len(admit["body"]["serial"]) > 8
    )
    assert admit["body"]["route"] == "/v1/completions" and admit["body"]["dialect"] == "openai"
    assert len(admit["body"]["prompt_mac"]) == 64
    assert finish["body"]["completion_tokens"] == 3 and finish["body"]["prompt_tokens"] > 3
    for file in llmd.state.rglob("*"):
        if file.is_file() and file.suffix != ".gguf":
            assert secret.encode() not in file.read_bytes(), file
    assert llmd.llmctl("audit", "verify")["ok"]


def test_a_client_that_leaves_cancels_its_request(llmd: Llmd, client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model="smol", messages=CHAT, max_tokens=900, stream=True, extra_body={"ignore_eos": True}
    )
    for _, part in zip(range(3), stream, strict=False):
        request = part.id.replace("chatcmpl-", "req-")
    stream.close()
    assert _outcome(llmd, request) == "cancelled"
    deadline = time.monotonic() + 3
    while llmd.model()["running"] and time.monotonic() < deadline:
        time.sleep(0.05)
    assert llmd.model()["running"] == 0


def test_a_client_that_leaves_before_its_answer_cancels_too(llmd: Llmd) -> None:
    body = json.dumps(chat(max_tokens=900, ignore_eos=True))
    command = [*_curl(llmd, "/v1/chat/completions"), "-m", "1", "-H", "Content-Type: application/json", "-d", body]
    subprocess.run(command, timeout=60)
    rows = llmd.llmctl("audit", "query", "--kind", "admit", "--limit", "2000")
    assert _outcome(llmd, max(rows, key=lambda row: row["seq"])["request"]) == "cancelled"


def _outcome(llmd: Llmd, request: str) -> str:
    """How it ended, once it has."""
    deadline = time.monotonic() + 3
    while time.monotonic() < deadline:
        rows = [r for r in llmd.llmctl("audit", "query", "--request", request) or [] if r["kind"] == "finish"]
        if rows:
            return str(rows[0]["body"]["outcome"])
        time.sleep(0.05)
    raise AssertionError("no finish row came")


def test_health_is_about_taking_requests(own_llmd: Llmd) -> None:
    assert own_llmd.get("/health")[0::2] == (200, {"status": "ok"})
    own_llmd.llmctl("undeploy", "smol")
    status, headers, answer = own_llmd.get("/health")
    assert status == 503 and answer["error"]["code"] == "model_not_ready" and int(headers["retry-after"]) >= 1
