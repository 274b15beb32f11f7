"""On a CPU the same text, whatever else runs, however many threads compute, and however a prefix came to be shared.

It is held against the same request alone, on one thread, in a context that nothing was in before: not the tokens only,
their probabilities to the last bit.
"""

import importlib
import os
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from saying import scheduler

from llmd.daemon.engine.pages import PAGE, Pages
from llmd.daemon.engine.protocols import Runner
from llmd.daemon.engine.types import Logprob, Request, SamplingParams
from llmd.daemon.machine.cores import available

# in torch's interpreter it is torch's
engine: Any = importlib.import_module("torch_side.interpreter" if "LLMD_TESTS" in os.environ else "llama_runners")

Said = list[tuple[int, Logprob | None]]
THREADS = sorted({1, 2, 3, available()})
CONTEXT, SLOTS = 2048, 5


@pytest.fixture(scope="module", params=engine.MODELS)
def small(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
    folder = tmp_path_factory.mktemp("model")
    made: Runner = engine.random_weights(request.param, folder, slots=SLOTS, context=CONTEXT, threads=max(THREADS))
    yield made
    made.close()


@dataclass
class Driver:
    """A context in use: requests come, are cancelled, and say what they say, while the threads change."""

    runner: Runner
    threads: Callable[[], int]

    def __post_init__(self) -> None:
        self.scheduler = scheduler(self.runner)
        self.said: dict[tuple[int, int], Said] = {}

    def step(self) -> None:
        plan = self.scheduler.plan()
        self.runner.use(self.threads())
        self.runner.launch(plan)
        for samples in self.runner.collect():
            for token in self.scheduler.apply(plan, samples):
                key = (token.sequence.request.id, token.sequence.choice)
                self.said.setdefault(key, []).append((token.sample.token, token.sample.logprob))

    def run(self, *requests: Request) -> dict[tuple[int, int], Said]:
        for request in requests:
            self.scheduler.add(request)
        while self.scheduler.busy:
            self.step()
        return self.said


def alone(runner: Runner, request: Request) -> Said:
    return Driver(runner, lambda: 1).run(request)[request.id, 0]


def exact(id_: int, prompt: Sequence[int], tokens: int = 10, owner: str = "a", choices: int = 1) -> Request:
    seeded: dict[str, Any] = {"temperature": 0.8, "seed": 7} if id_ % 2 else {"temperature": 0.0}
    params = SamplingParams(max_tokens=tokens, ignore_eos=True, logprobs=2, **seeded)
    return Request(id_, owner, tuple(prompt), params, choices)


def company(id_: int, prompt: Sequence[int], tokens: int, owner: str) -> Request:
    return Request(id_, owner, tuple(prompt), SamplingParams(max_tokens=tokens, ignore_eos=True))


def text(dice: random.Random, length: int) -> list[int]:
    return [dice.randrange(3, 259) for _ in range(length)]


@pytest.mark.parametrize("length", [20, 300, 1100])
def test_on_any_number_of_threads(small: Runner, length: int) -> None:
    request = exact(1, text(random.Random(length), length))
    expected = alone(small, request)
    for count in THREADS[1:]:
        assert Driver(small, lambda count=count: count).run(request)[1, 0] == expected, f"{count} threads"  # type: ignore[misc]


@pytest.mark.parametrize("count", [1, 2, 4])
def test_beside_any_number_of_others(small: Runner, count: int) -> None:
    dice = random.Random(count)
    request = exact(2, text(dice, 600))
    others = [company(10 + i, text(dice, dice.choice((3, 70, 700))), 14, "b") for i in range(count)]
    assert Driver(small, lambda: 2).run(request, *others)[2, 0] == alone(small, request)


@pytest.mark.parametrize("seed", range(3))
def test_random_schedules(small: Runner, seed: int) -> None:
    """Requests that share beginnings in every way come and go, some are cancelled, and threads change each step."""
    dice = random.Random(seed)
    driver = Driver(small, lambda: dice.choice((1, min(8, available()))))
    beginnings = [text(dice, length) for length in (64, 200, 640)]
    promised: list[Request] = []
    for id_ in range(1, 13):
        prompt = dice.choice(beginnings)[: dice.randrange(1, 641)] + text(dice, dice.choice((0, 1, 30, 200)))
        if dice.random() < 0.5:
            promised.append(exact(id_, prompt, dice.choice((2, 8)), dice.choice("ab"), dice.choice((1, 1, 2))))
            driver.scheduler.add(promised[-1])
        else:
            driver.scheduler.add(company(id_, prompt, dice.choice((1, 6, 20)), dice.choice("ab")))
        for _ in range(dice.choice((0, 1, 3, 8))):
            if driver.scheduler.busy:
                driver.step()
        if dice.random() < 0.2:
            driver.scheduler.cancel(dice.randrange(1, id_ + 1))
    driver.run()
    compared = 0
    for request in promised:
        expected = alone(small, request)
        said = driver.said.get((request.id, 0), [])  # a cancelled one has said less, or nothing
        assert said == expected[: len(said)], f"request {request.id}: {len(request.prompt)} tokens"
        compared += len(said)
    assert compared


@pytest.mark.slow
@pytest.mark.parametrize("length", [300, 700, 1200, 2000, 3000])
def test_the_real_model_at_every_length(length: int) -> None:
    made: Runner = engine.real_model(slots=3, context=3200)
    text = "The quick brown fox jumps over the lazy dog. Then it sleeps. " * 300
    tokens = made.vocabulary.tokenize(text, add_special=True, parse_special=False)
    dice, request = random.Random(length), exact(1, tokens[:length], 24)
    others = [company(2, tokens[9 : 9 + length // 3], 12, "b"), exact(3, tokens[: length - 40], 24)]
    driver = Driver(made, lambda: dice.choice((1, 2)))
    said = driver.run(request, *others)[1, 0]
    assert driver.run(exact(5, tokens[:length], 24))[5, 0] == said  # on the prefix that is there now
    assert alone(made, request) == said
    made.close()


def sampled(kind: str, id_: int, prompt: Sequence[int], tokens: int) -> Request:
    """With a seed: by our own sampling, and by llama.cpp's samplers."""
    more: dict[str, Any] = {
        "own": {}, "penalties": {"repeat_penalty": 1.3, "frequency_penalty": 0.4}, "all": {"top_k": 0, "top_p": 1.0},
        "greedy": {"temperature": 0.0, "repeat_penalty": 1.2},
    }[kind]  # fmt: skip
    params = SamplingParams(**{"max_tokens": tokens, "ignore_eos": True, "temperature": 1.5, "seed": 11, **more})
    return Request(id_, "a", tuple(prompt), params)


@pytest.mark.parametrize("kind", ["own", "penalties", "all", "greedy"])
def test_what_gives_its_slot_to_others_goes_on_as_if_it_had_not(small: Runner, kind: str) -> None:
    dice = random.Random(5)
    requests = [sampled(kind, 1 + i, text(dice, 90), 40) for i in range(SLOTS)]
    expected = [alone(small, one) for one in requests]
    driver = Driver(small, lambda: 1)
    for one in requests:
        driver.scheduler.add(one)
    gave = 0
    for number in range(6):
        for _ in range(7):
            driver.step()
        driver.scheduler.add(company(100 + number, text(dice, 70), 5, "b"))
        driver.step()
        gave += any(s.generated for s in driver.scheduler.waiting)
    driver.run()
    assert gave >= 3
    assert [driver.said[one.id, 0] for one in requests] == expected


def test_what_loses_its_pages_goes_on_as_if_it_had_not(small: Runner) -> None:
    if not isinstance(small.space, Pages):
        pytest.skip("its slots hold a whole context each")
    dice, room = random.Random(6), small.space.count * PAGE
    # all enter, and there is not room for what they say
    length = room // SLOTS - PAGE
    requests = [exact(1 + i, text(dice, length), 2 * PAGE, owner="ab"[i % 2]) for i in range(SLOTS)]
    driver, lost = Driver(small, lambda: 2), 0
    for one in requests:
        driver.scheduler.add(one)
    while driver.scheduler.busy:
        driver.step()
        lost += any(s.generated for s in driver.scheduler.waiting)
    assert lost
    for one in requests:
        assert driver.said[one.id, 0] == alone(small, one)
