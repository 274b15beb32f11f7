"""Real worker processes: spoken to, killed, stopped, and answered for."""

import asyncio
import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from gguf_writer import F32
from small_models import ATTENTION, DENSE, model, write

from llmd.daemon import limits
from llmd.daemon.errors import (
    BadRequest,
    ContextExceeded,
    ModelNotFound,
    ModelNotReady,
    ShuttingDown,
    Unavailable,
    WorkerLost,
)
from llmd.daemon.machine import children, memory
from llmd.daemon.metrics import Metrics
from llmd.daemon.planning.plan import Wish
from llmd.daemon.planning.planner import Planner
from llmd.daemon.replicas import trials
from llmd.daemon.replicas import worker as worker_module
from llmd.daemon.replicas.deployment import Deployment
from llmd.daemon.replicas.lifecycle import MAX_CRASHES
from llmd.daemon.replicas.pool import Pool
from llmd.daemon.replicas.stream import Stream
from llmd.daemon.replicas.worker import Worker
from llmd.daemon.tasks import Tasks
from llmd.daemon.wire.control import Llama, Settings
from llmd.daemon.wire.events import Counted, Event, Failed, Finished, Started, Text, Tokenized
from llmd.daemon.wire.work import (
    Chat,
    ChatMessage,
    Count,
    Detokenize,
    Generate,
    Prompt,
    RawText,
    SamplingWish,
    Tokenize,
    Tokens,
    Wanted,
    Work,
)
from llmd.quantize.shape import Layer, Shape

HELLO = RawText("hello")


def fake(slots: int = 2, **arguments: Any) -> Wish:
    arguments = {"text": "one two three", **arguments}
    return Wish("", slots, 256, 64, 32, 1, engine="fake", fake=arguments)


def say(max_tokens: int = 8, prompt: Prompt = HELLO) -> Generate:
    return Generate((prompt,), SamplingWish(max_tokens, temperature=0.0))


def ask(pool: Pool, model: str, work: Work) -> Stream:
    return pool.serves(model)[0].open("a", work)


async def until(deployment: Deployment, state: str, seconds: float = 15.0) -> None:
    async with asyncio.timeout(seconds):
        while deployment.state != state:
            await deployment.changed.wait()


async def read(stream: Stream) -> list[Event]:
    events: list[Event] = []
    async with asyncio.timeout(20):
        while True:
            events += await stream.next()
            if stream.read_out:
                return events


def failure(events: list[Event]) -> str:
    assert isinstance(events[-1], Failed)
    return events[-1].code


def finish(events: list[Event]) -> str:
    assert isinstance(events[-1], Finished)
    return events[-1].reason


@pytest.fixture
async def pool() -> AsyncIterator[Pool]:
    pool = Pool(Metrics(), Tasks(), pause=(0.2, 2.0))
    yield pool
    await pool.close(0)


async def deploy(pool: Pool, name: str = "m", wish: Wish | None = None) -> Deployment:
    deployment = pool.deploy(name, "0" * 64, wish or fake())
    await until(deployment, "ready")
    return deployment


async def test_a_request_is_answered(pool: Pool) -> None:
    await deploy(pool)
    events = await read(ask(pool, "m", say(4)))
    assert events[0] == Started(1, 7)
    assert len("".join(e.text for e in events if isinstance(e, Text)).split()) == 4
    assert events[-1] == Finished(1, 0, "length", tokens=4, cached=0)


async def test_refusals_name_what_is_wrong(pool: Pool) -> None:
    with pytest.raises(ModelNotFound, match="there is none"):
        ask(pool, "m", say())
    deployment = pool.deploy("m", "0" * 64, fake())
    with pytest.raises(ModelNotReady):
        ask(pool, "m", say())
    await until(deployment, "ready")
    for size, said in ((255, "resulted in 257 tokens"), (300, "resulted in more than 256 tokens")):
        (late,) = await read(ask(pool, "m", say(prompt=RawText("x" * size))))
        assert isinstance(late, Failed) and late.code == ContextExceeded.code
        assert said in late.message and "maximum context length is 256 tokens" in late.message
    events = await read(ask(pool, "m", say(prompt=Tokens((5000,)))))
    assert failure(events) == BadRequest.code
    (refused,) = await read(ask(pool, "m", Detokenize((1001,))))
    assert isinstance(refused, Failed) and "no token 1001" in refused.message


