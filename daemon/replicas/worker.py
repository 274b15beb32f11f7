"""One worker process as the daemon sees it: started, watched, spoken to, and answered for when it dies.

Every stream (`stream.py`) ends exactly once: by its last event (`wire/events.py` says which that is), or by
`cancel`.

A process on GPUs that ends by itself is looked into before its streams are told: its last lines (`aborts.py`) and
what NVML says then decide whether a GPU was full, or is lost.
"""

import asyncio
import contextlib
import itertools
import logging
import os
import socket
from collections import deque
from collections.abc import Awaitable, Callable
from pathlib import Path

from llmd.daemon.errors import GpuLost, GpuOutOfMemory, LlmdError, ModelNotReady, WorkerLost, from_wire
from llmd.daemon.machine import children, groups
from llmd.daemon.machine.groups import Groups
from llmd.daemon.machine.seats import Seats
from llmd.daemon.metrics import ModelMetrics
from llmd.daemon.planning.engines import ENGINES
from llmd.daemon.replicas import aborts
from llmd.daemon.replicas.stream import Call, Stream
from llmd.daemon.wire import frames
from llmd.daemon.wire.control import Beat, Busy, Fatal, FromWorker, Load, Open, Ready, Settings, Spent, Step, ToWorker
from llmd.daemon.wire.events import Event, Failed
from llmd.daemon.wire.work import Work

log = logging.getLogger("llmd.worker")

PROGRAM = "llmd.daemon.engine"
CACHE_FOLDER = "cuda"
# a worker says once a second that it lives
BEAT_SECONDS = 1.0
SILENT_SECONDS = 8.0
# one step takes milliseconds on a GPU and seconds on a CPU; a step this long will not end
STEP_SECONDS = 180.0
LOAD_SECONDS = 900.0
# a process that has lost its socket ends by itself within this time, or is killed
END_SECONDS = 1.0
# its streams wait so long for its last lines, and for what NVML says
CAUSE_SECONDS = 1.0
MAX_LINE = 2000  # characters of a line that are kept and logged
WHY = {
    WorkerLost: "the model's process was lost while it answered; try again",
    GpuOutOfMemory: "the model's GPU had no memory left; it is started again with less; try again",
    GpuLost: "the model's GPU was lost; try again",
}

NO_GROUPS = Groups()
Gone = Callable[[tuple[str, ...]], Awaitable[bool]]


async def nobody(_: tuple[str, ...]) -> bool:
    """No GPU is ever lost."""
    return False


class _Link(asyncio.Protocol):
    """The daemon's end of the socket."""

    def __init__(self, worker: "Worker") -> None:
        self._decoder, self._worker = frames.from_worker(), worker

    def data_received(self, data: bytes) -> None:
        try:
            for message in self._decoder.feed(data):
                self._worker.heard(message)
        except Exception as e:  # bytes that are no frame, or a message that cannot be: it is no worker of ours any more
            log.error("worker %d sent what nobody understands (%s)", self._worker.pid, type(e).__name__)
            self._worker.kill("it sent what nobody understands", crashed=True)

    def connection_lost(self, exc: Exception | None) -> None:
        self._worker.gone()


