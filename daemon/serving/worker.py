"""One worker process as the daemon sees it: started, watched, spoken to, and answered for when it dies.

Every stream ends exactly once: by its last event (`engine/messages.py` says which that is), or by `cancel`.
"""

import asyncio
import itertools
import logging
import signal
import socket
from collections.abc import Callable

from llmd.daemon import children, limits
from llmd.daemon.engine import messages
from llmd.daemon.engine.messages import (
    Beat,
    Busy,
    Cancel,
    Detokenized,
    Event,
    Failed,
    Fatal,
    Finished,
    FromWorker,
    Generate,
    Load,
    Open,
    Ready,
    Settings,
    Started,
    Step,
    Text,
    Tokenized,
    ToWorker,
    Work,
)
from llmd.daemon.errors import ClientTooSlow, LlmdError, ModelNotReady, WorkerLost, from_wire
from llmd.daemon.metrics import ModelMetrics

log = logging.getLogger("llmd.worker")

PROGRAM = "llmd.daemon.engine"
# a worker says once a second that it lives
SILENT_SECONDS = 8.0
# one step takes milliseconds on a GPU and seconds on a CPU; a step this long will not end
STEP_SECONDS = 180.0
LOAD_SECONDS = 900.0
# a process that has lost its socket ends by itself within this time, or is killed
END_SECONDS = 1.0


class Stream:
    """One request's events. One consumer calls `next`; the worker's side calls `feed`."""

    __slots__ = (
        "_events",
        "_loop",
        "_on_end",
        "_waiter",
        "_worker",
        "began",
        "ended",
        "first",
        "id",
        "last",
        "left",
        "owed",
        "tokens",
    )

    def __init__(self, worker: "Worker", id_: int, choices: int, on_end: Callable[[], None]) -> None:
        self._worker, self.id, self._on_end, self._loop = worker, id_, on_end, worker.loop
        loop = self._loop
        self._events: list[Event] = []
        self._waiter: asyncio.Future[None] | None = None
        self.left = choices  # choices that have not finished
        self.ended = False
        self.owed = 0  # bytes that wait for the client
        self.tokens = [0] * choices
        self.began = loop.time()
        self.first: float | None = None  # when the first token came
        self.last = [0.0] * choices

    @property
    def read_out(self) -> bool:
        """It has ended and no event waits: `next` would wait for ever."""
        return self.ended and not self._events

    async def next(self) -> list[Event]:
        """All events that have come since the last call, at least one. Not to be called once `read_out`."""
        if not self._events:
            self._waiter = self._loop.create_future()
            await self._waiter
        events, self._events, self.owed = self._events, [], 0
        return events

    def feed(self, event: Event) -> None:
        if self.ended:
            return
        match event:
            case Text():
                self._count(event)
                self.owed += event.weight()
            case Finished():
                self._count(event)
                self.left -= 1
            case Failed() | Tokenized() | Detokenized():
                self.left = 0
        if self.owed > limits.MAX_STREAM_BACKLOG and self.left:
            self.fail(ClientTooSlow("the client does not read its stream"))
            return
        if not self.left:
            self._end()
        self._append(event)

    def cancel(self) -> None:
        """Stop the work. No event follows. May be called at any time, also after the end."""
        if not self.ended:
            self._end()
            self._worker.send(Cancel(self.id))

    def fail(self, error: LlmdError) -> None:
        """Stop the work; a Failed is the last event. May be called at any time, also after the end."""
        if not self.ended:
            self.cancel()
            self._append(Failed(self.id, error.code, error.message, error.param))

    def _end(self) -> None:
        self.ended = True
        self._worker.forget(self)
        self._on_end()

    def _append(self, event: Event) -> None:
        self._events.append(event)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _count(self, event: Text | Finished) -> None:
        metrics, now, choice = self._worker.metrics, self._loop.time(), event.choice
        if choice < 0:
            raise ValueError("there is no such choice")
        fresh = event.tokens - self.tokens[choice]
        if self.first is None:
            self.first = now
            metrics.ttft(now - self.began)
            metrics.cached(event.cached)
        elif self.last[choice] and fresh > 0:
            metrics.gap((now - self.last[choice]) / fresh)
        metrics.output(fresh)
        self.tokens[choice], self.last[choice] = event.tokens, now


class _Link(asyncio.Protocol):
    """The daemon's end of the socket."""

    def __init__(self, worker: "Worker") -> None:
        self._decoder, self._worker = messages.from_worker(), worker

    def data_received(self, data: bytes) -> None:
        try:
            for message in self._decoder.feed(data):
                self._worker.heard(message)
        except Exception as e:  # bytes that are no frame, or a message that cannot be: it is no worker of ours any more
            log.error("worker %d sent what nobody understands (%s)", self._worker.pid, type(e).__name__)
            self._worker.kill("it sent what nobody understands")

    def connection_lost(self, exc: Exception | None) -> None:
        self._worker.gone()


