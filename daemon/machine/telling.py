"""What a program says that was asked for a verdict (`verdicts.py` asks): JSON lines on what was standard output, and as
the last one the verdict. Libraries that print there are not heard. Standard library only, but for the errors."""

import json
import os
import threading
from collections.abc import Callable, Mapping
from typing import Any, NoReturn, TypeAlias

from llmd.daemon.errors import LlmdError, ModelInvalid

# says a line; any thread may
Tell: TypeAlias = Callable[[dict[str, Any]], None]


def verdict(work: Callable[[Tell], Mapping[str, Any]], doing: str) -> NoReturn:
    """What `work` gives, beside `ok`; or the code and the message of the error that it raises. `doing`: what it does,
    for people. The process ends with it."""
    answer, lock = os.fdopen(os.dup(1), "w"), threading.Lock()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)

    def tell(line: dict[str, Any]) -> None:
        with lock:
            answer.write(json.dumps(line) + "\n")
            answer.flush()

    tell(_verdict(work, tell, doing))
    os._exit(0)  # the libraries' exit handlers have nothing to add


def _verdict(work: Callable[[Tell], Mapping[str, Any]], tell: Tell, doing: str) -> dict[str, Any]:
    try:
        return {"ok": True, **work(tell)}
    except LlmdError as e:
        return {"ok": False, "code": e.code, "message": e.message}
    except OSError as e:
        return {"ok": False, "code": ModelInvalid.code, "message": f"a file cannot be read: {e.strerror or e}"}
    except MemoryError:
        return {"ok": False, "code": ModelInvalid.code, "message": f"there is not enough memory to {doing}"}
