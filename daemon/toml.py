"""TOML that people write: read, and the lines of what stands in it."""

import re
import tomllib
from collections.abc import Sequence
from typing import Any, TypeAlias

# from the document down: keys of tables, numbers of lists
Path: TypeAlias = Sequence[str | int]
MAX_SAID = 200


class Wrong(ValueError):
    """No TOML. `line` is the first that cannot be, from 1; 0: not known."""

    def __init__(self, line: int, why: str) -> None:
        super().__init__(why)
        self.line, self.why = line, why


def parsed(text: str) -> dict[str, Any]:
    """Raises Wrong."""
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as e:
        at = re.search(r" \(at line (\d+), column \d+\)$", str(e))
        line = int(at[1]) if at else text.count("\n") + 1
        raise Wrong(line, str(e).partition(" (at ")[0][:MAX_SAID]) from e
    except (ValueError, RecursionError) as e:  # a number of thousands of digits, a list in a list in a list …
        digits = re.search("[0-9_]{4000}", text)
        line = text.count("\n", 0, digits.start()) + 1 if digits else 0
        raise Wrong(line, "a value is too long or too deep to be read") from e


def statement(text: str, path: Path) -> tuple[int, int]:
    """The first and the last line, from 1, of the statement that makes what stands at a path of a document that can be
    read; the whole document where nothing stands there.

    What comes before any statement's end is a document too, so the first of these that has the path ends with it.
    """
    lines = text.split("\n")
    low, high = 0, len(lines)
    if not _stands(_beginning(lines, high)[1], path):
        return 1, high
    while high - low > 1:
        middle = (low + high) // 2
        if _stands(_beginning(lines, middle)[1], path):
            high = middle
        else:
            low = middle
    return _beginning(lines, high - 1)[0] + 1, high


def line(text: str, path: Path, value: str | None = None) -> int:
    """The line of a path, and of one of the texts that stand there where the statement takes several."""
    first, last = statement(text, path)
    lines = text.split("\n")
    shown = {f'"{value}"', f"'{value}'"} if value is not None else set()
    return next((n for n in range(first, last + 1) if any(one in lines[n - 1] for one in shown)), first)


def _beginning(lines: Sequence[str], count: int) -> tuple[int, dict[str, Any]]:
    """The longest document that at most so many lines are, and how many it has."""
    for n in range(count, 0, -1):
        # in the middle of a list there is no need to try
        if n == len(lines) or "#" in lines[n - 1] or not lines[n - 1].rstrip().endswith((",", "[")):
            try:
                return n, tomllib.loads("\n".join(lines[:n]))
            except ValueError:
                pass
    return 0, {}


def _stands(found: Any, path: Path) -> bool:
    for step in path:
        if isinstance(step, int):
            if not isinstance(found, list) or step >= len(found):
                return False
        elif not isinstance(found, dict) or step not in found:
            return False
        found = found[step]
    return True
