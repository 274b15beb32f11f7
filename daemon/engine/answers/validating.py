"""Whether an answer fits its schema. Apart from `schemas.py`, so that a worker, which only follows grammars, needs no
validator."""

import json
from typing import Any

import jsonschema_rs

from llmd.daemon.engine.answers.schemas import MAX_NAMED, field, line
from llmd.daemon.errors import AnswerInvalid, SchemaUnsupported, quoted

MAX_BACKTRACKS = 100_000


class Validator:
    """Whether answers fit a schema. Raises SchemaUnsupported where it is none. It reads no file and asks no network,
    and patterns take linear time, but where one of them looks around: then MAX_BACKTRACKS steps each."""

    def __init__(self, schema: dict[str, Any], param: str) -> None:
        self._field = field(param)
        schema = {k: v for k, v in schema.items() if k != "$schema"}
        try:
            try:
                self._validator = _validator(schema, jsonschema_rs.RegexOptions())
            except jsonschema_rs.ValidationError:
                options = jsonschema_rs.FancyRegexOptions(backtrack_limit=MAX_BACKTRACKS)
                self._validator = _validator(schema, options)
        except (jsonschema_rs.ValidationError, jsonschema_rs.ReferencingError) as e:
            at = "/".join(["", *(str(step) for step in getattr(e, "instance_path", ()))])
            said, value = getattr(e, "message", str(e)), getattr(e, "instance", None)
            if isinstance(value, str):
                said = said.replace(json.dumps(value, ensure_ascii=False), f"'{value}'")
            raise SchemaUnsupported(
                f"{param}: {quoted(at or '/', MAX_NAMED)} is no JSON schema that answers can be held to: {line(said)}",
                param=self._field,
            ) from e

    def check(self, text: str, what: str) -> None:
        """Raises AnswerInvalid."""
        try:
            fits = self._validator.is_valid(json.loads(text))
        except (ValueError, RecursionError):
            fits = False
        if not fits:
            raise AnswerInvalid(
                f"{what} does not fit its schema; ask again, or write the schema more simply", param=self._field
            )


def _validator(schema: dict[str, Any], patterns: Any) -> jsonschema_rs.Draft202012Validator:
    return jsonschema_rs.Draft202012Validator(schema, validate_formats=True, offline=True, pattern_options=patterns)
