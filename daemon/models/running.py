"""A program of `quantize/` in a child process that says how it does, a JSON line each time."""

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator, Mapping
from typing import Any

from llmd.daemon.errors import ModelInvalid
from llmd.daemon.machine import children
from llmd.daemon.models.checking import VARIABLES, failed

# it says something at each tensor; a very large one takes a while on few cores
SILENT_SECONDS = 900.0


async def lines(
    what: str,
    program: str,
    *arguments: str,
    limits: children.Limits = children.NO_LIMITS,
    interpreter: str = sys.executable,
    variables: Mapping[str, str] | None = None,
) -> AsyncIterator[dict[str, Any]]:
    """Each line; the last one says `ok`. `what` it is, for people; the rest as `children.start` has it. Raises the
    error that it names, ModelInvalid where it gives no answer. A caller that goes away ends it."""
    process = await children.start(
        program, *arguments, variables={**VARIABLES, **(variables or {})}, limits=limits, interpreter=interpreter,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    assert process.stdout is not None
    verdict: dict[str, Any] | None = None
    try:
        while True:
            async with asyncio.timeout(SILENT_SECONDS):
                text = await process.stdout.readline()
            if not text:
                break
            line = _read(what, text)
            if "ok" in line:
                verdict = line
            else:
                yield line
        code = await process.wait()
    except (TimeoutError, ValueError) as e:  # ValueError: a line without an end
        raise failed(what) from e
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
    if verdict is None:
        raise ModelInvalid(f"{what} crashed (signal {-code})") if code < 0 else failed(what)
    if verdict["ok"] is not True:
        raise failed(what, verdict)
    yield verdict


def _read(what: str, text: bytes) -> dict[str, Any]:
    try:
        line = json.loads(text)
    except (ValueError, RecursionError) as e:
        raise failed(what) from e
    if not isinstance(line, dict):
        raise failed(what)
    return line
