"""Can answers be held to these schemas? Asked in a process of its own, because a schema may take any time, and any
memory, to read.

    python -P -m llmd.daemon.engine.answers.check FD    the socket on which it is asked

It says `{}` once it can be asked. A line in, `[[SCHEMA, PARAM, STRICT], …]`, is a line out: `{"ok": true}`, or the
error: `{"ok": false, "code": CODE, "message": TEXT, "param": PARAM}`. `daemon/serving/schemas.py` runs it.
"""

import json
import socket
import sys
from typing import Any

from llmd.daemon.engine.answers.matching import refusal
from llmd.daemon.engine.answers.schemas import Validator, parsed, prepared
from llmd.daemon.errors import LlmdError, SchemaUnsupported


def check(text: str, param: str, *, strict: bool) -> None:
    """Raises SchemaUnsupported."""
    if strict:
        Validator(parsed(text, param), param)
    if why := refusal(prepared(text, param, strict=strict)):
        raise SchemaUnsupported(f"{param}: no answer can be held to this schema: {why}", param=param.partition(".")[0])


def answer(line: bytes) -> dict[str, Any]:
    try:
        for text, param, strict in json.loads(line):
            check(text, param, strict=strict)
    except LlmdError as e:
        return {"ok": False, "code": e.code, "message": e.message, "param": e.param}
    return {"ok": True}


def main() -> None:
    with socket.socket(fileno=int(sys.argv[1])) as sock, sock.makefile("rwb") as file:
        said: dict[str, Any] = {}
        while True:
            file.write(json.dumps(said).encode() + b"\n")
            file.flush()
            line = file.readline()
            if not line:
                return
            said = answer(line)


if __name__ == "__main__":
    main()
