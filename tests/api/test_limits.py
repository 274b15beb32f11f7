"""Limits and usage as clients and admins meet them, on a real daemon: what is refused, with which headers; and what
was used is what the audit log says."""

import http.client
import json
import signal
import ssl
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from real_daemon import Llmd, llmctl, start_llmd

GRANT = '[groups]\nteam = ["alice", "bob"]\n[[grants]]\nto = ["*"]\nmodels = ["*"]\n'
CHAT = "/v1/chat/completions"
CONFIG = "slots = 2\ncontext = 1024\n"


def chat(tokens: int = 3, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "Say hello."}], "max_tokens": tokens, **more}


@pytest.fixture(scope="module")
def limited(model_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Llmd]:
    llmd = start_llmd(tmp_path_factory.mktemp("limited"), model_file, CONFIG)
    yield llmd
    assert llmd.stop() == 0


@pytest.fixture
def house(limited: Llmd, tmp_path: Path) -> Iterator[Llmd]:
    """Its clients alice and bob have certificates in `tmp_path`."""
    limited.issue_anew(tmp_path, "alice", "bob")
    yield limited
    limited.llmctl("policy", "revert", "0", "--yes")


def hold(house: Llmd, folder: Path, *limits: str) -> None:
    file = folder / "policy.toml"
    file.write_text(GRANT + "".join(f"[[limits]]\n{limit}\n" for limit in limits))
    done = llmctl(house.state / "admin.sock", "policy", "edit", "--file", str(file), "--yes")
    assert done.exit_code == 0, done.stderr


def asked(house: Llmd, tls: ssl.SSLContext, body: Any, **headers: str) -> tuple[int, dict[str, str], Any]:
    connection = http.client.HTTPSConnection("127.0.0.1", house.port, context=tls, timeout=60)
    given = {"Content-Type": "application/json", **{name.replace("_", "-"): value for name, value in headers.items()}}
    connection.request("POST", CHAT, json.dumps(body), given)
    response = connection.getresponse()
    raw = response.read()
    connection.close()
    return response.status, {k.lower(): v for k, v in response.getheaders()}, json.loads(raw) if raw else None


def quiet(house: Llmd) -> None:
    """Until nobody's request runs or waits."""
    deadline = time.monotonic() + 10
    while house.model()["waiting"] or house.model()["running"]:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_client_that_has_asked_as_often_as_it_may_is_told_when_it_may_again(house: Llmd, tmp_path: Path) -> None:
    hold(house, tmp_path, 'of = ["team"]\nrequests_per_minute = 2\ntokens_per_day = 100000')
    alice, bob = house.tls("alice", tmp_path), house.tls("bob", tmp_path)
    for left in (1, 0):
        status, headers, _ = asked(house, alice, chat())
        assert status == 200 and headers["x-ratelimit-limit-requests"] == "2"
        assert headers["x-ratelimit-remaining-requests"] == str(left)
        assert int(headers["x-ratelimit-remaining-tokens"]) <= 100_000 and "x-ratelimit-reset-tokens" in headers
    status, headers, answer = asked(house, alice, chat(stream=True))
    assert (status, answer["error"]["code"], answer["error"]["type"]) == (
        429, "rate_limit_exceeded", "rate_limit_error",
    )  # fmt: skip
    assert 1 <= int(headers["retry-after"]) <= 61 and headers["x-ratelimit-remaining-requests"] == "0"
    assert asked(house, bob, chat())[0] == 200, "each client has its own"
    status, headers, _ = asked(house, house.tls(), chat())
    assert status == 200 and not [name for name in headers if name.startswith("x-ratelimit")]
    told = llmctl(house.state / "admin.sock", "policy", "test", "alice", "smol", CHAT)
    assert told.exit_code == 0 and "requests_per_minute: 0 of 2 left" in told.stdout
    refused = [row for row in house.llmctl("audit", "tail") if row["kind"] == "refused"]
    assert refused[-1]["body"]["reason"] == "denied by policy" and "requests_per_minute" in refused[-1]["body"]["rule"]


