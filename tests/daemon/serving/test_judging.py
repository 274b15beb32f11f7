"""Schemas, and the answers that are to fit them, are looked at in a process that they may keep busy or end; the next
one is answered all the same."""

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from llmd.daemon import limits
from llmd.daemon.errors import AnswerInvalid, SchemaTooComplex, SchemaUnsupported, Unavailable
from llmd.daemon.machine import children
from llmd.daemon.serving import judging
from llmd.daemon.serving.holding import Whole
from llmd.daemon.serving.judging import Schema, Schemas

GOOD = '{"type": "object"}'


def one(schema: Any, *, strict: bool = True) -> list[Schema]:
    return [(schema if isinstance(schema, str) else json.dumps(schema), "response_format", strict)]


@pytest.fixture
async def checking() -> AsyncIterator[Schemas]:
    made = Schemas()
    await made.start()
    yield made
    await made.close()


async def test_good_ones_pass_and_are_not_asked_again(checking: Schemas, monkeypatch: pytest.MonkeyPatch) -> None:
    await checking.check("alice", one(GOOD))
    await checking.check("alice", [])

    async def never(*_: object) -> None:
        raise AssertionError("asked again")

    monkeypatch.setattr(checking, "_asked", never)
    await checking.check("alice", one(GOOD))
    with pytest.raises(AssertionError):
        await checking.check("alice", one(GOOD, strict=False))
    with pytest.raises(AssertionError):
        await checking.check("bob", one(GOOD))  # how long it takes would tell that somebody else asked it


