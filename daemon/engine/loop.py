"""The engine thread: drain commands, plan, launch, show what the step before sampled, collect, apply. It alone touches
the scheduler and the context.

Where the device computes by itself, what a token makes visible (its text, a frame to the daemon) is worked out while
the next step runs; a sequence's first token does not wait for that.

Every request that was added gets exactly one end a choice, whatever happens to it. What nobody expected ends the
request that it happened to; a runner that fails ends the process, and the daemon answers for it.
"""

import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from queue import Empty, SimpleQueue
from typing import TypeAlias

from llmd.daemon.engine.answers.answering import Answering, Choice
from llmd.daemon.engine.answers.matching import Masks, Matcher
from llmd.daemon.engine.answers.reader import Argued, Called, Piece, Said, Thought
from llmd.daemon.engine.failures import of_request
from llmd.daemon.engine.output import LogprobOutput, TextOutput
from llmd.daemon.engine.pace import Pace
from llmd.daemon.engine.protocols import Runner, Space
from llmd.daemon.engine.scheduler import Scheduler
from llmd.daemon.engine.spending import Spending
from llmd.daemon.engine.threads import Threads
from llmd.daemon.engine.types import NO_MASKS, Logprob, Mask, Plan, Request, Sequence, Token
from llmd.daemon.machine.cores import Alone, Idle, Seat
from llmd.daemon.wire.control import Busy, Step
from llmd.daemon.wire.events import ChosenLogprob, Event, Failed, Finished, Reasoning, Text, TokenLogprob, ToolCalled

BURST = 512
# who has answered a request often has the next one soon: its cores are not dealt anew for less
LINGER_SECONDS = 0.02

_Added: TypeAlias = tuple[tuple[Request, ...], Answering | None]


@dataclass(slots=True)
class _Live:
    """What a sequence needs besides the scheduler's counters: its text, and log-probabilities not shown yet."""

    text: TextOutput
    logprobs: LogprobOutput
    choice: Choice | None = None  # what the text is to be, and is read as

    @property
    def stopped(self) -> str:
        """The stop string that came; "": none has."""
        return self.choice.stopped if self.choice else self.text.stopped

    @property
    def shown(self) -> int:
        """Characters whose log-probabilities may be."""
        return self.choice.shown if self.choice else self.text.shown

    def read(self, data: bytes, finish: str | None) -> tuple[str, list[Piece]]:
        """What a token's bytes make visible: a text, or what the text says, thinks and calls."""
        text = self.text.push(data)
        if finish and not self.text.stopped:
            text += self.text.flush()
        if self.choice is None:
            return text, []
        pieces = self.choice.push(text)
        if finish and not self.choice.stopped:
            pieces += self.choice.end(cut=finish == "length")
        return "", pieces


def _live(request: Request, answering: Answering | None) -> _Live:
    """Stop strings are looked for in what an answer says: of what is read, the reader knows what that is."""
    stop = request.params.stop
    if answering:
        return _Live(TextOutput(), LogprobOutput(), answering.start(stop))
    return _Live(TextOutput(stop), LogprobOutput())


