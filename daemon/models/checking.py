"""The checks of a model file in child processes: the file may be hostile, and so may its chat template.

`quantize/check.py` reads the header; `daemon/engine/trial.py` tries the template and lets the model compute a token.
"""

import asyncio
import contextlib
import json
import logging
import os
from dataclasses import replace
from functools import partial
from typing import Any

from llmd.daemon.errors import BadRequest, LlmdError, ModelInvalid, Unavailable, from_wire
from llmd.daemon.machine import children, memory
from llmd.daemon.machine.cores import BACKGROUND, BESIDE
from llmd.daemon.machine.seats import Seats
from llmd.quantize.check import INFO_FIELDS, MAX_ANSWER_BYTES, MAX_MESSAGE_CHARS
from llmd.quantize.shape import Shape

log = logging.getLogger("llmd.models")

CHECK = "llmd.quantize.check"
TRIAL = "llmd.daemon.engine.trial"
# a header and its tables; the largest that the reader's caps allow takes 1.5 GB, the libraries 2 GB of addresses
LIMITS = children.Limits(address_space=8 << 30, file_size=MAX_ANSWER_BYTES, cpu_seconds=120)
# neither needs a GPU
VARIABLES = {"LC_ALL": "C.UTF-8", "CUDA_VISIBLE_DEVICES": ""}
TRIAL_SECONDS = 900.0  # the weights are read from the disk, and most are repacked
# beside the weights: keys and values of a few tokens, and buffers
TRIAL_BYTES = 512 << 20
MAX_PROMPT_BYTES = 32 << 20


async def check(
    path: str | os.PathLike[str], timeout: float = 60.0, *, background: bool = False, seats: Seats | None = None
) -> dict[str, Any]:
    """Check a file in a child process and return its `info` (INFO_FIELDS). `timeout` is in seconds; `background`: it
    waits for everybody else; `seats`: where it has a seat.

    Raises ModelInvalid with the child's reason, or when the child crashed, hung or did not answer properly. A cancelled
    call leaves no child behind.
    """
    limits = replace(LIMITS, background=background, reads=(os.fspath(path),))
    said = await _ask("the check of this file", CHECK, os.fspath(path), limits=limits, timeout=timeout, seats=seats)
    with contextlib.suppress(KeyError, TypeError, ValueError):
        info = said["info"]
        if all(type(info[k]) is kind for k, kind in INFO_FIELDS.items()):
            Shape.from_dict(info["shape"])
            if not all(type(value) in (int, float) for value in info["generation"].values()):
                raise ValueError("what a model asks for is no number")
            return {k: info[k] for k in INFO_FIELDS}
    raise _no_verdict("the check of this file")


async def trial(
    path: str | os.PathLike[str],
    size: int,
    *,
    background: bool = False,
    tried: bool = False,
    seats: Seats | None = None,
) -> dict[str, Any]:
    """What of a checked file works: `conversations` (kind to reason, "" where it works), `laid` (kind to what is done
    to those that its template does not take as they come), `syntax`, how it writes calls of tools and thoughts
    (`engine/answers/detecting.py`; "" where its template is for neither), `ends`, the tokens that end a text, and
    `tried`, whether it has computed a token, which it need not where it is `tried` already; not where free memory does
    not hold its `size` bytes. Raises ModelInvalid."""
    what, fits = "the trial of this model", not tried and size + TRIAL_BYTES < memory.available()
    limits = children.Limits(address_space=2 * size + (16 << 30), file_size=MAX_ANSWER_BYTES, background=background)
    given: dict[str, Any] = {"limits": limits, "timeout": TRIAL_SECONDS, "seats": seats}
    try:
        said = await _ask(what, TRIAL, os.fspath(path), *(["token"] if fits else []), **given)
    except Unavailable:  # the memory was gone by then
        fits = False
        said = await _ask(what, TRIAL, os.fspath(path), **given)
    syntax = said.get("syntax")
    if not isinstance(syntax, str):
        raise _no_verdict(what)
    shown = {name: _texts(said.get(name), what) for name in ("conversations", "laid")}
    ends = said.get("ends")
    if not isinstance(ends, list) or not all(isinstance(text, str) for text in ends):
        raise _no_verdict(what)
    return {**shown, "syntax": _printable(syntax), "ends": [*map(_printable, ends)], "tried": fits or tried}