class Worker:
    """`await start()`, then `open` streams until `lost` is set. A worker is used once; the pool makes a new one."""

    def __init__(self, settings: Settings, metrics: ModelMetrics) -> None:
        self.settings, self.metrics = settings, metrics
        self.info: Ready | None = None
        self.busy = Busy()  # of the last step
        self.pid = 0
        self.token_age = 0.0  # seconds between the last token and the last beat
        self.reason = "it stopped"
        self.lost = asyncio.Event()
        self.loop = self._loop = asyncio.get_running_loop()
        self._streams: dict[int, Stream] = {}
        self._ids = itertools.count(1)
        self._ready: asyncio.Future[None] = self._loop.create_future()
        self._process: asyncio.subprocess.Process | None = None
        self._transport: asyncio.Transport | None = None
        self._heard = self._loop.time()

    @property
    def open_sequences(self) -> int:
        """Choices that have not ended: running, waiting, or on their way."""
        return sum(stream.left for stream in self._streams.values())

    @property
    def beat_age(self) -> float:
        return self._loop.time() - self._heard

    # --- life

    async def start(self) -> None:
        """Start the process and load the model. Raises LlmdError with the reason when it cannot; the process is gone
        then."""
        ours, theirs = socket.socketpair()
        seen = {"CUDA_VISIBLE_DEVICES": ",".join(self.settings.gpus), "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
        with theirs:
            self._process = await children.start(
                PROGRAM, str(theirs.fileno()), descriptors=[theirs.fileno()], variables=seen
            )
        self.pid = self._process.pid
        self._transport, _ = await self._loop.create_connection(lambda: _Link(self), sock=ours)
        self.send(Load(self.settings))
        try:
            async with asyncio.timeout(LOAD_SECONDS):
                await self._ready
        except TimeoutError as e:
            self.kill("it did not finish loading")
            raise ModelNotReady("the model did not finish loading") from e
        finally:
            if not self._ready.done() or self._ready.cancelled() or self._ready.exception():
                self.kill(self.reason)
                await self._process.wait()

    async def watch(self) -> None:
        """Until the process is gone; kills it when it hangs. Then `reason` says what happened."""
        while not self.lost.is_set():
            try:
                async with asyncio.timeout(1.0):
                    await self.lost.wait()
            except TimeoutError:
                if self.beat_age > SILENT_SECONDS:
                    self.kill("it stopped answering")
        if self._process:
            code = await self._exit()
            if self.reason == "it stopped":
                self.reason = _ended(code)

    async def _exit(self) -> int:
        """The exit code of a process that is lost; its socket may be all that it lost."""
        assert self._process is not None
        try:
            async with asyncio.timeout(END_SECONDS):
                return await self._process.wait()
        except TimeoutError:
            self.kill(self.reason)
            return await self._process.wait()

    async def stop(self) -> None:
        """End the process; open streams fail."""
        self.reason = "the model was taken out of service"
        if self._transport:
            self._transport.close()
        self.kill(self.reason)
        if self._process:
            await self._process.wait()

    def kill(self, reason: str) -> None:
        self.reason = reason
        if self._process and self._process.returncode is None:
            try:
                self._process.kill()
            except ProcessLookupError:
                pass
        self.gone()

    def gone(self) -> None:
        """The process is dead or given up: answer for it, once."""
        if self.lost.is_set():
            return
        self.lost.set()
        if not self._ready.done():
            self._ready.set_exception(WorkerLost("the model's process died while it loaded"))
            self._ready.exception()  # `start` may never have been called: then nobody waits for it
        message = "the model's process was lost while it answered; try again"
        for stream in list(self._streams.values()):
            stream.feed(Failed(stream.id, WorkerLost.code, message))
        self.metrics.gone(self.pid)

    # --- requests

    def open(self, owner: str, work: Work, on_end: Callable[[], None] = lambda: None) -> Stream:
        """Send a request; `messages` says what events answer it. `on_end` is called once, when its work has ended."""
        sequences = work.sequences if isinstance(work, Generate) else 1
        stream = Stream(self, next(self._ids), sequences, on_end)
        self._streams[stream.id] = stream
        self.send(Open(stream.id, owner, work))
        return stream

    def forget(self, stream: Stream) -> None:
        self._streams.pop(stream.id, None)

    def send(self, message: ToWorker) -> None:
        if self._transport and not self.lost.is_set():
            self._transport.write(messages.encode(message))

    # --- what it says

    def heard(self, message: FromWorker) -> None:
        if self.lost.is_set():
            return  # what it said before it was given up
        self._heard = self._loop.time()
        match message:
            case Step(events, busy):
                for event in events:
                    self._event(event)
                if busy:
                    self.busy = busy
                    positions = self.info.positions if self.info else 1
                    self.metrics.state(self.pid, busy.running, busy.waiting, busy.kv_used / positions)
            case Beat(step, token):
                self.token_age = token
                if step > STEP_SECONDS:
                    self.kill("a step did not end")
            case Ready():
                self.info = message
                self._ready.set_result(None)
            case Fatal(code, text):
                self._fatal(from_wire(code, text))

    def _event(self, event: Event) -> None:
        stream = self._streams.get(event.id)
        if stream is None:
            return  # cancelled
        if isinstance(event, Started):
            self.metrics.prompt(event.prompt_tokens)
        stream.feed(event)

    def _fatal(self, error: LlmdError) -> None:
        log.error("worker %d: %s", self.pid, error.message)
        self.reason = error.message
        if not self._ready.done():
            self._ready.set_exception(error)


def _ended(code: int) -> str:
    """Why a process is gone, from its exit code."""
    if code >= 0:
        return f"it ended by itself (exit {code}); the log holds the cause"
    try:
        return f"it was ended by {signal.Signals(-code).name}"
    except ValueError:  # the real-time signals have no names
        return f"it was ended by signal {-code}"
