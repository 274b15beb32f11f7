"""Who begins when, who is told to come back and when, and that every place is given back once."""

import random
from collections import Counter, deque
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmd.daemon.errors import QueueFull, WaitTooLong
from llmd.daemon.replicas.deployment import Capacity
from llmd.daemon.serving import admission as admission_module
from llmd.daemon.serving.admission import Admission
from llmd.daemon.serving.ask import Ask
from llmd.daemon.serving.queued import Place
from llmd.daemon.wire.work import Generate, RawText, SamplingWish


def ask(prompts: int = 1, n: int = 1, tokens: int = 100, size: int = 40, **more: Any) -> Ask:
    return Ask("/there", "m", Generate((RawText("x" * size),) * prompts, SamplingWish(tokens), n), **more)


class House:
    """An admission over one model with so many slots, whose processes have what has begun."""

    def __init__(self, slots: int, queue: int = 64) -> None:
        self.slots: int | None = slots
        self.taken, self.now, self.told = 0, 0.0, 0
        self.door = Admission(lambda: queue, self.capacity, lambda: self.now, self.tell)
        self.in_process: dict[Place, int] = {}
        self.begun: list[str] = []
        self.served: Counter[str] = Counter()  # tokens

    def capacity(self, model: str) -> Capacity | None:
        return None if self.slots is None else Capacity(self.slots, self.taken)

    def tell(self, model: str, sequences: int) -> None:
        self.told = sequences

    def enter(self, owner: str, asked: Ask | None = None, weight: float = 1.0) -> Place:
        place = self.door.enter(owner, weight, asked or ask())
        self.in_process[place] = 0
        place.tell = lambda: self.begin(place)
        for _ in range(place.begun):
            self.begin(place)
        return place

    def begin(self, place: Place) -> None:
        place.opened()
        self.begun.append(place.owner)
        self.in_process[place] += 1
        self.taken += 1

    def end(self, place: Place, prompt: int = 10, output: int = 100) -> None:
        """All of it, which took so many tokens."""
        self.taken -= self.in_process.pop(place)
        self.served[place.owner] += prompt + output
        for _ in range(place.begun):
            place.counted(prompt)
        place.leave(prompt, output)

    def held(self) -> Counter[str]:
        held: Counter[str] = Counter()
        for place, count in self.in_process.items():
            held[place.owner] += count
        return held


def test_slots_are_taken_a_few_wait_for_the_next_one_and_the_rest_waits_here() -> None:
    house = House(slots=16)
    places = [house.enter("a") for _ in range(40)]
    assert [bool(place.begun) for place in places] == [True] * 18 + [False] * 22 and house.told == 22
    for n in range(5):
        house.end(places[n])
    assert [bool(place.begun) for place in places[5:]] == [True] * 18 + [False] * 17 and house.told == 17


def test_a_full_queue_refuses_and_one_that_ends_makes_room() -> None:
    house = House(slots=2, queue=3)
    places = [house.enter("a") for _ in range(5)]
    with pytest.raises(QueueFull) as refused:
        house.enter("a")
    assert refused.value.status == 503 and refused.value.retry_after == 1
    house.end(places[0])
    house.enter("a")
    with pytest.raises(QueueFull):
        house.enter("a")


def test_without_a_queue_nothing_waits() -> None:
    house = House(slots=2, queue=0)
    places = [house.enter("a") for _ in range(2)]
    with pytest.raises(QueueFull):
        house.enter("a", ask(prompts=20))
    assert house.enter("b").begun, "one of the two slots is its share"
    with pytest.raises(QueueFull):
        house.enter("b")
    for place in places:
        house.end(place)
    assert house.enter("a").begun


def test_who_comes_finds_as_much_room_as_each_of_those_who_wait() -> None:
    house = House(slots=1, queue=8)
    waiting: Counter[str] = Counter()
    for owner in range(100):
        for _ in range(20):
            try:
                house.enter(str(owner))
                waiting[str(owner)] += 1
            except QueueFull:
                break
    assert waiting["0"] == 9 and waiting["1"] >= 7
    assert sum(waiting.values()) <= admission_module.SHARED * 8 + 3
    small = House(slots=1, queue=8)
    for owner in range(15):
        for _ in range(7):
            small.enter(str(owner))
    small.enter("new")  # fifteen who have all that each may leave room for another one


