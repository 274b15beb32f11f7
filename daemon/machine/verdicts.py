"""The one way to ask a program for a verdict: a child process, which says JSON lines (`telling.py` is its side). What
it reads may have taken it over, so its words are checked too."""

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, TypeAlias

from llmd.daemon.machine import children

# as `children.start`, or as a seat's `start` has it
Start: TypeAlias = Callable[..., Awaitable[asyncio.subprocess.Process]]


class Refused(Exception):
    """The verdict is no: an error's code and message, in the program's words."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code, self.message = code, message


class NoVerdict(Exception):
    """There is none; the message says how it ended instead, for people."""


async def lines(
    program: str,
    *arguments: str,
    silent: float | None = None,
    most: int = children.MAX_LINE_BYTES,
    start: Start = children.start,
    **terms: Any,
) -> AsyncGenerator[dict[str, Any], None]:
    """What it says, a line each of `most` bytes; the last one is the verdict, which is yes. `silent`: so many seconds
    it may say nothing; `terms` as `children.start` has them. Raises Refused, NoVerdict. A caller that goes away ends
    it."""
    pipes = {"stdout": asyncio.subprocess.PIPE, "stderr": asyncio.subprocess.DEVNULL}
    process = await start(program, *arguments, most_line=most, **pipes, **terms)
    assert process.stdout is not None
    said: dict[str, Any] = {}
    try:
        while line := await _line(process.stdout, silent):
            if "ok" in said:
                raise NoVerdict("went on behind its verdict")
            said = _read(line)
            if "ok" not in said:
                yield said
        code = await process.wait()
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
    if code < 0:
        raise NoVerdict(f"crashed ({children.signal_name(code)})")
    if "ok" not in said:
        raise NoVerdict(f"ended without a verdict (exit {code})")
    if said["ok"] is True:
        yield said
    elif isinstance(said.get("message"), str):
        raise Refused(str(said.get("code")), said["message"])
    else:
        raise NoVerdict(f"ended without a verdict (exit {code})")


async def asked(program: str, *arguments: str, seconds: float, **terms: Any) -> dict[str, Any]:
    """The verdict, which is yes. `seconds`: so long it may take; the rest as `lines` has it. Raises Refused,
    NoVerdict."""
    try:
        async with asyncio.timeout(seconds), aclosing(lines(program, *arguments, **terms)) as saying:
            return [line async for line in saying][-1]
    except TimeoutError as e:
        raise NoVerdict(f"did not end within {seconds:g} s") from e


async def _line(stream: asyncio.StreamReader, silent: float | None) -> bytes:
    try:
        async with asyncio.timeout(silent):
            return await stream.readline()
    except TimeoutError as e:
        raise NoVerdict(f"said nothing for {silent:g} s") from e
    except ValueError as e:
        raise NoVerdict("ended without a verdict") from e


def _read(line: bytes) -> dict[str, Any]:
    try:
        return dict(json.loads(line))
    except (ValueError, TypeError, RecursionError) as e:
        raise NoVerdict("ended without a verdict") from e
