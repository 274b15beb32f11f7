"""A worker of the torch engine, in its interpreter and as the unit holds it: nothing that it writes becomes code."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import llama_cpp
import pytest
from torch_folders import PYTHON, needs_torch

from llmd.daemon.errors import ModelInvalid
from llmd.daemon.metrics import Metrics
from llmd.daemon.planning.engines import Engine
from llmd.daemon.replicas import worker as worker_module
from llmd.daemon.replicas.worker import Worker
from llmd.daemon.wire.control import Torch
from llmd.daemon.wire.events import Event, Finished, Started, Text
from llmd.daemon.wire.work import Chat, ChatMessage, Generate, Prompt, RawText, SamplingWish, Wanted
from llmd.quantize.footprint import Load

pytestmark = [pytest.mark.slow, needs_torch, pytest.mark.timeout(600)]

# prctl(2): PR_SET_MDWE, which systemd sets for MemoryDenyWriteExecute; kept by what is executed
HELD = """#!{python}
import ctypes, os, sys
if ctypes.CDLL(None).prctl(65, 1, 0, 0, 0) and [*map(int, os.uname().release.split(".")[:2])] >= [6, 3]:
    sys.exit("it is not held")
os.execv({torch!r}, [{torch!r}, *sys.argv[1:]])
"""


@pytest.fixture
async def started(folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator["Starts"]:
    held = tmp_path / "python"
    held.write_text(HELD.format(python=sys.executable, torch=str(PYTHON)))
    held.chmod(0o755)
    monkeypatch.setattr(worker_module, "ENGINES", {Torch.engine: Engine(Load, interpreter=str(held))})
    starts = Starts(folders)
    yield starts
    for worker in starts.all:
        await worker.stop()


class Starts:
    def __init__(self, folders: Path) -> None:
        self._folders = folders
        self.all: list[Worker] = []

    async def __call__(self, name: str, header: str = "") -> Worker:
        """Of a folder, with its vocabulary or another's."""
        assert llama_cpp.__file__
        settings = Torch(
            path=str(self._folders / name), slots=3, context=512, batch=256, chunk=64, threads=2, pages=10,
            header=str(self._folders / f"{header or name}.gguf"), library=str(Path(llama_cpp.__file__).parent),
        )  # fmt: skip
        self.all.append(Worker(settings, Metrics().model(name)))
        await self.all[-1].start()
        return self.all[-1]


async def said(worker: Worker, prompt: Prompt, wanted: Wanted | None = None, **params: Any) -> list[Event]:
    work = Generate((prompt,), SamplingWish(60, **params), wanted=wanted)
    stream, events = worker.open("alice", work), list[Event]()
    while not stream.read_out:
        events += await asyncio.wait_for(stream.next(), 60)
    return events


def text(events: list[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, Text))


async def test_it_answers_as_any_other(started: Starts) -> None:
    worker = await started("smollm2")
    assert worker.info and worker.info.chat and worker.info.context == 512 and worker.info.confined
    events = await said(worker, RawText("The capital of France is"), temperature=0.0)
    assert isinstance(events[0], Started) and isinstance(events[-1], Finished)
    assert text(events).startswith(" Paris")
    seeded = [said(worker, RawText("Once upon a time"), temperature=1.0, seed=5) for _ in range(3)]
    assert len({text(one) for one in await asyncio.gather(*seeded)}) == 1
    chat = Chat((ChatMessage("user", "Name a colour."),))
    colours = {"colour": {"enum": ["red", "blue"]}}
    schema = {"type": "object", "properties": colours, "required": ["colour"], "additionalProperties": False}
    held = text(await said(worker, chat, Wanted(schema=json.dumps(schema))))
    assert held.replace(" ", "").replace("\n", "") in ('{"colour":"red"}', '{"colour":"blue"}')


async def test_packed_weights_answer_too(started: Starts) -> None:
    worker = await started("gptq")
    events = await said(worker, RawText("a"), temperature=0.0)
    assert isinstance(events[-1], Finished) and events[-1].tokens


async def test_what_it_does_not_serve_is_refused_by_name(started: Starts) -> None:
    with pytest.raises(ModelInvalid, match="does not serve 'Gemma3ForCausalLM'"):
        await started("gemma3-spm")
    with pytest.raises(ModelInvalid, match="the vocabulary has 1024 tokens and the model 49152"):
        await started("gptq", header="llama-spm")