async def test_cancel_frees_the_slot(pool: Pool) -> None:
    deployment = await deploy(pool, wish=fake(slots=1, step_seconds=0.02))
    first = ask(pool, "m", say(10_000))
    await first.next()
    second = ask(pool, "m", say(3))
    first.cancel()
    assert finish(await read(second)) == "length"
    assert deployment.worker is not None and deployment.worker.open_sequences == 0


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT])
async def test_a_dead_worker_is_answered_for_within_two_seconds_and_comes_back(pool: Pool, how: signal.Signals) -> None:
    other = await deploy(pool, "other", fake(step_seconds=0.01))
    deployment = await deploy(pool, wish=fake(step_seconds=0.01))
    streams = [ask(pool, "m", say(10_000)) for _ in range(2)]
    unharmed = ask(pool, "other", say(100))
    await asyncio.gather(*(s.next() for s in streams))
    assert deployment.worker is not None
    os.kill(deployment.worker.pid, how)
    began = time.monotonic()
    ends = await asyncio.gather(*(read(s) for s in streams))
    assert time.monotonic() - began < 2
    assert [failure(e) for e in ends] == ["worker_lost"] * 2
    assert finish(await read(unharmed)) == "length"
    assert other.restarts == 0
    await until(deployment, "ready")
    assert deployment.restarts == 1
    assert finish(await read(ask(pool, "m", say()))) == "length"


async def test_a_hanging_worker_is_noticed(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_module, "SILENT_SECONDS", 2.5)
    deployment = await deploy(pool, wish=fake(step_seconds=0.01))
    stream = ask(pool, "m", say(10_000))
    await stream.next()
    assert deployment.worker is not None
    os.kill(deployment.worker.pid, signal.SIGSTOP)
    assert failure(await read(stream)) == "worker_lost"
    await until(deployment, "ready")
    assert worker_module.SILENT_SECONDS + 1 < 12