def test_prompts_count_by_their_tokens() -> None:
    house = House(slots=1, queue=4)
    for _ in range(2):
        house.enter("a", ask(size=1))
    house.enter("a", ask(size=4 * admission_module.QUEUED_TOKENS * 100))
    with pytest.raises(QueueFull):
        house.enter("a", ask(size=4))
    house.enter("b", ask(size=4 * admission_module.QUEUED_TOKENS * 100))


def test_a_place_is_given_back_once() -> None:
    house = House(slots=2)
    places = [house.enter("a") for _ in range(4)]
    for _ in range(2):
        places[3].leave()
    places[0].ended(1)
    house.taken -= 1
    house.end(places[1])
    house.in_process[places[1]] = 0
    places[1].leave()
    house.taken = max(0, house.taken)
    assert house.told == 0 and house.door._models["m"]._inside.total() == 1


def test_a_request_of_many_takes_what_is_free_and_gives_it_back_as_others_come() -> None:
    house = House(slots=8)
    greedy = house.enter("a", ask(prompts=256))
    assert house.held() == {"a": 9} and house.told == 247
    modest = house.enter("b")
    assert modest.begun, "the worker takes a slot back"
    for _ in range(3):
        house.enter("b")
    assert house.held() == {"a": 9, "b": 4}
    assert not house.enter("b").begun, "its share"
    house.taken -= 1
    house.in_process[greedy] -= 1
    greedy.ended(1)
    assert house.held() == {"a": 8, "b": 4}, "more are in the worker than it has slots for"
    for _ in range(4):
        house.taken -= 1
        house.in_process[greedy] -= 1
        greedy.ended(1)
    assert house.held() == {"a": 5, "b": 4}, "since they share, the other one has begun more"


def test_an_owners_own_requests_have_turns() -> None:
    house = House(slots=1, queue=64)
    many = house.enter("a", ask(prompts=50))
    one = house.enter("a")
    assert begun([many, one]) == [2, 0]
    for _ in range(2):
        house.taken -= 1
        house.in_process[many] -= 1
        many.ended(1)
    assert begun([many, one]) == [3, 1]


def begun(places: list[Place]) -> list[int]:
    return [place.begun for place in places]


def overload(house: House, owners: dict[str, float], rounds: int, tokens: dict[str, int]) -> Counter[str]:
    """Everybody asks for more than there is; the oldest ends first."""
    running: deque[Place] = deque()
    for _ in range(rounds):
        for owner, weight in owners.items():
            for _ in range(3):
                try:
                    running.append(house.enter(owner, ask(tokens=tokens[owner]), weight))
                except QueueFull:
                    break
        done = next((p for p in running if house.in_process.get(p)), None)
        if done is not None:
            running.remove(done)
            house.now += 0.1
            house.end(done, 10, tokens[done.owner])
    return house.served


@pytest.mark.parametrize("lengths", [(100, 100, 100), (400, 100, 20)])
def test_shares_are_those_of_the_weights(lengths: tuple[int, int, int]) -> None:
    served = overload(House(8), {"a": 1.0, "b": 2.0, "c": 4.0}, 6000, dict(zip("abc", lengths, strict=True)))
    assert served["b"] / served["a"] == pytest.approx(2, rel=0.1)
    assert served["c"] / served["a"] == pytest.approx(4, rel=0.1)


def test_who_sends_as_much_as_all_others_has_no_more_than_each() -> None:
    house = House(4)
    modest = {str(n): 1.0 for n in range(7)}
    served = overload(house, {"greedy": 1.0, **modest}, 4000, dict.fromkeys(["greedy", *modest], 50))
    assert served["greedy"] <= 1.1 * min(served[name] for name in modest)


def test_who_has_least_priority_begins_within_its_bound() -> None:
    """Between two of its turns each other has at most what its weight is of its last turn, and a turn more."""
    house, turns = House(1), 0
    weights = {"batch": 0.125, "normal": 1.0, "interactive": 8.0}
    for _ in range(20):
        house.enter("batch", ask(tokens=1), weights["batch"])
    cost = house.door._models["m"].parts(ask(tokens=1).work)[0].tokens
    before = len(house.begun)
    while "batch" not in house.begun[before:]:
        for owner in ("normal", "interactive"):
            house.enter(owner, ask(tokens=1), weights[owner])
        ends = next(place for place in house.in_process if house.in_process[place])
        house.end(ends, 10, 1)
        turns += 1
        assert turns <= 8 + 64 + 3 + 20 * cost / cost


