"""The worker process: one model. `daemon/machine/children.py` starts it with FD, its end of a Unix socket pair.

Threads: the main thread is the engine; `read` takes frames in; `prepare_all` has templates rendered (`renderers.py`)
and tokenizes, so that a long text never holds up a step; `bind_all` compiles grammars, so that they hold up no other
prompt; `beat` says once a second that the process lives and for how long the step has been running. What a request
meets there ends the request (`failures.py`). What a thread itself does not expect ends the process: it never goes on
without one of them.

Before it opens the model, and before there is a second thread, it gives away what it does not need (`reach.py`).
"""

import gc
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace

from llmd.daemon.engine import failures, reach
from llmd.daemon.engine.answers.answering import Answering, Answers
from llmd.daemon.engine.answers.formats import Thoughts
from llmd.daemon.engine.answers.least import least
from llmd.daemon.engine.deadline import Deadline, Timeout
from llmd.daemon.engine.loop import Engine
from llmd.daemon.engine.prefixes import beginnings
from llmd.daemon.engine.prompts import Prompts, named, terms
from llmd.daemon.engine.protocols import Vocabulary
from llmd.daemon.engine.renderers import Nursery, Rendered
from llmd.daemon.engine.rendering import overflow
from llmd.daemon.engine.runners import runner_for
from llmd.daemon.engine.types import ModelInfo, Request, SamplingParams
from llmd.daemon.errors import BadRequest, LlmdError, SchemaTooComplex, SchemaUnsupported
from llmd.daemon.fair import FairQueue
from llmd.daemon.machine import cores
from llmd.daemon.machine.confined import lacks
from llmd.daemon.wire import frames
from llmd.daemon.wire.control import (
    Beat,
    Cancel,
    Fatal,
    FromWorker,
    Load,
    Open,
    Ready,
    Step,
    ToWorker,
)
from llmd.daemon.wire.events import Counted, Detokenized, Failed, Started, Tokenized
from llmd.daemon.wire.frames import Decoder
from llmd.daemon.wire.work import Chat, Count, Detokenize, Generate, Prompt, RawText, Tokenize, Tokens, Wanted

BIND_SECONDS = 2.0
HANDLING = 1000  # bytes of text whose tokenizing takes about as long as what else there is to do for a request


