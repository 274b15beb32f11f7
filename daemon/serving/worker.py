"""One worker process as the daemon sees it: started, watched, spoken to, and answered for when it dies.

Every stream ends exactly once: by the finish of each of its choices, by one ERROR event, or by `cancel`.
"""

import asyncio
import itertools
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from llmd.daemon import limits
from llmd.daemon.engine import frames
from llmd.daemon.errors import LlmdError, ModelNotReady, WorkerLost, from_wire
from llmd.daemon.metrics import ModelMetrics

log = logging.getLogger("llmd.worker")

# a worker says once a second that it lives
SILENT_SECONDS = 8.0
# one step takes milliseconds on a GPU and seconds on a CPU; a step this long will not end
STEP_SECONDS = 180.0
LOAD_SECONDS = 900.0


@dataclass(frozen=True, slots=True)
class Settings:
    """What a worker is started with. `runner` is `llama`, or `fake` with the fake's own arguments.

    It sees the GPUs in `gpus` and no other, in this order; none: it computes on the CPU.
    """

    path: str
    slots: int
    context: int
    batch: int
    chunk: int
    threads: int
    gpus: tuple[str, ...] = ()  # UUIDs, MIG instances' too
    split: str = "none"  # over several GPUs: `layer` or `tensor`
    kv_type: str = "f16"  # of keys and values: f16, q8_0, q4_0
    ubatch: int = 0  # most tokens the device computes in one pass; 0: 512
    runner: str = "llama"
    fake: dict[str, Any] | None = None


