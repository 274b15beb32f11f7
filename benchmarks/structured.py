#!/usr/bin/env python3
"""What it costs to hold answers to schemas, and how soon a call of a tool is there.

python benchmarks/structured.py MODEL [--gpus UUID] [--slots 32]     results in benchmarks/results/structured.md

1. `--slots` streams at once whose answers are held to eight schemas, and the same number of the same length that are
   free, in turn, `--rounds` times: output tokens/s of each, and one through the other. The same for streams that may
   call one of two tools and do not, beside free ones whose prompts are as long.
2. The first token of a new schema of 100 properties, and of a free answer, one at a time.
3. A call in a stream: what stands between the event of its name and the first of its arguments.
4. Here, without a server: what one mask takes of llguidance and of llama.cpp's own grammars (GBNF), over the tokens of
   the same JSON; and what it takes to hold a whole answer against its schema.

The answers of 1. cannot end by themselves: lists of more items than fit, or `ignore_eos`.
"""

import argparse
import asyncio
import ctypes
import json
import ssl
import statistics
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
from run import NAME, llmd, machine

from llmd.daemon.serving.judging import Schemas

TEXT: dict[str, Any] = {"type": "string", "minLength": 1, "maxLength": 40}
ITEMS: list[dict[str, Any]] = [
    {"type": "object", "properties": {"name": TEXT, "age": {"type": "integer", "minimum": 0, "maximum": 120}},
     "required": ["name", "age"], "additionalProperties": False},
    {"type": "object", "properties": {"id": {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{4}$"},
     "tags": {"type": "array", "items": TEXT, "minItems": 1, "maxItems": 5}}, "required": ["id", "tags"],
     "additionalProperties": False},
    {"type": "object", "properties": {"when": {"type": "string", "format": "date-time"}, "what": TEXT,
     "done": {"type": "boolean"}}, "required": ["when", "what", "done"], "additionalProperties": False},
    {"enum": ["red", "green", "blue", "yellow", "black", "white", "orange", "purple"]},
    {"type": "number", "minimum": -1000, "maximum": 1000},
    {"anyOf": [{"type": "object", "properties": {"kind": {"const": kind}, "value": of}, "required": ["kind", "value"],
     "additionalProperties": False} for kind, of in (("text", TEXT), ("number", {"type": "number"}))]},
    {"type": "object", "additionalProperties": {"type": "integer"}, "minProperties": 1},
    {"type": "object", "properties": {"street": TEXT, "city": TEXT, "zip": {"type": "string", "pattern": "^[0-9]{5}$"},
     "at": {"type": "object", "properties": {"lat": {"type": "number"}, "lon": {"type": "number"}},
     "required": ["lat", "lon"]}}, "required": ["street", "city", "zip", "at"]},
]  # fmt: skip
SCHEMAS = [{"type": "array", "items": item, "minItems": 100_000} for item in ITEMS]
CITY = {"type": "object", "properties": {"city": TEXT}, "required": ["city"], "additionalProperties": False}
TOOLS = [
    {"type": "function", "function": {"name": name, "description": f"the {name}", "strict": True, "parameters": CITY}}
    for name in ("weather", "time")
]
PROMPT = "Write a long list of things that one might find in a town, with all that is known of them. "


def hundred(number: int) -> dict[str, Any]:
    """A schema that no other request has."""
    kinds: list[dict[str, Any]] = [TEXT, {"type": "integer"}, {"type": "boolean"}, {"type": "array", "items": TEXT}]
    names = [f"field_{number}_{i}" for i in range(100)]
    properties = {name: kinds[i % 4] for i, name in enumerate(names)}
    return {"type": "object", "properties": properties, "required": names, "additionalProperties": False}


def form(schema: dict[str, Any]) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}}


class Client:
    """Streams from one server."""

    def __init__(self, target: list[str], session: aiohttp.ClientSession) -> None:
        given = dict(zip(target[::2], target[1::2], strict=True))
        self.url = given["--url"] + "/v1/chat/completions"
        self.tls = ssl.create_default_context(cafile=given["--ca"])
        self.tls.load_cert_chain(given["--cert"], given["--key"])
        self._session, self._prompts = session, 0

    async def ask(self, tokens: int, pad: int = 0, **more: Any) -> list[tuple[float, dict[str, Any]]]:
        """The events with content, each with the seconds since it was asked for."""
        self._prompts += 1
        messages = [{"role": "user", "content": f"{'word ' * pad}{self._prompts}. {PROMPT}"}]
        body = {
            "model": NAME,
            "messages": messages,
            "max_tokens": tokens,
            "stream": True,
            "seed": self._prompts,
            **more,
        }
        body["stream_options"] = {"include_usage": True}
        began, events = time.perf_counter(), []
        async with self._session.post(self.url, json=body, ssl=self.tls) as answer:
            if answer.status != 200:
                raise SystemExit(await answer.text())
            async for line in answer.content:
                if line.startswith(b'data: {"error"'):
                    raise SystemExit(f"an answer failed: {line.decode()}, asked: {json.dumps(more)[:500]}")
                if line.startswith(b"data: {"):
                    events.append((time.perf_counter() - began, json.loads(line[6:])))
        return events


