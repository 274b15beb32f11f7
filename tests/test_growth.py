"""Whatever reads what a client or a file gives takes no more than n log n steps of it, or a bound stands here with its
reason. Steps are counted, not timed: instructions of Python, and characters that a text or a list is searched through.

The functions are read from the code: a new one is in neither table, and fails."""

import ast
import json
import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from tempfile import NamedTemporaryFile, TemporaryDirectory
from types import FrameType
from typing import Any

import gguf_writer as gguf
import hf_folder
import pytest
from pydantic import BaseModel

from llmd.api.http import body
from llmd.api.openai import bodies as openai
from llmd.daemon import limits
from llmd.daemon.engine import layouts, output, prefixes, turns
from llmd.daemon.engine.answers import (
    arguments,
    grammar,
    holdable,
    judge,
    loosening,
    matching,
    places,
    reader,
    schemas,
    stops,
)
from llmd.daemon.engine.answers.answering import Answers, Choice
from llmd.daemon.engine.answers.formats import CALLS, THINKINGS, Syntax, Thoughts
from llmd.daemon.engine.answers.least import least
from llmd.daemon.engine.answers.loosening import Loosening
from llmd.daemon.engine.answers.rewriting import rewritten
from llmd.daemon.engine.answers.spelling import GemmaRules, XmlRules
from llmd.daemon.engine.fake import FakeRunner
from llmd.daemon.engine.prompts import Prompts
from llmd.daemon.engine.rendering import Rendering, Terms, any_of
from llmd.daemon.engine.templates import ChatTemplate
from llmd.daemon.engine.torch import architecture
from llmd.daemon.errors import LlmdError
from llmd.daemon.kept import Kept
from llmd.daemon.replicas import routing
from llmd.daemon.serving import holding
from llmd.daemon.serving.ask import Ask
from llmd.daemon.wire import control, events
from llmd.daemon.wire import frames as wire
from llmd.daemon.wire.work import (
    Chat,
    ChatMessage,
    Count,
    Generate,
    RawText,
    SamplingWish,
    Tokenize,
    Tool,
    ToolCall,
    Wanted,
)
from llmd.quantize import check as quantize_check
from llmd.quantize import header, shape
from llmd.quantize.checkpoints import checkpoint, safetensors

pytestmark = pytest.mark.timeout(300)

ROOT = Path(__file__).parents[1]
READING = [
    "api/http/body.py", "api/http/protocol.py",
    *(f"api/openai/{name}.py" for name in ("bodies", "given", "messages", "wanted")),
    *(f"daemon/{name}.py" for name in ("serving/ask", "serving/holding", "serving/tools", "replicas/routing")),
    *(f"daemon/engine/{name}.py" for name in (
        "layouts", "output", "prefixes", "prompts", "rendering", "templates", "turns")),
    *(f"daemon/wire/{name}.py" for name in ("control", "events", "frames", "work")),
    *(f"daemon/engine/answers/{file.name}" for file in (ROOT / "daemon" / "engine" / "answers").glob("[a-z]*.py")),
    "daemon/engine/torch/architecture.py",
    *(f"quantize/{name}.py" for name in ("check", "header", "shape")),
    *(f"quantize/checkpoints/{name}.py" for name in ("checkpoint", "packing", "safetensors")),
]  # fmt: skip
# of a text or a list, which they look through
SEARCHES = frozenset({"find", "rfind", "index", "count", "replace", "split", "join", "strip", "lstrip", "rstrip",
                      "__contains__", "sub", "remove", "insert"})  # fmt: skip

Work = Callable[[], object]
Grow = Callable[[int], Work]


def steps(work: Work) -> int:
    count = 0

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal count
        frame.f_trace_lines, frame.f_trace_opcodes = False, True
        count += event == "opcode"
        return trace

    def profile(_: FrameType, event: str, called: Any) -> None:
        nonlocal count
        if event == "c_call" and called.__name__ in SEARCHES:
            owner = getattr(called, "__self__", None)
            count += len(owner) // 4 if isinstance(owner, str | bytes | bytearray | list) else 0

    before = sys.gettrace(), sys.getprofile()
    sys.settrace(trace)
    sys.setprofile(profile)
    try:
        work()
    except LlmdError:
        pass  # to refuse takes time too
    finally:
        sys.settrace(before[0])
        sys.setprofile(before[1])
    return count


# --- what grows

SYNTAX = {name: Syntax(calls) for name, calls in CALLS.items()}
THINKS = Syntax(CALLS["hermes"], THINKINGS["think"])


def chat_body(**fields: Any) -> openai.ChatBody:
    return of_chat_body({"messages": [{"role": "user", "content": "x"}], **fields})


def of_chat_body(given: dict[str, Any]) -> openai.ChatBody:
    return body.made(json.dumps(given).encode(), openai.ChatBody)


def asked(made: openai.Generation) -> Ask:
    work = Generate(tuple(made.prompts()), made.params(), made.n or 1, made.wanted())
    return Ask("/v1/chat/completions", "m", work)


def whole(made: Callable[[], openai.Generation]) -> Work:
    """All that the daemon does with a body, and the worker with its chat."""

    def work() -> None:
        ask = asked(made())
        ask.prompt()
        ask.parameters()
        ask.schemas()
        assert isinstance(ask.work, Generate)
        for prompt in ask.work.prompts:
            if isinstance(prompt, Chat):
                Rendering(Terms("{% for m in messages %}{{ m.content }}{% endfor %}", "", "")).text(prompt)
        holding.held(ask.work.wanted)

    return work


def turn(role: str = "user", /, **fields: Any) -> dict[str, Any]:
    return {"role": role, "content": "x", **fields}


def call(text: str = "{}") -> dict[str, Any]:
    return {"id": "a", "type": "function", "function": {"name": "a", "arguments": text}}


def tool(**fields: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "a", **fields}}


def properties(n: int, part: Any = None) -> dict[str, Any]:
    return {"type": "object", "properties": {f"p{i}": part or {"type": "string"} for i in range(n)}}


