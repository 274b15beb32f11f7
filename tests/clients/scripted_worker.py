"""A worker whose model says what it is told to: of the last message of a user that holds some, the texts between ⟦ and
⟧, one a turn. Everything else of it is the real one: its tokens, its grammars, its streams."""

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from llmd.daemon.machine.cores import Seat
from llmd.daemon.engine import __main__ as worker
from llmd.daemon.engine.protocols import Runner
from llmd.daemon.engine.types import NO_MASKS, Masks, Plan, Sample
from llmd.daemon.wire.control import Settings

SCRIPT = re.compile(r"⟦(.*?)⟧", re.DOTALL)
TURN = "<|im_start|>assistant"


class Scripted:
    """A runner of which each slot writes its script, as far as its mask lets it."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._scripts: dict[int, list[int]] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runner, name)

    def launch(self, plan: Plan) -> None:
        for start in plan.starts:
            self._scripts[start.slot] = self._script(self._runner.vocabulary.detokenize(list(start.prompt)))
        self._runner.launch(plan)

    def collect(self, masks: Masks = NO_MASKS) -> Iterator[list[Sample]]:
        for samples in self._runner.collect(masks):
            yield [self._said(sample, masks.get(sample.slot)) for sample in samples]

    def _said(self, sample: Sample, mask: Any) -> Sample:
        script = self._scripts.get(sample.slot)
        if not script:
            return sample
        token = script[0]
        if mask is not None and not mask[token // 32] >> (token % 32) & 1:
            script.clear()
            return sample
        return replace(sample, token=script.pop(0))

    def _script(self, prompt: str) -> list[int]:
        before, _, _ = prompt.rpartition("⟧")
        texts = SCRIPT.findall(before.rpartition("<|im_start|>user")[2] + "⟧")
        turn = prompt.rpartition("⟧")[2].count(TURN) - 1
        if not 0 <= turn < len(texts):
            return []
        tokens = self._runner.vocabulary.tokenize(texts[turn], add_special=False, parse_special=False)
        return [*tokens, min(self._runner.info.eos)]


real = worker.runner_for


def runner_for(settings: Settings) -> Callable[[Seat], Any]:
    make = real(settings)
    return lambda seat: Scripted(make(seat))


worker.runner_for = runner_for

if __name__ == "__main__":
    worker.main()
