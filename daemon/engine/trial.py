"""Does this model work? Its chat template on small conversations, and one token of an answer. Asked in a child process,
because a template is anybody's code and a model may kill llama.cpp.

    python -P -m llmd.daemon.engine.trial FILE        the conversations
    python -P -m llmd.daemon.engine.trial FILE token  and the token: it loads the weights
    python -P -m llmd.daemon.engine.trial FILE FD     the prompt of the conversation in FD, as `encode_chat` writes it

It prints one JSON line and exits with 0, whatever the verdict: `{"ok": true, "conversations": {KIND: REASON}, "syntax":
NAME}`, where no reason ("") is good and NAME is how it writes calls and thoughts (`answers/detecting.py`), `{"ok":
true, "prompt": TEXT}`, or `{"ok": false, "code": CODE, "message": TEXT}`.
`daemon/models/checking.py` runs it.
"""

import json
import os
import sys
import threading
import time
from typing import Any

from llmd.daemon import cores
from llmd.daemon.engine import messages
from llmd.daemon.engine.answers.detecting import name_of
from llmd.daemon.engine.deadline import Deadline
from llmd.daemon.engine.messages import Chat
from llmd.daemon.engine.prompts import rendered, syntax_of
from llmd.daemon.engine.templates import CONVERSATIONS
from llmd.daemon.engine.vocabulary import Vocabulary, of_file
from llmd.daemon.errors import LlmdError, ModelInvalid

TEMPLATE_SECONDS = 2.0
CONTEXT = 256
MAX_PROMPT_CHARS = 4_000_000


def conversations(vocabulary: Vocabulary, deadline: Deadline) -> dict[str, str]:
    """Each kind of conversation, and why the model's template does not take it; "" where it does."""
    if not vocabulary.chat_template:
        return {}
    reasons: dict[str, str] = {}
    for kind, turns in CONVERSATIONS.items():
        try:
            prompt(vocabulary, Chat(turns), deadline)
            reasons[kind] = ""
        except LlmdError as e:
            reasons[kind] = e.message[:200]
    return reasons


def syntax(vocabulary: Vocabulary, deadline: Deadline) -> str:
    """How the model writes calls and thoughts; "" where its template does not work, as `conversations` tells."""
    try:
        return name_of(syntax_of(vocabulary.chat_template, vocabulary, deadline))
    except LlmdError:
        return ""


def prompt(vocabulary: Vocabulary, chat: Chat, deadline: Deadline) -> str:
    """Raises LlmdError for what the template does."""

    def check(size: int) -> None:
        if size > MAX_PROMPT_CHARS:
            raise ModelInvalid(f"the model's chat template makes more than {MAX_PROMPT_CHARS} characters of this")

    return rendered(vocabulary.chat_template or "", chat, vocabulary, deadline, str, check)


def _verdict(path: str, wanted: str) -> dict[str, Any]:
    deadline = Deadline(TEMPLATE_SECONDS)
    threading.Thread(target=_watch, args=(deadline,), daemon=True).start()
    try:
        vocabulary = of_file(path)
        if wanted.isdecimal():
            with open(int(wanted), "rb") as file:
                return {"ok": True, "prompt": prompt(vocabulary, messages.decode_chat(file.read()), deadline)}
        if not vocabulary.ends:
            raise ModelInvalid("the tokenizer has no token that ends a text: no answer would end")
        found, written = conversations(vocabulary, deadline), syntax(vocabulary, deadline)
        if wanted == "token":
            from llmd.daemon.engine.llama import LlamaRunner  # here: the rest needs no numpy

            # it computes a token as it loads
            LlamaRunner(path, slots=1, context=CONTEXT, batch=64, seat=cores.mine())
    except LlmdError as e:
        return {"ok": False, "code": e.code, "message": e.message}
    except MemoryError:
        return {"ok": False, "code": ModelInvalid.code, "message": "there is not enough memory to try this model"}
    return {"ok": True, "conversations": found, "syntax": written}


def _watch(deadline: Deadline) -> None:
    while True:
        time.sleep(0.1)
        deadline.check()


def main() -> None:
    """The child process: one JSON line on what was standard output; libraries that print there are not heard."""
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    answer.write(json.dumps(_verdict(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "")) + "\n")
    answer.flush()
    os._exit(0)  # llama.cpp's exit handlers have nothing to add


if __name__ == "__main__":
    main()