class Worker:
    """Joins the socket to the engine. One thread a method of `read`, `prepare` and `beat`."""

    def __init__(self, sock: socket.socket, nursery: Nursery) -> None:
        self._sock, self._nursery = sock, nursery
        self._lock = threading.Lock()
        self._inbox: FairQueue[Open] = FairQueue()
        self._unbound: FairQueue[tuple[Request, int, Wanted, Thoughts]] = FairQueue()
        self._bound_by = Deadline(BIND_SECONDS)
        self._engine: Engine
        self._prompts: Prompts

    def send(self, message: FromWorker) -> None:
        data = frames.encode(message)
        with self._lock:
            try:
                self._sock.sendall(data)
            except OSError:
                os._exit(0)  # the daemon is gone, and nobody is left to answer

    def serve(self) -> None:
        received = self._received(frames.from_daemon())
        load = next(received, None)
        if not isinstance(load, Load):
            return
        settings, seat = load.settings, cores.mine()
        with reach.confining(settings):
            make = runner_for(settings)
        runner = make(seat)
        vocabulary, info = runner.vocabulary, runner.info
        rendered = Rendered(self._nursery, terms(vocabulary, info.context, settings.syntax))
        self._prompts = Prompts(vocabulary, rendered)
        self._answers = Answers(vocabulary.lexicon)
        self._engine = Engine(
            runner, self.send, batch=settings.batch, chunk=settings.chunk, seat=seat, space=runner.space
        )
        self.send(
            Ready(
                context=info.context,
                slots=info.slots,
                vocab=info.vocab,
                parameters=info.parameters,
                size=info.size,
                description=info.description,
                chat=bool(rendered.terms.template or rendered.terms.tool_template),
                confined=not lacks(),
                samples=info.samples,
            )
        )
        works = ((self._prepare_all, ()), (self._bind_all, ()), (self._read, (received,)), (self._beat, ()))
        for work, arguments in works:
            threading.Thread(target=work, args=arguments, name=work.__name__.strip("_"), daemon=True).start()
        gc.collect()
        gc.freeze()
        self._engine.run()

    # --- read

    def _received(self, decoder: Decoder[ToWorker]) -> Iterator[ToWorker]:
        while data := self._sock.recv(1 << 16):
            yield from decoder.feed(data)

    def _read(self, received: Iterator[ToWorker]) -> None:
        for message in received:
            if isinstance(message, Cancel):
                self._engine.cancel(message.id)
            elif isinstance(message, Open):
                self._inbox.put(message.owner, message, HANDLING + message.work.size, message.weight)
        os._exit(0)

    # --- prompts

    def _prepare_all(self) -> None:
        while True:
            message = self._inbox.get()
            try:
                self._prepare(message)
            except BaseException as e:  # a panic of a library in Rust is no Exception
                self._refuse(message.id, e)

    def _refuse(self, id_: int, error: BaseException) -> None:
        told = failures.of_request(error)
        self.send(Step((Failed(id_, told.code, told.message, told.param),)))

    def _prepare(self, message: Open) -> None:
        match message.work:
            case Tokenize(text, special):
                self._prompts.check_length(text, "prompt")
                tokens = self._vocabulary.tokenize(text, add_special=special, parse_special=special)
                self.send(Step((Tokenized(message.id, tuple(tokens)),)))
            case Detokenize(given):
                self._check_tokens(given, "tokens")
                if len(given) > (most := self._context(message)):
                    raise overflow(most, len(given), "tokens")
                self.send(Step((Detokenized(message.id, self._vocabulary.detokenize(given)),)))
            case Count(prompts):
                read = self._fitting(prompts, self._context(message))
                self.send(Step((Counted(message.id, tuple(len(tokens) for tokens, _ in read)),)))
            case Generate() as work:
                self._generate(message, work)

    def _context(self, message: Open) -> int:
        """Tokens that its prompt and an answer may have together."""
        return min(message.context or self._info.context, self._info.context)

    def _generate(self, message: Open, work: Generate) -> None:
        if not self._info.samples:
            raise BadRequest("this model gives no text", param="model")
        self._check_tokens([t for t, _ in work.params.logit_bias], "logit_bias")
        context = self._context(message)
        read = self._fitting(work.prompts, context)
        params = SamplingParams.of(work.params, self._vocabulary.defaults)
        most = min(params.max_tokens, message.output or params.max_tokens)
        requests = [
            Request(
                message.id, message.owner, tuple(tokens),
                replace(params, max_tokens=min(most, context - len(tokens))), work.choices, at * work.choices,
                weight=message.weight,
            )
            for at, (tokens, _) in enumerate(read)
        ]  # fmt: skip
        requests = [replace(one, beginnings=beginnings(one.prefix_key, one.prompt)) for one in requests]
        if isinstance(work.prompts[0], Chat) and (work.wanted or self._prompts.syntax.thinking):
            bound = (requests[0], context, work.wanted or Wanted(), read[0][1])
            size = sum(len(text) for text, _, _ in work.schemas())
            self._unbound.put(message.owner, bound, HANDLING + size, message.weight)
        else:
            self._begin(requests)

    def _begin(self, requests: Sequence[Request], answering: Answering | None = None) -> None:
        self.send(Step((Started(requests[0].id, sum(len(request.prompt) for request in requests)),)))
        self._engine.add(*requests, answering=answering)

    def _fitting(self, prompts: Sequence[Prompt], context: int) -> list[tuple[Sequence[int], Thoughts]]:
        """Each as `_tokens` has it. Raises ContextExceeded where one leaves no room for a token of an answer."""
        read = [self._tokens(prompt) for prompt in prompts]
        for prompt, (tokens, _) in zip(prompts, read, strict=True):
            if len(tokens) >= context:
                raise overflow(context, len(tokens), named(prompt))
        return read

    def _tokens(self, prompt: Prompt) -> tuple[Sequence[int], Thoughts]:
        """A prompt's tokens, and whether the model thinks."""
        thoughts = Thoughts.MAY
        match prompt:
            case Chat():
                tokens, thoughts = self._prompts.from_chat(prompt)
            case RawText(text):
                tokens = self._prompts.from_text(text)
            case Tokens(given):
                self._check_tokens(given, "prompt")
                tokens = list(given)
        if not tokens:
            raise BadRequest("the prompt is empty; give at least one token", param="prompt")
        return tokens, thoughts

    # --- what answers are to be

    def _bind_all(self) -> None:
        """A chat's answers are held to what they are to be, and read as what they say."""
        with suppress(LlmdError):  # a template that does not work fails a request, which is told
            self._engine.marks = self._answers.prepare(self._prompts.syntax)
        while True:
            request, context, wanted, thoughts = self._unbound.get()
            try:
                self._check_room(request, context, wanted)
                self._begin([request], self._bound(request.owner, wanted, thoughts))
            except BaseException as e:  # a panic of a library in Rust is no Exception
                self._refuse(request.id, e)

    def _check_room(self, request: Request, context: int, wanted: Wanted) -> None:
        """Raises SchemaUnsupported for a schema that no answer fits which the context holds."""
        longest = self._vocabulary.longest
        room = (context - len(request.prompt)) * longest
        held = [(tool.parameters, f"tools.{tool.name}") for tool in wanted.tools if tool.strict]
        for text, param in [*held, *([(wanted.schema, "response_format")] if wanted.schema else [])]:
            if longest and least(json.loads(text)) > room:
                raise SchemaUnsupported(
                    f"{param}: no answer that fits is so short that this model's context of {context} tokens "
                    "holds it; look at minItems, minLength and minProperties",
                    param=param.partition(".")[0],
                )

    def _bound(self, owner: str, wanted: Wanted, thoughts: Thoughts) -> Answering | None:
        """Raises SchemaUnsupported, and SchemaTooComplex where it takes too long."""
        syntax = self._prompts.syntax
        try:
            with self._bound_by:
                return self._answers.answering(syntax, wanted, thoughts, owner)
        except Timeout as e:
            field = "response_format" if wanted.schema else "tools"
            raise SchemaTooComplex(
                f"the schema is too complex: a grammar of it takes more than {BIND_SECONDS:g} s; write it more simply",
                param=field,
            ) from e

    def _check_tokens(self, tokens: Sequence[int], param: str) -> None:
        vocab = self._info.vocab
        for token in tokens:
            if not 0 <= token < vocab:
                raise BadRequest(f"there is no token {token}; this model's tokens are 0 to {vocab - 1}", param=param)

    @property
    def _info(self) -> ModelInfo:
        return self._engine.runner.info

    @property
    def _vocabulary(self) -> Vocabulary:
        return self._engine.runner.vocabulary

    # --- beat

    def _beat(self) -> None:
        while True:
            began, now = self._engine.step_began, time.monotonic()
            spent = self._engine.spending.take()
            self.send(Beat(step=now - began if began else 0.0, token=now - self._engine.last_token, spent=spent))
            self._bound_by.check()
            time.sleep(1.0)


def die(args: threading.ExceptHookArgs) -> None:
    if args.exc_value:
        failures.told(f"the thread {args.thread and args.thread.name}", args.exc_value, failures.LAST_WORDS_SECONDS)
    os._exit(failures.EXIT_SOFTWARE)


def main() -> None:
    threading.excepthook = die
    nursery = Nursery()
    sock = socket.socket(fileno=int(sys.argv[1]))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
    worker = Worker(sock, nursery)
    try:
        worker.serve()
    except LlmdError as e:
        worker.send(Fatal(e.code, e.message))
        sys.exit(1)
    except Exception as e:
        die(threading.ExceptHookArgs((type(e), e, e.__traceback__, threading.current_thread())))


if __name__ == "__main__":
    main()