def test_openais_client_reads_it_as_a_rate_limit_and_waits_as_long_as_it_is_told(house: Llmd, tmp_path: Path) -> None:
    hold(house, tmp_path, 'of = ["alice"]\nstreams = 1')
    alice = house.tls("alice", tmp_path)
    web = openai.DefaultHttpxClient(verify=alice)
    with openai.OpenAI(base_url=f"{house.url}/v1", api_key="none", http_client=web, max_retries=0) as client:
        messages: Any = [{"role": "user", "content": "Count to a thousand."}]
        with client.chat.completions.create(model="smol", messages=messages, max_tokens=400, stream=True) as running:
            next(iter(running))
            with pytest.raises(openai.RateLimitError) as error:
                client.chat.completions.create(model="smol", messages=messages, max_tokens=1)
            assert error.value.response.headers["retry-after"] == "1"
        again = client.with_options(max_retries=10)
        assert again.chat.completions.create(model="smol", messages=messages, max_tokens=1).usage


def test_a_deadline_that_nobody_can_read_is_told(house: Llmd, tmp_path: Path) -> None:
    status, _, answer = asked(house, house.tls(), chat(), X_Request_Deadline_Ms="soon")
    assert (status, answer["error"]["param"]) == (400, "X-Request-Deadline-Ms")
    quiet(house)
    status, _, answer = asked(house, house.tls(), chat(900), X_Request_Deadline_Ms="300")
    assert (status, answer["error"]["code"]) == (504, "deadline_exceeded")
    assert asked(house, house.tls(), chat(), X_Request_Deadline_Ms="60000")[0] == 200


def test_a_request_of_many_prompts_gives_its_slots_back_as_others_come(house: Llmd, tmp_path: Path) -> None:
    """It gave everybody else 429 as long as it ran."""
    alice, bob = house.tls("alice", tmp_path), house.tls("bob", tmp_path)
    many = {"prompt": [f"{n} bottles of beer on the wall," for n in range(256)], "n": 4, "max_tokens": 60}
    connection = http.client.HTTPSConnection("127.0.0.1", house.port, context=alice, timeout=60)
    connection.request("POST", "/v1/completions", json.dumps({**many, "stream": True}),
                       {"Content-Type": "application/json"})  # fmt: skip
    response = connection.getresponse()
    assert response.status == 200 and response.readline().startswith(b"data:")
    waiting = house.model()["waiting"]
    assert waiting > 900
    for _ in range(3):
        status, _, answer = asked(house, bob, chat())
        assert status == 200 and answer["usage"]["completion_tokens"] >= 1
    assert house.model()["waiting"] > 800, "the other one was not there first"
    connection.close()
    quiet(house)


def test_answers_of_many_prompts_have_their_places(house: Llmd) -> None:
    """Each prompt begins by itself, in whatever order; its choices are where they belong."""
    prompts = [f"The number {n} is" for n in range(9)]
    body = {"max_tokens": 4, "temperature": 0, "seed": 1}
    alone = [house.post("/v1/completions", {**body, "prompt": p})[2]["choices"][0]["text"] for p in prompts]
    _, _, answer = house.post("/v1/completions", {**body, "prompt": prompts, "n": 2})
    assert [choice["text"] for choice in answer["choices"]] == [text for text in alone for _ in range(2)]
    each = [house.post("/v1/completions", {**body, "prompt": p})[2]["usage"]["prompt_tokens"] for p in prompts]
    assert answer["usage"]["prompt_tokens"] == sum(each) and answer["usage"]["completion_tokens"] == 9 * 2 * 4


# --- what was used


def of_audit(house: Llmd) -> Counter[tuple[str, str]]:
    """Tokens and requests of each principal, as its rows say."""
    found: Counter[tuple[str, str]] = Counter()
    rows = house.llmctl("audit", "query", "--limit", "2000")
    who = {row["request"]: row["body"]["principal"] for row in rows if row["kind"] == "admit"}
    for row in rows:
        if row["kind"] == "finish":
            name = who[row["request"]]
            found[name, "requests"] += 1
            for figure, key in (
                ("prompt", "prompt_tokens"),
                ("cached", "cached_tokens"),
                ("output", "completion_tokens"),
            ):
                found[name, figure] += row["body"][key]
    return +found


def of_usage(house: Llmd) -> Counter[tuple[str, str]]:
    rows = house.llmctl("usage")["rows"]
    return +Counter({(row["principal"], name): row[name] for row in rows for name in
                     ("requests", "prompt", "cached", "output")})  # fmt: skip


