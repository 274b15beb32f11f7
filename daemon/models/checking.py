"""The check of a model file (`quantize/check.py`) in a child process: the file may be hostile."""

import asyncio
import contextlib
import json
import os
from typing import Any

from llmd.daemon import children
from llmd.daemon.errors import ModelInvalid
from llmd.quantize.check import INFO_FIELDS, MAX_ANSWER_BYTES, MAX_MESSAGE_CHARS

PROGRAM = "llmd.quantize.check"
# a header and its tables; the largest that the reader's caps allow takes 1.5 GB, the libraries 2 GB of addresses
LIMITS = children.Limits(address_space=8 << 30, file_size=MAX_ANSWER_BYTES, cpu_seconds=120)
# a header needs no GPU
VARIABLES = {"LC_ALL": "C.UTF-8", "CUDA_VISIBLE_DEVICES": ""}


async def check(path: str | os.PathLike[str], timeout: float = 60.0) -> dict[str, Any]:
    """Check a file in a child process and return its `info` (INFO_FIELDS). `timeout` is in seconds.

    Raises ModelInvalid with the child's reason, or when the child crashed, hung or did not answer properly. A cancelled
    call leaves no child behind.
    """
    process = await children.start(
        PROGRAM, os.fspath(path), variables=VARIABLES, limits=LIMITS, stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        async with asyncio.timeout(timeout):
            answer = await _read(process)
            code = await process.wait()
    except TimeoutError as e:
        raise ModelInvalid(f"the check of this file did not end within {timeout:g} s: it is damaged or hostile") from e
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
    if code < 0:
        raise ModelInvalid(f"the check of this file crashed (signal {-code}): it is damaged or hostile")
    return _info(answer, code)


async def _read(process: asyncio.subprocess.Process) -> bytes:
    assert process.stdout is not None
    answer = b""
    while len(answer) <= MAX_ANSWER_BYTES and (more := await process.stdout.read(MAX_ANSWER_BYTES)):
        answer += more
    if len(answer) > MAX_ANSWER_BYTES:
        process.kill()
    return answer


def _info(answer: bytes, code: int) -> dict[str, Any]:
    """The child's info, or its reason raised. A file may have taken the child over, so its words are checked too."""
    try:
        said = json.loads(answer)
        if said["ok"] is True and all(type(said["info"][k]) is kind for k, kind in INFO_FIELDS.items()):
            return {k: said["info"][k] for k in INFO_FIELDS}
        message = said["message"]
    except (ValueError, KeyError, TypeError, RecursionError):
        message = None
    if not isinstance(message, str):
        raise ModelInvalid(f"the check of this file ended without a verdict (exit {code}): it is damaged or hostile")
    raise ModelInvalid("".join(c if c.isprintable() else "?" for c in message[:MAX_MESSAGE_CHARS]))
