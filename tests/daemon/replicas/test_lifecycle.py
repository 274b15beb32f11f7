"""A deployment's life without processes: what follows from what, and that it holds in any order."""

import random
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from llmd.daemon.planning.plan import Wish
from llmd.daemon.replicas.lifecycle import (
    Asked,
    Down,
    Drain,
    Drained,
    Due,
    Effect,
    Event,
    Lifecycle,
    Over,
    Pause,
    Quarantine,
    Start,
    Stop,
    Up,
    Withdrawn,
)

A = Wish("model", 1, 256, 64, 32, 1)
B = replace(A, slots=2)
C = replace(A, slots=3)


def life(*events: Event) -> Lifecycle:
    made = Lifecycle(redeploy_grace=100.0)
    for event in events:
        made.on(event)
    return made


def test_it_loads_and_is_ready() -> None:
    made = life()
    assert made.on(Asked(A)) == [Start(1, A)] and made.state == "loading"
    assert made.on(Asked(A)) == []
    assert made.on(Up(1)) == [] and made.state == "ready"
    assert made.on(Asked(A)) == []


def test_a_death_is_followed_by_longer_and_longer_pauses_until_it_lives() -> None:
    made = life(Asked(A), Up(1))
    seconds = []
    for run in range(1, 10):
        (pause,) = made.on(Down(run, "it crashed", 1.0))
        assert isinstance(pause, Pause) and made.state == "restarting" and made.reason == "it crashed"
        seconds.append(pause.seconds)
        assert made.on(Due(run)) == [Start(run + 1, A)] and made.state == "restarting"
    assert seconds == [1, 2, 4, 8, 16, 32, 60, 60, 60] and made.restarts == 9
    made.on(Up(10))
    assert made.state == "ready" and made.reason == ""
    assert made.on(Down(10, "it crashed", 3600.0)) == [Pause(10, 1.0)]


def crashing(times: int, every: float, reason: str = "it crashed") -> Lifecycle:
    """Ready, and crashed so many times, so many seconds apart."""
    made = life(Asked(A), Up(1))
    for run in range(1, times + 1):
        made.on(Down(run, reason, 1.0, crashed=1000.0 + run * every))
        made.on(Due(run))
        made.on(Up(run + 1))
    return made


def test_five_crashes_in_ten_minutes_are_enough() -> None:
    made = crashing(4, 149.0)
    assert made.state == "ready"
    (effect,) = made.on(Down(5, "it was ended by SIGSEGV", 1.0, crashed=1000.0 + 5 * 149.0))
    assert isinstance(effect, Quarantine) and made.state == "quarantined"
    assert "5 times in 10 minutes, at last because it was ended by SIGSEGV" in made.reason
    assert made.on(Due(5)) == [] and made.on(Up(5)) == []
    # what was wanted, once more: it has five others
    assert made.on(Asked(A)) == [Start(6, A)] and made.reason == ""
    made.on(Up(6))
    assert isinstance(made.on(Down(6, "it crashed", 1.0, crashed=1000.0 + 6 * 149.0))[0], Pause)


def test_what_is_quarantined_goes_when_it_is_withdrawn() -> None:
    made = crashing(5, 1.0)
    assert made.state == "quarantined"
    assert made.on(Withdrawn(5.0)) == [Over()] and made.over


def test_crashes_far_apart_and_other_ends_do_not_count() -> None:
    assert crashing(20, 151.0).state == "ready"
    made = life(Asked(A), Up(1))
    for run in range(1, 20):
        made.on(Down(run, "a GPU that it computed on is lost", 1.0))
        made.on(Due(run))
    assert made.state == "restarting"


def test_other_settings_let_it_drain_and_then_start() -> None:
    made = life(Asked(A), Up(1))
    assert made.on(Asked(B)) == [Drain(1, 100.0)] and made.state == "replacing"
    assert made.on(Drained(1)) == [Stop(1)] and made.state == "replacing"
    assert made.on(Down(1, "", 9.0)) == [Start(2, B)] and made.state == "replacing"
    made.on(Up(2))
    assert made.state == "ready" and made.restarts == 0


def test_the_last_of_several_wishes_counts() -> None:
    made = life(Asked(A), Up(1), Asked(B), Asked(C))
    made.on(Drained(1))
    assert made.on(Down(1, "", 9.0)) == [Start(2, C)]


def test_what_dies_while_it_drains_is_followed_at_once() -> None:
    made = life(Asked(A), Up(1), Asked(B))
    assert made.on(Down(1, "it crashed", 9.0)) == [Start(2, B)] and made.restarts == 0


