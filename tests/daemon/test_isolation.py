"""Eight clients at once, over prompts that begin alike, with cancels, mistakes and kills among them: nobody reads what
is anothers, and each seeded text is what it is alone."""

import asyncio
import json
import os
import random
import re
import secrets
import signal
import ssl
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import small_models
from real_daemon import Llmd, start_llmd

REQUESTS, KILLS, AT_ONCE = 10_000, 5, 4  # in all; of the models' processes; of each client
IDS = re.compile(r"(?:req|cmpl|chatcmpl|call)[-_][0-9a-f]{24}")
STEMS = [
    f"{n} " + "Once upon a time there was a house by the sea, and in it lived an old man who " * 2 for n in range(4)
]
# what a request that meets a kill is told, and one that finds the queue full
TOLD = {"worker_lost", "model_not_ready", "queue_full"}
TOKENS = 6


@dataclass(eq=False)
class Person:
    """A client: `canary` stands in its prompts and in nobody else's; `models` are there for it."""

    name: str
    canary: str
    models: tuple[str, ...]
    hidden: str
    tls: ssl.SSLContext
    asked: list[str] = field(default_factory=list)
    ids: set[str] = field(default_factory=set)

    @property
    def prompts(self) -> list[str]:
        """Those that everybody asks, and its own behind the same beginnings."""
        return [stem + end for stem in STEMS for end in ("was happy.", f"said {self.canary}.")]


@dataclass
class Seen:
    """What came back, of all."""

    ends: Counter[str] = field(default_factory=Counter)
    wrong: list[Any] = field(default_factory=list)