def _texts(given: Any, what: str) -> dict[str, str]:
    if not isinstance(given, dict) or not all(isinstance(text, str) for text in given.values()):
        raise _no_verdict(what)
    return {_printable(name): _printable(text) for name, text in given.items()}


async def prompt(path: str | os.PathLike[str], chat: bytes) -> str:
    """A conversation (`wire/frames.py: encode_chat`) as the model's template lays it out. Raises BadRequest and
    ModelInvalid."""
    fd = os.memfd_create("conversation", os.MFD_CLOEXEC)
    try:
        os.write(fd, chat)
        os.lseek(fd, 0, os.SEEK_SET)
        limits = children.Limits(address_space=8 << 30, file_size=MAX_PROMPT_BYTES, cpu_seconds=120)
        what = "rendering this conversation"
        said = await _ask(
            what, TRIAL, os.fspath(path), str(fd), limits=limits, descriptors=(fd,), most=MAX_PROMPT_BYTES
        )
    finally:
        os.close(fd)
    if not isinstance(said.get("prompt"), str):
        raise _no_verdict(what)
    return str(said["prompt"])


async def _ask(
    what: str,
    program: str,
    *arguments: str,
    limits: children.Limits = LIMITS,
    descriptors: tuple[int, ...] = (),
    timeout: float = 60.0,
    most: int = MAX_ANSWER_BYTES,
    seats: Seats | None = None,
) -> dict[str, Any]:
    """What a child process says, at `most` bytes. Raises the error that it names (ModelInvalid, BadRequest or
    Unavailable), and ModelInvalid where it gave no answer."""
    start = partial(seats.start, weight=BACKGROUND if limits.background else BESIDE) if seats else children.start
    process = await start(
        program, *arguments, variables=VARIABLES, limits=limits, descriptors=descriptors,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        async with asyncio.timeout(timeout):
            answer = await _read(process, most)
            code = await process.wait()
    except TimeoutError as e:
        raise ModelInvalid(f"{what} did not end within {timeout:g} s: it is damaged or hostile") from e
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
    if code < 0:
        raise ModelInvalid(f"{what} crashed (signal {-code}): it is damaged or hostile")
    return _said(what, answer, code)


async def _read(process: asyncio.subprocess.Process, most: int) -> bytes:
    assert process.stdout is not None
    answer = b""
    while len(answer) <= most and (more := await process.stdout.read(most)):
        answer += more
    if len(answer) > most:
        process.kill()
    return answer


def _said(what: str, answer: bytes, code: int) -> dict[str, Any]:
    """The child's words, or its reason raised. A file may have taken the child over, so its words are checked too."""
    with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):
        said = json.loads(answer)
        if said["ok"] is True:
            return dict(said)
        if isinstance(said["message"], str):
            raise _reason(str(said.get("code")), _printable(said["message"]))
    raise _no_verdict(what, f" (exit {code})")


def _reason(code: str, message: str) -> LlmdError:
    error = from_wire(code, message)
    if isinstance(error, Unavailable):  # of this machine, and not of the file
        log.error("%s", message)
    return error if isinstance(error, BadRequest | Unavailable) else ModelInvalid(message)


def failed(what: str, said: dict[str, Any] | None = None) -> LlmdError:
    """What a child's last words mean: the error that it names, or that it gave no answer."""
    if said and isinstance(said.get("message"), str):
        return _reason(str(said.get("code")), _printable(said["message"]))
    return _no_verdict(what)


def _no_verdict(what: str, how: str = "") -> ModelInvalid:
    return ModelInvalid(f"{what} ended without a verdict{how}: it is damaged or hostile")


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text[:MAX_MESSAGE_CHARS])