def test_a_successor_that_cannot_load_is_no_longer_waited_for() -> None:
    made = life(Asked(A), Up(1), Asked(B), Drained(1), Down(1, "", 9.0))
    assert made.on(Down(2, "no memory", 0.1)) == [Pause(2, 1.0)]
    assert made.state == "restarting"
    made.on(Due(2))
    assert made.state == "restarting"


def test_while_it_loads_or_pauses_nobody_is_drained() -> None:
    assert life(Asked(A)).on(Asked(B)) == [Stop(1)]
    assert life(Asked(A), Down(1, "x", 0.1)).on(Asked(B)) == [Start(2, B)]
    made = life(Asked(A), Asked(B))
    assert made.on(Up(1)) == [], "it was up just before it was stopped"
    assert made.on(Down(1, "", 1.0)) == [Start(2, B)]


def test_taken_out_of_service() -> None:
    made = life(Asked(A), Up(1))
    assert made.on(Withdrawn(30.0)) == [Drain(1, 30.0)] and made.state == "stopping"
    assert made.on(Withdrawn(0.0)) == [Drain(1, 0.0)], "in a hurry now"
    assert made.on(Drained(1)) == [Stop(1)]
    assert made.on(Down(1, "", 9.0)) == [Over()] and made.over
    assert life(Asked(A)).on(Withdrawn(30.0)) == [Stop(1)]
    paused = life(Asked(A), Down(1, "x", 0.1))
    assert paused.on(Withdrawn(30.0)) == [Over()] and paused.on(Due(1)) == []


def test_a_deploy_while_an_undeploy_waits_is_kept() -> None:
    made = life(Asked(A), Up(1), Withdrawn(30.0))
    assert made.on(Asked(A)) == [] and made.state == "replacing"
    made.on(Drained(1))
    assert made.on(Down(1, "", 9.0)) == [Start(2, A)]


def test_what_a_run_that_is_over_still_says_has_no_effect() -> None:
    made = life(Asked(A), Up(1), Asked(B), Drained(1), Down(1, "", 9.0), Up(2))
    for late in (Up(1), Drained(1), Down(1, "x", 1.0), Due(1)):
        assert made.on(late) == [] and made.state == "ready"


class World:
    """What carries the effects out: processes, drains and pauses, each of which answers when the driver lets it."""

    def __init__(self, rng: random.Random) -> None:
        self.rng, self.life = rng, Lifecycle(redeploy_grace=9.0)
        self.running: dict[int, Wish] = {}
        self.loading: set[int] = set()
        self.stopped: set[int] = set()
        self.owed: list[Event] = []  # Drained and Due
        self.last: Wish | None = None

    def tell(self, event: Event) -> None:
        for effect in self.life.on(event):
            self.do(effect)

    def do(self, effect: Effect) -> None:
        assert not self.life.over or effect == Over()
        match effect:
            case Start(run, wish):
                assert not self.running, "one process at a time"
                assert wish == self.last, "what was asked last"
                self.running[run] = wish
                self.loading.add(run)
            case Drain(run, _):
                assert run in self.running
                self.owed.append(Drained(run))
            case Stop(run):
                assert run in self.running
                self.stopped.add(run)
            case Pause(run, _):
                assert not self.running
                self.owed.append(Due(run))
            case Over():
                assert not self.running and self.last is None

    def act(self) -> None:
        rng = self.rng
        dice = rng.random()
        if dice < 0.25:
            self.last = rng.choice((A, B, C))
            self.tell(Asked(self.last))
        elif dice < 0.35 and self.life.run:
            self.last = None
            self.tell(Withdrawn(1.0))
        else:
            self.settle()

    def settle(self) -> bool:
        """Let one thing that is owed happen; False when nothing is."""
        choices: list[Event] = list(self.owed)
        choices += [Up(r) for r in self.loading]
        choices += [Down(r, "x", 1.0) for r in self.running if r in self.stopped or self.rng.random() < 0.3]
        if not choices:
            return False
        event = self.rng.choice(choices)
        match event:
            case Up(run):
                self.loading.discard(run)
            case Down(run):
                del self.running[run]
                self.loading.discard(run)
            case _:
                self.owed.remove(event)
        self.tell(event)
        return True


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**32))
def test_in_any_order_one_process_runs_what_was_asked_last_or_nothing_is_left(seed: int) -> None:
    world = World(random.Random(seed))
    world.last = A
    world.tell(Asked(A))
    for _ in range(60):
        if world.life.over:
            break
        world.act()
    for _ in range(10_000):
        if world.life.over or (world.life.state == "ready" and not world.owed):
            break
        world.settle()
    if world.last is None:
        assert world.life.over and not world.running
    else:
        assert list(world.running.values()) == [world.last] and world.life.state == "ready"
