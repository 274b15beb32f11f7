"""How `llmctl` shows things: tables, times, progress, and nothing that could drive a terminal."""

import json
import os
import sys
import time
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, TypeVar

import click

from llmd.daemon.errors import cut

# characters of a table's cell; JSON has all of them
MAX_CELL = 40
# of a serial number or a digest
SHORT = 16
DEVICE = 17
# columns that a bar and its label have at least, where there is one
LEAST_BAR, LEAST_LABEL = 8, 16

_JSON = "llmctl.json"
_Command = TypeVar("_Command", bound=Callable[..., Any])


def _note_json(ctx: click.Context, _: click.Parameter, given: bool) -> bool:
    """Whether --json was given, before the command or after it."""
    ctx.meta[_JSON] = given or bool(ctx.meta.get(_JSON))
    return bool(ctx.meta[_JSON])


def as_json(command: _Command) -> _Command:
    """A command's --json."""
    return click.option("--json", "json_", is_flag=True, callback=_note_json, help="Print JSON.")(command)


def json_before(group: _Command) -> _Command:
    """A group's --json, which is its commands'."""
    option = click.option("--json", is_flag=True, expose_value=False, callback=_note_json, help="Print JSON.")
    return option(group)


def safe(value: Any) -> str:
    """A text from elsewhere, without control characters; yes and no for what is true or false."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    text = "" if value is None else str(value)
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def short(value: Any, most: int = MAX_CELL) -> str:
    """`safe`, and cut in the middle where it is longer than `most` characters."""
    return cut(safe(value), most)


def begins(value: Any) -> str:
    """Of a serial number or a digest as much as one is named by."""
    text = safe(value)
    return text if len(text) <= SHORT else f"{text[: SHORT - 1]}…"


def device(uuid: str) -> str:
    """Of a GPU or a part of one enough to tell it from others: parts differ at their ends; --json has it whole."""
    return short(uuid, DEVICE)


def _cells(values: Sequence[Any]) -> list[str]:
    """A column's, cut where they are long, and no two of them alike that are not."""
    texts, most = [safe(value) for value in values], MAX_CELL
    while len({short(text, most) for text in texts}) < len(set(texts)):
        most += MAX_CELL // 2
    return [short(text, most) for text in texts]


def show_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=None if isinstance(value, str) else 1))


def table(heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Columns as wide as their widest entry, which is cut where it is very long."""
    columns = [[head.upper(), *_cells(column)] for head, *column in zip(heads, *rows, strict=True)]
    widths = [max(map(len, column)) for column in columns]
    for row in zip(*columns, strict=True):
        click.echo("  ".join(v.ljust(w) for v, w in zip(row, widths, strict=True)).rstrip())


def facts(known: Mapping[str, Any]) -> None:
    """A line each, the values one below the other."""
    width = max(map(len, known), default=0) + 1
    for name, value in known.items():
        click.echo(f"{name + ':':<{width}}  {safe(value)}".rstrip())


def size(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def moment(text: str | None, *, seconds: bool = False) -> str:
    """A moment as JSON has it (RFC 3339), in this machine's zone, which it names: so that a command takes it again."""
    if text is None:
        return ""
    try:
        here = datetime.fromisoformat(text).astimezone()
    except (ValueError, OverflowError):  # a row of the log that somebody has changed
        return safe(text)
    return here.isoformat(timespec="seconds" if seconds else "minutes").replace("+00:00", "Z")


def span(seconds: float) -> str:
    seconds = int(seconds)
    days, rest = divmod(seconds, 86400)
    text = f"{rest // 3600}:{rest % 3600 // 60:02}:{rest % 60:02}"
    return f"{days} d {text}" if days else text


def _columns() -> int:
    """Of the terminal that progress is shown on."""
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns or 80
    except OSError:
        return 80


def _bar(label: str, share: float, told: Sequence[str], room: int) -> str:
    """A line of at most `room` columns, or a terminal would wrap it and leave each step of it on the screen: what is
    `told` as far as there is room beside the label's ends, then the bar, then the rest of the label."""
    least = min(_width(label), LEAST_LABEL)
    while len(told) > 1 and least + 1 + sum(map(len, told)) > room:
        told = told[:-1]
    tail = "".join(told)
    left = room - len(tail) - 1
    bar = min(30, left - _width(label) - 3)
    if bar >= LEAST_BAR:
        return f"{label} [{('#' * int(bar * share)).ljust(bar, '.')}] {tail}"
    ends = next((text for most in range(len(label), 0, -1) if _width(text := short(label, most)) <= left), "")
    return f"{ends} {tail}".strip()[: max(room, 0)]


def _width(text: str) -> int:
    """In columns: of East Asian writing a character takes two (Unicode's annex 11)."""
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


class Progress:
    """A bar on standard error; where that is no terminal, a line for each tenth. With `shown` false nothing."""

    def __init__(self, label: str, *, shown: bool = True) -> None:
        self._shown, self._bar = shown, shown and sys.stderr.isatty()
        self._label, self._began, self._tenths = label, 0.0, -1

    def at(self, done: int, total: int) -> None:
        if not total or not self._shown:
            return
        share = done / total
        self._began = self._began or time.monotonic()
        if not self._bar:
            if int(10 * share) > self._tenths:
                self._tenths = int(10 * share)
                click.echo(f"{self._label}: {100 * share:.0f} %, {size(done)} of {size(total)}", err=True)
            return
        left = (time.monotonic() - self._began) * (1 - share) / share if share else 0
        sizes = (f"{100 * share:3.0f} %", f"  {size(done)} of {size(total)}", f"  {left:.0f} s left")
        sys.stderr.write(f"\r{_bar(self._label, share, sizes, _columns() - 1)}\033[K")
        sys.stderr.flush()

    def end(self) -> None:
        if self._bar:
            sys.stderr.write("\r\033[K")
