"""What is left of a client's limits, in the headers that OpenAI's clients read; and the deadline that one sends."""

from collections.abc import Mapping
from math import ceil

from llmd.daemon.errors import BadRequest
from llmd.daemon.serving.quotas import Rate, Rates

DEADLINE = "x-request-deadline-ms"
MOST_MS = 24 * 3600 * 1000


def headers(rates: Rates) -> dict[str, str]:
    """None where nothing is limited."""
    found: dict[str, str] = {}
    for name, rate in (("requests", rates.requests), ("tokens", rates.tokens)):
        if rate is not None:
            found |= _of(name, rate)
    return found


def _of(name: str, rate: Rate) -> dict[str, str]:
    return {
        f"x-ratelimit-limit-{name}": str(rate.limit),
        f"x-ratelimit-remaining-{name}": str(rate.left),
        f"x-ratelimit-reset-{name}": _duration(ceil(rate.reset)),
    }


def _duration(seconds: int) -> str:
    """As 6m0s."""
    minutes, rest = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes}m{rest}s"
    return f"{minutes}m{rest}s" if minutes else f"{rest}s"


def deadline(given: Mapping[str, str]) -> float | None:
    """Seconds until the answer must be whole, as the client says. Raises BadRequest."""
    text = given.get(DEADLINE)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 8 and 1 <= int(text) <= MOST_MS):
        raise BadRequest(
            f"X-Request-Deadline-Ms takes a whole number of milliseconds, 1 to {MOST_MS}", param="X-Request-Deadline-Ms"
        )
    return int(text) / 1000
