"""A request from its admit row to its finish row, over a real worker process: exactly one of each, whatever happens."""

import asyncio
import os
import signal
import threading
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from llmd.daemon import limits
from llmd.daemon.audit.log import AuditLog
from llmd.daemon.errors import (
    AnswerInvalid,
    AuditUnavailable,
    BadRequest,
    ContextExceeded,
    DeadlineExceeded,
    DoesNotFit,
    LlmdError,
    ModelNotFound,
    ModelNotReady,
    QueueFull,
    RequestCrashesWorker,
    SchemaUnsupported,
    WorkerLost,
)
from llmd.daemon.identity.principal import Principal
from llmd.daemon.metrics import Metrics
from llmd.daemon.planning.plan import Wish
from llmd.daemon.replicas.deployment import Deployment
from llmd.daemon.replicas.pool import Pool
from llmd.daemon.replicas.stream import Call, Stream
from llmd.daemon.serving import answer as answer_module
from llmd.daemon.serving.answer import Serving
from llmd.daemon.serving.ask import Ask
from llmd.daemon.serving.begun import Answer
from llmd.daemon.serving.holding import Whole
from llmd.daemon.tasks import Tasks
from llmd.daemon.wire.control import Cancel, Settings
from llmd.daemon.wire.events import Detokenized, Event, Failed, Finished, Started, Text, Tokenized
from llmd.daemon.wire.work import (
    Chat,
    ChatMessage,
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

ALICE = Principal("alice", "infer", "1f", "127.0.0.1")


def generate(tokens: int, text: str = "hello", choices: int = 1) -> Work:
    return Generate((RawText(text),), SamplingWish(tokens, temperature=0.0), choices)


WISH = Wish("", 1, 256, 64, 32, 1, engine="fake", fake={"text": "one two", "step_seconds": 0.01})


class Place:
    """Everything that a request passes through, with one model `m` that says a word a step."""

    def __init__(self, folder: Path) -> None:
        self.audit = AuditLog(folder / "audit.db", bytes(32))
        self.audit.open()
        self.metrics, self.tasks = Metrics(), Tasks()
        self.pool = Pool(self.metrics, self.tasks, pause=(0.1, 1.0))
        self.serving = Serving(self.pool, lambda: 1, self.audit, self.metrics, self.tasks)

    async def deploy(self) -> Deployment:
        deployment = self.pool.deploy("m", "d" * 64, WISH)
        async with asyncio.timeout(15):
            while deployment.state != "ready":
                await deployment.changed.wait()
        return deployment

    async def ready(self) -> None:
        async with asyncio.timeout(15):
            while not self.pool.find("m").ready:
                await asyncio.sleep(0.02)

    async def ask(self, work: Work, model: str | None = "m", **more: Any) -> list[Event]:
        async with self.serving.open(ALICE, Ask("/there", model, work, **more)) as answer:
            return [event async for events in answer for event in events]

    async def rows(self) -> list[dict[str, Any]]:
        """The admit and finish rows, each with its body's fields."""
        rows = await self.audit.tail(100)
        assert (await self.audit.verify()).ok
        return [{**r["body"], "kind": r["kind"]} for r in rows if r["kind"] in ("admit", "finish")]

    async def refused(self) -> list[dict[str, Any]]:
        return [row["body"] for row in await self.audit.tail(100) if row["kind"] == "refused"]


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    place = Place(tmp_path)
    await place.deploy()
    yield place
    await place.serving.schemas.close()
    await place.pool.close(0)
    place.audit.close()


async def test_a_request_has_one_admit_and_one_finish_row(place: Place) -> None:
    events = await place.ask(generate(3))
    assert "".join(e.text for e in events if isinstance(e, Text)) == "one two one "
    assert isinstance(events[-1], Finished)
    admit, finish = await place.rows()
    assert admit["kind"] == "admit" and admit["principal"] == "alice" and admit["route"] == "/there"
    assert admit["prompt_bytes"] == 5 and admit["digest"] == "d" * 64 and len(admit["params"]) == 64
    assert finish["outcome"] == "length" and finish["completion_tokens"] == 3 and finish["prompt_tokens"] == 7


async def test_tokenize_and_detokenize_go_the_same_way(place: Place) -> None:
    (tokenized,) = await place.ask(Tokenize("abc"))
    assert isinstance(tokenized, Tokenized)
    (detokenized,) = await place.ask(Detokenize((1, 1, 97, 98, 99)))
    assert isinstance(detokenized, Detokenized) and detokenized.text == "abc"
    assert [r.get("outcome") for r in await place.rows()] == [None, "ok", None, "ok"]


@pytest.mark.parametrize("work", [Tokenize("x" * 10_000), Detokenize((1,) * 1000), generate(1, "x" * 300)])
async def test_all_have_the_length_check(place: Place, work: Work) -> None:
    with pytest.raises((BadRequest, ContextExceeded), match="context"):
        await place.ask(work)
    assert (await place.rows())[-1]["outcome"] == "error"


@pytest.mark.parametrize("work", [Tokenize("x"), Detokenize((1,)), generate(1)])
async def test_all_have_the_queue(place: Place, work: Work) -> None:
    running = [asyncio.create_task(place.ask(generate(100_000))) for _ in range(2)]
    await asyncio.sleep(0.2)
    with pytest.raises(QueueFull):
        await place.ask(work)
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)
    assert await place.ask(work)
    outcomes = [r["outcome"] for r in await place.rows() if r["kind"] == "finish"]
    assert outcomes[:2] == ["cancelled", "cancelled"] and len(outcomes) == 3
    (refused,) = await place.refused()
    assert refused["reason"] == "queue_full" and refused["model"] == "m" and refused["route"] == "/there"


