"""Can answers be held to these schemas, and do these answers fit theirs? Asked in a process of its own, because both
may take any time and any memory, in which nothing else of the process runs.

    python -P -m llmd.daemon.engine.answers.judge FD    the socket on which it is asked

It says `{}` once it can be asked. A line in, `["schemas", [[SCHEMA, PARAM, STRICT], …], OWNER]` or
`["answers", [[SCHEMA, PARAM, ANSWER, WHAT], …], OWNER]`, is a line out: `{"ok": true}`, with `"held": {N: SCHEMA, …}`
where grammars are made of that instead of the Nth schema (`holdable.py`); or the error: `{"ok": false, "code": CODE,
"message": TEXT, "param": PARAM}`. `daemon/serving/judging.py` runs it.
"""

import json
import socket
import sys
from typing import Any

from llmd.daemon.engine.answers.holdable import held
from llmd.daemon.engine.answers.schemas import parsed
from llmd.daemon.engine.answers.validating import Validator
from llmd.daemon.errors import LlmdError
from llmd.daemon.kept import Kept
from llmd.daemon.machine.confined import seal

KEPT, KEPT_EACH = 64, 32  # schemas that answers were held against: of all clients, and of one


def validator(text: str, param: str, owner: str, kept: Kept[Validator]) -> Validator:
    found = kept.get(owner, (text, param))
    if found is None:
        found = Validator(parsed(text, param), param)
        kept.put(owner, (text, param), found)
    return found


def answer(line: bytes, kept: Kept[Validator]) -> dict[str, Any]:
    kind, asked, owner = json.loads(line)
    try:
        if kind == "schemas":
            found = held(asked)
            return {"ok": True, "held": found} if found else {"ok": True}
        for schema, param, text, what in asked:
            validator(schema, param, owner, kept).check(text, what)
    except LlmdError as e:
        return {"ok": False, "code": e.code, "message": e.message, "param": e.param}
    return {"ok": True}


def main() -> None:
    with socket.socket(fileno=int(sys.argv[1])) as sock, sock.makefile("rwb") as file:
        said, kept = dict[str, Any](), Kept[Validator](KEPT, KEPT_EACH)
        seal()
        while True:
            file.write(json.dumps(said).encode() + b"\n")
            file.flush()
            line = file.readline()
            if not line:
                return
            said = answer(line, kept)


if __name__ == "__main__":
    main()