async def test_a_worker_is_not_judged_by_a_daemon_that_stood_still(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it has said meanwhile is read first."""
    monkeypatch.setattr(worker_module, "SILENT_SECONDS", 3.0)
    deployment = await deploy(pool, wish=fake(step_seconds=0.01))
    worker = deployment.worker
    assert worker is not None
    time.sleep(4.0)  # nothing else runs in this loop
    assert worker.beat_age > 3.0
    await asyncio.sleep(1.2)
    assert not worker.lost.is_set() and worker.beat_age < 3.0
    assert finish(await read(ask(pool, "m", say()))) == "length"


async def test_one_that_crashes_again_and_again_is_left_alone_until_it_is_deployed(tmp_path: Path) -> None:
    rows: list[tuple[str, dict[str, Any]]] = []
    metrics = Metrics()
    pool = Pool(metrics, Tasks(), pause=(0.01, 0.01), audit=lambda kind, **fields: rows.append((kind, fields)))
    deployment = await deploy(pool, wish=fake())
    killed = None
    for crashes in range(1, MAX_CRASHES + 1):
        async with asyncio.timeout(30):
            while deployment.state != "ready" or deployment.worker in (None, killed):
                await asyncio.sleep(0.01)
        killed = deployment.worker
        assert killed is not None
        os.kill(killed.pid, signal.SIGSEGV)
        async with asyncio.timeout(10):
            while len([kind for kind, _ in rows if kind == "worker.lost"]) < crashes:
                await asyncio.sleep(0.01)
    await until(deployment, "quarantined")
    with pytest.raises(ModelNotReady, match="quarantined.*SIGSEGV.*deploy it again") as e:
        ask(pool, "m", say())
    assert e.value.retry_after == 60 and "SIGSEGV" in deployment.failed
    assert rows[-1][0] == "model.quarantined" and "SIGSEGV" in rows[-1][1]["reason"]
    assert b'llmd_model_quarantined{model="m"} 1.0' in metrics.text()
    await deploy(pool, wish=fake())
    assert finish(await read(ask(pool, "m", say()))) == "length"
    assert b'llmd_model_quarantined{model="m"} 0.0' in metrics.text()
    await pool.close(0)


async def test_calls_to_a_dying_worker_fail(pool: Pool) -> None:
    deployment = await deploy(pool)
    assert deployment.worker is not None
    os.kill(deployment.worker.pid, signal.SIGSTOP)
    call = asyncio.ensure_future(read(ask(pool, "m", Tokenize("x"))))
    await asyncio.sleep(0.05)
    os.kill(deployment.worker.pid, signal.SIGKILL)
    assert failure(await call) == "worker_lost"


async def test_a_model_that_cannot_load_says_why_and_backs_off(pool: Pool, tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF nonsense")
    deployment = pool.deploy("m", "0" * 64, Wish(str(file), 1, 256, 64, 32, 1))
    await until(deployment, "restarting")
    assert "llama.cpp cannot load" in deployment.reason and str(tmp_path) not in deployment.reason
    health = await trials.health(pool.find("m"))
    assert health["ready"] is False and health["reason"] == deployment.reason


async def test_health_asks_an_idle_model_for_a_token(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    deployment = await deploy(pool)
    assert (await trials.health(pool.find("m")))["ready"]
    monkeypatch.setattr(trials, "PROBE_AFTER", 0.0)
    assert (await trials.health(pool.find("m")))["ready"]
    assert deployment.worker is not None and deployment.worker.open_sequences == 0
    monkeypatch.setattr(trials, "PROBE_SECONDS", 0.2)
    os.kill(deployment.worker.pid, signal.SIGSTOP)
    assert not (await trials.health(pool.find("m")))["ready"]


async def test_a_model_that_has_no_token_to_give_is_asked_for_none(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trials, "PROBE_AFTER", 0.0)
    deployment = await deploy(pool, wish=fake(samples=False))
    worker = deployment.worker
    assert worker is not None
    with monkeypatch.context() as asked:
        asked.setattr(worker, "open", lambda *_, **__: pytest.fail("it was asked"))
        assert (await trials.health(pool.find("m")))["ready"] and await trials.fill(worker, lambda: True)
    (tokenized,) = await read(ask(pool, "m", Tokenize("abc")))
    assert isinstance(tokenized, Tokenized)
    assert failure(await read(ask(pool, "m", say()))) == "invalid_request"


async def test_sequences_of_a_worker_may_live_in_pages(pool: Pool) -> None:
    await deploy(pool, wish=fake(slots=4, pages=5))  # of 16 that all four would take
    works = [say(150, RawText(f"{n}" * 50)) for n in range(4)]

    def text(events: list[Event]) -> str:
        return "".join(event.text for event in events if isinstance(event, Text))

    alone = await read(ask(pool, "m", works[0]))
    answers = await asyncio.gather(*(read(ask(pool, "m", work)) for work in works))
    for events in answers:
        assert sum(isinstance(event, Finished) for event in events) == 1
        assert isinstance(events[-1], Finished) and events[-1].tokens == 150 and events[-1].reason == "length"
        assert text(events) == text(alone)


async def test_prompts_are_counted_as_they_would_be_read(pool: Pool) -> None:
    await deploy(pool)
    prompts = (RawText("abc"), Tokens((1, 97)), Chat((ChatMessage("user", "hi"),)))
    (counted,) = await read(ask(pool, "m", Count(prompts)))
    starts = [(await read(ask(pool, "m", Generate((prompt,), SamplingWish(1)))))[0] for prompt in prompts]
    assert isinstance(counted, Counted) and all(isinstance(start, Started) for start in starts)
    assert list(counted.tokens) == [start.prompt_tokens for start in starts if isinstance(start, Started)]


async def test_undeploy_lets_running_requests_finish_and_ends_the_process(pool: Pool) -> None:
    deployment = await deploy(pool, wish=fake(step_seconds=0.01))
    stream = ask(pool, "m", say(20))
    assert deployment.worker is not None
    pid = deployment.worker.pid
    _, events = await asyncio.gather(pool.undeploy("m", grace=10), read(stream))
    assert finish(events) == "length"
    assert not psutil.pid_exists(pid)
    with pytest.raises(ModelNotFound):
        ask(pool, "m", say())


async def test_a_model_that_memory_does_not_hold_is_not_started(
    pool: Pool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(memory, "available", lambda: 0)
    shape = Shape("llama", 64, 260, 32, (Layer(k=32, v=32),), file=1 << 30).to_dict()
    deployment = pool.deploy("m", "0" * 64, replace(fake(), shape=shape))
    await until(deployment, "restarting")
    assert "weights 1.0 GiB" in deployment.reason and "0.0 GiB are free" in deployment.reason
    assert deployment.worker is None
    monkeypatch.undo()
    await until(deployment, "ready")
    gc.collect()
    assert "never retrieved" not in caplog.text


async def test_a_model_that_is_withdrawn_while_it_is_planned_gets_no_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    planner, going = Planner(), asyncio.Event()
    plan_ = planner.settings

    async def slow(key: tuple[str, int], wish: Wish, *, beside: bool = False) -> Settings:
        await going.wait()
        return await plan_(key, wish)

    monkeypatch.setattr(planner, "settings", slow)
    pool = Pool(Metrics(), Tasks(), planner)
    deployment = pool.deploy("m", "0" * 64, fake())
    await asyncio.sleep(0)
    leaving = asyncio.create_task(pool.undeploy("m"))
    await asyncio.sleep(0.05)
    going.set()
    await asyncio.wait_for(leaving, 10)
    assert deployment.worker is None and pool.all() == []
    await pool.close(0)


async def test_a_model_that_is_withdrawn_while_its_file_is_looked_at_gets_no_process(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked, going = threading.Event(), threading.Event()

    def slow(*_: object) -> None:
        looked.set()
        going.wait(10)

    monkeypatch.setattr("llmd.daemon.replicas.runs.check_file", slow)
    deployment = pool.deploy("m", "0" * 64, fake())
    await asyncio.to_thread(looked.wait, 10)
    leaving = asyncio.create_task(pool.undeploy("m"))
    await asyncio.sleep(0.05)
    going.set()
    await asyncio.wait_for(leaving, 10)
    assert deployment.worker is None and pool.all() == []


async def test_a_late_pause_says_nothing_of_a_successor(pool: Pool, tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF nonsense")
    deployment = pool.deploy("m", "0" * 64, Wish(str(file), 1, 256, 64, 32, 1))
    await until(deployment, "restarting")
    await pool.undeploy("m")
    assert await deploy(pool) is not deployment
    await asyncio.sleep(0.3)  # the pause of the first would have ended
    assert b'llmd_model_ready{model="m"} 1.0' in pool._metrics.text()


async def test_closing_ends_what_does_not_finish(pool: Pool) -> None:
    await deploy(pool, wish=fake(step_seconds=0.05))
    stream = ask(pool, "m", say(10_000))
    _, events = await asyncio.gather(pool.close(0.3), read(stream))
    assert failure(events)
    with pytest.raises(ShuttingDown):
        ask(pool, "m", say())


async def test_a_client_that_does_not_read_is_cut_off(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_STREAM_BACKLOG", 200)
    deployment = await deploy(pool)
    stream = ask(pool, "m", say(10_000))
    async with asyncio.timeout(5):
        while not stream.ended:
            await asyncio.sleep(0.01)
    assert failure(await stream.next()) == "client_too_slow"
    assert deployment.worker is not None and deployment.worker.open_sequences == 0


async def broken(pool: Pool, deployment: Deployment, harm: Callable[[Worker], None]) -> str:
    """Hurt a worker that answers a request: the request ends once, another worker takes over. Returns why."""
    stream = ask(pool, "m", say(1_000_000))
    await stream.next()
    worker = deployment.worker
    assert worker is not None
    harm(worker)
    assert failure(await read(stream)) == "worker_lost"
    await until(deployment, "restarting")
    reason = deployment.reason
    await until(deployment, "ready")
    assert not psutil.pid_exists(worker.pid)
    assert finish(await read(ask(pool, "m", say()))) == "length"
    return reason


async def test_a_worker_that_reads_what_is_no_message_ends(pool: Pool) -> None:
    deployment = await deploy(pool, wish=fake(step_seconds=0.01))

    def harm(worker: Worker) -> None:
        assert worker._transport is not None
        worker._transport.write(b"\0\0\0\x01\xc1")

    assert "exit 70" in await broken(pool, deployment, harm)


async def test_a_worker_that_says_what_is_no_message_is_replaced(pool: Pool) -> None:
    deployment = await deploy(pool, wish=fake(step_seconds=0.01))
    await broken(pool, deployment, lambda worker: worker_module._Link(worker).data_received(b"\0\0\0\x01\xc1"))
    assert deployment.restarts == 1


async def test_a_signal_without_a_name_is_a_reason_too(pool: Pool) -> None:
    deployment = await deploy(pool, wish=fake(step_seconds=0.01))
    reason = await broken(pool, deployment, lambda worker: os.kill(worker.pid, signal.SIGRTMIN + 1))
    assert reason == f"it was ended by signal {signal.SIGRTMIN + 1}"


async def test_a_worker_that_only_lost_its_socket_is_replaced(pool: Pool) -> None:
    deployment = await deploy(pool, wish=fake(step_seconds=0.01))

    def harm(worker: Worker) -> None:
        assert worker._transport is not None
        os.kill(worker.pid, signal.SIGSTOP)  # so that it cannot end itself
        worker._transport.abort()

    await broken(pool, deployment, harm)
    assert deployment.restarts == 1


FAULTY = """
from llmd.daemon.engine import __main__ as worker
from llmd.daemon.engine.fake import FakeRunner, FakeVocabulary

class Spoilt(FakeVocabulary):
    def tokenize(self, text, **how):
        if "fault" in text:
            raise MemoryError(text)
        return super().tokenize(text, **how)

class Faulty(FakeRunner):
    def __init__(self, **how):
        super().__init__(**how)
        self.vocabulary = Spoilt(self.info.vocab, self._words, self._arrived)

    def launch(self, plan):
        if any(999 in start.prompt for start in plan.starts):
            raise ZeroDivisionError
        super().launch(plan)

worker.runner_for = lambda s: lambda _: Faulty(slots=s.slots, context=s.context, **s.says)
worker.main()
"""


@pytest.fixture
async def faulty(pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Deployment:
    (tmp_path / "faulty.py").write_text(FAULTY)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(worker_module, "PROGRAM", "faulty")
    return await deploy(pool, wish=fake(step_seconds=0.01))


async def test_a_runner_that_fails_ends_the_worker(
    pool: Pool, faulty: Deployment, caplog: pytest.LogCaptureFixture
) -> None:
    reason = await broken(pool, faulty, lambda _: void(ask(pool, "m", say(prompt=Tokens((1, 2, 999))))))
    assert "exit 70" in reason and "ZeroDivisionError" in caplog.text


async def test_a_request_that_fails_while_it_is_prepared_fails_alone(
    pool: Pool, faulty: Deployment, caplog: pytest.LogCaptureFixture
) -> None:
    running = ask(pool, "m", say(200))
    events = await read(ask(pool, "m", say(prompt=RawText("fault secret-words"))))
    assert failure(events) == "internal_error" and "secret-words" not in str(events)
    running.cancel()
    assert isinstance((await read(ask(pool, "m", say(3))))[-1], Finished) and faulty.restarts == 0
    async with asyncio.timeout(5):
        while "MemoryError" not in caplog.text:
            await asyncio.sleep(0.02)
    assert "in tokenize" in caplog.text and "secret-words" not in caplog.text


BABBLING = """
import socket, sys, time
from llmd.daemon.wire import frames
from llmd.daemon.wire.events import Finished, Started, Text
from llmd.daemon.wire.control import Beat, Load, Open, Ready, Step

sock = socket.socket(fileno=int(sys.argv[1]))
decoder = frames.from_daemon()

def heard():
    while data := sock.recv(65536):
        yield from decoder.feed(data)

for message in heard():
    if isinstance(message, Load):
        sock.sendall(frames.encode(Ready(256, 2, 10, 1, 1, "babbling", True)))
    elif isinstance(message, Open):
        sock.sendall(frames.encode(Step((Started(message.id, 1),))))
        id_ = message.id
        sock.sendall(SAID)
        time.sleep(60)
"""
NONSENSE = {
    "another protocol": "b'HTTP/1.1 400 Bad Request'",
    "a frame that is too large": "b'\\xff' * 8",
    "no message": "(3).to_bytes(4, 'big') + b'abc'",
    "another message": "(2).to_bytes(4, 'big') + bytes([0x91, 0x01])",
    "a choice that there is not": "frames.encode(Step((Text(id_, 7, 'a', 1, 0),)))",
    "a choice before the first": "frames.encode(Step((Finished(id_, -1, 'stop', 1, 0),)))",
    "ready again": "frames.encode(Ready(256, 2, 10, 1, 1, 'again', True))",
    "text that is none": "frames.encode(Step((Text(id_, 0, 5, 1, 0),)))",
}


@pytest.mark.parametrize("said", NONSENSE)
async def test_a_worker_that_sends_what_nobody_understands_is_ended(
    pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str
) -> None:
    (tmp_path / "babbling.py").write_text(BABBLING.replace("SAID", NONSENSE[said]))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(worker_module, "PROGRAM", "babbling")
    deployment = await deploy(pool)
    worker = deployment.worker
    assert worker is not None
    streams = [ask(pool, "m", say())]
    events = [await read(stream) for stream in streams]
    assert all(failure(some) == WorkerLost.code for some in events)
    assert "nobody understands" in worker.reason
    async with asyncio.timeout(10):
        while psutil.pid_exists(worker.pid):
            await asyncio.sleep(0.02)


def void(_: object) -> None:
    return None


async def test_a_task_that_fails_is_told_of(caplog: pytest.LogCaptureFixture) -> None:
    async def fails() -> None:
        raise ZeroDivisionError

    tasks = Tasks()
    await tasks.start("upkeep", fails)
    assert tasks.failed == {"upkeep"} and "ZeroDivisionError" in caplog.text


DAEMON = """
import asyncio, sys
from llmd.daemon.metrics import Metrics
from llmd.daemon.tasks import Tasks
from llmd.quantize.shape import Layer, Shape
from llmd.daemon.replicas.pool import Pool
from llmd.daemon.replicas.deployment import Deployment
from llmd.daemon.planning.plan import Wish
async def main():
    pool = Pool(Metrics(), Tasks())
    d = pool.deploy("m", "", Wish("", 1, 256, 64, 32, 1, engine="fake", fake={"text": "a"}))
    while d.state != "ready":
        await d.changed.wait()
    print(d.worker.pid, flush=True)
    await asyncio.sleep(60)
asyncio.run(main())
"""


def test_no_worker_outlives_a_daemon_that_is_killed() -> None:
    daemon = subprocess.Popen([sys.executable, "-P", "-c", DAEMON], stdout=subprocess.PIPE, text=True)
    assert daemon.stdout is not None
    pid = int(daemon.stdout.readline())
    daemon.kill()
    daemon.wait()
    daemon.stdout.close()
    deadline = time.monotonic() + 5
    while (
        psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE and time.monotonic() < deadline
    ):
        time.sleep(0.02)
    assert time.monotonic() < deadline


async def test_a_models_own_defaults_hold_where_a_request_does_not_say(pool: Pool, tmp_path: Path) -> None:
    """All tokens of a model of zeros are as likely: only greedy sampling gives the same ones again."""
    file = model("llama", {}, {**ATTENTION, **DENSE}, blocks=1)
    file.keys |= {"general.sampling.temp": (F32, 0.0), "general.sampling.top_p": (F32, 7.0)}
    path = write(tmp_path, file)
    deployment = pool.deploy("zeros", "d" * 64, Wish(str(path), 1, 256, 64, 32, 1))
    await until(deployment, "ready")

    async def tokens(**given: Any) -> str:
        params = SamplingWish(12, ignore_eos=True, **given)
        events = await read(ask(pool, "zeros", Generate((Tokens((1, 2)),), params)))
        return "".join(e.text for e in events if isinstance(e, Text))

    assert len({await tokens() for _ in range(3)}) == 1
    assert len({await tokens(temperature=2.0, top_k=0) for _ in range(3)}) > 1


ENDLESS = """
from llmd.daemon.engine import __main__ as worker
from llmd.daemon.engine.answers.answering import Answers

real = Answers.answering

def answering(self, syntax, wanted, *more):
    while "endless" in wanted.schema:
        pass
    return real(self, syntax, wanted, *more)

Answers.answering = answering
worker.BIND_SECONDS = 0.1
worker.main()
"""


async def test_a_grammar_that_takes_too_long_ends_its_request_alone(
    pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "endless.py").write_text(ENDLESS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(worker_module, "PROGRAM", "endless")
    deployment = await deploy(pool)
    chat = Chat((ChatMessage("user", "hi"),))

    def held(schema: str) -> Stream:
        return ask(pool, "m", Generate((chat,), SamplingWish(3, temperature=0.0), 1, Wanted(schema)))

    endless, plain = held('{"title": "endless"}'), held("{}")
    assert failure(await read(endless)) == "schema_too_complex"
    events = await read(plain)
    assert isinstance(events[0], Started) and deployment.restarts == 0


async def test_a_worker_whose_engine_cannot_be_loaded_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "libllama.so").write_bytes(b"no library")
    kept = children.environment
    monkeypatch.setattr(children, "environment", lambda more: {**kept(more), "LLAMA_CPP_LIB_PATH": str(tmp_path)})
    worker = Worker(Llama("model.gguf", 1, 256, 64, 32, 1), Metrics().model("m"))
    with pytest.raises(Unavailable, match="a library of the engine cannot be loaded: .*libllama.so") as refused:
        await worker.start()
    assert str(tmp_path) not in refused.value.message and not worker.crashed
    await worker.stop()
