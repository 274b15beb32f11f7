"""Has a runner say what requests ask for, whatever engine it is of."""

from typing import Any

from llmd.daemon.engine.pages import Pages
from llmd.daemon.engine.protocols import Runner
from llmd.daemon.engine.scheduler import Scheduler
from llmd.daemon.engine.types import Request, SamplingParams, Token

FRANCE = "The capital of France is"
LONG = (
    "Once upon a time there was a small house at the edge of a forest, and in it lived an old man who collected "
    "clocks. " * 6
)


def scheduler(runner: Runner) -> Scheduler:
    """Of a runner that nothing was in before."""
    if isinstance(runner.space, Pages):
        setattr(runner, "space", Pages(runner.info, runner.space.count))  # noqa: B010
    return Scheduler(runner.info, batch=256, chunk=64, space=runner.space)


def texts(
    runner: Runner, requests: list[Request], given: Scheduler | None = None
) -> dict[tuple[int, int], list[Token]]:
    s = given or scheduler(runner)
    for request in requests:
        s.add(request)
    out: dict[tuple[int, int], list[Token]] = {}
    while s.busy:
        plan = s.plan()
        runner.launch(plan)
        for samples in runner.collect():
            for token in s.apply(plan, samples):
                out.setdefault((token.sequence.request.id, token.sequence.choice), []).append(token)
    return out


def ids(tokens: list[Token]) -> list[int]:
    return [t.sample.token for t in tokens]


def ask(runner: Runner, id_: int, text: str, *, owner: str = "a", choices: int = 1, **params: Any) -> Request:
    prompt = tuple(runner.vocabulary.tokenize(text, add_special=True, parse_special=True))
    params = {"max_tokens": 16, "temperature": 0.0, "ignore_eos": True, **params}
    return Request(id_, owner, prompt, SamplingParams(**params), choices)
