"""Arguments that are written otherwise than as JSON, as rules of a grammar: pure. A schema's shape is held to, its
names in order, its types and choices; what of it these rules do not say (`pattern`, limits) is held against the whole
call.

What is written grows with the schema and no faster: what stands in two places is a rule with a name.
"""

import json
import re
from collections.abc import Callable, Sequence
from typing import Any

from llmd.daemon.engine.answers.places import ROOT, moved, refers
from llmd.daemon.engine.answers.schemas import is_text
from llmd.daemon.errors import SchemaTooComplex

# characters of all rules: a schema of which every part refers to all of the rest is written out again for each
MAX_CHARS = 4 << 20
# properties of one object that are held to their order and types; with more of them it is any object
MAX_PAIRS = 256
RUN = 16  # pairs
MAX_DEPTH = 6  # of objects and lists that are held to a schema; deeper ones are any value

# text to its tokens in a grammar
Literal = Callable[[str], str]

NAME = r"/[A-Za-z_][A-Za-z0-9_.\-]{0,63}/"
NUMBER = r"/-?(0|[1-9][0-9]{0,15})(\.[0-9]{1,9})?/"
INTEGER = r"/-?(0|[1-9][0-9]{0,15})/"


class Rules:
    """Adds rules to a grammar's; `value` gives the name of one."""

    def __init__(self, rules: dict[str, str], literal: Literal) -> None:
        self._rules, self._literal = rules, literal
        self._size = 0

    def add(self, name: str, rule: str) -> str:
        """Raises SchemaTooComplex where there are too many of them."""
        self._size += len(name) + len(rule)
        if self._size > MAX_CHARS:
            raise SchemaTooComplex("the tools' parameters are too complex: write them more simply", param="tools")
        self._rules[name] = rule
        return name


class GemmaRules(Rules):
    """`{name:VALUE,…}`. `until` is a rule's body for any text up to the mark, and its attribute."""

    def __init__(self, rules: dict[str, str], literal: Literal, mark: str, until: tuple[str, str]) -> None:
        super().__init__(rules, literal)
        self._mark = literal(mark)
        attribute, body = until
        rules[f"any_text{attribute}"] = body
        self.add("text", f"{self._mark} any_text")
        self.add("pair", f'{NAME} ":" any')
        self.add("any_object", '"{" (pair ("," pair)*)? "}"')
        self.add("any_list", '"[" (any ("," any)*)? "]"')
        self.add("any", f'text | {NUMBER} | "true" | "false" | "null" | any_object | any_list')

    def arguments(self, schema: dict[str, Any], name: str) -> str:
        return self._object(schema, name, 0) or "any_object"

    def _value(self, schema: Any, name: str, depth: int) -> str:
        if not isinstance(schema, dict) or depth > MAX_DEPTH or "$ref" in schema:
            return "any"
        choices = schema["enum"] if "enum" in schema else [schema["const"]] if "const" in schema else None
        if isinstance(choices, list) and choices and all(_plain(choice) for choice in choices):
            return self.add(name, " | ".join(self._choice(choice) for choice in choices))
        match schema.get("type"):
            case "string":
                return "text"
            case "integer":
                return INTEGER
            case "number":
                return NUMBER
            case "boolean":
                return '("true" | "false")'
            case "null":
                return '"null"'
            case "array":
                item = self._value(schema.get("items"), f"{name}_i", depth + 1)
                return self.add(name, f'"[" ({item} ("," {item})*)? "]"')
            case "object":
                return self._object(schema, name, depth) or "any_object"
        return "any"

    def _choice(self, value: Any) -> str:
        if isinstance(value, str):
            return f"{self._mark} {self._literal(value)} {self._mark}" if value else f"{self._mark} {self._mark}"
        return self._literal(json.dumps(value))

    def _object(self, schema: dict[str, Any], name: str, depth: int) -> str | None:
        """None: it names no properties, or too many."""
        properties = schema.get("properties")
        if not isinstance(properties, dict) or len(properties) > MAX_PAIRS:
            return None
        if not all(re.fullmatch(NAME[1:-1], key) for key in properties):
            return None
        required = _required(schema)
        parts = [
            (f"{self._literal(key + ':')} {self._value(kind, f'{name}_{i}', depth + 1)}", key in required)
            for i, (key, kind) in enumerate(properties.items())
        ]
        return self.add(name, f'"{{" {self._listed(parts, name)} "}}"')

    def _listed(self, parts: Sequence[tuple[str, bool]], name: str) -> str:
        """Pairs with commas between those that are there. `NAME_more_I` is what may follow another pair, from the I-th
        on: through a run of pairs, and then run by run, so that rules lead to one another a few times only (what
        compiles them calls itself for each)."""
        if not parts:
            return ""
        pairs = [self.add(f"{name}_pair_{i}", part) for i, (part, _) in enumerate(parts)]
        behind = [
            f'"," {pair}' if required else f'("," {pair})?' for pair, (_, required) in zip(pairs, parts, strict=True)
        ]
        more, runs = [""] * (len(parts) + 1), ""
        for i in range(len(parts) - 1, 0, -1):
            next_ = runs if (i + 1) % RUN == 0 else more[i + 1]
            more[i] = self.add(f"{name}_more_{i}", f"{behind[i]} {next_}")
            if i % RUN == 0:
                runs = self.add(f"{name}_runs_{i}", f"{' '.join(behind[i : i + RUN])} {runs}")
        last = next((i for i, (_, required) in enumerate(parts) if required), len(parts) - 1)
        begun = " | ".join(f"{pairs[i]} {more[i + 1]}" for i in range(last + 1))
        return f"({begun})" if parts[last][1] else f"({begun})?"


class XmlRules(Rules):
    """`<parameter=NAME>` VALUE `</parameter>`, one after the other."""

    END = "\n</parameter>\n"

    def __init__(self, rules: dict[str, str], literal: Literal) -> None:
        super().__init__(rules, literal)
        rules["any_text[lazy]"] = f"TEXT {literal(self.END)}"

    def arguments(self, schema: dict[str, Any], name: str) -> str:
        properties, end = schema.get("properties"), self._literal("</function>")
        if not isinstance(properties, dict) or len(properties) > MAX_PAIRS:
            return self.add(name, f'("<parameter=" {NAME} ">\\n" any_text)* {end}')
        outer = {"x-guidance": schema.get("x-guidance", {}), "$defs": {ROOT: moved(schema)}}
        parts, required = [], _required(schema)
        for i, (key, kind) in enumerate(properties.items()):
            part = f"{self._literal(f'<parameter={key}>' + chr(10))} {self._value(kind, outer, f'{name}_{i}')}"
            parts.append(part if key in required else f"({part})?")
        return self.add(name, " ".join([*parts, end]))

    def _value(self, schema: Any, outer: dict[str, Any], name: str) -> str:
        if is_text(schema):
            choices = schema.get("enum", [schema["const"]] if "const" in schema else None)
            return f"({' | '.join(self._literal(c + self.END) for c in choices)})" if choices else "any_text"
        inner = moved(schema) if isinstance(schema, dict) else {}
        above = {key: value for key, value in outer.items() if key != "$defs" or refers(inner)}
        return f"{self.add(name, '%json ' + json.dumps({**inner, **above}))} {self._literal(self.END)}"


def _required(schema: dict[str, Any]) -> frozenset[str]:
    named = schema.get("required", ())
    return frozenset(name for name in named if isinstance(name, str)) if isinstance(named, list) else frozenset()


def _plain(value: Any) -> bool:
    return value is None or isinstance(value, str | bool | int | float)
