"""What somebody wants of a model. A dialect makes it of a body that it has validated; nothing is validated again."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeVar

from llmd.daemon import limits
from llmd.daemon.engine.messages import (
    ChatMessage,
    Detokenize,
    Generate,
    Prompt,
    RawText,
    Tokenize,
    Tokens,
    Tool,
    Wanted,
    Work,
)

NO_TEXT = b"\xff"  # UTF-8 has no such byte
# what of a request's parts the prompt's hash covers, or the parameters' hash by itself
COVERED = frozenset({
    "prompts", "params", "wanted", "messages", "text", "tokens", "schema", "tools", "must_call", "parallel", "name",
    "definition", "parameters", "strict",
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class Ask:
    """`route` is how the audit log names the way it came, `model` None the only model there is."""

    route: str
    model: str | None
    work: Work
    deadline: float = limits.GENERATE_SECONDS  # seconds until its last event
    large: bool = False  # whatever walks over it holds up others
    dialect: str = ""  # whose request it was made of

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

    def held_to(self, schemas: Mapping[int, str]) -> "Ask":
        """With other ones than `schemas()`, by their number."""
        if not schemas:
            return self
        assert isinstance(self.work, Generate) and self.work.wanted is not None
        wanted = self.work.wanted
        tools = tuple(_with(t, parameters=schemas.get(i, t.parameters)) for i, t in enumerate(wanted.tools))
        wanted = _with(wanted, tools=tools, schema=schemas.get(len(tools), wanted.schema))
        return replace(self, work=_with(self.work, wanted=wanted))

    def prompt(self) -> bytes:
        """What the audit log's keyed hash covers. One text is its own bytes; what is none begins with a byte that no
        text begins with, so that no text spells it, but a chat, which comes by a route of its own."""
        work = self.work
        if isinstance(work, Detokenize):
            return json.dumps(work.tokens).encode()
        if isinstance(work, Tokenize):
            return work.text.encode()
        if len(work.prompts) == 1:
            return _bytes(work.prompts[0])
        several = [prompt.tokens if isinstance(prompt, Tokens) else _bytes(prompt).decode() for prompt in work.prompts]
        return NO_TEXT + _json(several)

    def parameters(self) -> str:
        """SHA-256 of everything in it but the prompts themselves: equal ones have equal hashes. "" where that is
        nothing."""
        params = self._sampling() if isinstance(self.work, Generate) else {}
        for part in self._parts():
            params |= _given(part)
        return hashlib.sha256(json.dumps(params, sort_keys=True).encode()).hexdigest() if params else ""

    def _sampling(self) -> dict[str, Any]:
        """And what the answer is held to."""
        assert isinstance(self.work, Generate)
        params = asdict(self.work.params)
        if wanted := self.work.wanted:
            tools = [[tool.name, tool.parameters, tool.strict] for tool in wanted.tools]
            params["wanted"] = [wanted.schema, tools, wanted.must_call, wanted.parallel]
        return params

    def _parts(self) -> list[Any]:
        """Of which it consists."""
        if not isinstance(self.work, Generate):
            return [self.work]
        wanted = self.work.wanted
        return [self.work, *self.work.prompts, *((wanted, *wanted.tools) if wanted else ())]


_S = TypeVar("_S", Generate, Wanted, Tool)


def _with(struct: _S, **values: Any) -> _S:
    return type(struct)(**{name: getattr(struct, name) for name in struct.__struct_fields__} | values)


def _given(struct: Any) -> dict[str, Any]:
    """What in it is not as it would be if nobody had said it, and is not COVERED."""
    names, defaults = struct.__struct_fields__, struct.__struct_defaults__
    unsaid = dict(zip(reversed(names), reversed(defaults), strict=False))
    found = {name: getattr(struct, name) for name in names if name not in COVERED}
    return {name: value for name, value in found.items() if name not in unsaid or value != unsaid[name]}


def _bytes(prompt: Prompt) -> bytes:
    if isinstance(prompt, RawText):
        return prompt.text.encode()
    if isinstance(prompt, Tokens):
        return NO_TEXT + _json(prompt.tokens)
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
