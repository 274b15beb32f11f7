"""Which replica answers: the longest beginning that it knows, else the least busy."""

from llmd.daemon.replicas.routing import BLOCK, KEPT, Candidate, Router, beginnings

A, B = b"a" * BLOCK, b"b" * BLOCK


def on(*loads: int, slots: int = 4) -> list[Candidate]:
    return [Candidate(number, load, slots) for number, load in enumerate(loads, 1)]


def test_the_least_busy_for_each_of_its_slots() -> None:
    assert Router().choose(on(2, 1), "alice", b"short") == 2
    assert Router().choose([Candidate(1, 3, 8), Candidate(2, 2, 4)], "alice", b"") == 1
    assert Router().choose(on(1, 1), "alice", b"") == 1


def test_who_took_the_longest_beginning_takes_the_next() -> None:
    router = Router()
    assert router.choose(on(1, 0), "alice", A + B) == 2
    assert router.choose(on(0, 1), "alice", A + A) == 2, "the first block is known there"
    assert router.choose(on(0, 3), "alice", A + B + A) == 2
    assert router.choose(on(0, 3), "alice", B) == 1
    assert router.choose(on(0, 3), "bob", A + B) == 1, "prefixes are not shared across clients"


def test_a_full_replica_is_passed_over_while_another_has_a_free_slot() -> None:
    router = Router()
    assert router.choose(on(1, 0), "alice", A) == 2
    assert router.choose(on(0, 4), "alice", A) == 1
    assert router.choose(on(9, 4), "alice", A) == 1, "it took it last"
    assert router.choose(on(9, 4), "alice", B) == 2


def test_a_replica_that_is_gone_is_no_choice() -> None:
    router = Router()
    assert router.choose(on(1, 0), "alice", A) == 2
    assert router.choose([Candidate(1, 3, 4), Candidate(3, 1, 4)], "alice", A) == 3


def test_it_remembers_a_bounded_number() -> None:
    router = Router()
    for at in range(KEPT + 10):
        router.choose(on(0, 0), "alice", at.to_bytes(4, "big") * (BLOCK // 4))
    assert len(router._taken) == KEPT


def test_beginnings_are_of_whole_blocks_and_their_own_client() -> None:
    assert beginnings("alice", b"a" * (BLOCK - 1)) == []
    first, second = beginnings("alice", A + B + b"rest")
    assert beginnings("alice", A + A)[0] == first and beginnings("alice", A + A)[1] != second
    assert beginnings("bob", A)[0] != first
