"""A runner without a model: what it says is given, and how fast. For tests, and to measure what the gateway itself
costs.

With `text` empty its pieces are `ARRIVED:EMITTED ` in nanoseconds of the monotonic clock, which a client on the same
machine holds against its own.
"""

import time
from collections import abc

from llmd.daemon.engine.types import Chunk, Logprob, ModelInfo, Plan, Sample

_BASE = 1 << 31


class FakeRunner:
    """`step_seconds`: the time of a step, 0: as fast as it goes. `text`: the words it says, over and over."""

    def __init__(self, *, slots: int, context: int = 4096, step_seconds: float = 0.0, text: str = "") -> None:
        self.info = ModelInfo(
            vocab=1000,
            context=context,
            slots=slots,
            eos=frozenset({0}),
            can_trim=True,
            exact_block=0,
            chat_template="{{ messages[-1].content }}",
            bos_text="",
            eos_text="",
            description="fake",
            parameters=0,
            size=0,
            longest_token=1,
        )
        self.step_seconds = step_seconds
        self._words = [w + " " for w in text.split()]
        self._arrived = [0] * slots
        self._logprobs: list[int | None] = [None] * slots
        self._next = time.monotonic()

    def run(self, plan: Plan) -> abc.Iterator[list[Sample]]:
        for start in plan.starts:
            prompt = start.prompt
            self._arrived[start.slot] = prompt[0] * _BASE + prompt[1]
            self._logprobs[start.slot] = start.params.logprobs
        if self.step_seconds:
            self._next = max(self._next + self.step_seconds, time.monotonic())
            time.sleep(self._next - time.monotonic() if self._next > time.monotonic() else 0)
        yield [self._sample(chunk) for chunk in plan.chunks if chunk.sample]

    def _sample(self, chunk: Chunk) -> Sample:
        words = len(self._words)
        token = 1 + (chunk.start % words if words else chunk.slot)
        wanted = self._logprobs[chunk.slot]
        logprob = None if wanted is None else Logprob(token, -0.5, tuple((token, -0.5 - i) for i in range(wanted)))
        return Sample(chunk.slot, token, logprob)

    def piece(self, token: int) -> bytes:
        if self._words:
            return self._words[(token - 1) % len(self._words)].encode()
        return b"%d:%d " % (self._arrived[token - 1], time.monotonic_ns())

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        now = time.monotonic_ns()
        return [now // _BASE, now % _BASE, *text.encode()]

    def detokenize(self, tokens: abc.Sequence[int]) -> str:
        return bytes(t for t in tokens[2:] if 0 <= t < 256).decode(errors="replace")

    def special_texts(self) -> list[str]:
        return []

    def close(self) -> None:
        return None
