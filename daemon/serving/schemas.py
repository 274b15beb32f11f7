"""Whether answers can be held to the schemas that requests bring: asked of a child process, which a schema may keep
busy or end, and which is then replaced. What has been found good is not asked again.

A client's schemas are looked at one after the other, so that it leaves a process to the others.
"""

import asyncio
import contextlib
import hashlib
import json
import os
import socket
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from llmd.daemon import children, limits
from llmd.daemon.errors import BadRequest, DeadlineExceeded, SchemaTooComplex, Unavailable, from_wire

PROGRAM = "llmd.daemon.engine.answers.check"
PROCESSES = 2
START_SECONDS = 30.0
KEPT = 4096  # schemas that are known to be good, as hashes
LIMITS = children.Limits(address_space=2 << 30, file_size=1 << 20)
MAX_ANSWER_BYTES = 1 << 16

# a schema's text, the request's field that it comes from, whether all of it is to hold
Schema = tuple[str, str, bool]


@dataclass(frozen=True, slots=True)
class _Child:
    process: asyncio.subprocess.Process
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    @classmethod
    async def start(cls) -> Self:
        """Raises Unavailable."""
        ours, theirs = socket.socketpair()
        with theirs:
            process = await children.start(
                PROGRAM, str(theirs.fileno()), descriptors=(theirs.fileno(),), limits=LIMITS,
                variables={"LC_ALL": "C.UTF-8", "CUDA_VISIBLE_DEVICES": ""},
                stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
            )  # fmt: skip
        reader, writer = await asyncio.open_connection(sock=ours, limit=MAX_ANSWER_BYTES)
        child = cls(process, reader, writer)
        try:
            async with asyncio.timeout(START_SECONDS):
                await child._line()
        except (TimeoutError, OSError, ValueError) as e:
            child.kill()
            await child.process.wait()
            raise Unavailable("schemas cannot be looked at: their process does not start; try again") from e
        return child

    async def ask(self, schemas: list[Schema]) -> dict[str, Any]:
        """Raises OSError and ValueError where it has ended."""
        self.writer.write(json.dumps(schemas).encode() + b"\n")
        await self.writer.drain()
        return await self._line()

    async def _line(self) -> dict[str, Any]:
        said = json.loads(await self.reader.readline())
        return dict(said)

    def kill(self) -> None:
        self.writer.transport.abort()
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()


class Schemas:
    """One for the daemon."""

    def __init__(self) -> None:
        self._good: OrderedDict[bytes, None] = OrderedDict()
        self._idle: list[_Child] = []
        self._killed: list[_Child] = []
        self._places = asyncio.Semaphore(PROCESSES)
        self._turns: dict[str, tuple[asyncio.Lock, list[None]]] = {}

    async def start(self) -> None:
        """A process that waits: the first request need not."""
        with contextlib.suppress(Unavailable, OSError):
            self._idle.append(await _Child.start())

    async def close(self) -> None:
        while self._idle:
            self._kill(self._idle.pop())
        await asyncio.gather(*(child.process.wait() for child in self._killed))

    async def check(self, principal: str, schemas: list[Schema]) -> None:
        """Raises SchemaUnsupported, SchemaTooComplex, and Unavailable."""
        if not schemas:
            return
        key = hashlib.sha256(json.dumps(schemas).encode()).digest()
        if key in self._good:
            self._good.move_to_end(key)
            return
        try:
            async with asyncio.timeout(limits.ACCEPT_SECONDS), self._turn(principal), self._places:
                said = await self._asked(schemas)
        except TimeoutError as e:
            raise DeadlineExceeded("too many schemas wait to be looked at; try again") from e
        if said.get("ok") is not True:
            error = from_wire(str(said.get("code")), str(said.get("message")), said.get("param"))
            raise error if isinstance(error, BadRequest) else Unavailable("schemas cannot be looked at; try again")
        self._good[key] = None
        while len(self._good) > KEPT:
            self._good.popitem(last=False)

    @contextlib.asynccontextmanager
    async def _turn(self, principal: str) -> Any:
        lock, waiting = self._turns.setdefault(principal, (asyncio.Lock(), []))
        waiting.append(None)
        try:
            async with lock:
                yield
        finally:
            waiting.pop()
            if not waiting:
                del self._turns[principal]

    async def _asked(self, schemas: list[Schema]) -> dict[str, Any]:
        child = await self._child()
        answered, before = False, _cpu_seconds(child.process.pid)
        try:
            async with asyncio.timeout(limits.SCHEMA_SECONDS):
                said = await child.ask(schemas)
            answered = True
            return said
        except TimeoutError as e:
            if _cpu_seconds(child.process.pid) - before < limits.SCHEMA_SECONDS / 2:
                raise Unavailable("this machine is too busy to look at the schema; try again") from e
            raise _too_complex(schemas, f"it takes more than {limits.SCHEMA_SECONDS:g} s to read") from e
        except (OSError, ValueError) as e:
            raise _too_complex(schemas, "reading it takes too much memory") from e
        finally:
            if answered:
                self._idle.append(child)
            else:
                self._kill(child)

    async def _child(self) -> _Child:
        while self._idle:
            child = self._idle.pop()
            if child.process.returncode is None:
                return child
            self._kill(child)
        try:
            return await _Child.start()
        except OSError as e:
            raise Unavailable("schemas cannot be looked at: no process can be started; try again") from e

    def _kill(self, child: _Child) -> None:
        child.kill()
        self._killed = [killed for killed in self._killed if killed.process.returncode is None] + [child]


def _too_complex(schemas: list[Schema], why: str) -> SchemaTooComplex:
    field = schemas[0][1].partition(".")[0]
    return SchemaTooComplex(f"the schema is too complex: {why}; write it more simply", param=field)


def _cpu_seconds(pid: int) -> float:
    """That a process has computed for (proc(5)); 0: it is gone."""
    try:
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")
