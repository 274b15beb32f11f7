"""The real model calls a tool in every format: prompt, grammar, sampling, reader and the last look, as one."""

import json
import threading
from queue import SimpleQueue
from typing import Any

import jsonschema_rs
import pytest

from llmd.daemon.engine.answers.answering import Answers
from llmd.daemon.engine.answers.detecting import named
from llmd.daemon.engine.answers.formats import CALLS
from llmd.daemon.engine.llama.runner import LlamaRunner
from llmd.daemon.engine.loop import Engine
from llmd.daemon.engine.prompts import Prompts, terms
from llmd.daemon.engine.rendering import Rendering
from llmd.daemon.engine.types import Request, SamplingParams
from llmd.daemon.wire.control import Step
from llmd.daemon.wire.events import Event, Finished, ToolCalled
from llmd.daemon.wire.work import Chat, ChatMessage, Tool, Wanted

PARAMETERS: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"enum": ["Cologne", "Bonn", "a <b>"]}, "days": {"type": "integer"}, "hours": {"type": "boolean"},
    },
    "required": ["city", "days", "hours"], "additionalProperties": False,
}  # fmt: skip
TOOL = Tool(
    "weather", json.dumps({"type": "function", "function": {"name": "weather", "parameters": PARAMETERS}}),
    json.dumps(PARAMETERS), strict=True,
)  # fmt: skip


@pytest.mark.parametrize("syntax", [*CALLS, "hermes+think", "qwen+think", "gemma+gemma"])
def test_a_call_in_every_format(runner: LlamaRunner, syntax: str) -> None:
    vocabulary = runner.vocabulary
    prompts = Prompts(vocabulary, Rendering(terms(vocabulary, runner.info.context, syntax)))
    answers = Answers(vocabulary.lexicon)
    tokens, thoughts = prompts.from_chat(Chat((ChatMessage("user", "The weather in Bonn?"),), tools=(TOOL,)))
    wanted = Wanted(None, (TOOL,), must_call=True, parallel=False)
    sent: SimpleQueue[Step] = SimpleQueue()
    engine = Engine(runner, sent.put, batch=256, chunk=64)
    engine.marks = answers.prepare(named(syntax))
    thread = threading.Thread(target=engine.run)
    thread.start()
    params = SamplingParams(max_tokens=200, seed=1)
    held = answers.answering(named(syntax), wanted, thoughts)
    engine.add(Request(1, "alice", tuple(tokens), params), answering=held)
    events: list[Event] = []
    while not any(isinstance(event, Finished) for event in events):
        events += sent.get(timeout=60).events
    engine.stop()
    thread.join(10)
    end = events[-1]
    assert isinstance(end, Finished)
    if "+" in syntax and end.reason == "length":
        return  # it thought for as long as it might
    called = [event for event in events if isinstance(event, ToolCalled)]
    assert end.reason == "stop" and end.calls and called[0].name == "weather"
    assert jsonschema_rs.is_valid(PARAMETERS, json.loads("".join(event.arguments for event in called)))
