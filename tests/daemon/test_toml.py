"""The lines of what stands in a document that people write."""

import random
import tomllib
from typing import Any

import pytest

from llmd.daemon import toml

TEXT = """\
# a comment, with a comma,
name = "x"

[groups]
one = ["a", "b"]
"two.three" = [
    "c",  # she, too
    "d",

    "e"
]

[[grants]]
to = ["one"]
[[grants]]
to = [
  "two",
]
deep = { a = [1,
2] }
"""


@pytest.mark.parametrize(
    ("path", "value", "lines", "line"),
    [
        (("name",), None, (2, 2), 2),
        (("groups",), None, (4, 4), 4),
        (("groups", "one"), "b", (5, 5), 5),
        (("groups", "two.three"), None, (6, 11), 6),
        (("groups", "two.three"), "d", (6, 11), 8),
        (("groups", "two.three"), "e", (6, 11), 10),
        (("grants", 0), None, (13, 13), 13),
        (("grants", 0, "to"), "one", (14, 14), 14),
        (("grants", 1), None, (15, 15), 15),
        (("grants", 1, "to"), "two", (16, 18), 17),
        (("grants", 1, "deep", "a", 1), None, (19, 20), 19),
        (("grants", 2), None, (1, 21), 1),
        (("nothing",), None, (1, 21), 1),
    ],
)
def test_what_stands_at_a_path_has_these_lines(
    path: toml.Path, value: str | None, lines: tuple[int, int], line: int
) -> None:
    assert toml.statement(TEXT, path) == lines and toml.line(TEXT, path, value) == line


def test_each_statement_of_random_documents_is_found() -> None:
    rng = random.Random(7)
    for _ in range(60):
        text, places = _made(rng)
        tomllib.loads(text)
        for path, lines in places.items():
            assert toml.statement(text, path) == lines, (path, text)


def _made(rng: random.Random) -> tuple[str, dict[tuple[Any, ...], tuple[int, int]]]:
    lines: list[str] = []
    places: dict[tuple[Any, ...], tuple[int, int]] = {}

    def put(path: tuple[Any, ...], *statement: str) -> None:
        lines.extend(rng.choice([[], ["# see, here"], [""]]))
        places[path] = (len(lines) + 1, len(lines) + len(statement))
        lines.extend(statement)

    put(("t",), "[t]")
    for n in range(rng.randrange(4)):
        put(("t", f"k{n}"), f"k{n} = [", *(f'  "v{i}",' for i in range(rng.randrange(5))), "]")
    for n in range(rng.randrange(1, 4)):
        put(("l", n), "[[l]]")
        for k in range(rng.randrange(3)):
            put(("l", n, f"k{k}"), rng.choice([f"k{k} = {n}", f'k{k} = "a # b" # [', f"k{k} = {{ a = [1, 2] }}"]))
    return "\n".join(lines), places


@pytest.mark.parametrize(
    ("text", "line"), [("a = 1\nb = \nc = 2", 2), ("a = [1,\n2", 2), ("a = 1\na = 2", 2), ("a = " + "9" * 5000, 1),
                       ("a = " + "[" * 5000, 0), ("\x00", 1), ("a = 'x", 1)],
)  # fmt: skip
def test_what_is_no_toml_has_the_first_line_that_is_wrong(text: str, line: int) -> None:
    with pytest.raises(toml.Wrong) as wrong:
        toml.parsed(text)
    assert wrong.value.line == line and len(wrong.value.why) < 300