def test_what_was_used_is_what_the_audit_log_says_to_the_token(model_file: Path, tmp_path: Path) -> None:
    house = start_llmd(tmp_path / "state", model_file, CONFIG)
    alice, bob = house.issue("alice", tmp_path), house.issue("bob", tmp_path)
    hold(house, tmp_path, 'of = ["alice"]\npriority = "interactive"')

    def several(tls: ssl.SSLContext, count: int) -> None:
        for n in range(count):
            assert asked(house, tls, chat(5 + n, n=1 + n % 2))[0] == 200
            house.post("/v1/completions", {"prompt": ["One, two, " * 60, "Three, four, five,"], "max_tokens": 3}, tls)
            house.post("/tokenize", {"prompt": "One, two,"}, tls)
            assert house.post("/v1/completions", {"prompt": "x " * 2000, "max_tokens": 3}, tls)[0] == 400

    threads = [threading.Thread(target=several, args=(tls, count)) for tls, count in ((alice, 4), (bob, 6))]
    for thread in threads:
        thread.start()
    left = http.client.HTTPSConnection("127.0.0.1", house.port, context=bob, timeout=60)
    left.request("POST", CHAT, json.dumps(chat(900, stream=True)), {"Content-Type": "application/json"})
    assert left.getresponse().readline()
    left.close()
    for thread in threads:
        thread.join()
    for _ in range(2):
        house.post("/v1/completions", {"prompt": "One, two, " * 60, "max_tokens": 3}, bob)
    quiet(house)
    said = of_audit(house)
    assert said["alice", "output"] and said["bob", "cached"] and of_usage(house) == said
    told = house.llmctl("usage")
    by = {kind: house.llmctl("usage", "--by", kind) for kind in ("model", "group", "day")}
    for figure in ("requests", "prompt", "cached", "output"):
        assert told["total"][figure] == sum(row[figure] for row in told["rows"]) == by["model"]["rows"][0][figure]
        assert told["total"][figure] == sum(row[figure] for row in by["day"]["rows"])
    assert {row["group"] for row in by["group"]["rows"]} <= {"team", ""} and told["total"]["seconds"] > 0
    page = llmctl(house.state / "admin.sock", "usage").stdout
    assert "alice" in page and "total" in page and "COMPUTED" in page
    lines = llmctl(house.state / "admin.sock", "usage", "--by", "day", "--csv").stdout.splitlines()
    assert lines[0] == "day,requests,prompt,cached,output,seconds,joules" and len(lines) == 2
    house.llmctl("client", "issue", "ops", "--role", "operator", "--out", str(tmp_path))
    connection = http.client.HTTPSConnection("127.0.0.1", house.port, context=house.tls("ops", tmp_path))
    connection.request("GET", "/metrics")
    metrics = connection.getresponse().read().decode()
    connection.close()
    assert f'llmd_client_output_total{{client="alice"}} {float(said["alice", "output"])}' in metrics
    wrong = llmctl(house.state / "admin.sock", "usage", "--since", "yesterday")
    assert wrong.exit_code == 1 and "2026-11-30, or the last days, as 7d" in wrong.stderr
    assert house.stop() == 0


def test_what_was_used_outlives_a_kill_and_a_days_limit_goes_on_from_there(model_file: Path, tmp_path: Path) -> None:
    house = start_llmd(tmp_path / "state", model_file, CONFIG)
    alice, bob = house.issue("alice", tmp_path), house.issue("bob", tmp_path)
    for tls in (alice, bob, alice):
        assert asked(house, tls, chat())[0] == 200
    said = of_audit(house)
    assert of_usage(house) == said and said["alice", "requests"] == 2
    house.process.send_signal(signal.SIGKILL)
    house.process.wait(10)
    assert house.stop() != 0  # nothing of it is left open
    again = start_llmd(tmp_path / "state", model_file, CONFIG)
    assert of_usage(again) == said
    hold(again, tmp_path, 'of = ["alice"]\nrequests_per_day = 2')
    status, _, answer = asked(again, alice, chat())
    assert (status, answer["error"]["code"]) == (429, "rate_limit_exceeded")
    assert asked(again, bob, chat())[0] == 200
    assert again.stop() == 0
    last = start_llmd(tmp_path / "state", model_file, CONFIG)  # what an orderly end has kept without being asked
    assert of_usage(last) == of_audit(last)
    assert last.stop() == 0