class Engine:
    """`send` takes a message for the daemon; it is called by this thread and must not fail. `seat`: where it learns how
    many cores it has. `space`: where sequences live; None: in llama.cpp's slots."""

    def __init__(
        self,
        runner: Runner,
        send: Callable[[Step], None],
        *,
        batch: int,
        chunk: int,
        seat: Seat | None = None,
        space: Space | None = None,
    ) -> None:
        self.runner = runner
        self._seat, self._threads, self._used = seat or Alone(), Threads(Idle().cores), 0
        # several prompts fill a pass of a device that computes by itself
        burst = BURST if runner.info.overlaps else 0
        self.scheduler = Scheduler(runner.info, batch=batch, chunk=chunk, burst=burst, space=space)
        self.step_began: float | None = None  # monotonic; None while there is nothing to do
        self.last_token = time.monotonic()
        self.spending = Spending()
        self._tokens, self._counted = Counter[str](), -1  # of the last step, and at which `Scheduler.moves`
        self._send = send
        self._inbox: SimpleQueue[_Added | int | None] = SimpleQueue()
        self._live: dict[tuple[int, int], _Live] = {}
        self._pace = Pace(chunk, batch)
        self._unseen: list[Token] = []  # sampled, and not shown yet
        self._masks = Masks(runner.info.slots, runner.info.vocab)
        self._held = 0  # sequences that follow a grammar
        self.marks: Mapping[int, bytes] = {}  # control tokens that a choice reads, and their names
        # cancelled before the request was tokenized: ids, oldest dropped
        self._cancelled_early: OrderedDict[int, None] = OrderedDict()

    # --- any thread

    def add(self, *requests: Request, answering: Answering | None = None) -> None:
        """One request's prompts, all with its id. `answering`: what its answers are held to and read as; None: text."""
        self._inbox.put((requests, answering))

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
                command = self._inbox.get(block=False) if self.scheduler.busy else self._idle()
            except Empty:
                return True
            if command is None:
                return False
            if isinstance(command, int):
                self._cancel(command)
            else:
                self._add(*command)

    def _idle(self) -> _Added | int | None:
        """The next command. Until it comes, others have the cores."""
        self.step_began = None
        with suppress(Empty):
            return self._inbox.get(timeout=LINGER_SECONDS)
        self._seat.leave()
        return self._inbox.get()

    def _add(self, requests: tuple[Request, ...], answering: Answering | None) -> None:
        id_ = requests[0].id
        if id_ in self._cancelled_early:
            del self._cancelled_early[id_]
            return
        try:
            live = {
                (id_, request.first + choice): _live(request, answering)
                for request in requests
                for choice in range(request.choices)
            }
        except BaseException as e:  # a panic of a library in Rust is no Exception
            return self._report([self._fail(id_, e)])
        self._live |= live
        self._held += sum(one.choice is not None and one.choice.matcher is not None for one in live.values())
        for request in requests:
            self.scheduler.add(request)

    def _cancel(self, request_id: int) -> None:
        gone = self.scheduler.cancel(request_id)
        for sequence in gone:
            self._leave(request_id, sequence.choice)
        if gone:
            self._report([])
        else:
            self._cancelled_early[request_id] = None
            while len(self._cancelled_early) > 1024:
                self._cancelled_early.popitem(last=False)

    def _leave(self, request_id: int, choice: int) -> None:
        live = self._live.pop((request_id, choice), None)
        if live is not None and live.choice is not None and live.choice.matcher is not None:
            self._held -= 1

    def _fail(self, request_id: int, error: BaseException) -> Failed:
        """The whole request ends with it."""
        told = of_request(error)
        self.scheduler.cancel(request_id)
        for id_, choice in [key for key in self._live if key[0] == request_id]:
            self._leave(id_, choice)
        return Failed(request_id, told.code, told.message, told.param)

    def _step(self) -> None:
        if self.runner.info.overlaps:
            self.scheduler.chunk = self._pace.chunk
        began = time.monotonic()
        plan = self.scheduler.plan()
        tokens = self._tokens_of(plan)
        self._take_threads()
        self.runner.launch(plan)
        self._show()
        if plan.starts:
            self._report([])  # a long prompt may not give a token in this step, and it runs all the same
        for samples in self.runner.collect(self._masks_of(plan)):
            self._show()
            self._unseen = self._accepted(self.scheduler.apply(plan, samples))
            self.last_token = time.monotonic()
            if self.runner.info.overlaps:
                self._show(first=True)
            else:
                self._show()
        generating = sum(len(chunk.tokens) == 1 for chunk in plan.chunks)
        prompts = sum(len(chunk.tokens) for chunk in plan.chunks) - generating
        now = time.monotonic()
        self._pace.note(prompts, generating, now - began)
        self._threads.note(generating, prompts, now - began, now)
        self.spending.add((now - began) * (1 if self.runner.info.overlaps else self._used), tokens)
        if not self.scheduler.busy:
            self._show()

    def _tokens_of(self, plan: Plan) -> Counter[str]:
        """That a step computes for each owner: as the one before, where nobody came or went and no prompt is read."""
        moves = -1 if self.scheduler.reads else self.scheduler.moves
        if moves < 0 or moves != self._counted:
            self._tokens = Counter()
            for chunk in plan.chunks:
                if (sequence := self.scheduler.space.at(chunk.slot)) is not None:
                    self._tokens[sequence.request.owner] += len(chunk.tokens)
        self._counted = moves
        return self._tokens

    def _take_threads(self) -> None:
        """As many as it has now."""
        self._seat.sit(self.runner.threads)
        threads = self._threads.count(min(self._seat.share(), self.runner.threads))
        if threads != self._used:
            self.runner.use(threads)
            self._used = threads

    # --- grammars

    def _masks_of(self, plan: Plan) -> Mapping[int, Mask]:
        """Of the sequences that follow a grammar, what they may sample in this step: a device computes meanwhile."""
        if not self._held:
            return NO_MASKS
        wanted = []
        for chunk in plan.chunks:
            choice = self._choice(self.scheduler.space.at(chunk.slot)) if chunk.sample else None
            if choice is not None and choice.matcher is not None:
                wanted.append((choice.matcher, chunk.slot))
        return self._masked(wanted) if wanted else NO_MASKS

    def _masked(self, wanted: list[tuple[Matcher, int]]) -> Mapping[int, Mask]:
        """One that fails ends its request with the token that is sampled now, which then fits nothing."""
        try:
            return self._masks.of(wanted)
        except BaseException:  # a panic of a library in Rust is no Exception
            found: dict[int, Mask] = {}
            for matcher, slot in wanted:
                try:
                    found |= self._masks.of([(matcher, slot)])
                except BaseException as e:
                    matcher.broken = e
            return found

    def _choice(self, sequence: Sequence | None) -> Choice | None:
        live = self._live.get((sequence.request.id, sequence.choice)) if sequence else None
        return live.choice if live else None

    def _accepted(self, tokens: list[Token]) -> list[Token]:
        """The grammars go on by these tokens, and end the sequences that are whole by them."""
        if not self._held:
            return tokens
        failed: list[Event] = []
        out = [token for token in map(lambda t: self._followed(t, failed), tokens) if token is not None]
        if failed:
            self._report(failed)
        return out

    def _followed(self, token: Token, failed: list[Event]) -> Token | None:
        sequence, choice = token.sequence, self._choice(token.sequence)
        if choice is None or choice.matcher is None:
            return token
        try:
            choice.matcher.accept(token.sample.token)
        except BaseException as e:  # a panic of a library in Rust is no Exception
            failed.append(self._fail(sequence.request.id, e))
            return None
        if token.finish == "stop" or not choice.matcher.ended:
            return token
        if token.finish is None:
            self.scheduler.stop(sequence)
        return replace(token, finish="whole")

    # --- what becomes visible

    def _show(self, *, first: bool = False) -> None:
        """Send what the tokens that were sampled last make visible; with `first`, of first and last ones only."""
        now: list[Token] = []
        later: list[Token] = []
        for token in self._unseen:
            (now if not first or token.finish or token.sequence.generated == 1 else later).append(token)
        self._unseen = later
        # the daemon writes to one client after the other: first tokens go first, they are what people wait for
        now.sort(key=lambda token: token.sequence.generated)
        events: list[Event] = []
        for token in now:
            try:
                events += list(self._events(token))
            except BaseException as e:  # a panic of a library in Rust is no Exception
                events.append(self._fail(token.sequence.request.id, e))
        if events or (now and not first):
            self._report(events)

    def _report(self, events: list[Event]) -> None:
        s = self.scheduler
        busy = Busy(len(s.running), len(s.waiting), s.kv_used, self._threads.used, self._threads.limit)
        self._send(Step(tuple(events), busy))

    def _events(self, new: Token) -> Iterator[Event]:
        """What a token makes visible; nothing while its text is held back."""
        sequence, finish = new.sequence, new.finish
        id_, at = sequence.request.id, sequence.choice
        live = self._live.get((id_, at))
        if live is None:
            return  # cancelled since it was sampled
        data = b""
        if finish != "stop":  # a token that ends the text is not part of it
            if new.sample.logprob:
                live.logprobs.push(live.text, self._shown(new.sample.logprob))
            data = self._piece(new.sample.token, live.choice)
        text, pieces = live.read(data, finish)
        if live.stopped:
            if not finish:
                self.scheduler.stop(sequence)
            finish = "stop"
        logprobs = live.logprobs.rest(live.shown) if finish else live.logprobs.release(live.shown)
        if text or logprobs:
            yield Text(id_, at, text, sequence.generated, sequence.cached, logprobs)
        for piece in pieces:
            yield self._told(sequence, piece)
        if finish and (id_, at) in self._live:
            self._leave(id_, at)
            yield self._finished(new, live, finish)

    def _told(self, sequence: Sequence, piece: Piece) -> Event:
        where = (sequence.request.id, sequence.choice)
        counted = (sequence.generated, sequence.cached)
        match piece:
            case Said(text):
                return Text(*where, text, *counted)
            case Thought(text):
                return Reasoning(*where, text, *counted)
            case Called(number, name):
                return ToolCalled(*where, number, name, "", *counted)
            case Argued(number, text):
                return ToolCalled(*where, number, "", text, *counted)

    def _finished(self, last: Token, live: _Live, finish: str) -> Finished:
        sequence, choice = last.sequence, live.choice
        thought, calls = (choice.reasoning, choice.calls) if choice else (0, 0)
        where = (sequence.request.id, sequence.choice)
        ended = live.stopped or (last.sample.token if last.finish == "stop" else None)
        reason = "length" if finish == "length" else "stop"
        return Finished(*where, reason, sequence.generated, sequence.cached, thought, calls, ended)

    def _piece(self, token: int, choice: Choice | None) -> bytes:
        return (self.marks.get(token) if choice is not None else None) or self.runner.vocabulary.piece(token)

    def _shown(self, logprob: Logprob) -> ChosenLogprob:
        piece = self.runner.vocabulary.piece
        top = tuple(TokenLogprob(piece(token), p) for token, p in logprob.top)
        return ChosenLogprob(TokenLogprob(piece(logprob.token), logprob.logprob), top)