class Stream:
    """One request's events. One consumer calls `next`; the worker's side calls `feed`."""

    __slots__ = (
        "_events",
        "_loop",
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

    def __init__(self, worker: "Worker", id_: int, choices: int, loop: asyncio.AbstractEventLoop) -> None:
        self._worker, self.id, self._loop = worker, id_, loop
        self._events: list[list[Any]] = []
        self._waiter: asyncio.Future[None] | None = None
        self.left = choices  # choices that have not finished
        self.ended = False
        self.owed = 0  # characters that wait for the client
        self.tokens = [0] * choices
        self.began = loop.time()
        self.first: float | None = None  # when the first token came
        self.last = [0.0] * choices

    @property
    def read_out(self) -> bool:
        """It has ended and no event waits: `next` would wait for ever."""
        return self.ended and not self._events

    async def next(self) -> list[list[Any]]:
        """All events that have come since the last call, at least one. Not to be called once `read_out`."""
        if not self._events:
            self._waiter = self._loop.create_future()
            await self._waiter
        events, self._events, self.owed = self._events, [], 0
        return events

    def feed(self, event: list[Any]) -> None:
        if self.ended:
            return
        if event[1] == frames.TEXT:
            self._count(event)
            self.owed += len(event[3])
            if event[6]:
                self.left -= 1
            if self.owed > limits.MAX_STREAM_BACKLOG:
                self.cancel()
                event = [self.id, frames.ERROR, "client_too_slow", "the client does not read its stream", None]
        if self.left == 0 or event[1] == frames.ERROR:
            self.ended = True
            self._worker.forget(self)
        self._events.append(event)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def cancel(self) -> None:
        """Stop the work. No event follows. May be called at any time, also after the end."""
        if not self.ended:
            self.ended = True
            self._worker.forget(self)
            self._worker.send({"op": "cancel", "id": self.id})

    def _count(self, event: list[Any]) -> None:
        metrics, now = self._worker.metrics, self._loop.time()
        choice, tokens = event[2], event[4]
        fresh = tokens - self.tokens[choice]
        if self.first is None:
            self.first = now
            metrics.ttft(now - self.began)
            metrics.cached(event[5])
        elif self.last[choice] and fresh > 0:
            metrics.gap((now - self.last[choice]) / fresh)
        metrics.output(fresh)
        self.tokens[choice], self.last[choice] = tokens, now


class _Link(asyncio.Protocol):
    """The daemon's end of the socket."""

    def __init__(self, on_message: Callable[[dict[str, Any]], None], on_lost: Callable[[], None]) -> None:
        self._decoder, self._on_message, self._on_lost = frames.Decoder(), on_message, on_lost
        self._transport: asyncio.BaseTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        try:
            for message in self._decoder.feed(data):
                self._on_message(message)
        except ValueError:
            log.error("a worker sent what is not a frame")
            if self._transport:
                self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._on_lost()


class Worker:
    """`await start()`, then `open` streams until `lost` is set. A worker is used once; the pool makes a new one."""

    def __init__(self, settings: Settings, metrics: ModelMetrics) -> None:
        self.settings, self.metrics = settings, metrics
        self.info: dict[str, Any] = {}
        self.state = [0, 0, 0]  # running, waiting, KV positions used: of the last step
        self.pid = 0
        self.token_age = 0.0  # seconds between the last token and the last beat
        self.reason = "it stopped"
        self.lost = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._streams: dict[int, Stream] = {}
        self._replies: dict[int, asyncio.Future[Any]] = {}
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
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-P", "-m", "llmd.daemon.engine", str(theirs.fileno()), str(os.getpid()),
                stdin=asyncio.subprocess.DEVNULL, pass_fds=[theirs.fileno()], start_new_session=True,
                env={**os.environ, **seen})  # fmt: skip
        self.pid = self._process.pid
        self._transport, _ = await self._loop.create_connection(lambda: _Link(self._message, self._gone), sock=ours)
        s = self.settings
        self.send({
            "op": "load", "path": s.path, "slots": s.slots, "context": s.context, "batch": s.batch, "chunk": s.chunk,
            "threads": s.threads, "gpus": len(s.gpus), "split": s.split, "kv_type": s.kv_type, "ubatch": s.ubatch,
            "runner": s.runner, "fake": s.fake or {},
        })  # fmt: skip
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
            code = await self._process.wait()
            if code < 0 and self.reason == "it stopped":
                self.reason = f"it was ended by {signal.Signals(-code).name}"

    async def stop(self) -> None:
        """End the process; open streams get an ERROR."""
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
        self._gone()

    def _gone(self) -> None:
        """The process is dead or given up: answer for it, once."""
        if self.lost.is_set():
            return
        self.lost.set()
        if not self._ready.done():
            self._ready.set_exception(WorkerLost("the model's process died while it loaded"))
        message = "the model's process was lost while it answered; try again"
        for stream in list(self._streams.values()):
            stream.feed([stream.id, frames.ERROR, WorkerLost.code, message, None])
        for reply in self._replies.values():
            if not reply.done():
                reply.set_exception(WorkerLost(message))
        self._replies.clear()
        self.metrics.state(0, 0, 0.0)

    # --- requests

    def open(self, owner: str, message: dict[str, Any], choices: int) -> Stream:
        """Send a request; its first event is START or ERROR."""
        stream = Stream(self, next(self._ids), choices, self._loop)
        self._streams[stream.id] = stream
        self.send({"op": "generate", "id": stream.id, "owner": owner, "choices": choices, **message})
        return stream

    async def call(self, op: str, **message: Any) -> Any:
        """Tokenize or detokenize. Raises what the worker names, or WorkerLost."""
        id_ = next(self._ids)
        reply = self._replies[id_] = self._loop.create_future()
        self.send({"op": op, "id": id_, **message})
        try:
            return await reply
        finally:
            self._replies.pop(id_, None)

    def forget(self, stream: Stream) -> None:
        self._streams.pop(stream.id, None)

    def send(self, message: dict[str, Any]) -> None:
        if self._transport and not self.lost.is_set():
            self._transport.write(frames.encode(message))

    # --- what it says

    def _message(self, message: dict[str, Any]) -> None:
        self._heard = self._loop.time()
        match message["op"]:
            case "step":
                for event in message["events"]:
                    self._event(event)
                if message["state"]:
                    self.state = message["state"]
                    self.metrics.state(self.state[0], self.state[1], self.state[2] / max(1, self._positions()))
            case "beat":
                self.token_age = message["token"]
                if message["step"] > STEP_SECONDS:
                    self.kill("a step did not end")
            case "reply":
                self._reply(message["id"], message["value"])
            case "ready":
                self.info = message
                self._ready.set_result(None)
            case "fatal":
                self._fatal(from_wire(message["code"], message["message"]))

    def _event(self, event: list[Any]) -> None:
        stream = self._streams.get(event[0])
        if stream is not None:
            if event[1] == frames.START:
                self.metrics.prompt(event[2])
            stream.feed(event)
        elif event[1] == frames.ERROR and event[0] in self._replies:
            self._replies[event[0]].set_exception(from_wire(*event[2:]))

    def _reply(self, id_: int, value: Any) -> None:
        reply = self._replies.get(id_)
        if reply is not None and not reply.done():
            reply.set_result(value)

    def _fatal(self, error: LlmdError) -> None:
        log.error("worker %d: %s", self.pid, error.message)
        self.reason = error.message
        if not self._ready.done():
            self._ready.set_exception(error)

    def _positions(self) -> int:
        return int(self.info.get("context", 0)) * int(self.info.get("slots", 0))