class Crowd:
    def __init__(self, llmd: Llmd, people: list[Person], alone: dict[tuple[str, int], str]) -> None:
        self.llmd, self.people, self.alone, self.seen, self.left = llmd, people, alone, Seen(), REQUESTS
        self.foreign = {one: [w for o in people if o is not one for w in (o.name, o.canary)] for one in people}

    async def run(self, one: Person, seed: int) -> None:
        """A client's requests, one after the other, until all of them together have made REQUESTS."""
        dice = random.Random(f"{one.name} {seed}")
        async with aiohttp.ClientSession(self.llmd.url, connector=aiohttp.TCPConnector(ssl=one.tls)) as session:
            while self.left > 0:
                self.left -= 1
                if self.left % (REQUESTS // (KILLS + 1)) == 0:
                    self.kill(dice)
                kind = dice.choices(
                    (self.complete, self.cancel, self.hidden, self.look, self.mistake), (70, 12, 6, 6, 6)
                )[0]
                await kind(one, session, dice)

    def kill(self, dice: random.Random) -> None:
        pids = [m["pid"] for m in self.llmd.llmctl("status")["models"] if m.get("pid")]
        if pids:
            with suppress(ProcessLookupError):
                os.kill(dice.choice(pids), signal.SIGKILL)
            self.seen.ends["killed"] += 1

    # --- kinds of requests

    async def complete(self, one: Person, session: aiohttp.ClientSession, dice: random.Random) -> None:
        prompt, seed, stream = dice.choice(one.prompts), dice.randrange(2), dice.random() < 0.5
        body = {**_body(dice.choice(one.models), prompt, seed), "stream": stream}
        if stream:
            body["stream_options"] = {"include_usage": True}
        one.asked.append(prompt)
        async with session.post("/v1/completions", json=body) as answer:
            raw = await answer.text()
            self.check(one, answer, raw)
        said, usage, error = _read(raw, stream)
        if error:
            self.seen.ends[error] += 1
            if error not in TOLD:
                self.seen.wrong.append(("refused", one.name, raw))
            return
        self.seen.ends["said"] += 1
        if said != self.alone[prompt, seed]:
            self.seen.wrong.append(("another text", one.name, prompt, seed, said, self.alone[prompt, seed]))
        # its own others, those that came meanwhile too; with the token that begins a text
        others = list(one.asked)
        others.remove(prompt)
        most = max((len(os.path.commonprefix([_tokens(prompt), _tokens(other)])) for other in set(others)), default=-1)
        most += 1
        if usage["prompt_tokens_details"]["cached_tokens"] > most:
            self.seen.wrong.append(("a foreign prefix", one.name, prompt, usage, most))

    async def cancel(self, one: Person, session: aiohttp.ClientSession, dice: random.Random) -> None:
        """It leaves in the middle of its answer, or before it has begun."""
        prompt = dice.choice(one.prompts)
        one.asked.append(prompt)
        body = {**_body(dice.choice(one.models), prompt, dice.randrange(2)), "max_tokens": 200, "stream": True}
        with suppress(TimeoutError):
            async with asyncio.timeout(dice.random() / 20):
                async with session.post("/v1/completions", json=body) as answer:
                    async for line in answer.content:
                        self.check(one, answer, line.decode())
        self.seen.ends["left"] += 1

    async def hidden(self, one: Person, session: aiohttp.ClientSession, dice: random.Random) -> None:
        """What is another's is answered as what there is not."""
        told = []
        route = dice.choice(("/v1/completions", "/tokenize"))
        for model in (one.hidden, "no-such-model"):
            async with session.post(route, json={"model": model, "prompt": one.prompts[0]}) as answer:
                raw = await answer.text()
                self.check(one, answer, raw)
                told.append((answer.status, raw, sorted(name for name in answer.headers)))
        self.seen.ends["hidden"] += 1
        if told[0] != told[1] or told[0][0] != 404:
            self.seen.wrong.append(("told apart", one.name, told))

    async def look(self, one: Person, session: aiohttp.ClientSession, dice: random.Random) -> None:
        """Lists name its own models, and no other."""
        path = dice.choice(("/v1/models", "/readyz", "/openapi.json", "/health"))
        async with session.get(path) as answer:
            raw = await answer.text()
            self.check(one, answer, raw)
            found = json.loads(raw)
        self.seen.ends["looked"] += 1
        if path == "/v1/models" and {m["id"] for m in found["data"]} != set(one.models):
            self.seen.wrong.append(("the list", one.name, found))

    async def mistake(self, one: Person, session: aiohttp.ClientSession, dice: random.Random) -> None:
        bodies: list[dict[str, Any]] = [
            {"prompt": one.prompts[1]}, {"model": one.models[0], "prompt": one.prompts[1], "temperature": 9},
            {"model": one.models[0], "prompt": one.prompts[1] * 20}, {"model": one.models[0] + "@Q9", "prompt": "x"},
        ]  # fmt: skip
        async with session.post("/v1/completions", json=dice.choice(bodies)) as answer:
            raw = await answer.text()
            self.check(one, answer, raw)
        self.seen.ends["mistaken"] += 1
        if answer.status < 400:
            self.seen.wrong.append(("no mistake", one.name, raw))

    def check(self, one: Person, answer: aiohttp.ClientResponse, raw: str) -> None:
        """Nothing of anybody else's, in head or body."""
        whole = raw + "\n".join(f"{name}: {value}" for name, value in answer.headers.items())
        own = {answer.headers.get("X-Request-Id", "")}
        one.ids |= own - {""}
        ids = {found.replace("cmpl-", "req-") for found in IDS.findall(whole)}
        if not ids <= own or any(word in whole for word in (*self.foreign[one], one.hidden)):
            self.seen.wrong.append(("foreign", one.name, whole))


def _tokens(prompt: str) -> bytes:
    """One a byte: the small model has no others. A blank is written as U+2581, one before the text too."""
    return f" {prompt}".replace(" ", "\u2581").encode()


def _body(model: str, prompt: str, seed: int) -> dict[str, Any]:
    body = {"model": model, "prompt": prompt, "seed": seed, "temperature": 0.9, "max_tokens": TOKENS}
    return {**body, "ignore_eos": True}


def _read(raw: str, stream: bool) -> tuple[str, dict[str, Any], str]:
    """What it said, its usage, and the code of its error."""
    if not stream or raw.startswith("{"):
        found = json.loads(raw)
        if "error" in found:
            return "", {}, found["error"]["code"]
        return found["choices"][0]["text"], found["usage"], ""
    said, usage = "", dict[str, Any]()
    for line in raw.splitlines():
        if line.startswith("data: {"):
            found = json.loads(line[6:])
            if "error" in found:
                return "", {}, found["error"]["code"]
            said += "".join(choice["text"] for choice in found["choices"])
            usage = found.get("usage") or usage
    return said, usage, ""


POLICY = """
[groups]
left = {left}
right = {right}

[[grants]]
to = ["left", "right", "demo"]
models = ["smol"]
[[grants]]
to = ["left"]
models = ["port"]
[[grants]]
to = ["right"]
models = ["starboard"]
"""


@pytest.fixture
def crowd(tmp_path: Path) -> Any:
    model = small_models.random_weights(tmp_path, "small", file=small_models.one_block())
    llmd = start_llmd(tmp_path / "state", model, "slots = 6\ncontext = 512\nqueue = 64\n")
    names = [f"{side}{secrets.token_hex(6)}" for side in ("p", "s") for _ in range(4)]
    for name in ("port", "starboard"):
        llmd.llmctl("model", "import", str(model), "--name", name)
        llmd.llmctl("deploy", name)
    for name in names:
        llmd.llmctl("client", "issue", name, "--out", str(tmp_path))
    text = POLICY.format(left=json.dumps(names[:4]), right=json.dumps(names[4:]))
    (tmp_path / "policy.toml").write_text(text)
    llmd.llmctl("policy", "edit", "--file", str(tmp_path / "policy.toml"), "--yes")
    people = [
        Person(name, secrets.token_hex(8), ("smol", "port") if n < 4 else ("smol", "starboard"),
               "starboard" if n < 4 else "port", llmd.tls(name, tmp_path))
        for n, name in enumerate(names)
    ]  # fmt: skip
    yield Crowd(llmd, people, {})
    llmd.stop()


def say_alone(crowd: Crowd) -> None:
    """Each of the texts, as it is when nothing else runs."""
    for prompt in dict.fromkeys(prompt for one in crowd.people for prompt in one.prompts):
        for seed in range(2):
            status, _, found = crowd.llmd.post("/v1/completions", _body("smol", prompt, seed))
            assert status == 200
            crowd.alone[prompt, seed] = found["choices"][0]["text"]
    assert len(set(crowd.alone.values())) > len(crowd.alone) / 2, "they differ"


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_nobody_reads_what_is_anothers_and_each_text_is_its_own(crowd: Crowd) -> None:
    await asyncio.to_thread(say_alone, crowd)
    async with asyncio.TaskGroup() as group:
        for one in crowd.people:
            for n in range(AT_ONCE):
                group.create_task(crowd.run(one, n))
    ends = crowd.seen.ends
    assert crowd.seen.wrong == [], (len(crowd.seen.wrong), crowd.seen.wrong[:3])
    assert ends["killed"] >= KILLS and ends["worker_lost"] > 0, ends
    assert ends["said"] > 0.5 * REQUESTS and ends["left"] > 0.05 * REQUESTS, ends
    await asyncio.to_thread(check_log, crowd)


def check_log(crowd: Crowd) -> None:
    """Each request stands there under who asked it, and the policy's refusals under the rule."""
    assert crowd.llmd.llmctl("audit", "verify")["verdict"] == "holds"
    of = {row["request"]: row["body"]["principal"]
          for row in crowd.llmd.llmctl("audit", "query", "--kind", "admit", "--limit", "0")}  # fmt: skip
    for one in crowd.people:
        assert {of[id_] for id_ in one.ids} == {one.name}
    refused = crowd.llmd.llmctl("audit", "query", "--kind", "refused", "--limit", "0")
    assert any(row["body"].get("reason") == "denied by policy" for row in refused)
