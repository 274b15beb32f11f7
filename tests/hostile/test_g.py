"""G: grammars, schemas and chat templates."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from gguf_writer import STR, tiny
from real_daemon import Llmd

from llmd.daemon.models.checking import check, trial

CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
DEEP: Any = {"type": "object"}
for _ in range(20):
    DEEP = {"allOf": [DEEP, DEEP]} if len(str(DEEP)) < 10_000 else {"anyOf": [DEEP]}

# no grammar and no schema is taken yet: each is refused by name before anything of it is read
GRAMMARS: dict[str, str] = {
    "G1 60,000 brackets": "root ::= " + "(" * 60_000,
    "G2 an empty repetition": 'root ::= ("a"*)*',
    "G4 left recursion": 'root ::= root "a"',
    "G4 5,000 rules": "\n".join(f"r{i} ::= r{i + 1}" for i in range(5000)),
    "G11 nothing allowed": "root ::= [^\\x00-\\xff]",
}
SCHEMAS: dict[str, Any] = {
    "G5 a reference to itself": {"$ref": "#"},
    "G5 a remote one": {"$ref": "http://169.254.169.254/a"},
    "G5 one that is missing": {"$ref": "#/a"},
    "G6 nested": DEEP,
    "G7 a slow pattern": {"type": "string", "pattern": "(a+)+b"},
    "G7 a look behind": {"type": "string", "pattern": "(?<=x)"},
    "G7 a bracket": {"type": "string", "pattern": "(?:"},
    "G9 a type that is none": {"type": "wizard"},
    "G9 a list of one": {"type": ["x"]},
}
REASONS = {"G12 compile time": "nothing is compiled yet: grammars and schemas are refused by name"}

TEMPLATES: dict[str, tuple[str, str]] = {
    "G13 endless": ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "takes too long"),
    "G13 into Python": ("{{ ''.__class__.__mro__ }}", "does not work"),
    "G13 1 GB": ("{{ 'a' * 1000000000 }}", "does not work"),
    "G13 much of little": ("{% for i in range(99999) %}{{ 'a' * 9999 }}{% endfor %}", "very much of very little"),
    "G13 syntax": ("{% for m in messages %}{{ m.content }}", "cannot be compiled"),
    "G13 a variable that is missing": ("{{ nothing.at.all }}", "refuses"),
    "G13 refuses": ("{{ raise_exception('never') }}", "never"),
    "G13 25 loops": ("{% for a in [1] %}" * 25 + "{% endfor %}" * 25, "cannot be compiled"),
    "G13 shows nothing": ("{% for m in messages %}{{ m.role }}{% endfor %}", "does not show what a user says"),
}


@pytest.mark.parametrize("row", GRAMMARS)
def test_g_grammars(llmd: Llmd, row: str) -> None:
    status, _, answer = llmd.post("/v1/chat/completions", CHAT | {"grammar": GRAMMARS[row]})
    assert status == 400 and answer["error"]["param"] == "grammar"


@pytest.mark.parametrize("row", SCHEMAS)
def test_g_schemas(llmd: Llmd, row: str) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMAS[row]}}
    status, _, answer = llmd.post("/v1/chat/completions", CHAT | {"response_format": form})
    assert (
        status == 400 and answer["error"]["param"] == "response_format" or "nested deeper" in answer["error"]["message"]
    )


@pytest.mark.slow
def test_g13_templates_are_tried_before_they_serve(tmp_path: Path) -> None:
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
