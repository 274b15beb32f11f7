"""The one entry for JSON from outside: sizes, types and shapes are checked before anything looks at a field.

Strict UTF-8, no duplicate keys, no NaN or Infinity, no number a field could not hold, no lone surrogates, no NUL,
bounded depth and size. Everything that is wrong is a BadRequest (413 and 415 for size and type).
"""

import asyncio
import json
import math
import re
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from functools import partial
from typing import Any, NoReturn, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError, model_validator
from pydantic_core import PydanticCustomError
from starlette.requests import ClientDisconnect, Request

from llmd.daemon import limits
from llmd.daemon.errors import BadRequest, BodyTooLarge, MediaType, quoted
from llmd.daemon.gate import Aside, Gate

# of larger bodies one is read in a turn of the event loop. Those of more bytes or `limits.LARGE_VALUES` are large: they
# are read in a thread (a value takes up to 3 µs until it is refused, 64 KiB of text 0.3 ms), and of one client so many
# come in at once: the loop takes in all that come
SMALL_BYTES = 4 * 1024
LARGE_BYTES = 64 * 1024
LARGE_AT_ONCE = 4

# the character, and not a text that speaks of it, whose backslash is one of two
_NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")

# that an object has and nobody knows; more are too many to name one of them
MAX_UNKNOWN = 16


class Fields(BaseModel):
    """What stands in a body: strict."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


class Body(Fields):
    """What a route takes, and whatever in it has nothing unknown."""

    @model_validator(mode="before")
    @classmethod
    def _few_unknown(cls, given: Any) -> Any:
        """Counted beforehand: each unknown key is an error, and the library makes them all."""
        if isinstance(given, dict) and len(given) > MAX_UNKNOWN:
            known = {field.alias or name for name, field in cls.model_fields.items()}
            unknown = given.keys() - known
            if len(unknown) > MAX_UNKNOWN:
                raise PydanticCustomError(
                    "many_unknown",
                    "There are {count} parameters that are unknown here; remove them",
                    {"count": len(unknown)},
                )
        return given


def few(most: int) -> Any:
    """A dict of so many at most: counted before each entry is looked at."""

    def counted(given: Any) -> Any:
        if isinstance(given, dict) and len(given) > most:
            raise PydanticCustomError("too_long", "Dictionary should have at most {most} items", {"most": most})
        return given

    return BeforeValidator(counted)


B = TypeVar("B", bound=Body)
T = TypeVar("T")


async def read(request: Request, kind: type[B]) -> B:
    """The request's body; `large` in its scope tells whether it is. Raises BadRequest, BodyTooLarge, MediaType."""
    data = await _bytes(request)
    request.scope["large"] = large = is_large(data)
    if large:
        return await aside(request, partial(made, data, kind))
    if len(data) < SMALL_BYTES:
        return made(data, kind)
    gate: Gate = request.app.state.middling
    async with gate.enter(request.scope["principal"].name):
        await asyncio.sleep(0)
        return made(data, kind)


def is_large(data: bytes | bytearray) -> bool:
    """Whether it takes long to read."""
    return len(data) >= LARGE_BYTES or _holds(data, limits.LARGE_VALUES)


async def aside(request: Request, work: Callable[[], T]) -> T:
    """What takes long, beside the event loop."""
    found: Aside = request.app.state.aside
    return await found.run(request.scope["principal"].name, work)


def made(data: bytes | bytearray, kind: type[B]) -> B:
    """Bytes to a body, or BadRequest."""
    value = parse(data)
    try:
        return kind.model_validate(value)
    except ValidationError as e:
        raise explain(e.errors(include_url=False, include_input=False)) from None


async def _bytes(request: Request) -> bytearray:
    media, _, rest = request.headers.get("content-type", "application/json").partition(";")
    if media.strip().lower() != "application/json":
        raise MediaType("send the body as application/json")
    charset = rest.lower().replace(" ", "").replace('"', "").removeprefix("charset=")
    if rest and charset not in ("utf-8", "utf8", ""):
        raise MediaType("send the body in UTF-8")
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise MediaType("send the body without compression")
    limit = limits.MAX_BODY_BYTES
    if int(request.headers.get("content-length", "0")) > limit:
        raise BodyTooLarge(f"the body is larger than {limit} bytes")
    data, gate = bytearray(), None
    try:
        async with AsyncExitStack() as entered:
            async for part in request.stream():
                data += part
                if len(data) > limit:
                    raise BodyTooLarge(f"the body is larger than {limit} bytes")
                if gate is None and len(data) >= LARGE_BYTES:
                    gate = request.app.state.reading
                    await entered.enter_async_context(gate.enter(request.scope["principal"].name))
    except ClientDisconnect as e:
        raise BadRequest("the body did not come whole") from e
    return data


