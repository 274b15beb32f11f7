"""Who gets in before anybody knows who they are."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from llmd.api.http import handshakes as module
from llmd.api.http.handshakes import Handshakes, Rates
from llmd.daemon import limits
from llmd.daemon.identity.tls import HANDSHAKE, Handshake


def test_an_address_has_a_burst_and_then_its_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "HANDSHAKE_BURST", 5)
    monkeypatch.setattr(limits, "HANDSHAKES_PER_SECOND", 10)
    now = [0.0]
    rates = Rates(lambda: now[0])

    def had(count: int) -> list[bool]:
        seen = []
        for _ in range(count):
            seen.append(rates.allows("a"))
            if seen[-1]:
                rates.spend("a")
        return seen

    assert had(7) == [True] * 5 + [False] * 2
    assert rates.allows("b")
    now[0] = 0.25
    assert had(3) == [True, True, False]
    now[0] = 100.0
    assert had(6) == [True] * 5 + [False]


def test_addresses_are_not_remembered_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_ADDRESSES", 10)
    rates = Rates(lambda: 0.0)
    for i in range(100):
        rates.spend(str(i))
    assert len(rates._known) == 10


class Shakes:
    """Handshakes that a test ends."""

    def __init__(self) -> None:
        self.running: list[socket.socket] = []
        self.speaks: list[Handshake] = []
        self.handshakes = Handshakes(self.shake)

    async def shake(self, connection: socket.socket) -> None:
        self.running.append(connection)
        handshake = HANDSHAKE.get()
        assert handshake
        self.speaks.append(handshake)
        try:
            await asyncio.Event().wait()
        finally:
            self.running.remove(connection)
            connection.close()

    async def begin(self, address: str, count: int = 1) -> list[socket.socket]:
        pairs = [socket.socketpair() for _ in range(count)]
        for ours, _ in pairs:
            self.handshakes.begin(ours, address)
            await asyncio.sleep(0)
        await asyncio.sleep(0.01)
        return [theirs for _, theirs in pairs]


@asynccontextmanager
async def shakes() -> AsyncIterator[Shakes]:
    made = Shakes()
    yield made
    made.handshakes.stop()
    await asyncio.sleep(0.01)
    assert made.handshakes.count == 0 and not made.running


async def test_the_oldest_of_the_busiest_address_gives_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_HANDSHAKES", 4)
    async with shakes() as made:
        first, *others = await made.begin("attacker", 4)
        (good,) = await made.begin("client")
        assert first.recv(1) == b""  # ended
        assert made.handshakes.count == 4 and len(made.running) == 4
        more = await made.begin("attacker", 10)
        assert made.handshakes.count == 4
        good.setblocking(False)
        with pytest.raises(BlockingIOError):
            good.recv(1)  # still under way
        for theirs in (first, *others, good, *more):
            theirs.close()


@pytest.mark.parametrize("patience", [0.0, 10.0])
async def test_of_the_busiest_address_who_is_silent_for_long_gives_way_first(
    monkeypatch: pytest.MonkeyPatch, patience: float
) -> None:
    """Who has just come has had no time to say anything: then the oldest goes."""
    monkeypatch.setattr(limits, "MAX_HANDSHAKES", 3)
    monkeypatch.setattr(module, "SILENT_SECONDS", patience)
    async with shakes() as made:
        slow, silent, later = await made.begin("office", 3)
        made.speaks[0].heard()
        (good,) = await made.begin("office")
        gone, *stay = (slow, silent, later, good) if patience else (silent, slow, later, good)
        assert gone.recv(1) == b"" and made.handshakes.count == 3
        for theirs in stay:
            theirs.setblocking(False)
            with pytest.raises(BlockingIOError):
                theirs.recv(1)
        for theirs in (gone, *stay):
            theirs.close()


async def test_where_there_is_no_room_a_handshake_gives_way_and_else_nobody_gets_in() -> None:
    async with shakes() as made:
        ours, alone = socket.socketpair()
        made.handshakes.begin(ours, "client", room=False)
        assert alone.recv(1) == b""
        (silent,) = await made.begin("attacker")
        ours, theirs = socket.socketpair()
        made.handshakes.begin(ours, "client", room=False)
        await asyncio.sleep(0.01)
        assert silent.recv(1) == b"" and made.running == [ours] and made.handshakes.count == 1
        for each in (alone, silent, theirs):
            each.close()


@pytest.mark.parametrize("costs", [True, False])
@pytest.mark.parametrize("end", [None, ConnectionResetError(), TimeoutError()])
async def test_more_than_the_rate_is_refused_but_what_costs_nothing_does_not_count(
    monkeypatch: pytest.MonkeyPatch, end: Exception | None, costs: bool
) -> None:
    monkeypatch.setattr(limits, "HANDSHAKE_BURST", 2)
    monkeypatch.setattr(limits, "HANDSHAKES_PER_SECOND", 0)
    seen: list[socket.socket] = []

    async def shake(connection: socket.socket) -> None:
        seen.append(connection)
        handshake = HANDSHAKE.get()
        assert handshake
        if costs:
            handshake.computed()
        if end:
            raise end

    handshakes = Handshakes(shake)
    pairs = [socket.socketpair() for _ in range(4)]
    for ours, _ in pairs:
        handshakes.begin(ours, "a")
        await asyncio.sleep(0.01)
    assert len(seen) == (2 if costs else 4)
    for pair in pairs:
        for each in pair:
            each.close()
