"""Whether answers can be held to the schemas that requests bring, and whether they fit them in the end: asked of a
child process, which either may keep busy or end, and which is then replaced. It opens no file and no socket. A client's
schema that has been found good is not looked at again for the same client.

What a client asks is looked at one after the other, so that it leaves a process to the others.
"""

import asyncio
import contextlib
import hashlib
import json
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from llmd.daemon import limits
from llmd.daemon.errors import AnswerInvalid, BadRequest, DeadlineExceeded, SchemaTooComplex, Unavailable, from_wire
from llmd.daemon.gate import Aside, Gate
from llmd.daemon.kept import Kept
from llmd.daemon.machine import children
from llmd.daemon.serving.holding import Whole

PROGRAM = "llmd.daemon.engine.answers.judge"
PROCESSES = 2
START_SECONDS = 30.0
KEPT, KEPT_EACH = 4096, 1024  # schemas that are known to be good, as hashes: of all clients, and of one
# what grammars are made of instead of some, as texts of so many characters at most
KEPT_LOOSE, KEPT_LOOSE_EACH, KEPT_CHARS = 256, 64, 1 << 17
LIMITS = children.Limits(address_space=2 << 30, file_size=1 << 20)
MAX_ANSWER_BYTES = 4 * limits.MAX_BODY_BYTES  # schemas of a body, as texts in JSON
LARGE_CHARS = 1 << 16  # what is asked is written in a thread

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

    async def ask(self, line: bytes) -> dict[str, Any]:
        """Raises OSError and ValueError where it has ended."""
        self.writer.write(line)
        await self.writer.drain()
        return await self._line()

    async def _line(self) -> dict[str, Any]:
        said = json.loads(await self.reader.readline())
        return dict(said)

    def kill(self) -> None:
        self.writer.transport.abort()
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()


class _Stuck(Exception):
    """A process was ended: it was `late`, or took too much memory. `computed`: it had the time to compute in."""

    def __init__(self, *, late: bool, computed: bool) -> None:
        super().__init__("late" if late else "gone")
        self.late, self.computed = late, computed


class Schemas:
    """One for the daemon."""

    def __init__(self, aside: Aside | None = None) -> None:
        self._aside = aside or Aside()
        self._good = Kept[bool](KEPT, KEPT_EACH)
        self._loose = Kept[dict[int, str]](KEPT_LOOSE, KEPT_LOOSE_EACH)
        self._idle: list[_Child] = []
        self._killed: list[_Child] = []
        self._gate = Gate(PROCESSES)

    async def start(self) -> None:
        """A process that waits: the first request need not."""
        with contextlib.suppress(Unavailable, OSError):
            self._idle.append(await _Child.start())

    async def close(self) -> None:
        while self._idle:
            self._kill(self._idle.pop())
        await asyncio.gather(*(child.process.wait() for child in self._killed))

    async def check(self, principal: str, schemas: list[Schema]) -> dict[int, str]:
        """What grammars are made of instead of some, by their number. Raises SchemaUnsupported, SchemaTooComplex, and
        Unavailable."""
        if not schemas:
            return {}
        line, key = await self._line("schemas", schemas, principal)
        if self._good.get(principal, key):
            return {}
        if loose := self._loose.get(principal, key):
            return loose
        try:
            async with asyncio.timeout(limits.ACCEPT_SECONDS), self._gate.enter(principal):
                said = await self._asked(line, limits.SCHEMA_SECONDS)
        except TimeoutError as e:
            raise DeadlineExceeded("too many schemas wait to be looked at; try again") from e
        except _Stuck as e:
            if not e.computed:
                raise Unavailable("this machine is too busy to look at the schema; try again") from e
            why = f"takes more than {limits.SCHEMA_SECONDS:g} s" if e.late else "takes too much memory"
            field = schemas[0][1].partition(".")[0]
            raise SchemaTooComplex(
                f"the schema is too complex: reading it {why}; write it more simply", param=field
            ) from e
        loose = {int(number): str(text) for number, text in said.get("held", {}).items()}
        if not loose:
            self._good.put(principal, key, True)
        elif sum(map(len, loose.values())) <= KEPT_CHARS:
            self._loose.put(principal, key, loose)
        return loose

    async def fit(self, principal: str, answers: list[Whole]) -> None:
        """Whether answers fit their schemas; what cannot be found out in time does not. Raises AnswerInvalid, and
        Unavailable."""
        if not answers:
            return
        line, _ = await self._line("answers", answers, principal)
        waited = asyncio.timeout(limits.FIT_WAIT_SECONDS)
        try:
            async with waited, self._gate.enter(principal):
                waited.reschedule(None)
                await self._asked(line, limits.FIT_SECONDS)
        except (TimeoutError, _Stuck) as e:
            _, param, _, what = answers[0]
            raise AnswerInvalid(
                f"{what} could not be held against its schema in time; write the schema more simply",
                param=param.partition(".")[0],
            ) from e

    async def _line(self, kind: str, what: Sequence[Schema | Whole], owner: str) -> tuple[bytes, bytes]:
        """What a process is asked, and its hash."""

        def made() -> tuple[bytes, bytes]:
            line = json.dumps([kind, what, owner]).encode() + b"\n"
            return line, hashlib.sha256(line).digest()

        size = sum(len(text) for one in what for text in one if isinstance(text, str))
        return await self._aside.run(owner, made) if size >= LARGE_CHARS else made()

    async def _asked(self, line: bytes, seconds: float) -> dict[str, Any]:
        """Raises the BadRequest that a process answers, Unavailable, and _Stuck where it does not answer."""
        child = await self._child()
        answered, before = False, _cpu_seconds(child.process.pid)
        try:
            async with asyncio.timeout(seconds):
                said = await child.ask(line)
            answered = True
        except TimeoutError as e:
            raise _Stuck(late=True, computed=_cpu_seconds(child.process.pid) - before >= seconds / 2) from e
        except (OSError, ValueError) as e:
            raise _Stuck(late=False, computed=True) from e
        finally:
            if answered:
                self._idle.append(child)
            else:
                self._kill(child)
        if said.get("ok") is not True:
            error = from_wire(str(said.get("code")), str(said.get("message")), said.get("param"))
            raise error if isinstance(error, BadRequest) else Unavailable("schemas cannot be looked at; try again")
        return said

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


def _cpu_seconds(pid: int) -> float:
    """That a process has computed for (proc(5)); 0: it is gone."""
    try:
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")
