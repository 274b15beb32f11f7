"""What a client may ask in a minute and a day: counted over its limit's models, and told with when to come back."""

import pytest

from llmd.daemon.errors import RateLimited
from llmd.daemon.identity import policy_text
from llmd.daemon.identity.policy import Decision, Policy
from llmd.daemon.serving.quotas import NO_RATES, Count, Quotas, Rate

GRANT = '[groups]\nteam = ["alice", "bob"]\n[[grants]]\nto = ["*"]\nmodels = ["*"]\n'
FORMS = frozenset({"Q4_K_M"})


class Clocks:
    def __init__(self, *limits: str) -> None:
        self.now, self.day, self.left = 1000.0, "2026-11-30", 3600.0
        self.policy: Policy = policy_text.read(GRANT + "".join(f"[[limits]]\n{limit}\n" for limit in limits), 3)
        self.quotas = Quotas(lambda: self.now, lambda: (self.day, self.left))

    def decision(self, client: str, model: str = "m") -> Decision:
        return self.policy.of(client).decide(model, FORMS)

    def enter(self, client: str = "alice", model: str = "m", expected: float = 0.0) -> Count:
        rights = self.policy.of(client)
        return self.quotas.enter(rights, model, self.decision(client, model).counts, expected)

    def refused(self, client: str = "alice", model: str = "m") -> RateLimited:
        with pytest.raises(RateLimited) as error:
            self.enter(client, model)
        return error.value


def test_requests_a_minute_of_each_client_by_itself() -> None:
    at = Clocks('of = ["team"]\nrequests_per_minute = 3')
    for _ in range(3):
        at.enter().end(10)
        at.now += 10
    error = at.refused()
    assert (error.status, error.code, error.retry_after) == (429, "rate_limit_exceeded", 30)
    assert error.rule == "policy 3: limit 1, requests_per_minute" and "3 requests a minute" in error.message
    at.enter("bob")
    at.enter("carol")
    at.now += 30.5
    at.enter()
    assert at.refused().retry_after == 10


def test_a_limit_counts_its_models_together_and_no_other() -> None:
    at = Clocks('of = ["*"]\nmodels = ["m*"]\nrequests_per_day = 2')
    at.enter(model="m1")
    at.enter(model="m2")
    at.enter(model="other")
    error = at.refused(model="m3")
    assert error.retry_after == 3600
    at.day = "2026-12-01"
    at.enter(model="m3")


def test_tokens_are_counted_as_expected_and_then_as_they_were() -> None:
    at = Clocks('of = ["*"]\ntokens_per_minute = 100')
    running = at.enter(expected=500)
    assert at.refused().retry_after == 1, "what runs is expected to have them all"
    running.end(40)
    at.now += 20
    at.enter(expected=10).end(70)
    error = at.refused()
    assert error.retry_after == 40 and error.rates
    at.now += 40.5
    at.enter()


def test_answers_at_a_time() -> None:
    at = Clocks('of = ["*"]\nstreams = 2')
    first, _ = at.enter(), at.enter()
    assert at.refused().rule.endswith("limit 1, streams")
    first.end(10)
    at.enter()
    at.enter("bob")


def test_what_was_not_let_in_after_all_does_not_count() -> None:
    at = Clocks('of = ["*"]\nrequests_per_minute = 1\ntokens_per_minute = 10')
    for _ in range(5):
        at.enter(expected=100).undo()
    assert [left for *_, left in at.quotas.left("alice", at.decision("alice").counts)] == [1, 10]
    at.enter()
    assert at.refused().rule.endswith("limit 1, requests_per_minute")


def test_what_was_before_a_start_counts_on_its_day() -> None:
    at = Clocks('of = ["*"]\ntokens_per_day = 100')
    at.quotas.had("alice", "m", at.day, 5, 100)
    at.quotas.had("bob", "m", "2026-11-29", 5, 100)
    assert at.refused().retry_after == 3600
    at.enter("bob")


def test_the_tightest_is_told() -> None:
    at = Clocks('of = ["*"]\nrequests_per_minute = 10\ntokens_per_day = 1000', 'of = ["alice"]\nrequests_per_day = 4')
    for _ in range(3):
        at.enter().end(100)
    rates = at.quotas.rates("alice", at.decision("alice").counts)
    assert rates.requests == Rate(4, 1, 3600.0) and rates.tokens == Rate(1000, 700, 3600.0)
    assert at.quotas.rates("bob", at.decision("bob").counts).requests == Rate(10, 10, 0.0)
    assert Clocks().quotas.rates("alice", ()) is NO_RATES


def test_an_admin_is_told_what_is_left() -> None:
    at = Clocks(
        'of = ["*"]\nrequests_per_minute = 10\nstreams = 1\nlongest_output = 5', 'of = ["alice"]\ntokens_per_day = 9'
    )
    at.enter(expected=7)
    assert at.quotas.left("alice", at.decision("alice").counts) == [
        (1, "requests_per_minute", 10, 9), (1, "streams", 1, 0), (2, "tokens_per_day", 9, 2),
    ]  # fmt: skip


def test_a_second_a_minute_ago_is_forgotten() -> None:
    at = Clocks()
    for _ in range(500):
        at.enter().end(1)
        at.now += 1
    assert len(at.quotas._clients["alice"]["m"].minute) <= 62


def test_priority_weight_and_deadline_are_the_tightest_ones() -> None:
    at = Clocks(
        'of = ["team"]\npriority = "interactive"\nweight = 3\ndeadline_seconds = 60',
        'of = ["bob"]\npriority = "batch"\nweight = 2\ndeadline_seconds = 90',
    )
    alice, bob, carol = map(at.decision, ("alice", "bob", "carol"))
    assert (alice.weight, alice.deadline) == (24.0, 60) and (bob.weight, bob.deadline) == (0.25, 60)
    assert (carol.weight, carol.deadline, carol.counts) == (1.0, None, ())
