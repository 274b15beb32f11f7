"""How `llmctl` shows things: tables, times, progress, and nothing that could drive a terminal."""

import json
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, TypeVar

import click

# characters of a table's cell; JSON has all of them
MAX_CELL = 40
# of a serial number or a digest
SHORT = 16

_JSON = "llmctl.json"
_Command = TypeVar("_Command", bound=Callable[..., Any])


def wants_json(ctx: click.Context) -> bool:
    """Whether --json was given, before the command or after it."""
    return bool(ctx.meta.get(_JSON))


def _note_json(ctx: click.Context, _: click.Parameter, given: bool) -> bool:
    ctx.meta[_JSON] = given or wants_json(ctx)
    return wants_json(ctx)


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
    """`safe`, and cut where it is longer than `most` characters."""
    text = safe(value)
    return text if len(text) <= most else text[: most - 1] + "…"


def show_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=None if isinstance(value, str) else 1))


def table(heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Columns as wide as their widest entry, which is cut where it is very long."""
    cells = [[short(v) for v in row] for row in rows]
    widths = [max(len(h), *(len(r[i]) for r in cells)) if cells else len(h) for i, h in enumerate(heads)]
    for row in [[h.upper() for h in heads], *cells]:
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


def moment(text: str | None) -> str:
    """A moment as JSON has it (RFC 3339), in this machine's zone."""
    return "" if text is None else datetime.fromisoformat(text).astimezone().strftime("%Y-%m-%d %H:%M")


def span(seconds: float) -> str:
    seconds = int(seconds)
    days, rest = divmod(seconds, 86400)
    text = f"{rest // 3600}:{rest % 3600 // 60:02}:{rest % 60:02}"
    return f"{days} d {text}" if days else text


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
        bar = ("#" * int(30 * share)).ljust(30, ".")
        sys.stderr.write(
            f"\r{self._label} [{bar}] {100 * share:3.0f} %  {size(done)} of {size(total)}  {left:.0f} s left "
        )
        sys.stderr.flush()

    def end(self) -> None:
        if self._bar:
            sys.stderr.write("\r\033[K")
