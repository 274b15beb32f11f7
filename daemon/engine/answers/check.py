"""Can answers be held to these schemas, and do these answers fit theirs? Asked in a process of its own, because both
may take any time and any memory, in which nothing else of the process runs.

    python -P -m llmd.daemon.engine.answers.check FD    the socket on which it is asked

It says `{}` once it can be asked. A line in, `["schemas", [[SCHEMA, PARAM, STRICT], …]]` or
`["answers", [[SCHEMA, PARAM, ANSWER, WHAT], …]]`, is a line out: `{"ok": true}`, or the error: `{"ok": false, "code":
CODE, "message": TEXT, "param": PARAM}`. `daemon/serving/schemas.py` runs it.
"""

import json
import socket
import sys
from functools import lru_cache
from typing import Any

from llmd.daemon.confined import seal
from llmd.daemon.engine.answers.matching import refusal
from llmd.daemon.engine.answers.schemas import Validator, parsed, prepared
from llmd.daemon.errors import LlmdError, SchemaUnsupported

KEPT = 64  # schemas that answers were held against


def check(text: str, param: str, *, strict: bool) -> None:
    """Raises SchemaUnsupported."""
    if strict:
        Validator(parsed(text, param), param)
    if why := refusal(prepared(text, param, strict=strict)):
        raise SchemaUnsupported(f"{param}: no answer can be held to this schema: {why}", param=param.partition(".")[0])


@lru_cache(KEPT)
def validator(text: str, param: str) -> Validator:
    return Validator(parsed(text, param), param)


def answer(line: bytes) -> dict[str, Any]:
    kind, asked = json.loads(line)
    try:
        if kind == "schemas":
            for text, param, strict in asked:
                check(text, param, strict=strict)
        else:
            for schema, param, text, what in asked:
                validator(schema, param).check(text, what)
    except LlmdError as e:
        return {"ok": False, "code": e.code, "message": e.message, "param": e.param}
    return {"ok": True}


def main() -> None:
    with socket.socket(fileno=int(sys.argv[1])) as sock, sock.makefile("rwb") as file:
        said: dict[str, Any] = {}
        seal()
        while True:
            file.write(json.dumps(said).encode() + b"\n")
            file.flush()
            line = file.readline()
            if not line:
                return
            said = answer(line)


if __name__ == "__main__":
    main()
