"""What clients have used: kept in `state.db`, so that a crash loses at most KEEP_SECONDS of it, and told."""

import asyncio
import logging
from dataclasses import asdict, dataclass
from datetime import date, timedelta
from functools import partial
from typing import Any

from llmd.daemon.errors import BadRequest, LlmdError
from llmd.daemon.serving.answer import Serving
from llmd.daemon.serving.quotas import today
from llmd.daemon.state.records import Used
from llmd.daemon.state.store import StateThread, Store

log = logging.getLogger("llmd.usage")

KEEP_SECONDS = 30.0
KEPT_DAYS = 800
BY = ("principal", "model", "group", "day")
FIGURES = ("requests", "prompt", "cached", "output", "seconds", "joules")


@dataclass(slots=True)
class Usage:
    """Made once, by the composition."""

    serving: Serving
    store: Store
    state: StateThread

    def restore(self) -> None:
        """What was used today, before this start."""
        day, _ = today()
        rows = self.store.usage(day)
        self.serving.books.meter.load(rows)
        for row in rows:
            if row.client:
                self.serving.quotas.had(row.client, row.model, day, row.requests, row.prompt + row.output)

    async def run(self) -> None:
        while True:
            await asyncio.sleep(KEEP_SECONDS)
            try:
                await self.keep()
            except LlmdError as e:
                log.error("what was used could not be kept, and is tried again: %s", e)

    async def keep(self) -> None:
        """Raises NoSpace and Unavailable; nothing is lost then."""
        await self.state.run(self.write)

    def end(self) -> None:
        """Of a daemon that ends, once nothing else writes."""
        try:
            self.write()
        except LlmdError as e:
            log.error("what was used last could not be kept: %s", e)

    def write(self) -> None:
        meter = self.serving.books.meter
        rows = meter.take()
        try:
            if rows:
                self.store.keep_usage(rows, (date.fromisoformat(today()[0]) - timedelta(days=KEPT_DAYS)).isoformat())
        except BaseException:
            meter.give_back(rows)
            raise

    async def told(self, by: str, since: str) -> dict[str, Any]:
        """Of each principal, model, group or day, from a day on: 2026-11-30, or 7d for the last seven. Raises
        BadRequest."""
        if by not in BY:
            raise BadRequest(f"by takes {', '.join(BY)}", param="by")
        first = _first(since)
        await self.keep()
        rows = await self.state.run(partial(self.store.usage, first))
        found: dict[str, dict[str, float]] = {}
        total, idle = _none(), 0.0
        for row in rows:
            if not row.client:
                idle += row.joules
                continue
            for name in _names(row, by):
                _add(found.setdefault(name, _none()), row)
            _add(total, row)
        lines = [{by: name, **figures} for name, figures in sorted(found.items())]
        return {"since": first, "by": by, "rows": lines, "total": total, "idle_joules": idle}


def _first(since: str) -> str:
    now = date.fromisoformat(today()[0])
    try:
        if since.endswith("d") and since[:-1].isdigit() and len(since) <= 6:
            return (now - timedelta(days=max(0, int(since[:-1]) - 1))).isoformat()
        return date.fromisoformat(since).isoformat()
    except ValueError as e:
        raise BadRequest("since takes a day, as 2026-11-30, or the last days, as 7d", param="since") from e


def _names(row: Used, by: str) -> list[str]:
    """What it counts for: a client of several groups for each of them."""
    match by:
        case "principal":
            return [row.client]
        case "model":
            return [row.model]
        case "group":
            return row.groups.split(",") if row.groups else [""]
        case _:
            return [row.day]


def _none() -> dict[str, float]:
    return dict.fromkeys(FIGURES, 0)


def _add(to: dict[str, float], row: Used) -> None:
    figures = asdict(row)
    for name in FIGURES:
        to[name] += figures[name]
