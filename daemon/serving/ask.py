"""What somebody wants of a model. A dialect makes it of a body that it has validated; nothing is validated again."""

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any

from llmd.daemon import limits
from llmd.daemon.engine.messages import ChatMessage, Detokenize, Generate, Prompt, RawText, Tokenize, Tokens, Work


@dataclass(frozen=True, slots=True)
class Ask:
    """`route` is how the audit log names the way it came, `model` None the only model there is."""

    route: str
    model: str | None
    work: Work
    deadline: float = limits.GENERATE_SECONDS  # seconds until its last event
    large: bool = False  # whatever walks over it holds up others

    @property
    def places(self) -> int:
        """How many sequences it may add to what runs and waits."""
        return self.work.sequences if isinstance(self.work, Generate) else 1

    def schemas(self) -> list[tuple[str, str, bool]]:
        """The JSON schemas that it is to be held to: a text, the request's field that it comes from, whether all of it
        is to hold."""
        wanted = self.work.wanted if isinstance(self.work, Generate) else None
        if wanted is None:
            return []
        tools = [(tool.parameters, f"tools.{tool.name}", tool.strict) for tool in wanted.tools]
        return tools if wanted.schema is None else [*tools, (wanted.schema, "response_format", True)]

    def prompt(self) -> bytes:
        """What the audit log's keyed hash covers."""
        work = self.work
        if isinstance(work, Detokenize):
            return json.dumps(work.tokens).encode()
        if isinstance(work, Tokenize):
            return work.text.encode()
        if len(work.prompts) == 1:
            return _bytes(work.prompts[0])
        return _json([_bytes(prompt).decode() for prompt in work.prompts])

    def parameters(self) -> str:
        """SHA-256 of the sampling parameters and of what the answer is held to: equal ones have equal hashes. "" where
        there are none."""
        if not isinstance(self.work, Generate):
            return ""
        params = asdict(self.work.params)
        if wanted := self.work.wanted:
            tools = [[tool.name, tool.parameters, tool.strict] for tool in wanted.tools]
            params["wanted"] = [wanted.schema, tools, wanted.must_call, wanted.parallel]
        return hashlib.sha256(json.dumps(params, sort_keys=True).encode()).hexdigest()


def _bytes(prompt: Prompt) -> bytes:
    if isinstance(prompt, RawText):
        return prompt.text.encode()
    if isinstance(prompt, Tokens):
        return _json(prompt.tokens)
    # a turn after the other: a thread keeps the interpreter while it makes one
    said = b"[" + b",".join(_json(_said(turn)) for turn in prompt.messages) + b"]"
    tools = [tool.definition for tool in prompt.tools]
    return b'{"messages":' + said + b',"tools":' + _json(tools) + b"}" if tools else said


def _said(turn: ChatMessage) -> dict[str, Any]:
    """A turn's role and content, and what else it has."""
    more = {
        "name": turn.name, "tool_call_id": turn.tool_call_id, "reasoning_content": turn.reasoning,
        "tool_calls": [{"id": c.id, "name": c.name, "arguments": c.arguments} for c in turn.tool_calls],
    }  # fmt: skip
    content = "".join(turn.content) if isinstance(turn.content, tuple) else turn.content
    return {"role": turn.role, "content": content} | {k: v for k, v in more.items() if v}


_encoder = json.JSONEncoder(separators=(",", ":"))


def _json(value: Any) -> bytes:
    return _encoder.encode(value).encode()