def required(n: int) -> dict[str, Any]:
    """As many as are looked at, with a list of names that grows."""
    return {**properties(200), "required": [f"q{i}" for i in range(10 * n)]}


def named_long(n: int) -> dict[str, Any]:
    """A long name, with much under it."""
    return {"type": "object", "properties": {"a" * 20 * n: properties(n)}}


def references(n: int) -> dict[str, Any]:
    return {**properties(n, {"$ref": "#/$defs/a"}), "$defs": {"a": {"type": "null"}}}


def chained(n: int) -> dict[str, Any]:
    parts = {f"d{i}": {"anyOf": [{"$ref": f"#/$defs/d{i + 1}"}, {"type": "null"}]} for i in range(n)}
    return {"$ref": "#/$defs/d0", "$defs": {**parts, f"d{n}": {"type": "null"}}}


def several(n: int) -> dict[str, Any]:
    return {"anyOf": [{"type": "object", "properties": {f"a{i}": {"const": i}}} for i in range(n)]}


def choices(n: int) -> dict[str, Any]:
    return {"type": "object", "properties": {"a": {"enum": [f"word {i}" for i in range(n)]}}}


def deep(n: int) -> dict[str, Any]:
    """As deep as a body may be, again and again."""
    inner: dict[str, Any] = {"type": "null"}
    for _ in range(12):
        inner = {"type": "object", "properties": {"a": inner}}
    return {"type": "object", "properties": {f"p{i}": inner for i in range(n // 36)}}


SCHEMAS = (properties, required, named_long, references, chained, several, choices, deep)


def on(read: Callable[[Any], object], make: Callable[[int], Any]) -> Grow:
    """What is read is made before, and not measured."""
    return lambda n: partial(read, make(n))


def of_chats(read: Callable[[Any], object], count: int = 7) -> tuple[Grow, ...]:
    return tuple(on(read, make) for make in CHATS[:count])


def of_schemas(read: Callable[[dict[str, Any]], object]) -> tuple[Grow, ...]:
    return tuple(on(read, make) for make in SCHEMAS)


def of_parameters(name: str) -> tuple[Grow, ...]:
    """A grammar of a tool's parameters, in a format."""

    def read(made: dict[str, Any]) -> object:
        given = Tool("a", "{}", json.dumps(made))
        return grammar.answer(SYNTAX[name], Wanted(None, (given,), must_call=True), {"<tool_call>": 5})

    return of_schemas(read)


def rules(kind: type[GemmaRules] | type[XmlRules], made: dict[str, Any]) -> object:
    more = ('<|"|>', ("", "TEXT")) if kind is GemmaRules else ()
    return kind({}, json.dumps, *more).arguments(made, "a")


TEXTS: dict[str, Callable[[int], str]] = {
    "words": lambda n: "a word " * n,
    "blanks": lambda n: " " * 40 * n,
    "brackets": lambda n: "{" * n,
    "objects": lambda n: '{"a": 1}' * n,
    "calls": lambda n: '<tool_call>{"name": "a", "arguments": {"b": 1}}</tool_call>' * (n // 8),
    "begun calls": lambda n: "<tool_call>" * n,
    "thoughts": lambda n: "<think>a</think>" * n,
    "half marks": lambda n: "<tool_cal" * n,
}
# what follows a call's name, by the way in which arguments are written
ARGUMENTS: dict[str, tuple[Callable[[int], str], ...]] = {
    "json": (lambda n: '{"' + "k" * 40 * n, lambda n: '{"k": ["' + '\\"a' * n, lambda n: "{" + " " * 40 * n),
    "gemma": (
        lambda n: "{" + "k" * 40 * n, lambda n: "{k:" + "1" * 40 * n, lambda n: '{k:"' + "1" * 40 * n,
        lambda n: "{k:[" + "1," * n, lambda n: "{k:<|\"|>" + "word " * n, lambda n: "{" + " " * 40 * n,
    ),
    "xml": (
        lambda n: "<parameter=b>\n" + "1" * 40 * n, lambda n: "<parameter=t>\n" + "1" * 40 * n, lambda n: "odd" * n,
        lambda n: "<parameter=b>\n1\n</parameter>\n" * n, lambda n: "\n" * 40 * n,
        lambda n: "<parameter=" + "b" * 40 * n,
    ),
}  # fmt: skip


def written(name: str, text: str, size: int, *, thinks: bool = False) -> Work:
    """Read as it comes, a token after the other."""

    def work() -> None:
        syntax = Syntax(CALLS[name], THINKINGS["think"])
        read = reader.Reader(syntax, frozenset({"a"}), texts={"a": ("t",)}, thinks=thinks, stop=("aab", "}b"))
        for at in range(0, len(text), size):
            read.push(text[at : at + size])
        read.end()

    return work


def of_text(make: Callable[[int], str], name: str, begin: str = "", size: int = 4, *, thinks: bool = False) -> Grow:
    return lambda n: written(name, begin + make(n), size, thinks=thinks)


def of_texts() -> Iterator[Grow]:
    for what, make in TEXTS.items():
        size = 40 if what == "blanks" else 4
        yield from (of_text(make, name, size=size) for name in ("hermes", "llama", "harmony"))
        yield of_text(make, "hermes", size=size, thinks=True)
    for calls in (CALLS["hermes"], CALLS["gemma"], CALLS["qwen"], CALLS["mistral"]):
        begin = f"{calls.first}{calls.head[0]}a{calls.head[1]}"
        yield from (of_text(make, calls.name, begin, 40) for make in ARGUMENTS[calls.arguments])


def stopped(stop: tuple[str, ...], text: str) -> Work:
    def work() -> None:
        out = output.TextOutput(stop)
        for at in range(0, len(text), 4):
            out.push(text[at : at + 4].encode())
        out.flush()

    return work


def with_logprobs(n: int) -> Work:
    def work() -> None:
        out, held = output.TextOutput(("b" * 1000,)), output.LogprobOutput()
        one = events.TokenLogprob(b"b", -1.0)
        for _ in range(min(n, 900)):
            held.push(out, events.ChosenLogprob(one, (one,)))
            out.push(b"b")
            held.release(out.shown)
        held.rest(out.shown)

    return work


def messages(n: int, **more: Any) -> tuple[ChatMessage, ...]:
    return tuple(ChatMessage(("user", "assistant")[i % 2], "some words", **more) for i in range(n))


def called(n: int, text: str = '{"a": [1, "b"]}') -> tuple[ChatMessage, ...]:
    calls = tuple(ToolCall(f"id{i}", "a", text) for i in range(n))
    return (ChatMessage("user", "x"), ChatMessage("assistant", None, tool_calls=calls))


CHATS: tuple[Callable[[int], Chat], ...] = (
    lambda n: Chat(messages(n)),
    lambda n: Chat((ChatMessage("user", "<|im_end|> " * n),)),
    lambda n: Chat((ChatMessage("user", ("part <|x|>",) * n),)),
    lambda n: Chat(called(n)),
    lambda n: Chat(called(1, '{"a": [' + "1, " * n + "1]}")),
    lambda n: Chat(messages(2), None, tuple(Tool(f"t{i}", f'{{"a": "b{i}"}}', "{}") for i in range(n // 4))),
    lambda n: Chat(messages(2), None, (Tool("a", json.dumps(properties(n)), "{}"),)),
)
TEMPLATE = """{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}{{ m.role }}: {{ m.content }}
{% for c in m.tool_calls or [] %}<tool_call>{{ c.function | tojson }}</tool_call>{% endfor %}{% endfor %}"""
# takes none of these conversations as it comes
INSISTS = "{{ raise_exception('no') if messages | length > 1 }}" + TEMPLATE


def laid_out(template: str, chat: Chat) -> None:
    with suppress(LlmdError):
        ChatTemplate(template).laid_out(chat.messages, str, lambda _: None, chat.tools)


def tools_wanted(n: int) -> Wanted:
    return Wanted(None, tuple(Tool(f"t{i}", "{}", "{}", strict=True) for i in range(n)))


def dropped(n: int) -> None:
    held = prefixes.Prefixes()
    held.put(1, prefixes.beginnings("a", range(32 * n)), [])
    held.drop(1)


def of_work(*prompts: Chat, wanted: Wanted | None = None, **params: Any) -> Ask:
    return Ask("", "m", Generate(prompts, SamplingWish(1, **params), 1, wanted))


def frames(data: bytes) -> None:
    """As they come from a socket."""
    decoder = wire.from_daemon()
    for at in range(0, len(data), 100):
        list(decoder.feed(data[at : at + 100]))


def noted(held: holding.Held, n: int) -> None:
    for i in range(n):
        held.note(events.ToolCalled(1, 0, i, "t0", "{}", 1, 0))


def rendering(special: tuple[str, ...] = ("<|im_end|>", "<|x|>")) -> Rendering:
    return Rendering(Terms(TEMPLATE, "", "", special))


def prompts() -> Prompts:
    return Prompts(FakeRunner(slots=1).vocabulary, rendering())


def file_of(made: bytes, read: Callable[[str], object]) -> Work:
    def work() -> None:
        with NamedTemporaryFile() as file:
            file.write(made)
            file.flush()
            read(file.name)

    return work


def gguf_file(n: int, what: str) -> bytes:
    file = gguf.tiny()
    match what:
        case "keys":
            file.keys |= {f"key.{i}": (gguf.U32, i) for i in range(n)}
        case "tensors":
            file.tensors |= {f"tensor.{i}": ((4,), 0) for i in range(n)}
        case "strings":
            file.keys["tokenizer.ggml.tokens"] = (gguf.ARR, (gguf.STR, ["word"] * n))
        case "template":
            file.keys["tokenizer.chat_template"] = (gguf.STR, "a" * 50 * n)
    return file.bytes()


def of_gguf(read: Callable[[str], object]) -> tuple[Grow, ...]:
    kinds = ("keys", "tensors", "strings", "template")
    return tuple((lambda n, what=what: file_of(gguf_file(n, what), read)) for what in kinds)


def folder(n: int, what: str) -> Work:
    made = hf_folder.Folder(shapes=hf_folder.llama_shapes())
    if what == "tensors":
        made.shapes |= {f"model.layers.0.odd.{i}": ("F16", (2,)) for i in range(n)}
    else:
        made.config |= {f"odd_{i}": i for i in range(n)}

    def work() -> None:
        with TemporaryDirectory() as held:
            made.write(Path(held))
            checkpoint.read(held)

    return work


GROWS: dict[str, tuple[Grow, ...]] = {
    "api/http/body.py:parse": (
        on(body.parse, lambda n: json.dumps({"a": list(range(n))}).encode()),
        on(body.parse, lambda n: json.dumps({f"k{i}": "é\\" for i in range(n)}).encode()),
        on(body.parse, lambda n: b"[" * n),
        on(body.parse, lambda n: b'{"a": 1' + b', "a": 1' * n + b"}"),
    ),
    "api/http/body.py:made": (
        on(of_chat_body, lambda n: {"messages": [turn()] * n}),
        on(of_chat_body, lambda n: {f"k{i}": 1 for i in range(n)}),
    ),
    "api/http/body.py:explain": (
        lambda n: lambda: body.explain([{"loc": ("a",) * (i % 9 + 1), "type": "x", "msg": "Y"} for i in range(n)]),
    ),
    "api/openai/messages.py:Message.turn": (
        lambda n: whole(lambda: chat_body(messages=[turn(content=[{"type": "text", "text": "a"}] * min(n, 1000))])),
        lambda n: whole(lambda: chat_body(messages=[turn("assistant", tool_calls=[call()] * min(n, 1000))])),
    ),
    "api/openai/messages.py:Said.check": (
        lambda n: whole(lambda: chat_body(messages=[turn() | {f"odd{i}": None for i in range(n)}])),
    ),
    "api/openai/messages.py:ToolCall.called": (
        lambda n: whole(lambda: chat_body(messages=[turn("assistant", tool_calls=[call('{"a": 1}' * n)])])),
    ),
    "daemon/serving/tools.py:tool": of_schemas(
        lambda made: whole(lambda: chat_body(tools=[tool(parameters=made)]))()
    ),
    "api/openai/wanted.py:ResponseFormat.wanted": of_schemas(
        lambda made: whole(lambda: chat_body(response_format={
            "type": "json_schema", "json_schema": {"name": "a", "schema": made}}))()
    ),
    "daemon/wire/work.py:Chat.spelled": of_chats(lambda chat: chat.spelled()),
    "daemon/wire/work.py:Generate.spelled": (
        on(lambda work: work.spelled(), lambda n: Generate(tuple(map(RawText, "a" * n)), SamplingWish(1))),
    ),
    "daemon/wire/work.py:Count.spelled": (
        on(lambda work: work.spelled(), lambda n: Count(tuple(map(RawText, "a" * n)))),
    ),
    "daemon/wire/work.py:Count.size": (on(lambda work: work.size, lambda n: Count(tuple(map(RawText, "a" * n)))),),
    "daemon/wire/work.py:Chat.size": of_chats(lambda chat: chat.size),
    "daemon/wire/work.py:Generate.size": (
        on(lambda work: work.size, lambda n: Generate(tuple(map(RawText, "a" * n)), SamplingWish(1))),
    ),
    "daemon/wire/work.py:Generate.parts": (
        on(lambda work: work.parts(), lambda n: Generate(tuple(map(RawText, "a" * n)), SamplingWish(1))),
    ),
    "daemon/wire/work.py:Wanted.schemas": (on(Wanted.schemas, tools_wanted),),
    "daemon/wire/work.py:Wanted.held_to": (
        lambda n: partial(tools_wanted(n).held_to, dict.fromkeys(range(n), "{}")),
    ),
    "daemon/wire/work.py:Wanted.said": (on(Wanted.said, tools_wanted),),
    "daemon/wire/work.py:Generate.said": (
        on(Generate.said, lambda n: of_work(stop=("a",) * n, wanted=tools_wanted(n)).work),
    ),
    "daemon/serving/ask.py:Ask.prompt": of_chats(lambda chat: of_work(chat).prompt()),
    "daemon/serving/ask.py:Ask.parameters": (
        on(Ask.parameters, lambda n: of_work(stop=("a",) * n, logit_bias=tuple((i, 1.0) for i in range(n)))),
    ),
    "daemon/serving/ask.py:Ask.schemas": (on(Ask.schemas, lambda n: of_work(wanted=tools_wanted(n))),),
    "daemon/serving/holding.py:Held.note": (
        lambda n: lambda: [holding.Held(Wanted("{}")).note(events.Text(1, 0, "a", i, 0)) for i in range(n)],
        lambda n: partial(noted, holding.Held(tools_wanted(1)), n),
    ),
    "daemon/serving/holding.py:held": (on(holding.held, lambda n: tools_wanted(n)),),
    "daemon/replicas/routing.py:Router.choose": (
        on(lambda prompt: routing.Router().choose([routing.Candidate(i, 0, 1) for i in range(2)], "a", prompt),
           lambda n: bytes(100 * n)),
    ),
    "daemon/replicas/routing.py:beginnings": (on(partial(routing.beginnings, "a"), lambda n: bytes(100 * n)),),
    "daemon/engine/turns.py:Turns.of": (
        *of_chats(lambda chat: turns.Turns(turns.MANNERS[0], {}, str).of(chat.messages), 5),
        *of_chats(lambda chat: turns.Turns(turns.MANNERS[-1], {}, str).of(chat.messages), 5),
    ),
    "daemon/engine/turns.py:mended": (lambda n: lambda: turns.mended("\ud83d" * n),),
    "daemon/engine/turns.py:escaped": (lambda n: lambda: turns.escaped(properties(n), str),),
    "daemon/engine/turns.py:definitions": (
        lambda n: lambda: turns.definitions([Tool(f"t{i}", '{"a": 1}', "{}") for i in range(n)], str),
    ),
    "daemon/engine/turns.py:explained": (
        lambda n: lambda: turns.explained(
            messages(n), [Tool("a", "{}", "{}")] * n, CALLS["hermes"], system=True),
    ),
    "daemon/engine/turns.py:tojson": (lambda n: lambda: turns.tojson(properties(n)),),
    "daemon/engine/layouts.py:Layout.of": of_chats(lambda chat: [one.of(chat.messages) for one in layouts.LAYOUTS]),
    "daemon/engine/templates.py:ChatTemplate.laid_out": (
        *of_chats(lambda chat: laid_out(INSISTS, chat)), *of_chats(lambda chat: laid_out(TEMPLATE, chat)),
    ),
    "daemon/engine/rendering.py:Rendering.text": of_chats(lambda chat: rendering().text(chat)),
    "daemon/engine/rendering.py:any_of": (
        on(any_of, lambda n: [f"<unused{i}>" for i in range(10 * n)]),
    ),
    "daemon/engine/prompts.py:Prompts.from_chat": of_chats(lambda chat: prompts().from_chat(chat)),
    "daemon/engine/prompts.py:Prompts.from_text": (lambda n: lambda: prompts().from_text("a" * n),),
    "daemon/engine/prefixes.py:common_prefix": (
        lambda n: lambda: prefixes.common_prefix([1] * n, [1] * n, n),
    ),
    "daemon/engine/prefixes.py:beginnings": (lambda n: lambda: prefixes.beginnings("a", range(32 * n)),),
    "daemon/engine/prefixes.py:Prefixes.drop": (lambda n: partial(dropped, n),),
    "daemon/engine/prefixes.py:Prefixes.put": (
        lambda n: lambda: prefixes.Prefixes().put(1, prefixes.beginnings("a", range(32 * n)), []),
    ),
    "daemon/engine/prefixes.py:Prefixes.find": (
        lambda n: lambda: prefixes.Prefixes().find(prefixes.beginnings("a", range(32 * n)), list(range(32 * n))),
    ),
    "daemon/engine/output.py:TextOutput.push": (
        lambda n: stopped(("a" * 1000 + "b", *("b" * k for k in range(900, 1000, 10))), "a" * 4 * n),
        lambda n: stopped(("ab" * 500 + "c", "ba" * 500), "ab" * 2 * n),
        lambda n: stopped(("a" * n + "b", "b" * n), "a" * 8 * n),
        lambda n: stopped(tuple(f"word {i}" for i in range(limits.MAX_STOP_STRINGS)), "a word " * n),
    ),
    "daemon/engine/output.py:LogprobOutput.push": (with_logprobs,),
    "daemon/engine/answers/answering.py:Choice.push": (
        lambda n: lambda: [Choice(made).push("a") for made in [answers().answering(THINKS, Wanted(), Thoughts.BEGUN)]
                           if made for _ in range(n)],
    ),
    "daemon/engine/answers/answering.py:Answers.answering": (
        lambda n: lambda: answers().answering(Syntax(), Wanted(json.dumps(choices(n)))),
    ),
    "daemon/engine/answers/arguments.py:Json.read": (
        lambda n: lambda: arguments.Json().read('{"a": [' + '"b\\"", ' * n),
    ),
    "daemon/engine/answers/holdable.py:whole": of_schemas(lambda made: holdable.whole(json.dumps(made), "a")),
    "daemon/engine/answers/rewriting.py:rewritten": (
        *of_schemas(rewritten),
        *(on(rewritten, make) for make in (
            lambda n: {"oneOf": [{"properties": {"k": {"const": str(i)}, "v": {}}} for i in range(n)]},
            lambda n: {"propertyNames": {"enum": [str(i) for i in range(n)]}},
            lambda n: {"properties": {
                str(i): {"uniqueItems": True, "items": {"enum": [1, 2, 3, 4, 5, 6]}} for i in range(n)}},
        )),
    ),
    "daemon/engine/answers/least.py:least": of_schemas(least),
    "daemon/engine/answers/judge.py:answer": of_schemas(
        lambda made: judge.answer(json.dumps(["schemas", [[json.dumps(made), "a", False]], ""]).encode(), Kept(1, 1))
    ),
    "daemon/engine/answers/grammar.py:answer": (
        *of_parameters("hermes"), *of_parameters("gemma"), *of_parameters("qwen"), *of_parameters("mistral"),
        lambda n: lambda: grammar.answer(SYNTAX["hermes"], Wanted(None, tuple(
            Tool(f"t{i}", "{}", "{}") for i in range(n // 4))), {}),
    ),
    "daemon/engine/answers/loosening.py:shaped": of_schemas(loosening.shaped),
    "daemon/engine/answers/loosening.py:Loosening.of": (
        *of_schemas(lambda made: Loosening(lambda _: False).of(made)),
        *of_schemas(lambda made: Loosening(lambda _: True).of(made)),
    ),
    "daemon/engine/answers/matching.py:refusal": of_schemas(lambda made: matching.refusal(json.dumps(made))),
    "daemon/engine/answers/places.py:parts": of_schemas(lambda made: [*places.parts(made)]),
    "daemon/engine/answers/places.py:at": (lambda n: lambda: places.at({}, "#" + "/a" * n),),
    "daemon/engine/answers/places.py:lost": of_schemas(lambda made: [*places.lost(made)]),
    "daemon/engine/answers/places.py:circular": of_schemas(lambda made: [*places.circular(made)]),
    "daemon/engine/answers/places.py:moved": of_schemas(places.moved),
    "daemon/engine/answers/reader.py:fits": (
        lambda n: lambda: reader.fits(CALLS["hermes"].heads[0], "<tool_call>" + " " * n),
    ),
    "daemon/engine/answers/reader.py:Reader.push": tuple(of_texts()),
    "daemon/engine/answers/schemas.py:parsed": of_schemas(lambda made: schemas.parsed(json.dumps(made), "a")),
    "daemon/engine/answers/schemas.py:places": of_schemas(lambda made: [*schemas.places(made)]),
    "daemon/engine/answers/loosening.py:Loosening.first_refused": of_schemas(
        lambda made: Loosening(lambda _: True).first_refused(made)
    ),
    "daemon/engine/answers/schemas.py:prepared": of_schemas(
        lambda made: schemas.prepared(json.dumps(made), "a", strict=False)
    ),
    "daemon/engine/answers/schemas.py:texts_of": of_schemas(lambda made: schemas.texts_of(json.dumps(made))),
    "daemon/engine/answers/schemas.py:is_text": (lambda n: lambda: schemas.is_text({"enum": ["a"] * n}),),
    "daemon/engine/answers/stops.py:Stops.push": (
        lambda n: lambda: stops.Stops(("a" * n + "b", "a")).push("a" * n),
        lambda n: lambda: [found.push("a") for found in [stops.Stops(("a" * n + "b", "ab"))] for _ in range(n)],
    ),
    "daemon/engine/answers/spelling.py:GemmaRules.arguments": of_schemas(lambda made: rules(GemmaRules, made)),
    "daemon/engine/answers/spelling.py:XmlRules.arguments": of_schemas(lambda made: rules(XmlRules, made)),
    "daemon/wire/frames.py:Decoder.feed": (
        on(frames, lambda n: wire.encode(control.Cancel(1)) * n),
        on(frames, lambda n: wire.encode(control.Open(1, "a", Tokenize("a" * 100 * n)))),
    ),
    "quantize/header.py:read_header": of_gguf(header.read_header),
    "quantize/check.py:check_model": of_gguf(lambda path: quantize_check.check_model(header.read_header(path))),
    "quantize/check.py:describe": of_gguf(lambda path: quantize_check.describe(header.read_header(path))),
    "quantize/shape.py:shape_of": of_gguf(lambda path: shape.shape_of(header.read_header(path))),
    "quantize/shape.py:Shape.from_dict": of_gguf(
        lambda path: shape.Shape.from_dict(shape.shape_of(header.read_header(path)).to_dict())
    ),
    "daemon/engine/torch/architecture.py:read": (lambda n: of_llama(n),),
    "quantize/checkpoints/safetensors.py:read_header": (
        lambda n: file_of(hf_folder.file_of({f"t{i}": ("F16", (2,)) for i in range(n)}), safetensors.read_header),
    ),
    "quantize/checkpoints/checkpoint.py:read": (
        lambda n: folder(n, "tensors"), lambda n: folder(n, "keys"),
    ),
}  # fmt: skip


def of_llama(n: int) -> Callable[[], object]:
    """With n tensors that are passed over."""
    config = {
        "architectures": ["LlamaForCausalLM"], "num_hidden_layers": 1,
        **dict.fromkeys(("hidden_size", "num_attention_heads", "intermediate_size", "vocab_size"), 2), "head_dim": 2,
    }  # fmt: skip
    names = [(name, shape) for name, _, shape in architecture.wanted(architecture.described(config), {})]
    names += [(f"{i}{architecture.DERIVED}", (2,)) for i in range(n)]
    tensors = {name: safetensors.Tensor(name, "F32", shape, 0, 8, "") for name, shape in names}
    return lambda: architecture.read(config, tensors)


def answers() -> Answers:
    return Answers(FakeRunner(slots=1).vocabulary.lexicon)


ASIDE = "as large bodies are: in a thread, one at a time"
ONE = "looks at one thing of one size"
PARTS = "a part of what is measured under another name: "
RENDERED = "in the renderer: 2 s of a processor, 512 MiB (`renderers.py`)"
WORD = "a mark or a name, of a length that the formats set"
HEAD = "of a head, which has 16 KiB and 64 lines at most, and an address of 8 KiB (`limits.py`)"
HTTP = "api/http/protocol.py"
BOUNDED: dict[str, str] = {
    **{
        f"{HTTP}:GuardedProtocol.{name}": HEAD
        for name in (
            "connection_made",
            "connection_lost",
            "pause_writing",
            "resume_writing",
            "data_received",
            "send_400_response",
            "on_message_begin",
            "on_url",
            "on_header",
            "on_headers_complete",
            "on_message_complete",
        )
    },
    f"{HTTP}:GuardedProtocol.on_body": "counts; a body has 4 MiB at most",
    **{
        f"{HTTP}:{kind}Protocol.{name}": ONE
        for kind, name in (("Client", "connection_made"), ("Client", "connection_lost"), ("Admin", "connection_made"))
    },
    f"{HTTP}:may_administer": ONE,
    **{
        f"daemon/wire/frames.py:{name}": "msgspec's, in one pass"
        for name in ("encode", "encode_chat", "decode_chat", "from_daemon", "from_worker")
    },
    **{
        f"daemon/wire/{name}": ONE
        for name in (
            "work.py:Chat.thinks",
            "work.py:Generate.sequences",
            "work.py:Generate.most_tokens",
            "work.py:AtOnce.held_to",
            "work.py:AtOnce.said",
            "work.py:AtOnce.schemas",
            "work.py:AtOnce.parts",
            "work.py:RawText.size",
            "work.py:Tokens.size",
            "work.py:Tokenize.size",
            "work.py:Detokenize.size",
            "events.py:moved",
            "events.py:Text.weight",
            "events.py:Reasoning.weight",
            "events.py:ToolCalled.weight",
            "control.py:Ready.positions",
            "control.py:Common.holding",
            "control.py:Common.files",
            "control.py:Torch.files",
        )
    },
    **{
        f"daemon/engine/torch/architecture.py:{name}": "of at most 1,024 layers"
        for name in ("described", "wanted", "Gptq.groups", "Architecture.linears", "Architecture.norms")
    },
    **{
        f"quantize/shape.py:Shape.{name}": "of at most 1,024 blocks"
        for name in ("flash", "tensor_split", "quantized_kv", "to_dict")
    },
    "quantize/shape.py:padded": ONE,
    "api/http/body.py:few": "counts, and refuses",
    "api/http/body.py:read": PARTS + "parse, made",
    "api/http/body.py:is_large": PARTS + "parse",
    "api/http/body.py:aside": "whatever it is given, in a thread",
    "api/openai/messages.py:Part.said": PARTS + "Message.turn",
    "api/openai/messages.py:FunctionCall.text": ONE,
    "api/openai/messages.py:CustomCall.text": ONE,
    "api/openai/given.py:given_template": "16 names, 16 KiB",
    "api/openai/wanted.py:ToolDefinition.engine": PARTS + "tool",
    "api/openai/wanted.py:chosen": "128 names at most",
    "daemon/serving/tools.py:Choice.told": "128 tools at most",
    "daemon/serving/tools.py:Choice.wanted": "128 tools at most",
    "daemon/serving/tools.py:written": PARTS + "tool",
    "api/openai/bodies.py:ChatBody.limit": ONE,
    "api/openai/bodies.py:ChatBody.wanted_logprobs": ONE,
    "api/openai/bodies.py:ChatBody.prompts": PARTS + "the fields below",
    "api/openai/bodies.py:ChatBody.wanted": PARTS + "the fields below",
    "api/openai/bodies.py:ChatBody.told": PARTS + "tool",
    "api/openai/bodies.py:TokenizeBody.text": ONE,
    "api/openai/bodies.py:CompletionBody.limit": ONE,
    "api/openai/bodies.py:CompletionBody.wanted_logprobs": ONE,
    "api/openai/bodies.py:CompletionBody.prompts": PARTS + "the fields below",
    "daemon/serving/ask.py:Ask.seconds": ONE,
    **{
        f"daemon/wire/work.py:{kind}.{name}": "one text or list, in one pass"
        for kind, name in (
            ("RawText", "spelled"),
            ("RawText", "among"),
            ("Tokens", "spelled"),
            ("Tokens", "among"),
            ("Tokenize", "spelled"),
            ("Detokenize", "spelled"),
            ("Chat", "among"),
        )
    },
    "daemon/wire/work.py:ChatMessage.texts": PARTS + "Chat.size",
    "daemon/wire/work.py:Generate.check": ONE,
    "daemon/wire/work.py:AtOnce.check": ONE,
    "daemon/wire/work.py:Generate.schemas": "as Wanted's",
    "daemon/wire/work.py:Generate.held_to": "as Wanted's",
    "daemon/serving/ask.py:Ask.held_to": "of 128 tools at most",
    "daemon/replicas/routing.py:Candidate.free": ONE,
    "daemon/engine/layouts.py:shows": "each search begins where the one before ended; else " + RENDERED,
    "daemon/engine/templates.py:ChatTemplate.syntax": RENDERED,
    "daemon/engine/templates.py:chat_template": RENDERED,
    "daemon/engine/rendering.py:overflow": ONE,
    "daemon/engine/rendering.py:Terms.check": ONE,
    "daemon/engine/rendering.py:Terms.template_of": ONE,
    "daemon/engine/rendering.py:Rendering.syntax": RENDERED,
    "daemon/engine/prompts.py:named": ONE,
    "daemon/engine/prompts.py:terms": "of a model: once",
    "daemon/engine/prompts.py:Prompts.syntax": ONE,
    "daemon/engine/prompts.py:Prompts.check_length": ONE,
    "daemon/engine/output.py:TextOutput.stopped": ONE,
    "daemon/engine/output.py:TextOutput.partial": ONE,
    "daemon/engine/output.py:TextOutput.flush": ONE,
    "daemon/engine/output.py:LogprobOutput.release": PARTS + "LogprobOutput.push",
    "daemon/engine/output.py:LogprobOutput.rest": PARTS + "LogprobOutput.push",
    "daemon/engine/answers/answering.py:Answering.start": PARTS + "texts_of, once a choice",
    "daemon/engine/answers/answering.py:Choice.end": PARTS + "Reader.push",
    **{f"daemon/engine/answers/answering.py:Choice.{name}": ONE for name in ("calls", "stopped", "shown")},
    "daemon/engine/answers/answering.py:Answers.prepare": "of a vocabulary: once",
    "daemon/engine/answers/arguments.py:overlap": WORD,
    "daemon/engine/answers/arguments.py:Gemma.read": PARTS + "Reader.push",
    "daemon/engine/answers/arguments.py:Xml.read": PARTS + "Reader.push",
    "daemon/engine/answers/holdable.py:held": PARTS + "answer",
    "daemon/engine/answers/places.py:below": PARTS + "parts",
    "daemon/engine/answers/places.py:refers": PARTS + "parts",
    "daemon/engine/answers/places.py:move_back": PARTS + "moved",
    "daemon/engine/answers/judge.py:validator": PARTS + "check, in a child: 2 s, 2 GiB",
    "daemon/engine/answers/judge.py:main": PARTS + "answer",
    "daemon/engine/answers/detecting.py:calls_in": RENDERED,
    "daemon/engine/answers/detecting.py:begins_thinking": "a prompt's end",
    "daemon/engine/answers/detecting.py:thinking_in": RENDERED,
    "daemon/engine/answers/detecting.py:named": WORD,
    "daemon/engine/answers/detecting.py:name_of": WORD,
    "daemon/engine/answers/formats.py:thinking_named": WORD,
    "daemon/engine/answers/formats.py:name_of_thinking": WORD,
    "daemon/engine/answers/formats.py:Calls.triggers": WORD,
    "daemon/engine/answers/formats.py:Syntax.written": WORD,
    "daemon/engine/answers/formats.py:Syntax.marks": WORD,
    "daemon/engine/answers/matching.py:Grammars.compiled": "llguidance's, under its limits; 2 s (`__main__.py`)",
    "daemon/engine/answers/matching.py:Grammar.start": "llguidance's copy",
    "daemon/engine/answers/matching.py:Matcher.ended": ONE,
    "daemon/engine/answers/matching.py:Matcher.whole": ONE,
    "daemon/engine/answers/matching.py:Matcher.accept": "llguidance's, under its limits of a step",
    "daemon/engine/answers/matching.py:Masks.of": "llguidance's, under its limits of a step",
    **{f"daemon/engine/answers/reader.py:Reader.{name}": ONE for name in ("thinking", "stopped", "shown")},
    "daemon/engine/answers/reader.py:Reader.end": PARTS + "Reader.push",
    "daemon/engine/answers/validating.py:Validator.check": "the library's, in a child: 2 s (`serving/judging.py`)",
    "daemon/engine/answers/schemas.py:field": WORD,
    "daemon/engine/answers/schemas.py:line": "of what a library says, 200 characters",
    "daemon/engine/answers/spelling.py:Rules.add": ONE,
    "daemon/engine/answers/stops.py:Stops.flush": ONE,
    "quantize/header.py:generation_defaults": "a fixed list of keys",
    "quantize/header.py:end_tokens": "the first 1,024 bytes of a key",
    "quantize/header.py:refuse_foreign": "a file's first bytes",
    "quantize/checkpoints/safetensors.py:shown": ONE,
    "quantize/checkpoints/checkpoint.py:parts": PARTS + "read",
    "quantize/checkpoints/checkpoint.py:document": PARTS + "read",
    "quantize/checkpoints/checkpoint.py:blobs": ONE,
    "quantize/checkpoints/packing.py:check_method": ONE,
    "quantize/checkpoints/packing.py:completed": PARTS + "read",
    "quantize/checkpoints/packing.py:check_gptq": PARTS + "read",
    "quantize/checkpoints/checkpoint.py:architecture_of": ONE,
    "quantize/checkpoints/checkpoint.py:text_part": ONE,
}


def functions() -> Iterator[str]:
    for file in READING:
        for node in ast.parse((ROOT / file).read_text()).body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_"):
                yield f"{file}:{node.name}"
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_") and not _only_says(node):
                for inner in node.body:
                    if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef) and not inner.name.startswith("_"):
                        yield f"{file}:{node.name}.{inner.name}"


def _only_says(node: ast.ClassDef) -> bool:
    """A class that others fill."""
    return any(ast.unparse(base) in ("Protocol", "abc.ABC") for base in node.bases)


def test_every_function_is_measured_or_bounded() -> None:
    assert sorted({*GROWS, *BOUNDED}) == sorted(functions()) and not GROWS.keys() & BOUNDED.keys()


N = 64


def grows(make: Grow) -> list[int]:
    """Its steps for N, 2 N and 4 N."""
    steps(make(8))  # what it loads first
    return [steps(make(n)) for n in (N, 2 * N, 4 * N)]


def too_fast(one: int, two: int, four: int) -> bool:
    """Faster than n log n: four times as much takes four times as long and a logarithm."""
    slack = 1.25 * math.log(4 * N) / math.log(N)
    return four > 4 * slack * one + 2000 and four - two > 2 * slack * (two - one) + 2000


def square(n: int) -> Work:
    return lambda: [0 for _ in range(n) for _ in range(n)]


def searched(n: int) -> Work:
    return lambda: [i for i in range(n) if ("a" * 40 * n).find("b") < 0]


# --- bodies, field by field

FIELDS: dict[str, Callable[[int], Any]] = {
    "messages": lambda n: [turn()] * n,
    "messages.content": lambda n: [{"type": "text", "text": "a"}] * min(n, 1000),
    "messages.content.image_url": lambda n: {f"k{i}": 1 for i in range(n)},
    "messages.content.input_audio": lambda n: {f"k{i}": 1 for i in range(n)},
    "messages.content.file": lambda n: {f"k{i}": 1 for i in range(n)},
    "messages.content.prompt_cache_breakpoint": lambda n: {f"k{i}": 1 for i in range(n)},
    "messages.annotations": lambda n: [{}] * n,
    "messages.audio": lambda n: {f"k{i}": 1 for i in range(n)},
    "messages.tool_calls": lambda n: [call()] * min(n, 1000),
    "stop": lambda n: ["a" * n] * 16,
    "logit_bias": lambda n: {str(i): 1.0 for i in range(n)},
    "response_format.schema_": properties,
    "response_format.json_schema.schema_": properties,
    "tools": lambda n: [tool() | {"function": {"name": f"t{i}"}} for i in range(min(n, 128))],
    "tools.function.parameters": properties,
    "tool_choice.allowed_tools.tools": lambda n: [{"type": "function", "function": {"name": "a"}}] * min(n, 128),
    "functions": lambda n: [{"name": "a"}] * n,
    "modalities": lambda n: ["text"] * n,
    "audio": lambda n: {f"k{i}": 1 for i in range(n)},
    "chat_template_kwargs": lambda n: {f"k{i}": 1 for i in range(n)},
    "web_search_options": lambda n: {f"k{i}": 1 for i in range(n)},
    "moderation": lambda n: {f"k{i}": 1 for i in range(n)},
    "metadata": lambda n: {f"k{i}": "a" for i in range(n)},
    "prompt_cache_options": lambda n: {f"k{i}": 1 for i in range(n)},
    "prompt": lambda n: [[1] * n] * 4,
    "tokens": lambda n: [1] * n,
}
# what stands around a field
AROUND: dict[str, Callable[[Any], Any]] = {
    "messages.content": lambda value: [turn(content=value)],
    "messages.annotations": lambda value: [turn("assistant", annotations=value)],
    "messages.audio": lambda value: [turn("assistant", audio=value)],
    "messages.tool_calls": lambda value: [turn("assistant", tool_calls=value)],
    "response_format.schema_": lambda value: {"type": "json_object", "schema": value},
    "response_format.json_schema.schema_": lambda value: {
        "type": "json_schema", "json_schema": {"name": "a", "schema": value}},
    "tools.function.parameters": lambda value: [tool(parameters=value)],
    "tool_choice.allowed_tools.tools": lambda value: {
        "type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": value}},
}  # fmt: skip
KINDS = {"prompt": openai.CompletionBody, "tokens": openai.DetokenizeBody}


def containers(kind: type[BaseModel], before: str = "") -> Iterator[str]:
    """The fields of a body, and of what is in it, that hold a list or a dict."""
    for name, found in kind.model_fields.items():
        shown = str(found.annotation)
        if "list[" in shown or "dict[" in shown:
            yield before + name
        for inner in _models(found.annotation):
            yield from containers(inner, f"{before}{name}.")


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in getattr(annotation, "__args__", ()):
        yield from _models(part)


def test_every_field_that_holds_many_is_measured() -> None:
    kinds = (openai.ChatBody, openai.CompletionBody, openai.DetokenizeBody, openai.TokenizeBody)
    assert {name for kind in kinds for name in containers(kind)} == set(FIELDS)


def field(name: str) -> Grow:
    top, _, part = name.partition(".")

    def grow(n: int) -> Work:
        value = FIELDS[name](n)
        if name.startswith("messages.content."):
            value = [turn() | {"content": [{"type": "text", "text": "a", name.rpartition(".")[2]: value}]}]
        around = AROUND.get(name)
        given = {top: around(value) if around else value}
        kind = KINDS.get(name, openai.ChatBody)
        if kind is openai.ChatBody:
            return whole(lambda: chat_body(**given))
        data = json.dumps(given).encode()
        made: Any = kind
        return whole(lambda: body.made(data, made)) if name == "prompt" else partial(body.made, data, made)

    return grow


# --- measured in a process of its own, in which nothing else runs

ALL: dict[str, Grow] = {
    **{f"{name} {i}": grow for name, several in GROWS.items() for i, grow in enumerate(several)},
    **{f"the field {name}": field(name) for name in FIELDS},
}
SELF: dict[str, tuple[Grow, bool]] = {
    "n²": (square, True), "a search in a search": (searched, True),
    "n log n": (lambda n: lambda: sorted(range(n), key=lambda k: -k), False),
}  # fmt: skip


@pytest.fixture(scope="module")
def counted() -> dict[str, list[int]]:
    done = subprocess.run([sys.executable, __file__], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found: dict[str, list[int]] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("name", ALL)
def test_it_grows_with_what_it_reads_and_no_faster(counted: dict[str, list[int]], name: str) -> None:
    assert not too_fast(*counted[name]), counted[name]


@pytest.mark.parametrize("name", SELF)
def test_what_grows_faster_is_found(counted: dict[str, list[int]], name: str) -> None:
    assert too_fast(*counted[name]) is SELF[name][1]


if __name__ == "__main__":
    limits.LARGE_VALUES = 0  # schemas are written in one way, however large
    print(json.dumps({name: grows(grow) for name, grow in (ALL | {k: v for k, (v, _) in SELF.items()}).items()}))