class Worker:
    """`await start()`, then `open` streams until `lost` is set. A worker is used once; the pool makes a new one.

    `gone` tells whether one of these GPUs is lost now. `groups`: where its memory is limited. `seats`: where it has a
    seat among those that compute. `spent` is told on which GPUs it has computed how long, for whom. `cause`: what kind
    of end it had, once `answered` is set.
    """

    def __init__(
        self,
        settings: Settings,
        metrics: ModelMetrics,
        gone: Gone = nobody,
        groups: Groups = NO_GROUPS,
        seats: Seats | None = None,
        spent: Callable[[tuple[str, ...], tuple[Spent, ...]], None] = lambda gpus, spent: None,
    ) -> None:
        self.settings, self.metrics, self._spent = settings, metrics, spent
        self.cause: type[WorkerLost] = WorkerLost
        self.info: Ready | None = None
        self.busy = Busy()  # of the last step
        self.pid = 0
        self.token_age = 0.0  # seconds between the last token and the last beat
        self.reason = "it stopped"
        self.crashed = False  # it ended, or hung, and nobody had asked it to
        self.lost, self.answered = asyncio.Event(), asyncio.Event()
        self.loop = self._loop = asyncio.get_running_loop()
        self.gives_way: Stream | None = None  # nobody waits for it: it ends before another request begins
        self._calls: dict[int, Call] = {}
        self.open_sequences = 0  # choices that have not ended: running, waiting, or on their way
        self.trials = 0  # of those, that nobody but us has asked for
        self._ids = itertools.count(1)
        self._ready: asyncio.Future[None] = self._loop.create_future()
        self._process: asyncio.subprocess.Process | None = None
        self._transport: asyncio.Transport | None = None
        self._heard = self._loop.time()
        self._gone, self._groups, self._seats = gone, groups, seats
        self._group: Path | None = None
        self._error: LlmdError | None = None  # what it said as it gave up
        self._lines: deque[str] = deque(maxlen=aborts.KEPT_LINES)
        self._listening: asyncio.Task[None] | None = None
        self._finding: asyncio.Task[None] | None = None

    @property
    def beat_age(self) -> float:
        return self._loop.time() - self._heard

    # --- life

    async def start(self) -> None:
        """Start the process and load the model. Raises LlmdError with the reason when it cannot; the process is gone
        then."""
        ours, theirs = socket.socketpair()
        # NCCL meets itself over a network interface: this machine's own is always open
        seen = {
            "CUDA_VISIBLE_DEVICES": ",".join(self.settings.gpus),
            "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
            "NCCL_SOCKET_IFNAME": "lo",
            "CUDA_CACHE_PATH": self._cache(),
        }
        self._group = self._groups.make(self.settings.memory)
        start = self._seats.start if self._seats else children.start
        with theirs:
            self._process = await start(
                PROGRAM,
                str(theirs.fileno()),
                descriptors=[theirs.fileno()],
                variables=seen,
                group=self._group,
                interpreter=ENGINES[self.settings.engine].interpreter,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
            )
        self.pid = self._process.pid
        self._listening = asyncio.create_task(self._listen(), name=f"lines of worker {self.pid}")
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
                await self.answered.wait()

    def _cache(self) -> str:
        """What a GPU's driver compiles for this model's worker, it keeps beside the model's file, and goes with it."""
        folder = Path(self.settings.path).parent / CACHE_FOLDER
        if self.settings.gpus:
            with contextlib.suppress(OSError):  # it compiles anew then
                folder.mkdir(mode=0o700, exist_ok=True)
        return os.fspath(folder)

    async def watch(self) -> None:
        """Until the process is gone; kills it when it hangs. Then `reason` says what happened."""
        silent = 0.0
        while not self.lost.is_set():
            heard = self._heard
            try:
                async with asyncio.timeout(BEAT_SECONDS):
                    await self.lost.wait()
            except TimeoutError:
                # by these steps and not by the clock: where this process itself stood still, what it has said meanwhile
                # is read before the next one
                silent = silent + BEAT_SECONDS if heard == self._heard else 0.0
                if silent >= SILENT_SECONDS:
                    self.kill("it stopped answering", crashed=True)
        await self.answered.wait()
        if self._process:
            code = await self._exit()
            if self.reason == "it stopped":
                full = self._group is not None and groups.over(self._group)
                self.reason = (
                    f"it took more memory than the {self.settings.memory / (1 << 30):.1f} GiB that it may"
                    if full
                    else _ended(code)
                )

    async def _listen(self) -> None:
        """What it prints, to the log; its last lines are kept."""
        assert self._process is not None and self._process.stderr is not None
        rest = b""
        while data := await self._process.stderr.read(1 << 14):
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                self._line(line)
            rest = rest[-MAX_LINE:]
        if rest:
            self._line(rest)

    def _line(self, line: bytes) -> None:
        text = line.decode(errors="replace").rstrip()[:MAX_LINE]
        if text:
            self._lines.append(text)
            log.warning("worker %d: %s", self.pid, text)

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
        if self._group:
            groups.remove(self._group)
        for task in (self._listening, self._finding):
            if task:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(task, END_SECONDS)

    def kill(self, reason: str, cause: type[WorkerLost] = WorkerLost, *, crashed: bool = False) -> None:
        """`crashed`: it is no good any more."""
        if not self.lost.is_set():
            self.reason, self.cause, self.crashed = reason, cause, crashed
        if self._process and self._process.returncode is None:
            try:
                self._process.kill()
            except ProcessLookupError:
                pass
        self._answer()

    def gone(self) -> None:
        """Its socket is closed: the process is dead, or good for nothing. Find out why, and answer for it."""
        if self.lost.is_set():
            return
        self.crashed = self._error is None
        if not self.settings.gpus:
            return self._answer()
        self.lost.set()
        self._finding = asyncio.create_task(self._find_cause(), name=f"the cause of worker {self.pid}'s end")

    async def _find_cause(self) -> None:
        try:
            async with asyncio.timeout(CAUSE_SECONDS):
                if self._listening:
                    await asyncio.shield(self._listening)
                abort = aborts.read(self._lines)
                if abort:
                    self.reason = abort.text
                if abort and abort.memory:
                    self.cause = GpuOutOfMemory
                elif await self._gone(self.settings.gpus):
                    self.cause, self.reason = GpuLost, "a GPU that it computed on is lost"
        except TimeoutError:
            pass  # a driver that hangs
        finally:
            self.crashed = self.crashed and self.cause is WorkerLost
            self._answer()

    def _answer(self) -> None:
        """The process is dead or given up: answer for it, once."""
        self.lost.set()
        if self.answered.is_set():
            return
        self.answered.set()
        if not self._ready.done():
            error = self._error if self._error and self.cause is WorkerLost else None
            why = "" if self.reason == "it stopped" else f": {self.reason}"
            self._ready.set_exception(error or self.cause(f"the model's process died while it loaded{why}"))
            self._ready.exception()  # `start` may never have been called: then nobody waits for it
        for call in list(self._calls.values()):
            call.stream.feed(Failed(call.id, self.cause.code, WHY[self.cause]), call)
        self.metrics.gone(self.pid)

    # --- requests

    def open(
        self,
        owner: str,
        work: Work,
        on_end: Callable[[int], None] = lambda _: None,
        *,
        counted: bool = True,
    ) -> Stream:
        """Send a request; `wire/events.py` says what events answer it. `on_end`: as in `Stream`. `counted`: it stands
        in the metrics."""
        stream = Stream(self, work.sequences, on_end, counted=counted)
        self.begin(stream, owner, work)
        return stream

    def begin(
        self,
        stream: Stream,
        owner: str,
        work: Work,
        first: int = 0,
        *,
        bounds: tuple[int, int] = (0, 0),
        weight: float = 1.0,
    ) -> None:
        """Send a part of a request, whose first choice has this number among all of them. `bounds`, of context and
        output, and `weight`: as in `Open`."""
        if self.gives_way:
            self.gives_way.cancel()
        call = Call(self, next(self._ids), stream, work.sequences, first)
        self._calls[call.id] = call
        self._count(call, call.left)
        self.send(Open(call.id, owner, work, *bounds, weight))

    def forget(self, call: Call, ended: int) -> None:
        """So many of its choices have ended; the others are on their way."""
        self._count(call, -ended)
        if not call.left:
            self._calls.pop(call.id, None)

    def _count(self, call: Call, sequences: int) -> None:
        self.open_sequences += sequences
        self.trials += 0 if call.stream.counted else sequences

    def send(self, message: ToWorker) -> None:
        if self._transport and not self.lost.is_set():
            self._transport.write(frames.encode(message))

    # --- what it says

    def heard(self, message: FromWorker) -> None:
        if self.lost.is_set():
            return  # what it said before it was given up
        self._heard = self._loop.time()
        match message:
            case Step(events, busy):
                self._feed(events)
                if busy:
                    self.busy = busy
                    positions = self.info.positions if self.info else 1
                    kv = busy.kv_used / positions
                    self.metrics.state(self.pid, busy.running, busy.waiting, kv, busy.threads, busy.share)
            case Beat(step, token, spent):
                self.token_age = token
                if spent:
                    self._spent(self.settings.gpus, spent)
                if step > STEP_SECONDS:
                    self.kill("a step did not end", crashed=True)
            case Ready():
                self.info = message
                self._lines.clear()  # what was said before was survived
                self._ready.set_result(None)
            case Fatal(code, text):
                self._fatal(from_wire(code, text))

    def _feed(self, events: tuple[Event, ...]) -> None:
        for event in events:
            if call := self._calls.get(event.id):  # else it is cancelled
                call.stream.feed(event, call)

    def _fatal(self, error: LlmdError) -> None:
        """It says that it ends. On GPUs its last lines may know more."""
        log.error("worker %d: %s", self.pid, error.message)
        self.reason, self._error = error.message, error
        if self.settings.gpus:
            self._loop.call_later(END_SECONDS, self.gone)
        elif not self._ready.done():
            self._ready.set_exception(error)


def _ended(code: int) -> str:
    """Why a process is gone, from its exit code."""
    if code >= 0:
        return f"it ended by itself (exit {code}); the log holds the cause"
    return f"it was ended by {children.signal_name(code)}"
