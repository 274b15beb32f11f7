"""How `llmctl` shows things: tables, times, progress, and nothing that could drive a terminal."""

import json
import sys
import time
from collections.abc import Iterable, Sequence
from typing import Any

import click


def safe(value: Any) -> str:
    """A text from elsewhere, without control characters."""
    text = "" if value is None else str(value)
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def show_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=None if isinstance(value, str) else 1))


def table(heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Columns as wide as their widest entry."""
    cells = [[safe(v) for v in row] for row in rows]
    widths = [max(len(h), *(len(r[i]) for r in cells)) if cells else len(h) for i, h in enumerate(heads)]
    for row in [[h.upper() for h in heads], *cells]:
        click.echo("  ".join(v.ljust(w) for v, w in zip(row, widths, strict=True)).rstrip())


def size(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def moment(seconds: float | None) -> str:
    return "" if seconds is None else time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


def span(seconds: float) -> str:
    seconds = int(seconds)
    days, rest = divmod(seconds, 86400)
    text = f"{rest // 3600}:{rest % 3600 // 60:02}:{rest % 60:02}"
    return f"{days} d {text}" if days else text


class Progress:
    """A bar on standard error; nothing where that is no terminal."""

    def __init__(self, label: str) -> None:
        self._shown = sys.stderr.isatty()
        self._label, self._began = label, time.monotonic()

    def at(self, done: int, total: int) -> None:
        if not self._shown or not total:
            return
        share = done / total
        left = (time.monotonic() - self._began) * (1 - share) / share if share else 0
        bar = ("#" * int(30 * share)).ljust(30, ".")
        sys.stderr.write(
            f"\r{self._label} [{bar}] {100 * share:3.0f} %  {size(done)} of {size(total)}  {left:.0f} s left "
        )
        sys.stderr.flush()

    def end(self) -> None:
        if self._shown:
            sys.stderr.write("\r\033[K")
