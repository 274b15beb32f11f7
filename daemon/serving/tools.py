"""Which tools an answer may call, in whatever dialect it was asked for."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from llmd.daemon import limits
from llmd.daemon.engine.answers.loosening import shaped
from llmd.daemon.errors import BadRequest
from llmd.daemon.wire.work import Tool, Wanted

# parameters with one of these may have others than their `properties`
_OPEN = frozenset({"additionalProperties", "patternProperties", "allOf", "anyOf", "oneOf", "$ref"})


@dataclass(frozen=True, slots=True)
class Choice:
    """`none`: the model is not even told of them. `named`: the ones that it may call, None all of them; `must`: it
    calls one at least; not `parallel`: one at most."""

    none: bool = False
    named: frozenset[str] | None = None
    must: bool = False
    parallel: bool = True

    def told(self, tools: Iterable[Tool]) -> tuple[Tool, ...]:
        """Those that the model is told of. Raises BadRequest."""
        found = () if self.none else tuple(tools)
        if len({tool.name for tool in found}) < len(found):
            raise BadRequest("tools: two have the same name", param="tools")
        return found

    def wanted(self, schema: str | None, told: tuple[Tool, ...]) -> Wanted | None:
        """What an answer is held to: a JSON `schema`, or calls of those of the tools `told` that are chosen. None: it
        may be any text. Raises BadRequest."""
        named = self.named
        if not told and (self.must or named is not None):
            raise BadRequest("tool_choice: there are no tools to choose from; send tools", param="tool_choice")
        called = told if named is None else tuple(tool for tool in told if tool.name in named)
        if named is not None and len(called) < len(named):
            raise BadRequest("tool_choice: it names a function that is not among tools", param="tool_choice")
        if schema is None and not called:
            return None
        return Wanted(schema, called, self.must, self.parallel)


def tool(name: str, description: str, parameters: dict[str, Any], *, strict: bool, where: str) -> Tool:
    """`parameters`: a JSON schema of an object; without one the function takes none, and where it says nothing of
    others those alone that it names. `where`: the request's field that it stands in. Raises BadRequest."""
    if not strict:
        parameters = shaped(parameters)
    elif parameters.get("type", "object") != "object":
        raise BadRequest(f"{where}: their type is object", param="tools")
    shown = {
        "name": name,
        "description": description,
        "parameters": {"type": "object", "properties": {}} | parameters | {"type": "object"},
    }
    definition = written({"type": "function", "function": shown}, ensure_ascii=False)
    # a model that may write what the function does not name would do so, perhaps for ever
    open_ = not parameters.keys().isdisjoint(_OPEN) or (parameters and "properties" not in parameters)
    closed = {} if open_ else {"additionalProperties": False}
    return Tool(name, definition, written({**parameters, "type": "object", **closed}), strict)


def written(value: dict[str, Any], *, ensure_ascii: bool = True) -> str:
    """JSON; of a large one in short steps, between which other threads have the interpreter."""
    encoder = json.JSONEncoder(ensure_ascii=ensure_ascii)
    return "".join(encoder.iterencode(value)) if _is_large(value) else encoder.encode(value)


def _is_large(value: dict[str, Any]) -> bool:
    count, level = 0, list[Any]([value])
    while level and count < limits.LARGE_VALUES:
        one = level.pop()
        count += len(one)
        level += [part for part in (one.values() if isinstance(one, dict) else one) if isinstance(part, dict | list)]
    return count >= limits.LARGE_VALUES
