"""What an answer is to be: which tools it may call, and the schema that it fits."""

from typing import Annotated, Any, Literal

from pydantic import Field

from llmd.api.http.body import Body
from llmd.api.openai.messages import Name, Text
from llmd.daemon import limits
from llmd.daemon.errors import BadRequest
from llmd.daemon.serving.tools import Choice, tool, written
from llmd.daemon.wire.work import Tool


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

    def engine(self, number: int) -> Tool:
        """Raises BadRequest."""
        function, where = self.function, f"tools.{number}.function.parameters"
        given = function.parameters or {}
        return tool(function.name, function.description or "", given, strict=bool(function.strict), where=where)


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


ToolChoice = Literal["none", "auto", "required"] | NamedTool | ToolsAllowed | None


def chosen(choice: ToolChoice, parallel: bool | None) -> Choice:
    """Which of the tools an answer may call."""
    several = parallel is not False
    match choice:
        case "none":
            return Choice(none=True)
        case NamedTool():
            return Choice(named=frozenset({choice.function.name}), must=True, parallel=False)
        case ToolsAllowed(allowed_tools=allowed):
            names = frozenset(one.function.name for one in allowed.tools)
            return Choice(named=names, must=allowed.mode == "required", parallel=several)
    return Choice(must=choice == "required", parallel=several)
