"""Does this model work? Its chat template on small conversations, and one token of an answer. Asked in a child process,
because a template is anybody's code and a model may kill llama.cpp.

    python -P -m llmd.daemon.engine.trial FILE        the conversations
    python -P -m llmd.daemon.engine.trial FILE token  and the token: it loads the weights
    python -P -m llmd.daemon.engine.trial FILE FD     the prompt of the conversation in FD, as `encode_chat` writes it

It prints one JSON line and exits with 0, whatever the verdict: `{"ok": true, "conversations": {KIND: REASON}, "laid":
{KIND: DONE}, "syntax": NAME, "ends": [TEXT]}`, where no reason ("") is good, DONE is what is done to a conversation
that the template does not take as it comes (`layouts.py`), NAME is how it writes calls and thoughts
(`answers/detecting.py`), and each TEXT is a token that ends an answer; `{"ok": true, "prompt": TEXT}`; or `{"ok":
false, "code": CODE, "message": TEXT}`.
`daemon/models/checking.py` runs it.
"""

import sys
from typing import Any

from llmd.daemon.engine.answers.detecting import name_of
from llmd.daemon.engine.reach import hold_trial
from llmd.daemon.engine.renderers import Nursery, Rendered
from llmd.daemon.engine.rendering import Terms
from llmd.daemon.engine.templates import CONVERSATIONS, WEATHER
from llmd.daemon.errors import LlmdError, ModelInvalid
from llmd.daemon.machine import cores
from llmd.daemon.machine.telling import verdict
from llmd.daemon.wire.frames import decode_chat
from llmd.daemon.wire.work import Chat
from llmd.quantize import backends

CONTEXT = 256
MAX_PROMPT_CHARS = 4_000_000
MAX_ENDS, MAX_END_CHARS = 64, 64


def conversations(rendered: Rendered) -> tuple[dict[str, str], dict[str, str]]:
    """Each kind of conversation, and why the model's template does not take it; "" where it does. And what is done to
    some for that."""
    reasons: dict[str, str] = {}
    laid: dict[str, str] = {}
    terms = rendered.terms
    for kind, turns in CONVERSATIONS.items() if terms.template or terms.tool_template else ():
        tools = (WEATHER,) if kind == "tool calls" and terms.tool_template else ()
        try:
            done = rendered.text(Chat(turns, tools=tools)).done
            reasons[kind] = ""
            laid |= {kind: done} if done else {}
        except LlmdError as e:
            reasons[kind] = e.message[:200]
    return reasons, laid


def syntax(rendered: Rendered) -> str:
    """How the model writes calls and thoughts; "" where its template does not work, as `conversations` tells."""
    try:
        return name_of(rendered.syntax)
    except LlmdError:
        return ""


def _tried(nursery: Nursery, path: str, wanted: str) -> dict[str, Any]:
    hold_trial(path)
    backends.engine()
    from llmd.daemon.engine.llama.vocabulary import of_file  # here: it imports llama.cpp

    vocabulary = of_file(path)
    terms = Terms(
        vocabulary.chat_template or "", vocabulary.bos_text, vocabulary.eos_text, most=MAX_PROMPT_CHARS,
        tool_template=vocabulary.tool_template or "",
    )  # fmt: skip
    rendered = Rendered(nursery, terms)
    if wanted.isdecimal():
        with open(int(wanted), "rb") as file:
            return {"prompt": rendered.text(decode_chat(file.read()))[0]}
    if not vocabulary.samples:
        raise ModelInvalid("it gives no text, as models that embed texts do not: llmd serves models that answer")
    if not vocabulary.ends:
        raise ModelInvalid("the tokenizer has no token that ends a text: no answer would end")
    (found, laid), written = conversations(rendered), syntax(rendered)
    if wanted == "token":
        from llmd.daemon.engine.llama.runner import LlamaRunner  # here: the rest needs no numpy

        # it computes a token as it loads; putting gigabytes into a CPU's own order for one takes longer
        LlamaRunner(path, slots=1, context=CONTEXT, batch=64, seat=cores.mine(), reorder=False)
    shown = [text[:MAX_END_CHARS] for text in vocabulary.end_texts[:MAX_ENDS]]
    return {"conversations": found, "laid": laid, "syntax": written, "ends": shown}


def main() -> None:
    nursery = Nursery()  # before anything else: what renders has no way to answer in this process' place
    wanted = sys.argv[2] if len(sys.argv) > 2 else ""
    verdict(lambda _: _tried(nursery, sys.argv[1], wanted), "try this model")


if __name__ == "__main__":
    main()
