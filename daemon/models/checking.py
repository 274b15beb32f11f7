"""The checks of a model file in child processes: the file may be hostile, and so may its chat template.

`quantize/check.py` reads the header; `daemon/engine/trial.py` tries the template and lets the model compute a token.
"""

import os
from dataclasses import replace
from typing import Any

import msgspec

from llmd.daemon.errors import Unavailable
from llmd.daemon.machine import children, memory
from llmd.daemon.machine.seats import Seats
from llmd.daemon.models.running import no_verdict, printable, verdict
from llmd.daemon.state.records import Info
from llmd.quantize.check import INFO_FIELDS, MAX_ANSWER_BYTES
from llmd.quantize.shape import Shape

CHECK = "llmd.quantize.check"
TRIAL = "llmd.daemon.engine.trial"
# a header and its tables; the largest that the reader's caps allow takes 1.5 GB, the libraries 2 GB of addresses
LIMITS = children.Limits(address_space=8 << 30, file_size=MAX_ANSWER_BYTES, cpu_seconds=120)
TRIAL_SECONDS = 900.0  # the weights are read from the disk, and most are repacked
# beside the weights: keys and values of a few tokens, and buffers
TRIAL_BYTES = 512 << 20
MAX_PROMPT_BYTES = 32 << 20


async def check(
    path: str | os.PathLike[str], timeout: float = 60.0, *, background: bool = False, seats: Seats | None = None
) -> Info:
    """What a file's check says of it (INFO_FIELDS), which runs in a child process. `timeout` is in seconds;
    `background`: it waits for everybody else; `seats`: where it has a seat.

    Raises ModelInvalid with the child's reason, or when the child crashed, hung or did not answer properly. A cancelled
    call leaves no child behind.
    """
    limits = replace(LIMITS, background=background, reads=(os.fspath(path),))
    what = "the check of this file"
    said = await verdict(what, CHECK, os.fspath(path), limits=limits, seconds=timeout, seats=seats)
    try:
        info = msgspec.convert({name: said["info"][name] for name in INFO_FIELDS}, Info)
        Shape.from_dict(info.shape or {})
        # what does not read back as it was (NaN, half a character) would be taken for a damaged database
        kept = msgspec.json.decode(msgspec.json.encode(info), type=Info)
    except (KeyError, TypeError, ValueError, OverflowError) as e:
        raise no_verdict(what) from e
    return kept


async def trial(
    path: str | os.PathLike[str],
    size: int,
    *,
    background: bool = False,
    tried: bool = False,
    seats: Seats | None = None,
) -> dict[str, Any]:
    """What of a checked file works, as `Info` has it: `conversations` (kind to reason, "" where it works), `laid` (kind
    to what is done to those that its template does not take as they come), `syntax`, how it writes calls of tools and
    thoughts (`engine/answers/detecting.py`; "" where its template is for neither), `ends`, the tokens that end a text,
    and `tried`, whether it has computed a token, which it need not where it is `tried` already; not where free memory
    does not hold its `size` bytes. Raises ModelInvalid."""
    what, fits = "the trial of this model", not tried and size + TRIAL_BYTES < memory.available()
    limits = children.Limits(address_space=2 * size + (16 << 30), file_size=MAX_ANSWER_BYTES, background=background)
    given: dict[str, Any] = {"limits": limits, "seconds": TRIAL_SECONDS, "seats": seats}
    try:
        said = await verdict(what, TRIAL, os.fspath(path), *(["token"] if fits else []), **given)
    except Unavailable:  # the memory was gone by then
        fits = False
        said = await verdict(what, TRIAL, os.fspath(path), **given)
    syntax = said.get("syntax")
    if not isinstance(syntax, str):
        raise no_verdict(what)
    shown = {name: _texts(said.get(name), what) for name in ("conversations", "laid")}
    ends = said.get("ends")
    if not isinstance(ends, list) or not all(isinstance(text, str) for text in ends):
        raise no_verdict(what)
    return {**shown, "syntax": printable(syntax), "ends": [*map(printable, ends)], "tried": fits or tried}


def _texts(given: Any, what: str) -> dict[str, str]:
    if not isinstance(given, dict) or not all(isinstance(text, str) for text in given.values()):
        raise no_verdict(what)
    return {printable(name): printable(text) for name, text in given.items()}


async def prompt(path: str | os.PathLike[str], chat: bytes) -> str:
    """A conversation (`wire/frames.py: encode_chat`) as the model's template lays it out. Raises BadRequest and
    ModelInvalid."""
    fd = os.memfd_create("conversation", os.MFD_CLOEXEC)
    try:
        os.write(fd, chat)
        os.lseek(fd, 0, os.SEEK_SET)
        limits = children.Limits(address_space=8 << 30, file_size=MAX_PROMPT_BYTES, cpu_seconds=120)
        what = "rendering this conversation"
        said = await verdict(
            what, TRIAL, os.fspath(path), str(fd), limits=limits, descriptors=(fd,), most=MAX_PROMPT_BYTES
        )
    finally:
        os.close(fd)
    if not isinstance(said.get("prompt"), str):
        raise no_verdict(what)
    return str(said["prompt"])