async def test_refusals_before_a_model_is_asked_take_few_rows(place: Place) -> None:
    """However many they are: who asks for what is not there does not fill the disk."""
    schema = Wanted('{"type": "object", "not": {}}')
    refused: list[tuple[type[LlmdError], Work, str]] = [
        (ModelNotFound, generate(1), "other"),
        (SchemaUnsupported, Generate((RawText("x"),), SamplingWish(1), 1, schema), "m"),
    ]
    for kind, work, model in refused:
        for _ in range(100):
            with pytest.raises(kind):
                await place.ask(work, model)
    assert await place.rows() == [] and len(await place.refused()) == 20
    place.serving.books.refusals.flush(all_=True)
    assert [(row["more"], row["model"]) for row in (await place.refused())[20:]] == [(90, "other"), (90, "m")]


async def test_who_is_refused_by_the_log_itself_leaves_its_place(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    async def full(*_: object, **__: object) -> None:
        raise AuditUnavailable("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(place.audit, "admit", full)
        for _ in range(5):
            with pytest.raises(AuditUnavailable):
                await place.ask(generate(1))
    assert isinstance((await place.ask(generate(1)))[-1], Finished)
    assert place.serving.admission.enter("alice", 1.0, Ask("/there", "m", generate(1, choices=2))).begun


async def test_a_worker_that_is_lost_while_the_row_is_written_is_an_error(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    admit = place.audit.admit

    async def slowly(request: str, **fields: Any) -> None:
        await admit(request, **fields)
        os.kill(place.pool.serves("m")[0].pid, signal.SIGKILL)
        async with asyncio.timeout(15):
            while place.pool.find("m").ready:
                await asyncio.sleep(0.01)

    monkeypatch.setattr(place.audit, "admit", slowly)
    with pytest.raises(ModelNotReady):
        await place.ask(generate(1))
    assert [row.get("error") for row in await place.rows()] == [None, "model_not_ready"]
    assert not await place.refused()


async def test_all_have_a_deadline(place: Place) -> None:
    *_, last = await place.ask(generate(100_000), deadline=0.3)
    assert isinstance(last, Failed) and last.code == "deadline_exceeded"
    assert (await place.rows())[-1]["error"] == "deadline_exceeded"
    worker, _ = place.pool.serves("m")
    os.kill(worker.pid, signal.SIGSTOP)
    with pytest.raises(Exception, match="has not begun after"):
        await place.ask(Tokenize("x"), deadline=0.2)
    os.kill(worker.pid, signal.SIGCONT)
    assert (await place.rows())[-1]["error"] == "deadline_exceeded"


async def test_a_worker_that_does_not_take_a_request_has_a_deadline(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "ACCEPT_SECONDS", 0.2)
    worker, _ = place.pool.serves("m")
    os.kill(worker.pid, signal.SIGSTOP)
    with pytest.raises(DeadlineExceeded, match="has not begun"):
        await place.ask(generate(1))
    os.kill(worker.pid, signal.SIGCONT)
    assert isinstance((await place.ask(generate(1)))[-1], Finished)


async def test_leaving_the_block_cancels_the_work(place: Place) -> None:
    async with place.serving.open(ALICE, Ask("/there", "m", generate(100_000))) as answer:
        await anext(answer)
    assert (await place.rows())[-1]["outcome"] == "cancelled"
    assert isinstance((await place.ask(generate(1)))[-1], Finished), "its slot is free"


async def test_a_redeploy_starts_the_new_beside_the_old_and_cuts_no_stream(place: Place) -> None:
    old, _ = place.pool.serves("m")
    running = asyncio.create_task(place.ask(generate(150)))
    await asyncio.sleep(0.1)
    deployment = place.pool.deploy("m", "d" * 64, replace(WISH, slots=2))
    assert deployment.state == "replacing" and place.pool.serves("m")[0] is old
    async with asyncio.timeout(15):
        while deployment.state != "ready":
            await deployment.changed.wait()
    new, info = place.pool.serves("m")
    assert new is not old and info.slots == 2 and not running.done()
    assert isinstance((await place.ask(generate(2)))[-1], Finished)
    assert not running.done(), "the new one answers while the old one still does"
    assert isinstance((await running)[-1], Finished)
    async with asyncio.timeout(5):
        while len(deployment.replicas) > 1:
            await deployment.changed.wait()
    assert not psutil.pid_exists(old.pid) and deployment.restarts == 0


def crowd(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory holds one replica at a time."""
    plan = place.pool._planner.settings

    async def crowded(key: tuple[str, int], wish: Wish, *, beside: bool = False) -> Settings:
        if beside:
            raise DoesNotFit("there is no room")
        return await plan(key, wish)

    monkeypatch.setattr(place.pool._planner, "settings", crowded)


async def test_without_room_beside_new_requests_wait_for_the_successor(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    crowd(place, monkeypatch)
    old, _ = place.pool.serves("m")
    running = asyncio.create_task(place.ask(generate(60)))
    await asyncio.sleep(0.2)
    deployment = place.pool.deploy("m", "d" * 64, replace(WISH, slots=2))
    await asyncio.sleep(0.05)
    waiting = asyncio.create_task(place.ask(generate(2)))
    await asyncio.sleep(0.1)
    assert deployment.state == "replacing" and not running.done() and not waiting.done()
    with pytest.raises(ModelNotReady, match="deployed anew") as refused:
        await place.ask(generate(2))  # the queue takes one
    assert refused.value.retry_after
    assert isinstance((await running)[-1], Finished)
    assert isinstance((await waiting)[-1], Finished)
    new, info = place.pool.serves("m")
    assert new is not old and info.slots == 2 and not psutil.pid_exists(old.pid) and deployment.restarts == 0
    outcomes = [r["outcome"] for r in await place.rows() if r["kind"] == "finish"]
    assert sorted(outcomes) == ["length", "length"]
    assert [row["reason"] for row in await place.refused()] == ["model_not_ready"]


@pytest.mark.parametrize("comes", [True, False])
async def test_a_request_waits_for_a_model_that_is_away_where_it_comes_when_it_is_called(
    place: Place, comes: bool
) -> None:
    deployment = place.pool.find("m")
    await place.pool.evict("m", "made room for other")
    assert place.pool.away() == [deployment] and place.pool.all() == [] and deployment.replicas == []
    deployment.residency.comes = comes
    if comes:
        assert isinstance((await place.ask(generate(2)))[-1], Finished)
        assert deployment.ready and place.pool.away() == []
        return
    with pytest.raises(ModelNotReady, match="m made room for another model; an administrator can deploy it again"):
        await place.ask(generate(2))
    assert place.pool.away() == [deployment]


async def test_who_waits_for_a_successor_that_cannot_load_is_told(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    crowd(place, monkeypatch)
    (tmp_path / "model.gguf").write_bytes(b"GGUF nonsense")
    running = asyncio.create_task(place.ask(generate(30)))
    await asyncio.sleep(0.1)
    place.pool.deploy("m", "d" * 64, replace(WISH, engine="llama", path=str(tmp_path / "model.gguf")))
    await asyncio.sleep(0.05)
    with pytest.raises(ModelNotReady, match="restarting"):
        await place.ask(generate(2))
    assert isinstance((await running)[-1], Finished)


async def test_what_serves_goes_on_where_its_successor_cannot_load(place: Place, tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF nonsense")
    old, _ = place.pool.serves("m")
    broken = replace(WISH, engine="llama", path=str(tmp_path / "model.gguf"))
    deployment = place.pool.deploy("m", "d" * 64, broken)
    async with asyncio.timeout(15):
        while not deployment.failed:
            await deployment.changed.wait()
    assert "cannot load" in deployment.failed and deployment.state == "replacing"
    assert isinstance((await place.ask(generate(2)))[-1], Finished) and place.pool.serves("m")[0] is old
    place.pool.deploy("m", "d" * 64, WISH)
    assert deployment.state == "ready" and place.pool.serves("m")[0] is old


async def test_a_deploy_while_an_undeploy_waits_is_kept(place: Place) -> None:
    running = asyncio.create_task(place.ask(generate(40)))
    await asyncio.sleep(0.1)
    leaving = asyncio.create_task(place.pool.undeploy("m", grace=10))
    await asyncio.sleep(0.05)
    deployment = await place.deploy()
    await leaving
    assert isinstance((await running)[-1], Finished) and deployment.ready
    assert isinstance((await place.ask(generate(1)))[-1], Finished)


async def test_an_exception_in_the_block_is_an_error(place: Place) -> None:
    with pytest.raises(ZeroDivisionError):
        async with place.serving.open(ALICE, Ask("/there", "m", generate(100_000))):
            raise ZeroDivisionError
    finish = (await place.rows())[-1]
    assert finish["outcome"] == "error" and finish["error"] == "internal_error"


async def test_a_lost_worker_is_a_failed_event(place: Place) -> None:
    worker, _ = place.pool.serves("m")
    events: list[Event] = []
    async with place.serving.open(ALICE, Ask("/there", "m", generate(100_000))) as answer:
        async for some in answer:
            events += some
            if worker.pid and isinstance(events[-1], Text):
                os.kill(worker.pid, signal.SIGKILL)
    assert isinstance(events[-1], Failed) and events[-1].code == "worker_lost"
    assert (await place.rows())[-1]["error"] == "worker_lost"


async def test_what_waits_here_outlives_its_worker(place: Place) -> None:
    """What had begun is told; the others are answered by the next process."""
    place.serving.admission._queue = lambda: 8
    asked = [asyncio.create_task(place.ask(generate(20, f"{n}"))) for n in range(6)]
    worker = place.pool.find("m").worker
    assert worker
    async with asyncio.timeout(10):
        while worker.open_sequences < 2:
            await asyncio.sleep(0.01)
    os.kill(worker.pid, signal.SIGKILL)
    told = await asyncio.gather(*asked, return_exceptions=True)
    ends = [one[-1] if isinstance(one, list) else one for one in told]
    lost = [end for end in ends if isinstance(end, Failed | WorkerLost)]
    assert 1 <= len(lost) <= 2 and {end.code for end in lost} == {"worker_lost"}
    assert len([end for end in ends if isinstance(end, Finished)]) == 6 - len(lost)
    assert [row["outcome"] for row in await place.rows() if row["kind"] == "finish"].count("length") == 6 - len(lost)


async def test_what_waits_is_told_when_its_model_goes(place: Place) -> None:
    place.serving.admission._queue = lambda: 8
    asked = [asyncio.create_task(place.ask(generate(100_000, f"{n}"))) for n in range(4)]
    await asyncio.sleep(0.2)
    await place.pool.undeploy("m")
    ends = await asyncio.gather(*asked, return_exceptions=True)
    assert [isinstance(end, ModelNotFound | ModelNotReady) for end in ends] == [False, False, True, True]
    admission = place.serving.admission._models["m"]
    assert not admission._waiting and not admission._inside.total() and not admission.coming


async def test_prompts_of_one_request_begin_as_there_is_room_and_one_that_is_wrong_ends_them_all(place: Place) -> None:
    place.serving.admission._queue = lambda: 8
    work = Generate(tuple(RawText(f"number {n}") for n in range(6)), SamplingWish(5, temperature=0.0), 2)
    events = await place.ask(work)
    ends = {event.choice: event.tokens for event in events if isinstance(event, Finished)}
    assert ends == dict.fromkeys(range(12), 5) and sum(isinstance(event, Started) for event in events) == 6
    finish = next(row for row in await place.rows() if row["kind"] == "finish")
    assert finish["completion_tokens"] == 60
    assert finish["prompt_tokens"] == sum(e.prompt_tokens for e in events if isinstance(e, Started))
    nothing_left(place)


def nothing_left(place: Place) -> None:
    admission = place.serving.admission._models["m"]
    assert not admission._waiting and not admission._inside.total() and not admission.coming
    deployment = place.pool.known("m")
    worker = deployment.worker if deployment else None
    assert worker is None or (worker.open_sequences, worker.trials) == (0, 0)


@pytest.mark.parametrize(
    "wrong, error",
    [
        (RawText("x" * 10_000), ContextExceeded),
        (RawText("x" * 300), ContextExceeded),
        (Tokens((1, 1_000_000)), BadRequest),
        (Tokens(()), BadRequest),
    ],
    ids=["far too long", "too long", "no such token", "empty"],
)
async def test_of_several_prompts_none_begins_where_a_late_one_is_wrong(
    place: Place, wrong: Prompt, error: type[LlmdError]
) -> None:
    place.serving.admission._queue = lambda: 8
    prompts = (*(RawText(f"number {n}") for n in range(6)), wrong)
    with pytest.raises(error):
        await place.ask(Generate(prompts, SamplingWish(5, temperature=0.0)))
    _, finish = await place.rows()
    assert (finish["outcome"], finish["prompt_tokens"], finish["completion_tokens"]) == ("error", 0, 0)
    nothing_left(place)


@pytest.mark.parametrize("end", ["leaves", "late", "lost", "undeployed"])
async def test_a_request_may_end_while_its_prompts_are_counted(
    place: Place, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    monkeypatch.setattr(limits, "ACCEPT_SECONDS", 0.5 if end == "late" else 60.0)
    worker = place.pool.serves("m")[0]
    os.kill(worker.pid, signal.SIGSTOP)
    several = Generate((RawText("a"), RawText("b")), SamplingWish(5, temperature=0.0))
    asked = asyncio.create_task(place.ask(several))
    async with asyncio.timeout(10):
        while not worker.open_sequences:
            await asyncio.sleep(0.01)
    match end:
        case "leaves":
            asked.cancel()
        case "lost":
            os.kill(worker.pid, signal.SIGKILL)
        case "undeployed":
            await place.pool.undeploy("m")
    error = {"leaves": asyncio.CancelledError, "late": DeadlineExceeded}.get(end, WorkerLost)
    with pytest.raises(error):
        await asked
    assert not worker.open_sequences and not worker.trials
    nothing_left(place)
    _, finish = await place.rows()
    assert finish["outcome"] == ("cancelled" if end == "leaves" else "error") and finish["prompt_tokens"] == 0
    with suppress(ProcessLookupError):
        os.kill(worker.pid, signal.SIGCONT)


async def test_the_model_may_be_left_out_where_there_is_one(place: Place) -> None:
    assert await place.ask(generate(1), model=None)
    with pytest.raises(ModelNotFound):
        await place.ask(generate(1), model="other")
    (refused,) = await place.refused()
    assert refused["model"] == "other" and refused["reason"] == "model_not_found" and refused["principal"] == "alice"
    await place.pool.undeploy("m")
    with pytest.raises(BadRequest, match="model is missing; deployed: none"):
        await place.ask(generate(1), model=None)
    assert len(await place.rows()) == 2


# --- answers that are held to a schema


class Silent:
    """A worker that is told of nothing."""

    def __init__(self) -> None:
        self.metrics, self.loop = Metrics().model("m"), asyncio.get_running_loop()
        self.sent: list[object] = []

    def send(self, message: object) -> None:
        self.sent.append(message)

    def forget(self, call: Call, ended: int) -> None: ...


async def held_answer(events: list[Event], bad: str) -> tuple[list[Event], Answer, Silent]:
    """An answer of two choices; one that says `bad` does not fit."""
    work = Generate((Chat((ChatMessage("user", "hi"),)),), SamplingWish(9), 2, Wanted('{"type": "integer"}'))
    worker, checked = Silent(), list[str]()

    async def check(whole: list[Whole]) -> None:
        await asyncio.sleep(0)
        for _, _, text, what in whole:
            checked.append(text)
            if text == bad:
                stream.feed(Text(1, 0, "after it", 3, 0), call)
                raise AnswerInvalid(f"{what} does not fit", param="response_format")

    stream = Stream(worker, 2, lambda _: None)
    call = Call(worker, 1, stream, 2)
    answer = Answer("req-1", "m", 99, stream, work, check)
    for event in events:
        stream.feed(event, call)
    return [event async for several in answer for event in several], answer, worker


TWO_SAID: list[Event] = [Text(1, 0, "5", 1, 0), Text(1, 1, "x", 1, 0)]


async def test_an_answers_end_is_shown_once_it_fits() -> None:
    ends: list[Event] = [Finished(1, 0, "stop", 2, 0), Finished(1, 1, "stop", 2, 0)]
    events, answer, _ = await held_answer([*TWO_SAID, *ends], bad="")
    assert events == [*TWO_SAID, *ends] and answer.outcome() == ("stop", None)


async def test_one_that_does_not_fit_ends_them_all() -> None:
    events, answer, worker = await held_answer([*TWO_SAID, Finished(1, 1, "stop", 2, 0)], bad="x")
    assert events[:-1] == TWO_SAID and isinstance(events[-1], Failed) and events[-1].param == "response_format"
    assert answer.outcome() == ("error", "answer_invalid") and worker.sent == [Cancel(1)]


async def test_what_crashes_the_model_twice_is_refused(place: Place) -> None:
    """Whoever was there too and is answered later, is not."""
    poison, other = generate(100_000, "poison"), generate(100, "other")
    for _ in range(2):
        await place.ready()
        running = [asyncio.create_task(place.ask(work)) for work in (poison, other)]
        worker, _ = place.pool.serves("m")
        async with asyncio.timeout(15):
            while worker.open_sequences < 2:
                await asyncio.sleep(0.02)
        os.kill(worker.pid, signal.SIGSEGV)
        for task in running:
            with suppress(WorkerLost):
                assert isinstance((await task)[-1], Failed)
        await place.ready()
        assert isinstance((await place.ask(other))[-1], Finished)
    with pytest.raises(RequestCrashesWorker):
        await place.ask(poison)
    assert [row["reason"] for row in await place.refused()] == ["request_crashes_worker"]
    assert await place.ask(generate(3, "poison")), "other parameters are another request"
    bob = Principal("bob", "infer", "2f", "127.0.0.1")
    async with place.serving.open(bob, Ask("/there", "m", poison)) as answer:
        assert await anext(answer), "nobody is told what another client has asked"


async def test_who_leaves_before_the_crash_is_known_all_the_same(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answer_module, "FOLLOW_SECONDS", 0.5)
    poison, other = generate(100_000, "poison"), generate(100_000, "other")
    for crashes in (1, 2):
        await place.ready()
        worker, _ = place.pool.serves("m")
        for work in (other, poison):
            running = asyncio.create_task(place.ask(work))
            async with asyncio.timeout(15):
                while not worker.open_sequences:
                    await asyncio.sleep(0.02)
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            if work is other:
                await asyncio.sleep(0.6)  # it is out of suspicion
        os.kill(worker.pid, signal.SIGSEGV)
        async with asyncio.timeout(15):
            while [seen for seen, *_ in place.serving.poison._seen.values()] != [crashes]:
                await asyncio.sleep(0.02)
    await place.ready()
    with pytest.raises(RequestCrashesWorker):
        await place.ask(poison)


async def test_what_an_admin_ends_is_no_crash(place: Place) -> None:
    for _ in range(3):
        running = asyncio.create_task(place.ask(generate(100_000)))
        worker, _ = place.pool.serves("m")
        async with asyncio.timeout(15):
            while not worker.open_sequences:
                await asyncio.sleep(0.02)
        await place.pool.undeploy("m")
        with suppress(WorkerLost):
            assert isinstance((await running)[-1], Failed)
        await place.deploy()
    assert not place.serving.poison._seen and await place.ask(generate(3))


@pytest.mark.parametrize("large", [False, True])
async def test_a_large_prompt_is_hashed_beside_the_event_loop(
    place: Place, monkeypatch: pytest.MonkeyPatch, large: bool
) -> None:
    threads: list[bool] = []
    mac = place.audit.prompt_mac

    def noted(data: bytes) -> str:
        threads.append(threading.current_thread() is threading.main_thread())
        return mac(data)

    monkeypatch.setattr(place.audit, "prompt_mac", noted)
    for text in ("hello", "hello"):
        await place.ask(generate(1, text), large=large)
    assert threads == [not large] * 2
    rows = [row for row in await place.rows() if row["kind"] == "admit"]
    assert {row["prompt_mac"] for row in rows} == {mac(b"hello")} and rows[0]["prompt_bytes"] == 5