async def test_what_calls_are_held_to_instead_is_said_and_kept(
    checking: Schemas, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = [
        ("{}", "tools.a", True),
        *((json.dumps({"title": n * "x", "type": "any"}), "tools.b", False) for n in (1, 2)),
    ]
    held = {1: '{"title": "x", "type": "object"}', 2: '{"title": "xx", "type": "object"}'}
    assert await checking.check("alice", odd) == held
    large = one({"type": "any", "title": "x" * judging.KEPT_CHARS}, strict=False)
    assert len((await checking.check("alice", large))[0]) > judging.KEPT_CHARS

    async def never(*_: object) -> None:
        raise AssertionError("asked again")

    monkeypatch.setattr(checking, "_asked", never)
    assert await checking.check("alice", odd) == held
    for who, what in (("bob", odd), ("alice", large)):
        with pytest.raises(AssertionError):
            await checking.check(who, what)


async def test_others_are_refused_by_name_and_the_process_goes_on(checking: Schemas) -> None:
    (child,) = checking._idle
    for _ in range(3):
        with pytest.raises(SchemaUnsupported, match="contains") as e:
            await checking.check("alice", one({"contains": True}))
        assert e.value.param == "response_format"
        await checking.check("alice", one({"const": _}))
    assert checking._idle == [child]


@pytest.mark.parametrize("end", ["too long", "too much", "too busy"])
async def test_one_that_takes_too_long_or_too_much_ends_its_process_alone(
    checking: Schemas, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    """Where the process had no time to compute in, it is the machine's fault, and worth another try."""
    (child,) = checking._idle
    child.process.send_signal(signal.SIGKILL if end == "too much" else signal.SIGSTOP)
    computed = iter([0.0, 0.2 if end == "too long" else 0.0])
    monkeypatch.setattr(judging, "_cpu_seconds", lambda _: next(computed))
    monkeypatch.setattr(limits, "SCHEMA_SECONDS", 0.2)
    with pytest.raises(Unavailable if end == "too busy" else SchemaTooComplex) as e:
        await checking.check("alice", one({"type": "null"}))
    assert e.value.param == (None if end == "too busy" else "response_format")
    assert await asyncio.wait_for(child.process.wait(), 10), "it is gone"
    monkeypatch.undo()
    await checking.check("alice", one({"type": "null"}))
    assert checking._idle[0] is not child


def test_what_a_process_has_computed_for_is_known() -> None:
    before = judging._cpu_seconds(os.getpid())
    while judging._cpu_seconds(os.getpid()) < before + 0.05:
        pass
    assert judging._cpu_seconds(2**22 + 1) == 0


async def test_who_leaves_while_it_is_looked_at_leaves_no_process_busy(checking: Schemas) -> None:
    (child,) = checking._idle
    child.process.send_signal(signal.SIGSTOP)
    task = asyncio.create_task(checking.check("alice", one(GOOD)))
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await asyncio.wait_for(child.process.wait(), 10) and not checking._gate._owners


async def test_one_clients_schemas_leave_a_process_to_the_others(
    checking: Schemas, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = asyncio.Event()
    asked: list[str] = []

    async def held(line: bytes, _: float) -> dict[str, Any]:
        asked.append(json.loads(line)[1][0][0])
        if asked[-1] == GOOD:
            await gate.wait()
        return {"ok": True}

    monkeypatch.setattr(checking, "_asked", held)
    mine = [asyncio.create_task(checking.check("alice", one(text))) for text in (GOOD, '{"const": 1}', '{"const": 2}')]
    await asyncio.sleep(0.01)
    await asyncio.wait_for(checking.check("bob", one('{"const": 3}')), 1)
    assert asked == [GOOD, '{"const": 3}']
    gate.set()
    await asyncio.gather(*mine)
    assert not checking._gate._owners


# --- answers


def whole(schema: Any, answer: Any, param: str = "response_format") -> list[Whole]:
    return [(json.dumps(schema), param, json.dumps(answer), "the answer")]


def slow(deep: int) -> Any:
    """A schema of which every branch is looked at in vain: 4 to the power of `deep` steps."""
    ways = {f"d{n}": {"properties": {"a": {"anyOf": [{"$ref": f"#/$defs/d{n - 1}"}] * 4}}} for n in range(1, deep + 1)}
    return {"$defs": {"d0": {"const": 1}, **ways}, "$ref": f"#/$defs/d{deep}"}


def nested(deep: int) -> Any:
    return {"a": nested(deep - 1)} if deep else 0


async def test_answers_fit_their_schemas_or_do_not(checking: Schemas) -> None:
    (child,) = checking._idle
    await checking.fit("alice", [])
    await checking.fit("alice", [*whole({"type": "integer"}, 5), *whole({"minProperties": 1}, {"a": 1})])
    with pytest.raises(AnswerInvalid, match="does not fit its schema") as e:
        await checking.fit("alice", [*whole({"type": "integer"}, 5), *whole({"type": "null"}, 5, "tools.weather")])
    assert e.value.param == "tools" and checking._idle == [child]


async def test_an_answer_that_takes_too_long_fails_alone(checking: Schemas, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of another client is looked at beside it."""
    await asyncio.gather(*(checking.fit(owner, whole({"type": "integer"}, 5)) for owner in ("alice", "bob")))
    child = checking._idle[-1]  # two wait: nothing has to be started
    monkeypatch.setattr(limits, "FIT_SECONDS", 2.0)
    schema = slow(13)
    assert len(json.dumps(schema)) < 6000
    late = asyncio.create_task(checking.fit("mallory", whole(schema, nested(13))))
    await asyncio.sleep(0.1)
    await checking.fit("alice", whole({"type": "integer"}, 5))
    assert not late.done()
    with pytest.raises(AnswerInvalid, match="in time"):
        await late
    assert await asyncio.wait_for(child.process.wait(), 10), "it is gone"
    await checking.fit("mallory", whole({"type": "integer"}, 5))


async def test_an_answer_that_waits_too_long_fails(checking: Schemas, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "FIT_WAIT_SECONDS", 0.05)
    async with checking._gate.enter("alice"):
        with pytest.raises(AnswerInvalid, match="in time"):
            await checking.fit("alice", whole({"type": "integer"}, 5))
    await checking.fit("alice", whole({"type": "integer"}, 5))


async def test_the_process_opens_no_file(checking: Schemas) -> None:
    (child,) = checking._idle
    status = Path(f"/proc/{child.process.pid}/status").read_text()
    assert "NoNewPrivs:\t1" in status and "Seccomp:\t2" in status


async def test_a_process_that_does_not_start_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judging, "PROGRAM", "llmd.daemon.nothing")
    made = Schemas()
    await made.start()
    with pytest.raises(Unavailable):
        await made.check("alice", one(GOOD))
    assert not made._idle


def test_its_memory_is_limited() -> None:
    assert 0 < judging.LIMITS.address_space <= 2 << 30
    assert isinstance(judging.LIMITS, children.Limits)