async def rate(client: Client, streams: int, tokens: int, more: list[dict[str, Any]]) -> float:
    """Output tokens a second of so many streams."""
    began = time.perf_counter()
    answers = await asyncio.gather(*(client.ask(tokens, **more[i % len(more)]) for i in range(streams)))
    seconds = time.perf_counter() - began
    return float(sum(events[-1][1]["usage"]["completion_tokens"] for events in answers) / seconds)


def first(events: list[tuple[float, dict[str, Any]]]) -> float:
    return next(at for at, event in events if event["choices"] and event["choices"][0]["delta"].get("content"))


async def throughput(client: Client, a: argparse.Namespace) -> dict[str, list[float]]:
    kinds: dict[str, list[dict[str, Any]]] = {
        "free": [{"ignore_eos": True}],
        "held to 8 schemas": [form(schema) for schema in SCHEMAS],
        # their prompts hold the tools, about 200 tokens
        "free, with longer prompts": [{"pad": 200, "ignore_eos": True}],
        "may call 2 tools": [{"tools": TOOLS, "ignore_eos": True}],
    }
    found: dict[str, list[float]] = {name: [] for name in kinds}
    for more in kinds.values():
        await rate(client, min(a.slots, 8), 8, more)
    for number in range(a.rounds):
        for name in list(kinds)[:: 1 if number % 2 == 0 else -1]:
            found[name].append(await rate(client, a.slots, a.tokens, kinds[name]))
            print(f"{name}: {found[name][-1]:.1f} tokens/s", flush=True)
    return found


async def first_tokens(client: Client, rounds: int) -> tuple[list[float], list[float]]:
    free, new = [], []
    for number in range(rounds):
        free.append(first(await client.ask(4, ignore_eos=True)))
        new.append(first(await client.ask(4, **form(hundred(number)))))
    return free, new


async def calls(client: Client, rounds: int) -> list[tuple[int, float]]:
    """Events and seconds between a call's name and the first of its arguments."""
    found = []
    for _ in range(rounds):
        events = await client.ask(200, tools=TOOLS, tool_choice="required", parallel_tool_calls=False)
        said = [(at, event["choices"][0]["delta"]) for at, event in events if event["choices"]]
        deltas = [(at, call) for at, delta in said for call in delta.get("tool_calls", [])]
        named = next(i for i, (_, call) in enumerate(deltas) if call["function"].get("name"))
        argued = next(i for i, (_, call) in enumerate(deltas) if call["function"]["arguments"])
        found.append((argued - named, deltas[argued][0] - deltas[named][0]))
    return found


# --- masks, side by side


def samples() -> list[tuple[dict[str, Any], str]]:
    """A schema, and JSON that fits it."""
    values: list[Any] = [
        {"name": "Ada Lovelace", "age": 36}, {"id": "AB-1234", "tags": ["old", "made of stone", "tall"]},
        {"when": "2026-11-27T10:00:00Z", "what": "market day", "done": False}, "green", -12.5,
        {"kind": "number", "value": 17}, {"towers": 3, "gates": 4, "wells": 12},
        {"street": "Hohe Str. 1", "city": "Cologne", "zip": "50667", "at": {"lat": 50.94, "lon": 6.96}},
    ]  # fmt: skip
    listed = [{"type": "array", "items": item} for item in ITEMS]
    return [(schema, json.dumps([value] * 8)) for schema, value in zip(listed, values, strict=True)]


def masks(model: str) -> dict[str, list[float]]:
    """Seconds a mask, over every token of the samples."""
    import llama_cpp.llama_cpp as lib
    from llama_cpp.llama_grammar import json_schema_to_gbnf

    from llmd.daemon.engine.answers import grammar
    from llmd.daemon.engine.answers.formats import Syntax
    from llmd.daemon.engine.answers.matching import Grammars, Masks
    from llmd.daemon.engine.llama.vocabulary import of_file, prepare
    from llmd.daemon.wire.work import Wanted

    prepare(gpus=False)
    vocabulary = of_file(model)
    grammars, made = Grammars(vocabulary.lexicon()), Masks(1, vocabulary.size)
    candidates = (lib.llama_token_data * vocabulary.size)()
    names = ("llguidance", "llama.cpp (GBNF)", "compile llguidance", "compile GBNF")
    found: dict[str, list[float]] = {name: [] for name in names}
    for schema, text in samples():
        began = time.perf_counter()
        matcher = grammars.compiled(grammar.answer(Syntax(), Wanted(json.dumps(schema)), {})).start()
        found["compile llguidance"].append(time.perf_counter() - began)
        began = time.perf_counter()
        gbnf = json_schema_to_gbnf(json.dumps(schema))
        sampler = lib.llama_sampler_init_grammar(vocabulary._vocab, gbnf.encode(), b"root")
        found["compile GBNF"].append(time.perf_counter() - began)
        for token in vocabulary.tokenize(text, add_special=False, parse_special=False):
            began = time.perf_counter()
            made.of([(matcher, 0)])
            found["llguidance"].append(time.perf_counter() - began)
            matcher.accept(token)
            if not sampler:
                continue
            for i in range(vocabulary.size):
                candidates[i].id, candidates[i].logit = i, 0.0
            array = lib.llama_token_data_array(candidates, vocabulary.size, -1, False)
            began = time.perf_counter()
            lib.llama_sampler_apply(sampler, ctypes.byref(array))
            found["llama.cpp (GBNF)"].append(time.perf_counter() - began)
            lib.llama_sampler_accept(sampler, token)
        if sampler:
            lib.llama_sampler_free(sampler)
    return found


