"""The engine loop with a runner whose tokens the test queues."""

import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from paged import Watched

from llmd.daemon.engine.answers.answering import Answering, Answers
from llmd.daemon.engine.answers.formats import HERMES, THINKINGS, Syntax
from llmd.daemon.engine.fake import FakeRunner, FakeVocabulary, Misuse
from llmd.daemon.engine.loop import Engine
from llmd.daemon.engine.protocols import Space
from llmd.daemon.engine.types import (
    NO_MASKS,
    Chunk,
    Logprob,
    Masks,
    Plan,
    Request,
    Sample,
    SamplingParams,
    Start,
)
from llmd.daemon.machine import cores
from llmd.daemon.machine.cores import Seat
from llmd.daemon.wire.control import Step
from llmd.daemon.wire.events import Event, Failed, Finished, Reasoning, Text, TokenLogprob, ToolCalled
from llmd.daemon.wire.work import Tool, Wanted


@pytest.fixture(autouse=True, params=[False, True], ids=["in turn", "overlapped"])
def overlaps(request: pytest.FixtureRequest) -> Iterator[bool]:
    """Everything holds for a runner that computes beside its caller too."""
    Queued.overlapped = request.param
    yield request.param


@pytest.fixture(autouse=True, params=[False, True], ids=["slots", "pages"])
def paged(request: pytest.FixtureRequest) -> Iterator[bool]:
    """And wherever sequences live."""
    Run.paged = request.param
    yield request.param


class Queued(FakeRunner):
    """Says the given pieces to every sequence, in order; `gate` lets a test hold it between steps."""

    overlapped = False

    def __init__(self, pieces: list[bytes], slots: int = 2, eos_after: bool = False) -> None:
        super().__init__(slots=slots, overlaps=self.overlapped)
        self.pieces, self.eos_after = pieces, eos_after
        self.vocabulary = FakeVocabulary(self.info.vocab, pieces, [])
        self.gate = threading.Semaphore(1_000_000)
        self.steps = 0

    def collect(self, masks: Masks = NO_MASKS) -> Iterator[list[Sample]]:
        self.gate.acquire()
        self.steps += 1
        yield from super().collect(masks)

    def _sample(self, chunk: Chunk, masks: Masks) -> Sample:
        at = chunk.start + len(chunk.tokens) - 2  # prompts here are two tokens long
        done = self.eos_after and at >= len(self.pieces)
        token = 0 if done else 1 + at % len(self.pieces)
        return Sample(chunk.slot, token, Logprob(token, -0.5, ((token, -0.5),)))


