"""What an answer is to be: which tools it may call, and the schema that it fits."""

import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from llmd.api.http.body import LARGE_VALUES, Body
from llmd.api.openai.messages import Name, Text
from llmd.daemon import limits
from llmd.daemon.engine.answers.loosening import shaped
from llmd.daemon.errors import BadRequest
from llmd.daemon.wire import work as wire

# parameters with one of these may have others than their `properties`
_OPEN = frozenset({"additionalProperties", "patternProperties", "allOf", "anyOf", "oneOf", "$ref"})


class FunctionDefinition(Body):
    """`parameters`: a JSON schema of an object; without it the function takes none, and where they say nothing of
    others those that they name alone. `strict`: calls are held to all of it, and refused beforehand where that cannot
    be; else to what of it can be."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,128}$")]
    description: Text | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ToolDefinition(Body):
    type: Literal["function"]
    function: FunctionDefinition

    def engine(self, number: int) -> wire.Tool:
        """Raises BadRequest."""
        function = self.function
        parameters = function.parameters or {}
        if not function.strict:
            parameters = shaped(parameters)
        elif parameters.get("type", "object") != "object":
            raise BadRequest(f"tools.{number}.function.parameters: their type is object", param="tools")
        shown = {
            "name": function.name,
            "description": function.description or "",
            "parameters": {"type": "object", "properties": {}} | parameters | {"type": "object"},
        }
        definition = written({"type": "function", "function": shown}, ensure_ascii=False)
        # a model that may write what the function does not name would do so, perhaps for ever
        open_ = not parameters.keys().isdisjoint(_OPEN) or (parameters and "properties" not in parameters)
        closed = {} if open_ else {"additionalProperties": False}
        schema = written({**parameters, "type": "object", **closed})
        return wire.Tool(function.name, definition, schema, bool(function.strict))


class NamedFunction(Body):
    name: Name


class NamedTool(Body):
    type: Literal["function"]
    function: NamedFunction


class AllowedTools(Body):
    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedTool], Field(fail_fast=True, min_length=1, max_length=limits.MAX_TOOLS)]


class ToolsAllowed(Body):
    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools


class JsonSchema(Body):
    """Answers are held to all of the schema, `strict` or not. Without one: a JSON object."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
    description: Text | None = None
    schema_: Annotated[dict[str, Any] | None, Field(alias="schema")] = None
    strict: bool | None = None


class ResponseFormat(Body):
    """`schema` is how llama-server's clients write it, without a name."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None
    schema_: Annotated[dict[str, Any] | None, Field(alias="schema")] = None

    def wanted(self) -> str | None:
        """The schema that an answer is held to. Raises BadRequest."""
        if self.type == "text":
            if self.schema_ is not None:
                raise BadRequest("response_format.schema: a text has none; send json_object", param="response_format")
            return None
        if self.json_schema is not None and self.schema_ is not None:
            raise BadRequest("response_format.schema: json_schema has one too; send one", param="response_format")
        if self.type == "json_schema" and self.json_schema is None and self.schema_ is None:
            raise BadRequest("response_format.json_schema is missing", param="response_format")
        schema = self.json_schema.schema_ if self.json_schema else self.schema_
        return written({"type": "object"} if schema is None else schema)


def among(tools: Sequence[wire.Tool], named: Sequence[NamedTool]) -> tuple[wire.Tool, ...]:
    """The tools of these names. Raises BadRequest."""
    names = {tool.function.name for tool in named}
    found = tuple(tool for tool in tools if tool.name in names)
    if len(found) < len(names):
        raise BadRequest("tool_choice: it names a function that is not among tools", param="tool_choice")
    return found


def written(value: dict[str, Any], *, ensure_ascii: bool = True) -> str:
    """JSON; of a large one in short steps, between which other threads have the interpreter."""
    encoder = json.JSONEncoder(ensure_ascii=ensure_ascii)
    return "".join(encoder.iterencode(value)) if _is_large(value) else encoder.encode(value)


def _is_large(value: dict[str, Any]) -> bool:
    count, level = 0, list[Any]([value])
    while level and count < LARGE_VALUES:
        one = level.pop()
        count += len(one)
        level += [part for part in (one.values() if isinstance(one, dict) else one) if isinstance(part, dict | list)]
    return count >= LARGE_VALUES
