"""What a client gives the model's chat template."""

import re
from typing import Any

from llmd.daemon import limits
from llmd.daemon.errors import BadRequest, quoted
from llmd.daemon.serving.tools import written

FIELD = "chat_template_kwargs"
NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")
# what a template is given by this server, or is Jinja's own
OURS = frozenset({
    "messages", "tools", "documents", "bos_token", "eos_token", "add_generation_prompt", "continue_final_message",
    "raise_exception", "strftime_now", "namespace", "range", "dict", "lipsum", "cycler", "joiner", "self", "loop",
    "super", "caller", "varargs", "kwargs",
})  # fmt: skip


def given_template(arguments: dict[str, Any]) -> str:
    """Their JSON. Raises BadRequest."""
    if len(arguments) > limits.MAX_TEMPLATE_ARGUMENTS:
        raise BadRequest(f"{FIELD}: give at most {limits.MAX_TEMPLATE_ARGUMENTS} of them", param=FIELD)
    for name in arguments:
        if not NAME.fullmatch(name):
            raise BadRequest(f"{FIELD}: {quoted(name, 40)} is no name of a variable; remove it", param=FIELD)
        if name in OURS:
            raise BadRequest(f"{FIELD}: {name} is set by this server; remove it", param=FIELD)
    text = written(arguments)
    if len(text) > limits.MAX_TEMPLATE_CHARS:
        raise BadRequest(f"{FIELD}: give at most {limits.MAX_TEMPLATE_CHARS} characters of JSON", param=FIELD)
    return text