def parse(data: bytes | bytearray) -> dict[str, Any]:
    """Bytes to a JSON object, or BadRequest."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as e:
        raise BadRequest(f"the body is not valid UTF-8 (byte {e.start})") from e
    _count(data)
    try:
        value = json.loads(
            text, object_pairs_hook=_object, parse_constant=_constant, parse_float=_float, parse_int=_int
        )
    except json.JSONDecodeError as e:
        raise BadRequest(f"the body is not valid JSON: {e.msg} (line {e.lineno}, column {e.colno})") from e
    except RecursionError as e:
        raise BadRequest(f"the JSON is nested deeper than {limits.MAX_JSON_DEPTH} levels") from e
    if not isinstance(value, dict):
        raise BadRequest("the body must be a JSON object, as in {...}")
    _walk(value)
    # a surrogate can only come from an escape: most bodies need no look at their texts
    if "\\ud" in text or "\\uD" in text:
        _check_texts(text, value)
    if "\\u0000" in text and _NUL.search(text):
        raise BadRequest("a text holds a NUL character; remove it")
    return value


def _count(data: bytes | bytearray) -> None:
    """Refuse what holds too many values before they are made."""
    if _holds(data, limits.MAX_JSON_NODES + 1):
        raise BadRequest(f"the JSON holds more than {limits.MAX_JSON_NODES} values")


def _holds(data: bytes | bytearray, values: int) -> bool:
    """Whether JSON holds so many values, or one less. Commas and brackets in texts do not count.

    In short steps, between which other threads have the interpreter: one regular expression keeps it for 20 ms."""
    if _marks(data) < values - 1:
        return False
    plain = data.replace(b"\\\\", b"").replace(b'\\"', b"")  # what is left of quotes begins or ends a text
    # a value has two texts at most, its name and itself
    return plain.count(b'"') > 4 * values or _marks(b"".join(plain.split(b'"')[::2])) >= values


def _marks(data: bytes | bytearray) -> int:
    return data.count(b",") + data.count(b"[") + data.count(b"{")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise BadRequest(f"the key {_short(key)} stands twice in one object; keep one")
            seen.add(key)
    return found


def _constant(name: str) -> NoReturn:
    raise BadRequest(f"{name} is not a number in JSON; send a finite number")


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise BadRequest("a number is too large; send a finite number")
    return value


def _int(text: str) -> int:
    if len(text) > limits.MAX_INT_DIGITS + 1:
        raise BadRequest(f"a number has more than {limits.MAX_INT_DIGITS} digits")
    return int(text)


def _walk(root: Any) -> None:
    """Bounds on depth and on how many values there are, without recursion."""
    nodes, depth, level = 0, 0, [root]
    while level:
        depth += 1
        if depth > limits.MAX_JSON_DEPTH:
            raise BadRequest(f"the JSON is nested deeper than {limits.MAX_JSON_DEPTH} levels")
        below: list[Any] = []
        for value in level:
            children = value.values() if isinstance(value, dict) else value
            nodes += len(children)
            if nodes > limits.MAX_JSON_NODES:
                raise BadRequest(f"the JSON holds more than {limits.MAX_JSON_NODES} values")
            below += [child for child in children if isinstance(child, dict | list)]
        level = below


def _check_texts(text: str, value: Any) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as e:
        raise BadRequest("a text holds half of a surrogate pair (\\ud800 to \\udfff); send whole characters") from e


def _short(text: str) -> str:
    """A client's text for a message back to it."""
    return quoted(text, 40)


def explain(errors: Sequence[Any]) -> BadRequest:
    """What pydantic refuses, as an error that names the field and says what it takes; it never repeats a value."""
    # of a union's branches, the one that the value went furthest into, or whose type it has
    first = max(errors, key=lambda e: (len(e["loc"]), not e["type"].endswith("_type")))
    where = [str(part) for part in first["loc"]]
    # a union's branch names ("constrained-str") mean nothing to a client
    path = ".".join(part for part in where if part.isidentifier() or part.isdigit())[:200]
    name = where[0][:64] if where else "body"
    if first["type"] == "extra_forbidden":
        return BadRequest(f"there is no parameter {quoted('.'.join(where), 80)} here; remove it", param=name)
    if not path:
        return BadRequest(first["msg"][0].lower() + first["msg"][1:], param=name)
    if first["type"] == "missing":
        return BadRequest(f"{path} is missing", param=name)
    counts = first.get("ctx", {})
    if first["type"] == "too_long" and "actual_length" in counts:
        return BadRequest(
            f"{path}: give at most {counts['max_length']}, not {counts['actual_length'] or 'more'}", param=name
        )
    return BadRequest(f"{path}: {first['msg'][0].lower()}{first['msg'][1:]}", param=name)