class Run:
    """An engine in a thread, and what it sent."""

    paged = False

    def __init__(self, runner: FakeRunner, seat: Seat | None = None, space: Space | None = None) -> None:
        self.sent: list[Step] = []
        if space is None and self.paged:
            space = Watched(runner.info, runner.info.context // 16 + 2, 16)
        runner.space = space if isinstance(space, Watched) else None
        self.engine = Engine(runner, self.sent.append, batch=64, chunk=16, seat=seat, space=space)
        self.thread = threading.Thread(target=self.engine.run)
        self.thread.start()

    def events(self) -> list[Event]:
        self.engine.stop()
        self.thread.join(10)
        assert not self.thread.is_alive()
        return [event for step in self.sent for event in step.events]

    def wait_for_end(self, id_: int) -> None:
        for _ in range(1000):
            events = [event for step in list(self.sent) for event in step.events]
            if any(isinstance(e, Finished | Failed) and e.id == id_ for e in events):
                return
            threading.Event().wait(0.005)
        raise AssertionError("no end came")


def texts(events: list[Event]) -> list[Text]:
    return [e for e in events if isinstance(e, Text)]


def end(events: list[Event]) -> Finished:
    assert isinstance(events[-1], Finished)
    return events[-1]


def request(id_: int, **params: Any) -> Request:
    return Request(id_, "a", (1, 2), SamplingParams(**{"max_tokens": 6, **params}))


def run_one(runner: FakeRunner, **params: Any) -> list[Event]:
    run = Run(runner)
    run.engine.add(request(1, **params))
    run.wait_for_end(1)
    return run.events()


class Shared(FakeRunner):
    """It notes with how many threads each step is computed; `others` sit down and leave by the step's number."""

    def __init__(self, page: memoryview, others: dict[int, int]) -> None:
        super().__init__(slots=2, threads=4)
        self.page, self.others, self.counts = page, others, []  # type: ignore[var-annotated]

    def launch(self, plan: Plan) -> None:
        super().launch(plan)
        self.counts.append(self.used)
        if len(self.counts) in self.others:
            self.page[2] = self.others[len(self.counts)]


def test_a_step_is_computed_with_the_threads_that_are_dealt_before_it() -> None:
    page = memoryview(bytearray(cores.BYTES)).cast("I")
    page[0] = 4
    runner = Shared(page, {2: cores.word(4, cores.SERVING), 4: 0})
    run = Run(runner, Seat(page, 1, cores.SERVING))
    run.engine.add(request(1))
    run.wait_for_end(1)
    for _ in range(1000):  # soon after its last step it has left its seat
        if page[1] == 0:
            break
        threading.Event().wait(0.005)
    assert page[1] == 0
    run.engine.add(request(2, max_tokens=1))
    run.wait_for_end(2)
    run.events()
    assert runner.counts == [4, 4, 2, 2, 4, 4, 4]
    assert run.sent[0].busy and (run.sent[0].busy.threads, run.sent[0].busy.share) == (4, 4)


def test_text_comes_token_by_token_and_ends_with_length() -> None:
    events = run_one(Queued([b"a", b"b", b"c"]), max_tokens=3)
    assert [(e.text, e.tokens) for e in texts(events)] == [("a", 1), ("b", 2), ("c", 3)]
    assert end(events) == Finished(1, 0, "length", tokens=3, cached=0) and len(events) == 4


def test_an_end_token_is_not_shown() -> None:
    events = run_one(Queued([b"a", b"b"], eos_after=True))
    assert "".join(e.text for e in texts(events)) == "ab"
    assert (end(events).reason, end(events).stop) == ("stop", 0), "the token that ends a text"


def test_a_stop_string_across_tokens_ends_the_work_and_is_not_shown() -> None:
    runner = Queued([b"one ", b"ST", b"OP", b" two", b" three", b" four"])
    events = run_one(runner, stop=("STOP",))
    assert "".join(e.text for e in texts(events)) == "one "
    assert (end(events).reason, end(events).stop) == ("stop", "STOP")
    assert runner.steps == (4 if runner.info.overlaps else 3), "beside its caller it has begun the next one"


def test_half_a_character_is_held_back_and_its_token_still_counts() -> None:
    smile = "🙂".encode()
    events = run_one(Queued([smile[:2], smile[2:], b"x"]), max_tokens=3)
    assert [(e.text, e.tokens) for e in texts(events)] == [("🙂", 2), ("x", 3)]


def test_logprobs_of_held_back_tokens_come_with_their_text() -> None:
    smile = "🙂".encode()
    events = run_one(Queued([smile[:2], smile[2:], b"x"]), max_tokens=3, logprobs=1)
    shown = [e.logprobs for e in texts(events)]
    assert [[p.chosen.token for p in entries] for entries in shown] == [[smile[:2], smile[2:]], [b"x"]]
    assert shown[0][0].top == (TokenLogprob(smile[:2], -0.5),)


def test_the_token_that_ends_a_text_has_no_logprob() -> None:
    (text,) = texts(run_one(Queued([b"a"], eos_after=True), logprobs=0))
    assert [p.chosen.token for p in text.logprobs] == [b"a"]


def test_what_a_stop_string_cuts_has_no_logprob() -> None:
    events = run_one(Queued([b"one ", b"x ST", b"OP two"]), stop=("STOP",), logprobs=0)
    assert [(e.text, [p.chosen.token for p in e.logprobs]) for e in texts(events)] == [
        ("one ", [b"one "]),
        ("x ", []),
        ("", [b"x "]),
    ]


def test_one_request_of_several_prompts_numbers_its_choices_and_is_cancelled_whole() -> None:
    several = [replace(request(1, max_tokens=2), choices=2, first=first) for first in (0, 2)]
    run = Run(Queued([b"a", b"b"]))
    run.engine.cancel(2)
    run.engine.add(*(replace(r, id=2) for r in several))
    run.engine.add(*several)
    while sum(isinstance(e, Finished) for step in list(run.sent) for e in step.events) < 4:
        pass
    ends = [(e.id, e.choice) for e in run.events() if isinstance(e, Finished)]
    assert sorted(ends) == [(1, choice) for choice in range(4)]
    assert not run.engine._live


def test_cancel_takes_effect_before_the_next_step() -> None:
    runner = Queued([b"a"])
    runner.gate = threading.Semaphore(0)
    run = Run(runner)
    run.engine.add(request(1, max_tokens=1000))
    run.engine.add(request(2, max_tokens=1000))
    while runner.steps < 0 or not run.engine.scheduler.running:
        pass
    runner.gate.release()
    while not any(step.events for step in list(run.sent)):
        pass
    run.engine.cancel(1)
    run.engine.cancel(2)
    runner.gate.release(3)
    assert len(run.events()) <= 8
    assert not run.engine.scheduler.busy and not run.engine._live


def test_a_cancel_that_comes_before_its_request_counts() -> None:
    run = Run(Queued([b"a"]))
    run.engine.cancel(1)
    run.engine.add(request(1))
    run.engine.add(request(2))
    run.wait_for_end(2)
    assert {e.id for e in run.events()} == {2}


def test_texts_are_worked_out_while_the_next_step_runs_and_first_ones_at_once(overlaps: bool) -> None:
    """What was sent when a step was launched, and when its samples were asked for."""
    seen: list[tuple[str, list[str]]] = []

    class Noted(Queued):
        def launch(self, plan: Plan) -> None:
            seen.append(("launch", [e.text for e in texts([e for s in run.sent for e in s.events])]))
            super().launch(plan)

        def collect(self, masks: Masks = NO_MASKS) -> Iterator[list[Sample]]:
            seen.append(("collect", [e.text for e in texts([e for s in run.sent for e in s.events])]))
            yield from super().collect(masks)

    runner = Noted([b"a", b"b", b"c"])
    runner.gate = threading.Semaphore(0)
    run = Run(runner)
    run.engine.add(request(1, max_tokens=3))
    runner.gate.release(3)
    run.wait_for_end(1)
    assert [e.text for e in texts(run.events())] == ["a", "b", "c"]
    assert seen == [
        ("launch", []), ("collect", []), ("launch", ["a"]), ("collect", ["a"]),
        ("launch", ["a"] if overlaps else ["a", "b"]), ("collect", ["a", "b"]),
    ]  # fmt: skip


# --- what a runner may count on

PARAMS = SamplingParams(max_tokens=1)


def start(slot: int, keep: int = 0, copy_from: int = -1) -> Start:
    return Start(slot, copy_from, keep, PARAMS, (1, 2), 0)


def misuses() -> dict[str, list[Plan | None]]:
    """Plans to launch in turn; None collects."""
    read = Plan([start(0)], [Chunk(0, 0, [1, 2], True)])
    return {
        "before the step before": [read, Plan([], [Chunk(0, 2, [3], True)])],
        "without a launch": [None],
        "holds 2 positions, not 3": [read, None, Plan([], [Chunk(0, 3, [3], True)])],
        "holds 2 positions, not 0": [read, None, Plan([], [Chunk(0, 0, [3], True)])],
        "to keep 3 positions of 2": [read, None, Plan([start(1, 3, copy_from=0)], [Chunk(1, 3, [3], True)])],
        "not 7": [Plan([start(0)], [Chunk(0, 7, [], True)])],
    }


@pytest.mark.parametrize("said", misuses())
def test_an_engine_that_does_what_a_runner_does_not_allow_is_told(said: str) -> None:
    runner = FakeRunner(slots=2)
    with pytest.raises(Misuse, match=said):
        for plan in misuses()[said]:
            if plan is None:
                list(runner.collect())
            else:
                runner.launch(plan)


def test_a_mask_lets_through_what_it_names_only() -> None:
    runner = FakeRunner(slots=2)
    runner.launch(Plan([start(0), start(1)], [Chunk(0, 0, [1, 2], True), Chunk(1, 0, [1], False)]))
    with pytest.raises(Misuse, match="mask"):
        list(runner.collect({1: [0xFFFFFFFF] * 32}))
    words = [0] * 32
    words[70 // 32] = 1 << 70 % 32
    assert [s.token for s in next(runner.collect({0: words}))] == [70]


# --- answers that are held to something, and read


class Spelled(Queued):
    """It writes a text, a byte a token, whatever the mask says: what an engine that leaves masks out would do."""

    def __init__(self, text: str, slots: int = 2, eos_after: bool = True) -> None:
        super().__init__([bytes([byte]) for byte in text.encode()], slots, eos_after)
        self.masked: list[set[int]] = []

    def collect(self, masks: Masks = NO_MASKS) -> Iterator[list[Sample]]:
        self.masked.append(set(masks))
        yield from super().collect(masks)


TOOL = Tool(
    "weather", "{}", '{"type": "object", "properties": {"days": {"type": "integer"}}, "required": ["days"]}', True
)
CALL = '<tool_call>\n{"name": "weather", "arguments": {"days": 2}}\n</tool_call>'


HERMES_SYNTAX = Syntax(HERMES)


def answering(runner: FakeRunner, wanted: Wanted, syntax: Syntax = HERMES_SYNTAX) -> Answering:
    made = Answers(runner.vocabulary.lexicon).answering(syntax, wanted)
    assert made is not None
    return made


def run_held(runner: Spelled, wanted: Wanted, syntax: Syntax = HERMES_SYNTAX, **params: Any) -> list[Event]:
    run = Run(runner)
    run.engine.add(request(1, **{"max_tokens": 200, **params}), answering=answering(runner, wanted, syntax))
    run.wait_for_end(1)
    events = run.events()
    assert not run.engine.scheduler.busy and run.engine._held == 0 and not run.engine._live
    return events


def test_an_answer_that_is_whole_ends_without_another_token() -> None:
    runner = Spelled('{"a": 1}5')
    events = run_held(runner, Wanted('{"type": "object"}'))
    assert "".join(e.text for e in texts(events)) == '{"a": 1}'
    assert end(events) == Finished(1, 0, "stop", tokens=8, cached=0)
    assert all(masked == {0} for masked in runner.masked[:8]), "every step has a mask"


def test_an_answer_that_is_cut_is_told_so() -> None:
    events = run_held(Spelled('{"a": 1}'), Wanted('{"type": "object"}'), max_tokens=4)
    assert end(events).reason == "length"
    events = run_held(Spelled('{"a": 1}'), Wanted('{"type": "object"}'), max_tokens=8)
    assert end(events).reason == "stop", "it is whole with its last token"


@pytest.mark.parametrize("text", ["x", '{"a" 5', '{"a": 1'])
def test_an_answer_that_leaves_its_grammar_fails(text: str) -> None:
    """An end where none may be does so too."""
    events = run_held(Spelled(text), Wanted('{"type": "object"}'))
    assert isinstance(events[-1], Failed) and events[-1].code == "answer_invalid"
    assert not any(isinstance(e, Finished) for e in events)


def test_one_choice_that_fails_ends_the_others_too() -> None:
    runner = Spelled("x")
    run = Run(runner)
    held = replace(request(1, max_tokens=200), choices=2)
    run.engine.add(held, answering=answering(runner, Wanted('{"type": "object"}')))
    run.wait_for_end(1)
    run.engine.add(request(2, max_tokens=3))
    run.wait_for_end(2)
    events = run.events()
    assert [type(e) for e in events if e.id == 1 and not isinstance(e, Text)] == [Failed]
    assert isinstance(events[-1], Finished) and events[-1].id == 2


class Panic(BaseException):
    """As libraries in Rust raise it: no Exception."""


SECRET = "secret words"


def broken(where: str, answer: Answering) -> Answering:
    """An answering that fails there."""

    def fails(*_: object, **__: object) -> None:
        raise Panic(SECRET)

    class Broken:
        start = fails if where == "begun" else lambda *_: spoilt(answer.start())

    def spoilt(choice: Any) -> Any:
        if where == "read":
            choice.push = fails
        else:
            choice.matcher.matcher = Matching()
        return choice

    class Matching:
        unsafe_compute_mask_ptr = fails
        consume_token = fails

    return Broken()  # type: ignore[return-value]


@pytest.mark.parametrize("where", ["begun", "masked", "read"])
def test_a_fault_of_one_request_ends_it_alone(where: str, capfd: pytest.CaptureFixture[str]) -> None:
    """What the others say in the same step is said."""
    runner = Spelled('{"a": 1}', slots=3)
    runner.gate = threading.Semaphore(0)
    run = Run(runner)
    wanted = answering(runner, Wanted('{"type": "object"}'))
    for n, held in ((1, wanted), (2, broken(where, wanted)), (3, wanted)):
        run.engine.add(request(n, max_tokens=200), answering=held)
    runner.gate.release(1_000_000)
    for n in (1, 2, 3):
        run.wait_for_end(n)
    assert not run.engine.scheduler.busy and run.engine._held == 0 and not run.engine._live
    events = run.events()
    for n in (1, 3):
        mine = [e for e in events if e.id == n]
        assert "".join(e.text for e in texts(mine)) == '{"a": 1}' and isinstance(mine[-1], Finished)
    (failed,) = [e for e in events if e.id == 2]
    assert isinstance(failed, Failed) and failed.code == "internal_error" and SECRET not in failed.message
    said = capfd.readouterr().err
    assert "a request failed: Panic" in said and "in fails" in said and SECRET not in said


def test_a_call_is_told_as_it_comes() -> None:
    events = run_held(Spelled(CALL), Wanted(None, (TOOL,)))
    calls = [e for e in events if isinstance(e, ToolCalled)]
    assert calls[0].name == "weather" and calls[0].arguments == ""
    assert "".join(e.arguments for e in calls) == '{"days": 2}' and {e.name for e in calls[1:]} == {""}
    assert calls[1].tokens == calls[0].tokens, "the first of the arguments comes with the name"
    assert (end(events).reason, end(events).calls) == ("stop", 1) and not any(e.text for e in texts(events))


def test_several_calls_have_numbers() -> None:
    events = run_held(Spelled(f"{CALL}\n{CALL}"), Wanted(None, (TOOL,)))
    begun = [e for e in events if isinstance(e, ToolCalled) and e.name]
    assert [e.number for e in begun] == [0, 1]


def test_a_call_that_is_cut_ends_with_length() -> None:
    events = run_held(Spelled(CALL), Wanted(None, (TOOL,)), max_tokens=CALL.index("2"))
    assert end(events).reason == "length" and any(isinstance(e, ToolCalled) for e in events)
    assert end(events).calls == 0 and not any(e.text for e in texts(events))


@pytest.mark.parametrize("wanted", [Wanted(None, (TOOL,)), Wanted(None, (TOOL,), must_call=True)])
def test_whatever_is_cut_of_a_call_is_no_content(wanted: Wanted) -> None:
    for size in range(1, len(CALL)):
        events = run_held(Spelled(CALL), wanted, max_tokens=size)
        assert end(events).reason == "length" and not any(e.text for e in texts(events)), size
        assert end(events).calls == (size > CALL.index("2}") + 1)
    events = run_held(Spelled(f"{CALL}\n{CALL}"), wanted, max_tokens=len(CALL) + 30)
    assert end(events) == Finished(1, 0, "length", len(CALL) + 30, 0, 0, 1)


def test_a_stop_string_is_looked_for_in_what_is_said_alone() -> None:
    syntax = Syntax(HERMES, THINKINGS["think"])
    for stop in ("H", "e", "<", "days", "\n"):
        events = run_held(Spelled(f"<think>Hey, e</think>{CALL}"), Wanted(None, (TOOL,)), syntax, stop=(stop,))
        assert "".join(e.text for e in events if isinstance(e, Reasoning)) == "Hey, e", stop
        assert (end(events).reason, end(events).calls) == ("stop", 1), stop
        events = run_held(Spelled("<think>Hey, e</think>Say: yes"), Wanted(), syntax, stop=(": y", "zz"))
        assert "".join(e.text for e in texts(events)) == "Say"
        assert (end(events).reason, end(events).stop) == ("stop", ": y")
        assert "".join(e.text for e in events if isinstance(e, Reasoning)) == "Hey, e"


def test_what_a_stop_string_may_become_is_held_back_until_it_is_known() -> None:
    syntax = Syntax(HERMES, THINKINGS["think"])
    events = run_held(Spelled("<think>Hm.</think>ab: nab: y!"), Wanted(), syntax, stop=("ab: y",), logprobs=0)
    assert "".join(e.text for e in texts(events)) == "ab: n"
    assert b"".join(p.chosen.token for e in texts(events) for p in e.logprobs) == b"<think>Hm.</think>ab: n"
    events = run_held(Spelled("<think>Hm.</think>ab"), Wanted(), syntax, stop=("abc",), logprobs=0)
    assert "".join(e.text for e in texts(events)) == "ab" and end(events).reason == "stop"
    assert b"".join(p.chosen.token for e in texts(events) for p in e.logprobs) == b"<think>Hm.</think>ab"
    for event in texts(events):
        assert not event.logprobs or event.logprobs[0].chosen.token != b"a" or event.tokens > len("<think>Hm.</think>a")


def test_thoughts_are_told_apart_and_counted() -> None:
    syntax = Syntax(HERMES, THINKINGS["think"])
    events = run_held(Spelled("<think>Hm.</think>\n\nYes."), Wanted(), syntax)
    assert "".join(e.text for e in events if isinstance(e, Reasoning)) == "Hm."
    assert "".join(e.text for e in texts(events)) == "Yes."
    assert end(events).reason == "stop" and end(events).reasoning == len(">Hm.</think>")


def test_the_log_probabilities_are_those_of_all_that_was_written() -> None:
    events = run_held(Spelled("<think>Hm.</think>Yes."), Wanted(), Syntax(HERMES, THINKINGS["think"]), logprobs=0)
    shown = b"".join(p.chosen.token for e in texts(events) for p in e.logprobs)
    assert shown == b"<think>Hm.</think>Yes."


def test_who_is_held_to_nothing_has_no_mask() -> None:
    runner = Spelled('{"a": 1}', slots=2)
    run = Run(runner)
    run.engine.add(request(1, max_tokens=200), answering=answering(runner, Wanted('{"type": "object"}')))
    run.engine.add(request(2, max_tokens=8))
    run.wait_for_end(1)
    run.wait_for_end(2)
    run.events()
    assert all(len(masked) <= 1 for masked in runner.masked)


@pytest.mark.parametrize("seed", [1, None])
def test_a_stream_whose_place_is_taken_goes_on_as_if_nothing_had_been(seed: int | None) -> None:
    def said(space: Space | None, runner: FakeRunner) -> list[str]:
        run = Run(runner, space=space)
        for id_ in (1, 2, 3):
            run.engine.add(request(id_, max_tokens=40, seed=seed))
        for id_ in (1, 2, 3):
            run.wait_for_end(id_)
        events = run.events()
        assert [sum(isinstance(e, Finished) and e.id == id_ for e in events) for id_ in (1, 2, 3)] == [1, 1, 1]
        assert not any(isinstance(e, Failed) for e in events)
        return ["".join(e.text for e in texts(events) if e.id == id_) for id_ in (1, 2, 3)]

    class Counting(FakeRunner):
        """What it says depends on where it is, and on nothing else."""

        def _sample(self, chunk: Chunk, masks: Masks) -> Sample:
            return Sample(chunk.slot, 1 + (chunk.start + len(chunk.tokens)) % 5)

    def runner() -> FakeRunner:
        return Counting(slots=3, context=64, text="one two three four five", overlaps=Queued.overlapped)

    cramped = Watched(runner().info, 16, 4)  # of 32 that the three would take
    assert said(cramped, runner()) == said(None, runner())
    assert cramped.taken > 0
    cramped.check()
