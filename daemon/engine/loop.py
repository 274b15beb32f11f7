"""The engine thread: drain commands, plan, launch, show what the step before sampled, collect, apply. It alone touches
the scheduler and the context.

Where the device computes by itself, what a token makes visible (its text, a frame to the daemon) is worked out while
the next step runs; a sequence's first token does not wait for that.

Every request that was added gets exactly one end a choice, whatever happens to it; a runner that fails ends the
process, and the daemon answers for it.
"""

import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from queue import Empty, SimpleQueue

from llmd.daemon.engine.messages import Busy, ChosenLogprob, Event, Finished, Step, Text, TokenLogprob
from llmd.daemon.engine.output import LogprobOutput, TextOutput
from llmd.daemon.engine.pace import Pace
from llmd.daemon.engine.scheduler import Scheduler
from llmd.daemon.engine.types import Logprob, Request, Runner, Token

BURST = 512


@dataclass(slots=True)
class _Live:
    """What a sequence needs besides the scheduler's counters: its text, and log-probabilities not shown yet."""

    text: TextOutput
    logprobs: LogprobOutput


class Engine:
    """`send` takes a message for the daemon; it is called by this thread and must not fail."""

    def __init__(self, runner: Runner, send: Callable[[Step], None], *, batch: int, chunk: int) -> None:
        self.runner = runner
        # several prompts fill a pass of a device that computes by itself
        self.scheduler = Scheduler(runner.info, batch=batch, chunk=chunk, burst=BURST if runner.info.overlaps else 0)
        self.step_began: float | None = None  # monotonic; None while there is nothing to do
        self.last_token = time.monotonic()
        self._send = send
        self._inbox: SimpleQueue[tuple[Request, ...] | int | None] = SimpleQueue()
        self._live: dict[tuple[int, int], _Live] = {}
        self._pace = Pace(chunk, batch)
        self._unseen: list[Token] = []  # sampled, and not shown yet
        # cancelled before the request was tokenized: ids, oldest dropped
        self._cancelled_early: OrderedDict[int, None] = OrderedDict()

    # --- any thread

    def add(self, *requests: Request) -> None:
        """One request's prompts, all with its id."""
        self._inbox.put(requests)

    def cancel(self, request_id: int) -> None:
        """Takes effect before the next step. The request's slot and queue place are free then; no event follows."""
        self._inbox.put(request_id)

    def stop(self) -> None:
        self._inbox.put(None)

    # --- the engine thread

    def run(self) -> None:
        """Until `stop`. Raises what the runner raises."""
        while self._drain():
            self.step_began = time.monotonic()
            self._step()

    def _drain(self) -> bool:
        """Take in all commands; wait for one when there is nothing to do. False: stop."""
        while True:
            try:
                if not self.scheduler.busy:
                    self.step_began = None
                command = self._inbox.get(block=not self.scheduler.busy)
            except Empty:
                return True
            if command is None:
                return False
            if isinstance(command, int):
                self._cancel(command)
            else:
                self._add(command)

    def _add(self, requests: tuple[Request, ...]) -> None:
        id_ = requests[0].id
        if id_ in self._cancelled_early:
            del self._cancelled_early[id_]
            return
        for request in requests:
            self.scheduler.add(request)
            for choice in range(request.choices):
                self._live[id_, request.first + choice] = _Live(TextOutput(request.params.stop), LogprobOutput())

    def _cancel(self, request_id: int) -> None:
        gone = self.scheduler.cancel(request_id)
        for sequence in gone:
            del self._live[request_id, sequence.choice]
        if gone:
            self._report([])
        else:
            self._cancelled_early[request_id] = None
            while len(self._cancelled_early) > 1024:
                self._cancelled_early.popitem(last=False)

    def _step(self) -> None:
        if self.runner.info.overlaps:
            self.scheduler.chunk = self._pace.chunk
        began = time.monotonic()
        plan = self.scheduler.plan()
        self.runner.launch(plan)
        self._show()
        if plan.starts:
            self._report([])  # a long prompt may not give a token in this step, and it runs all the same
        for samples in self.runner.collect():
            self._show()
            self._unseen = self.scheduler.apply(plan, samples)
            self.last_token = time.monotonic()
            if self.runner.info.overlaps:
                self._show(first=True)
            else:
                self._show()
        generating = sum(len(chunk.tokens) == 1 for chunk in plan.chunks)
        prompts = sum(len(chunk.tokens) for chunk in plan.chunks) - generating
        self._pace.note(prompts, generating, time.monotonic() - began)
        if not self.scheduler.busy:
            self._show()

    def _show(self, *, first: bool = False) -> None:
        """Send what the tokens that were sampled last make visible; with `first`, of first and last ones only."""
        now: list[Token] = []
        later: list[Token] = []
        for token in self._unseen:
            (now if not first or token.finish or token.sequence.generated == 1 else later).append(token)
        self._unseen = later
        # the daemon writes to one client after the other: first tokens go first, they are what people wait for
        now.sort(key=lambda token: token.sequence.generated)
        events = [event for token in now for event in self._events(token)]
        if events or (now and not first):
            self._report(events)

    def _report(self, events: list[Event]) -> None:
        s = self.scheduler
        self._send(Step(tuple(events), Busy(len(s.running), len(s.waiting), s.kv_used)))

    def _events(self, new: Token) -> Iterator[Event]:
        """What a token makes visible; nothing while its text is held back."""
        sequence, finish = new.sequence, new.finish
        key = (sequence.request.id, sequence.choice)
        live = self._live.get(key)
        if live is None:
            return  # cancelled since it was sampled
        text = ""
        if finish != "stop":  # a token that ends the text is not part of it
            if new.sample.logprob:
                live.logprobs.push(live.text, self._shown(new.sample.logprob))
            text = live.text.push(self.runner.piece(new.sample.token))
        if finish and not live.text.finished:
            text += live.text.flush()
        if live.text.finished:
            if not finish:
                self.scheduler.stop(sequence)
            finish = "stop"
        logprobs = live.logprobs.rest(live.text.shown) if finish else live.logprobs.release(live.text.shown)
        if text or logprobs:
            yield Text(sequence.request.id, sequence.choice, text, sequence.generated, sequence.cached, logprobs)
        if finish:
            del self._live[key]
            yield Finished(sequence.request.id, sequence.choice, finish, sequence.generated, sequence.cached)

    def _shown(self, logprob: Logprob) -> ChosenLogprob:
        piece = self.runner.piece
        top = tuple(TokenLogprob(piece(token), p) for token, p in logprob.top)
        return ChosenLogprob(TokenLogprob(piece(logprob.token), logprob.logprob), top)
