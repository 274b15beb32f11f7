"""A runner without a model: what it says is given, and how fast. For tests, and to measure what the gateway itself
costs. It holds the engine to what `Runner` says.

With `text` empty its pieces are `ARRIVED:EMITTED ` in nanoseconds of the monotonic clock, which a client on the same
machine holds against its own.
"""

import os
import sys
import time
from collections import abc

from llmd.daemon.engine.pages import Pages
from llmd.daemon.engine.types import NO_MASKS, Chunk, Lexicon, Logprob, Masks, ModelInfo, Plan, Sample, Start

_BASE = 1 << 31


class Misuse(Exception):
    """The engine did what `Runner` does not allow; the message says what."""


class FakeVocabulary:
    """Of `size` tokens; the first ends a text, the next are `words`, every other is a byte. Without words a
    slot's token tells when its prompt was tokenized (`arrived`), and when it was looked at."""

    chat_template: str | None = "{{ messages[-1].content }}"
    tool_template: str | None = None
    bos_text = eos_text = ""
    longest = 1
    ends = frozenset({0})
    defaults: abc.Mapping[str, float] = {}

    def __init__(self, size: int, words: abc.Sequence[bytes], arrived: abc.Sequence[int]) -> None:
        self.size, self._spelled, self._arrived = size, bool(words), arrived
        self._pieces = [b"<end>", *words, *(bytes([n % 256]) for n in range(size - 1 - len(words)))]

    def piece(self, token: int) -> bytes:
        if self._spelled:
            return self._pieces[token]
        return b"%d:%d " % (self._arrived[token - 1], time.monotonic_ns())

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        now = time.monotonic_ns()
        return [now // _BASE, now % _BASE, *text.encode()]

    def continued(self, text: str, *, parse_special: bool) -> list[int]:
        return list(text.encode())

    def detokenize(self, tokens: abc.Sequence[int]) -> str:
        return bytes(t for t in tokens[2:] if 0 <= t < 256).decode(errors="replace")

    def special_texts(self) -> list[str]:
        return []

    def lexicon(self) -> Lexicon:
        return Lexicon(self._pieces, frozenset({0}), self.ends)


class FakeRunner:
    """`step_seconds`: the time of a step, 0: as fast as it goes. `text`: the words it says, over and over. `overlaps`:
    it computes beside its caller, as a GPU does. `last_words`: what it prints as it aborts, after so many steps as
    `dies_after` says (0: as it loads), with more than `holds` slots. `threads`: as many as it could use. `samples`: it
    gives tokens. `pages`: so many hold its sequences; 0: slots do.
    """

    def __init__(
        self,
        *,
        slots: int,
        context: int = 4096,
        step_seconds: float = 0.0,
        text: str = "",
        overlaps: bool = False,
        last_words: str = "",
        dies_after: int = 0,
        holds: int = 0,
        threads: int = 1,
        samples: bool = True,
        pages: int = 0,
    ) -> None:
        self._last_words, self._left = last_words if slots > holds else "", dies_after
        self._maybe_die()
        self.info = ModelInfo(
            vocab=1000,
            context=context,
            slots=slots,
            eos=FakeVocabulary.ends,
            can_trim=True,
            exact_block=0,
            description="fake",
            parameters=0,
            size=0,
            overlaps=overlaps,
            samples=samples,
        )
        self.threads = self.used = threads
        self.step_seconds = step_seconds
        self._words = [f"{word} ".encode() for word in text.split()]
        self._arrived = [0] * slots
        self.vocabulary = FakeVocabulary(self.info.vocab, self._words, self._arrived)
        self._logprobs: list[int | None] = [None] * slots
        self._prompts = [0] * slots  # how long each is
        self._next = time.monotonic()
        self._held = [0] * slots  # positions that each slot holds
        self.space = Pages(self.info, pages) if pages else None
        self._filled: dict[int, int] = {}  # positions of each page
        self._plan: Plan | None = None  # of the step that was launched

    def use(self, threads: int) -> None:
        if self._plan is not None or not 1 <= threads <= self.threads:
            raise Misuse(f"{threads} threads are to be used, or within a step")
        self.used = threads

    def launch(self, plan: Plan) -> None:
        if self._plan is not None:
            raise Misuse("launched before the step before was collected to its end")
        for start in plan.starts:
            prompt = start.prompt
            self._arrived[start.slot] = prompt[0] * _BASE + prompt[1]
            self._logprobs[start.slot], self._prompts[start.slot] = start.params.logprobs, len(prompt)
            there = self._there(start)
            if start.keep > there:
                raise Misuse(f"slot {start.slot} is to keep {start.keep} positions of {there}")
            self._held[start.slot] = start.keep
        for chunk in plan.chunks:
            if chunk.start != self._held[chunk.slot] or not chunk.tokens:
                raise Misuse(f"slot {chunk.slot} holds {self._held[chunk.slot]} positions, not {chunk.start}")
            self._held[chunk.slot] += len(chunk.tokens)
            if self.space:
                self._fill(self.space, chunk)
        self._left -= 1
        self._maybe_die()
        self._plan = plan
        self._next = max(self._next + self.step_seconds, time.monotonic())

    def _there(self, start: Start) -> int:
        """Positions that a sequence finds where it begins."""
        if self.space is None:
            return self._held[start.copy_from if start.copy_from >= 0 else start.slot]
        if start.copy:
            self._filled[start.copy[1]] = self._filled.get(start.copy[0], 0)
        return sum(self._filled.get(page, 0) for page in self.space.tables[start.slot])

    def _fill(self, space: Pages, chunk: Chunk) -> None:
        table, end = space.tables[chunk.slot], chunk.start + len(chunk.tokens)
        if end > len(table) * space.size:
            raise Misuse(f"slot {chunk.slot} has {len(table)} pages for {end} positions")
        for at in range(chunk.start, end):
            self._filled[table[at // space.size]] = at % space.size + 1

    def _maybe_die(self) -> None:
        if self._last_words and self._left <= 0:
            print(self._last_words, file=sys.stderr, flush=True)
            os.abort()

    def collect(self, masks: Masks = NO_MASKS) -> abc.Iterator[list[Sample]]:
        if self._plan is None:
            raise Misuse("collected without a launch")
        if masks.keys() - {chunk.slot for chunk in self._plan.chunks if chunk.sample}:
            raise Misuse("a mask for a slot that is not sampled")
        if self.step_seconds:
            time.sleep(max(0.0, self._next - time.monotonic()))
        yield [self._sample(chunk, masks) for chunk in self._plan.chunks if chunk.sample]
        self._plan = None

    def _sample(self, chunk: Chunk, masks: Masks) -> Sample:
        words = len(self._words)
        said = chunk.start + len(chunk.tokens) - self._prompts[chunk.slot]
        token = 1 + (said % words if words else chunk.slot)
        if chunk.slot in masks:
            # the last one: blanks, which JSON may have without end, come before what ends it
            token = next(t for t in reversed(range(self.info.vocab)) if masks[chunk.slot][t // 32] >> t % 32 & 1)
        wanted = self._logprobs[chunk.slot]
        logprob = None if wanted is None else Logprob(token, -0.5, tuple((token, -0.5 - i) for i in range(wanted)))
        return Sample(chunk.slot, token, logprob)

    def close(self) -> None:
        return None
