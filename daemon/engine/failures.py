"""What is told of an exception that nobody expected: where and what it was, not its message, which may hold a prompt.

A fault of one request, while it is prepared, bound, masked, read or shown, ends that request alone. One of a thread or
of the runner ends the process.
"""

import os
import select
import traceback

from llmd.daemon.errors import LlmdError

LAST_WORDS_SECONDS = 1.0
# the process ended by a fault of its own; the daemon starts another worker
EXIT_SOFTWARE = 70


def told(what: str, error: BaseException, patience: float = 0.0) -> None:
    """To the log. Nobody waits longer than `patience` seconds for somebody to read it."""
    where = "".join(traceback.format_tb(error.__traceback__))
    text = f"{what} failed: {type(error).__name__}\n{where}".encode()
    _, writable, _ = select.select([], [2], [], patience)
    if writable:
        os.write(2, text if len(text) <= select.PIPE_BUF else text[: select.PIPE_BUF - 1] + b"\n")


def of_request(error: BaseException) -> LlmdError:
    """What its client is told of a fault of ours; what is an error already stays so."""
    if isinstance(error, LlmdError):
        return error
    told("a request", error)
    return LlmdError("an internal error ended this request; the server's log holds the cause")