def test_a_deadline_that_cannot_be_met_is_refused_early() -> None:
    house = House(slots=1)
    first = [house.enter("a") for _ in range(2)]
    for place in first:  # 110 tokens in 11 s
        house.now += 11
        house.end(place)
    for _ in range(6):
        house.enter("a", ask())
    with pytest.raises(WaitTooLong) as refused:
        house.enter("a", ask(deadline=20.0))
    assert refused.value.status == 503 and 10 < (refused.value.retry_after or 0) <= 60
    assert house.told == 4, "it left nothing here"
    assert house.enter("a", ask(deadline=1000.0))
    assert house.enter("b", ask(deadline=20.0)), "another one's queue is not in its way"


def test_when_to_come_back_follows_what_is_queued() -> None:
    house = House(slots=1, queue=4)
    places = [house.enter("a") for _ in range(2)]
    for place in places:
        house.now += 2.2  # 50 tokens a second
        house.end(place)
    for _ in range(5):
        house.enter("a")
    with pytest.raises(QueueFull) as refused:
        house.enter("a")
    assert 3 <= (refused.value.retry_after or 0) <= 8


def test_a_thousand_clients_cost_what_a_few_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whom a slot could be given back to is asked of a few, however many wait."""
    house = House(slots=4, queue=4)
    greedy = [house.enter("greedy") for _ in range(3)]
    for n in range(1000):
        with suppress(QueueFull):
            house.enter(str(n))
    asked = Counter[str]()
    takes = admission_module._Model._takes

    def counted(self: Any, owner: str, *more: Any) -> bool:
        asked[owner] += 1
        return takes(self, owner, *more)

    monkeypatch.setattr(admission_module._Model, "_takes", counted)
    for place in greedy:
        house.end(place)
    assert asked.total() <= 3 * 3 * admission_module.LOOKED_AT and house.told >= 50


def test_nothing_begins_while_nothing_serves_and_all_do_where_nothing_will() -> None:
    house = House(slots=0)
    places = [house.enter("a") for _ in range(3)]
    assert not any(place.begun for place in places)
    house.slots = 1
    house.door.changed("m")
    assert begun(places) == [1, 1, 0]
    house.slots = None
    house.door.changed("m")
    assert begun(places) == [1, 1, 1]


def test_who_waits_for_the_model_itself_counts_and_does_not_begin() -> None:
    house = House(slots=1, queue=2)
    held = [house.door.hold("a", 1.0, ask()) for _ in range(3)]
    assert held[0] and held[1] and held[2] is None and house.told == 2
    for place in held[:2]:
        assert place and not place.begun
        place.leave()
    assert house.told == 0 and house.enter("a").begun


def test_what_a_prompt_is_estimated_at_follows_what_was_counted() -> None:
    house = House(slots=1)
    for _ in range(100):
        house.end(house.enter("a", ask(size=1000)), prompt=500)
    model = house.door._models["m"]
    assert model.parts(ask(size=1000).work)[0].prompt == pytest.approx(500, rel=0.01)
    for _ in range(100):
        house.end(house.enter("a", ask(tokens=1000)), output=20)
    assert model.parts(ask(tokens=1000, size=0).work)[0].tokens == pytest.approx(21, rel=0.01)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32))
def test_whatever_happens_nothing_is_left(seed: int) -> None:
    rng = random.Random(seed)
    house = House(rng.choice([1, 2, 8]), queue=rng.choice([0, 1, 5]))
    weights = {"a": 1.0, "b": 0.125, "c": 8.0}

    def some(of: Iterable[Place]) -> Place | None:
        found = list(of)
        return rng.choice(found) if found else None

    for _ in range(150):
        house.now += rng.random()
        match rng.randrange(5):
            case 0 | 1:
                owner = rng.choice("abc")
                asked = ask(rng.choice([1, 1, 7]), 1, rng.choice([1, 50]), rng.choice([0, 40, 4000]))
                try:
                    house.enter(owner, asked, weights[owner])
                except QueueFull:
                    pass
            case 2 | 3 if place := some(house.in_process):
                if house.in_process[place]:
                    house.end(place, rng.randrange(100), rng.randrange(100))
            case 4 if place := some(house.in_process):  # it is cancelled, wherever it is
                house.taken -= house.in_process.pop(place)
                place.leave()
        capacity = house.capacity("m")
        assert capacity and house.taken >= 0
        if house.told and house.taken < capacity.slots:
            raise AssertionError("a slot is free and somebody waits")
    while house.in_process:
        house.end(next(iter(house.in_process)))
    model = house.door._models.get("m")
    assert house.taken == 0 and house.told == 0
    assert model is None or not (
        model._waiting or model._load or model._inside.total() or model._weights or model._given or model.coming
    )
