"""Grammars, schemas and chat templates."""

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
from gguf_writer import STR, tiny
from real_daemon import Llmd

from llmd.daemon.models.checking import check, trial

CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
DEEP: Any = {"type": "object"}
for _ in range(20):
    DEEP = {"allOf": [DEEP, DEEP]} if len(str(DEEP)) < 10_000 else {"anyOf": [DEEP]}

# no grammar is taken: each is refused by name before anything of it is read
GRAMMARS: dict[str, str] = {
    "60,000 brackets": "root ::= " + "(" * 60_000,
    "an empty repetition": 'root ::= ("a"*)*',
    "left recursion": 'root ::= root "a"',
    "5,000 rules": "\n".join(f"r{i} ::= r{i + 1}" for i in range(5000)),
    "nothing allowed": "root ::= [^\\x00-\\xff]",
}
SCHEMAS: dict[str, Any] = {
    "a reference to itself": {"$ref": "#"},
    "a remote one": {"$ref": "http://169.254.169.254/a"},
    "one that is missing": {"$ref": "#/a"},
    "nested": DEEP,
    "a look behind": {"type": "string", "pattern": "(?<=x)"},
    "a bracket": {"type": "string", "pattern": "(?:"},
    "a type that is none": {"type": "wizard"},
    "a list of one": {"type": ["x"]},
    "nothing fits": {"type": "string", "minLength": 3, "pattern": "^a$"},
    "a product of choices": {"allOf": [{"anyOf": [{"properties": {f"{c}{i}": {"type": "string"}},
                                                       "type": "object"} for c in "ab"]} for i in range(14)]},
    "a long pattern": {"type": "string", "pattern": "((a{1000}){1000}){1000}"},
    "patterns at once": {"allOf": [{"type": "string", "pattern": f"^.*a.{{{i}}}b.*$"} for i in range(12, 18)]},
    "a great multiple": {"type": "integer", "multipleOf": 1234567, "minimum": 1, "maximum": 99999999999},
}  # fmt: skip
# those that answers can be held to, however slow they are elsewhere; what comes is JSON that fits, or is cut
HELD: dict[str, Any] = {
    "a slow pattern": {"type": "string", "pattern": "^(a+)+b$"},
    "many ways": {"type": "string", "pattern": "(a|b)*a(a|b){20}"},
    "very many": {"type": "array", "minItems": 10**8, "items": {"type": "string", "maxLength": 10**8}},
    "20,000 values": {"enum": [f"value{i}" for i in range(20_000)]},
    "5,000 properties": {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(5000)}},
    "a tree": {"type": "object", "properties": {"left": {"$ref": "#"}, "right": {"$ref": "#"}}},
}

TEMPLATES: dict[str, tuple[str, str]] = {
    "endless": ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "takes too long"),
    "into Python": ("{{ ''.__class__.__mro__ }}", "does not work"),
    "1 GB": ("{{ 'a' * 1000000000 }}", "takes too much memory"),
    "much of little": ("{% for i in range(99999) %}{{ 'a' * 9999 }}{% endfor %}", "very much of very little"),
    "syntax": ("{% for m in messages %}{{ m.content }}", "cannot be compiled"),
    "a variable that is missing": ("{{ nothing.at.all }}", "refuses"),
    "refuses": ("{{ raise_exception('never') }}", "never"),
    "25 loops": ("{% for a in [1] %}" * 25 + "{% endfor %}" * 25, "cannot be compiled"),
    "shows nothing": ("{% for m in messages %}{{ m.role }}{% endfor %}", "does not show what a user says"),
}


@pytest.mark.parametrize("row", GRAMMARS)
def test_grammars(llmd: Llmd, row: str) -> None:
    status, _, answer = llmd.post("/v1/chat/completions", CHAT | {"grammar": GRAMMARS[row]})
    assert status == 400 and answer["error"]["param"] == "grammar"


@pytest.mark.parametrize("row", SCHEMAS)
def test_schemas(llmd: Llmd, row: str) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMAS[row]}}
    status, _, answer = llmd.post("/v1/chat/completions", CHAT | {"response_format": form})
    assert (
        status == 400 and answer["error"]["param"] == "response_format" or "nested deeper" in answer["error"]["message"]
    )


@pytest.mark.parametrize("row", HELD)
def test_schemas_that_are_held(llmd: Llmd, row: str) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": HELD[row]}}
    pid = llmd.model()["pid"]
    began = time.monotonic()
    status, _, answer = llmd.post("/v1/chat/completions", CHAT | {"response_format": form, "max_tokens": 12})
    assert status in (200, 400, 422) and time.monotonic() - began < 30
    if status == 200 and answer["choices"][0]["finish_reason"] == "stop":
        assert jsonschema_rs.is_valid(HELD[row], json.loads(answer["choices"][0]["message"]["content"]))
    assert llmd.post("/v1/chat/completions", CHAT)[0] == 200 and llmd.model()["pid"] == pid


@pytest.mark.slow
def test_templates_are_tried_before_they_serve(tmp_path: Path) -> None:
    files = {}
    for number, (row, (template, _)) in enumerate(TEMPLATES.items()):
        file = tiny()
        file.keys["tokenizer.chat_template"] = (STR, template)
        files[row] = tmp_path / f"{number}.gguf"
        files[row].write_bytes(file.bytes())

    async def tried() -> dict[str, dict[str, str]]:
        found = {}
        for row, path in files.items():
            await check(path)
            found[row] = (await trial(path, path.stat().st_size))["conversations"]
        return found

    for row, conversations in asyncio.run(tried()).items():
        assert TEMPLATES[row][1] in conversations["a question"], (row, conversations)
