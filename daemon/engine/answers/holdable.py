"""What a grammar is made of for schemas that answers are held to: all of a schema where it must hold, else what can be
held of it. What a grammar takes is found out by trying (`matching.py`)."""

import json

from llmd.daemon.engine.answers.loosening import Loosening
from llmd.daemon.engine.answers.matching import refusal
from llmd.daemon.engine.answers.places import Schema, parts
from llmd.daemon.engine.answers.rewriting import FORMATS, rewritten
from llmd.daemon.engine.answers.schemas import MAX_NAMED, field, line, parsed, places, prepared
from llmd.daemon.engine.answers.validating import Validator
from llmd.daemon.errors import SchemaUnsupported, quoted

# what is to be said of a keyword that is refused by itself
_WHY = {"oneOf": "its choices may overlap; write anyOf, or give each a required property with a const of its own"}


def held(schemas: list[tuple[str, str, bool]]) -> dict[int, str]:
    """What grammars are made of instead of some schemas, by their number. Raises SchemaUnsupported."""
    loosening, found = Loosening(_refused), dict[int, str]()
    for i, (text, param, strict) in enumerate(schemas):
        schema = json.loads(text)
        made = whole(text, param) if strict else loosening.of(rewritten(schema))
        if made != schema and isinstance(schema, dict):
            found[i] = json.dumps(made if strict else {**made, "type": "object"})
    return found


def whole(text: str, param: str) -> Schema:
    """Of one that must hold: what of it no grammar says is held against the whole answer. Raises SchemaUnsupported."""
    schema = parsed(text, param)
    made = rewritten(schema)
    patterns = _Patterns()
    for part in parts(made):
        if part.get("format") in FORMATS and patterns.refused(part)[0] == "pattern":
            del part["pattern"]  # the format is held to
    for part in parts(made):
        choices = part.get("anyOf")
        if isinstance(choices, list):
            possible = [choice for choice in choices if not any(patterns.refused(one)[0] for one in parts(choice))]
            # a number that may be a text too, as a decimal is: the number says as much
            if any(isinstance(choice, dict) and choice.get("type") == "number" for choice in possible):
                part["anyOf"] = possible
    for where, part in places(made):
        keyword, why = patterns.refused(part)
        if keyword:
            at = quoted(f"{where}/{keyword}", MAX_NAMED)
            raise SchemaUnsupported(f"{param}: {at}: answers cannot be held to {why}", param=field(param))
    Validator(schema, param)
    if _refused(made, lenient=False):
        raise SchemaUnsupported(f"{param}: {_located(made)}", param=field(param))
    return made


class _Patterns:
    """Which patterns answers cannot be held to, each tried once."""

    def __init__(self) -> None:
        self._found: dict[str, str] = {}

    def refused(self, part: Schema) -> tuple[str, str]:
        """Of a schema's own: the keyword, the pattern and why; "": none."""
        named = part.get("patternProperties")
        own = [("pattern", part.get("pattern"))]
        own += [("patternProperties", pattern) for pattern in (named if isinstance(named, dict) else ())]
        whys = ((keyword, self._why(pattern)) for keyword, pattern in own if isinstance(pattern, str))
        return next((one for one in whys if one[1]), ("", ""))

    def _why(self, pattern: str) -> str:
        if pattern not in self._found:
            said = refusal(json.dumps({"type": "string", "pattern": pattern}))
            # what is said of it, and not as what the library made of it
            _, known, reason = said.rpartition("error: ")
            why = line(reason) if known else "it looks around, or has an anchor or a word boundary inside"
            self._found[pattern] = f"the pattern {quoted(pattern, MAX_NAMED)}: {why}" if said else ""
        return self._found[pattern]


def _refused(schema: Schema, *, lenient: bool = True) -> bool:
    try:
        return bool(refusal(prepared(json.dumps(schema), "", strict=not lenient)))
    except SchemaUnsupported:
        return True


def _located(schema: Schema) -> str:
    """Which keyword of which part of it is refused, in its own words."""
    way, keyword, alone = Loosening(lambda tried: _refused(tried, lenient=False)).first_refused(schema)
    where = quoted("/" + "/".join(way), MAX_NAMED)
    if not keyword:
        return "no answer can be held to all that it says"
    if not alone:
        return f"{where}: no value fits all that is said here; {quoted(keyword, MAX_NAMED)} leaves none"
    why = _WHY.get(keyword, "")
    return f"{where}: answers cannot be held to {quoted(keyword, MAX_NAMED)} as it stands{': ' if why else ''}{why}"