# --- what came of it


async def measured(a: argparse.Namespace, target: list[str]) -> list[str]:
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        client = Client(target, session)
        found = await throughput(client, a)
        free, new = await first_tokens(client, a.new)
        begun = await calls(client, a.new)
    middle = {name: statistics.median(values) for name, values in found.items()}
    lines = ["| streams | tokens/s, median (lowest – highest) | ÷ free |", "|---|---|---|"]
    for name, values in found.items():
        spread = f"{middle[name]:.1f} ({min(values):.1f} – {max(values):.1f})"
        beside = middle["free, with longer prompts" if name == "may call 2 tools" else "free"]
        lines.append(f"| {a.slots} {name} | {spread} | {middle[name] / beside:.2f} |")
    more = 1000 * (statistics.median(new) - statistics.median(free))
    lines += [
        "", "| | |", "|---|---|",
        f"| first token, free, median of {a.new} | {1000 * statistics.median(free):.0f} ms |",
        f"| first token of a new schema of 100 properties | {1000 * statistics.median(new):.0f} ms ({more:+.0f}) |",
        f"| the slowest of them | {1000 * max(new):.0f} ms |",
        f"| a call's name to its first argument byte | {max(n for n, _ in begun)} events later at most, "
        f"{1000 * max(s for _, s in begun):.1f} ms |",
    ]  # fmt: skip
    return lines


async def fits(rounds: int = 200) -> list[str]:
    """What a whole answer waits for before its end is told: a question to the process that holds it against its
    schema."""
    schemas, lines = Schemas(), []
    await schemas.start()
    for name, item, count in (("an answer of one item", ITEMS[0], 1), ("one of 200 items", ITEMS[7], 200)):
        schema = {"type": "array", "items": item}
        values = {"name": "Ann", "age": 5, "street": "s", "city": "c", "zip": "12345", "at": {"lat": 1.5, "lon": 2}}
        text, took = json.dumps([values] * count), []
        one = {**schema, "items": {**item, "additionalProperties": True}}
        for _ in range(rounds):
            began = time.perf_counter()
            await schemas.fit("bench", [(json.dumps(one), "response_format", text, "the answer")])
            took.append(1000 * (time.perf_counter() - began))
        took.sort()
        lines.append(f"| {name} ({len(text)} bytes) | {statistics.median(took):.2f} ms | {took[-1]:.2f} ms |")
    await schemas.close()
    return ["| held against its schema | median | most |", "|---|---|---|", *lines]


def compared(found: dict[str, list[float]]) -> list[str]:
    lines = ["| | median | 99th percentile | most |", "|---|---|---|---|"]
    for name, values in found.items():
        if values:
            ordered = sorted(1e6 * value for value in values)
            high = ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]
            cells = " | ".join(f"{value:.0f} µs" for value in (statistics.median(ordered), high, ordered[-1]))
            lines.append(f"| {name} ({len(values)}) | {cells} |")
    return lines


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("model", help="a GGUF with a chat template")
    p.add_argument("--gpus", default="")
    p.add_argument("--ubatch", type=int, default=2048)
    p.add_argument("--threads", type=int, default=0)
    p.add_argument("--slots", type=int, default=32)
    p.add_argument("--context", type=int, default=1024)
    p.add_argument("--tokens", type=int, default=128, help="of an answer")
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--new", type=int, default=20, help="new schemas, and calls")
    p.add_argument("--out", type=Path, help="where the tables go as well")
    a = p.parse_args()
    with tempfile.TemporaryDirectory() as folder, llmd(a, Path(folder)) as target:
        lines = asyncio.run(measured(a, target))
    head = (
        f"{machine(a.gpus)}, {datetime.now(UTC):%Y-%m-%d}. {Path(a.model).name}, {a.slots} slots of "
        f"{a.context} tokens, answers of {a.tokens}, {a.rounds} rounds."
    )
    beside = ["", "One mask, and a grammar's compilation:", "", *compared(masks(a.model)), ""]
    beside += ["Before the end of a whole answer is told:", "", *asyncio.run(fits()), ""]
    text = "\n".join([head, "", *lines, *beside])
    if a.out:
        a.out.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
