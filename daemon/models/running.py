"""Programs that work on a model's file or folder, in child processes: what they say, and their errors as ours. Their
words may be a stranger's."""

import contextlib
import logging
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import aclosing
from functools import partial
from typing import Any

from llmd.daemon.errors import BadRequest, LlmdError, ModelInvalid, Unavailable, from_wire
from llmd.daemon.machine import children, verdicts
from llmd.daemon.machine.cores import BACKGROUND, BESIDE
from llmd.daemon.machine.seats import Seats
from llmd.quantize.check import MAX_ANSWER_BYTES, MAX_MESSAGE_CHARS

log = logging.getLogger("llmd.models")

# none needs a GPU
VARIABLES = {"LC_ALL": "C.UTF-8", "CUDA_VISIBLE_DEVICES": ""}
# it says something at each tensor; a very large one takes a while on few cores
SILENT_SECONDS = 900.0


async def verdict(
    what: str,
    program: str,
    *arguments: str,
    limits: children.Limits,
    seconds: float = 60.0,
    most: int = MAX_ANSWER_BYTES,
    seats: Seats | None = None,
    descriptors: tuple[int, ...] = (),
) -> dict[str, Any]:
    """What a program finds; `what` it does, for people, the rest as `verdicts.asked` has it; `seats`: where it has a
    seat. Raises the error that it names (ModelInvalid, BadRequest or Unavailable), and ModelInvalid where it gives no
    answer."""
    start = partial(seats.start, weight=BACKGROUND if limits.background else BESIDE) if seats else children.start
    with _explained(what):
        return await verdicts.asked(
            program, *arguments, seconds=seconds, most=most, start=start, variables=VARIABLES, limits=limits,
            descriptors=descriptors,
        )  # fmt: skip


async def lines(
    what: str,
    program: str,
    *arguments: str,
    limits: children.Limits = children.NO_LIMITS,
    interpreter: str = sys.executable,
    variables: Mapping[str, str] | None = None,
) -> AsyncIterator[dict[str, Any]]:
    """What a program says on its way to that, a line each, as `verdicts.lines` has them. Raises as `verdict`."""
    saying = verdicts.lines(
        program, *arguments, silent=SILENT_SECONDS, variables={**VARIABLES, **(variables or {})}, limits=limits,
        interpreter=interpreter,
    )  # fmt: skip
    with _explained(what):
        async with aclosing(saying):
            async for line in saying:
                yield line


def no_verdict(what: str, how: str = "ended without a verdict") -> ModelInvalid:
    return ModelInvalid(f"{what} {how}: it is damaged or hostile")


def printable(text: str) -> str:
    """Of what a stranger may have written, so much as an error shows."""
    return "".join(c if c.isprintable() else "?" for c in text[:MAX_MESSAGE_CHARS])


@contextlib.contextmanager
def _explained(what: str) -> Iterator[None]:
    try:
        yield
    except verdicts.Refused as e:
        raise _reason(e.code, printable(e.message)) from e
    except verdicts.NoVerdict as e:
        raise no_verdict(what, str(e)) from e


def _reason(code: str, message: str) -> LlmdError:
    error = from_wire(code, message)
    if isinstance(error, Unavailable):  # of this machine, and not of the file
        log.error("%s", message)
    return error if isinstance(error, BadRequest | Unavailable) else ModelInvalid(message)
