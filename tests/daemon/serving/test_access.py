"""What a client may not use is not there for it; and what a policy takes away ends what runs."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from llmd.daemon.audit.log import AuditLog
from llmd.daemon.errors import BadRequest, LlmdError, ModelNotFound, ModelNotReady, OutsideHours
from llmd.daemon.identity.policy import InForce
from llmd.daemon.identity.policy_text import read
from llmd.daemon.identity.principal import Principal
from llmd.daemon.metrics import Metrics
from llmd.daemon.planning.plan import Wish
from llmd.daemon.replicas.pool import Pool
from llmd.daemon.serving.access import Access
from llmd.daemon.serving.answer import Serving
from llmd.daemon.serving.ask import Ask
from llmd.daemon.serving.begun import Answer
from llmd.daemon.tasks import Tasks
from llmd.daemon.wire.events import Event, Failed, Finished, Tokenized
from llmd.daemon.wire.work import Generate, RawText, SamplingWish, Tokenize, Tokens, Work

ALICE, BOB = (Principal(name, "infer", "1f", "127.0.0.1") for name in ("alice", "bob"))
LOCAL = Principal("uid:0", "admin", "", "local")
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
MONDAY_NOON = datetime(2026, 11, 30, 12, tzinfo=UTC)


def wish(form: str) -> Wish:
    return Wish("", 2, 256, 64, 32, 1, form=form, engine="fake", fake={"text": "one two", "step_seconds": 0.01})


@dataclass
class House:
    """Three deployed models, `a`, `b` and `b-2`, and a policy."""

    serving: Serving
    audit: AuditLog
    now: list[datetime] = field(default_factory=lambda: [MONDAY_NOON])
    version: int = 0

    def hold(self, text: str) -> None:
        self.version += 1
        self.serving.policy.use(read(text, self.version))

    async def ask(self, who: Principal, model: str | None, work: Work | None = None, route: str = CHAT) -> list[Event]:
        async with self.serving.open(who, Ask(route, model, work or generate(3))) as answer:
            return [event async for events in answer for event in events]

    async def refused(self, who: Principal, model: str | None, route: str = CHAT) -> LlmdError:
        with pytest.raises(LlmdError) as error:
            await self.ask(who, model, route=route)
        return error.value

    async def rows(self, kind: str) -> list[dict[str, Any]]:
        return [row["body"] for row in await self.audit.tail(100) if row["kind"] == kind]


def generate(tokens: int, prompt: int = 3) -> Generate:
    return Generate((Tokens((1,) * prompt),), SamplingWish(tokens, temperature=0.0, ignore_eos=True))


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    audit = AuditLog(tmp_path / "audit.db", bytes(32))
    audit.open()
    pool = Pool(Metrics(), Tasks(), pause=(0.1, 1.0))
    serving = Serving(pool, lambda: 8, audit, Metrics(), Tasks(), policy=InForce())
    house = House(serving, audit)
    serving.access = Access(pool, serving.policy, lambda: house.now[0])
    deployed = [pool.deploy(name, name[0] * 64, wish(f"{name}@Q4_K_M")) for name in ("a", "b", "b-2")]
    async with asyncio.timeout(30):
        for one in deployed:
            while one.state != "ready":
                await one.changed.wait()
    yield house
    await serving.schemas.close()
    await pool.close(0)
    audit.close()


def grants(*lines: str) -> str:
    return "\n".join(lines)


ONE = '[[grants]]\nto = ["alice"]\nmodels = ["b"]\n'


async def test_what_is_not_given_and_what_is_not_there_are_told_in_the_same_words(house: House) -> None:
    house.hold(ONE + '[[grants]]\nto = ["bob"]\nmodels = ["a", "b-2"]')
    for hidden, absent in (("a", "zz"), ("b-2", "b-3"), ("a@Q4_K_M", "zz@Q4_K_M"), ("b@Q8_0", "b@Q2_K")):
        told = [await house.refused(ALICE, name) for name in (hidden, absent)]
        for error in told:
            assert isinstance(error, ModelNotFound) and error.param == "model" and error.retry_after is None
            assert "b-2" not in error.message and "a" not in error.message.replace("that name", "").split()
        assert told[0].message == told[1].message
    assert [d.model for d in house.serving.access.seen(ALICE)] == ["b"]
    assert [d.model for d in house.serving.access.seen(BOB)] == ["a", "b-2"]
    assert isinstance((await house.ask(ALICE, "b"))[-1], Finished)


async def test_the_audit_log_says_that_the_policy_denied_it_and_which_rule(house: House) -> None:
    house.hold(ONE)
    await house.refused(ALICE, "a")
    await house.refused(ALICE, "zz")
    await house.refused(BOB, "b", route=COMPLETIONS)
    rows = await house.rows("refused")
    assert [(row["reason"], row.get("rule"), row["model"]) for row in rows] == [
        ("denied by policy", f"policy 1: no grant gives alice a by {CHAT}", "a"),
        ("model_not_found", None, "zz"),
        ("denied by policy", f"policy 1: no grant gives bob b by {COMPLETIONS}", "b"),
    ]
    assert {row["status"] for row in rows} == {404}


async def test_a_model_without_a_name_is_the_only_one_that_is_there_for_this_client(house: House) -> None:
    error = await house.refused(ALICE, None)
    assert isinstance(error, BadRequest) and error.message == "model is missing; deployed: a, b, b-2"
    house.hold(ONE + '[[grants]]\nto = ["alice"]\nmodels = ["a"]\nroutes = ["/tokenize"]\n')
    assert isinstance((await house.ask(ALICE, None))[-1], Finished), "by this route"
    assert (await house.refused(BOB, None)).message == "model is missing; deployed: none"
    assert (await house.refused(LOCAL, None)).message == "model is missing; deployed: a, b, b-2"


async def test_the_form_that_answers_is_judged_and_not_the_name_that_was_asked_for(house: House) -> None:
    house.hold('[[grants]]\nto = ["alice"]\nmodels = ["b@Q8_0"]\n[[grants]]\nto = ["bob"]\nmodels = ["b@q4_k_m"]')
    for name in ("b", "b@Q4_K_M", "b@Q8_0", "b@q8_0"):
        assert (await house.refused(ALICE, name)).message == "there is no deployed model of that name; there is none"
    for name in ("b", "b@Q4_K_M", "b@q4_k_m"):
        assert isinstance((await house.ask(BOB, name))[-1], Finished)
    assert (await house.refused(BOB, "b@Q8_0")).message == "this form of b is not deployed; b@Q4_K_M is"


async def test_a_model_that_made_room_does_not_name_the_other_one_and_is_not_there_for_others(house: House) -> None:
    house.hold(ONE)
    await house.serving.pool.evict("b", "made room for a at noon")
    error = await house.refused(ALICE, "b")
    assert isinstance(error, ModelNotReady) and "made room for another model" in error.message
    assert (await house.refused(BOB, "b")).message == "there is no deployed model of that name; there is none"


async def test_hours_are_told_to_whom_the_model_is_there_and_to_nobody_else(house: House) -> None:
    house.hold(ONE + '[[limits]]\nof = ["*"]\nhours = ["Mon 08:00-18:00"]\nzone = "UTC"')
    assert isinstance((await house.ask(ALICE, "b"))[-1], Finished)
    house.now[0] = MONDAY_NOON.replace(hour=18)
    error = await house.refused(ALICE, "b")
    assert isinstance(error, OutsideHours) and error.status == 403
    assert error.message == "you may use b at these hours: Mon 08:00-18:00 UTC"
    assert isinstance(await house.refused(BOB, "b"), ModelNotFound)
    row = (await house.rows("refused"))[0]
    assert row["reason"] == "denied by policy" and row["rule"] == "policy 1: limit 1, the hours Mon 08:00-18:00 UTC"


# --- bounds


async def test_an_answer_ends_at_the_longest_output_and_a_prompt_with_it_at_the_longest_context(house: House) -> None:
    house.hold(ONE + '[[limits]]\nof = ["alice"]\nlongest_output = 7\nlongest_context = 20')
    for asked, prompt, given in ((100, 3, 7), (5, 3, 5), (100, 15, 5), (100, 19, 1)):
        end = (await house.ask(ALICE, "b", generate(asked, prompt)))[-1]
        assert isinstance(end, Finished) and (end.reason, end.tokens) == ("length", given)
    with pytest.raises(LlmdError, match="maximum context length is 20 tokens.*20 tokens") as error:
        await house.ask(ALICE, "b", generate(1, 20))
    assert error.value.code == "context_length_exceeded"
    async with house.serving.open(ALICE, Ask("/tokenize", "b", Tokenize("x"))) as answer:
        assert answer.context == 20 and isinstance((await anext(answer))[0], Tokenized)


async def test_a_clients_weight_and_deadline_go_with_what_it_asks(house: House) -> None:
    house.hold(ONE + '[[limits]]\nof = ["alice"]\npriority = "interactive"\nweight = 2\ndeadline_seconds = 60')
    asked = Ask(CHAT, "b", generate(1))
    of = {who: house.serving.access.judged(who, asked) for who in (ALICE, LOCAL)}
    assert (of[ALICE].weight, of[ALICE].deadline) == (16.0, 60) and of[LOCAL].deadline is None
    assert of[LOCAL].weight > of[ALICE].weight, "who looks after the model waits for nobody"
    assert house.serving.access.judged(ALICE, replace(asked, deadline=5.0)).deadline == 5.0


async def test_each_prompt_of_several_has_its_own_bound(house: House) -> None:
    house.hold(ONE + '[[limits]]\nof = ["alice"]\nlongest_context = 20')
    work = Generate((Tokens((1,) * 10), Tokens((1,) * 16)), SamplingWish(99, temperature=0.0, ignore_eos=True))
    ends = {e.choice: e.tokens for e in await house.ask(ALICE, "b", work) if isinstance(e, Finished)}
    assert ends == {0: 10, 1: 4}


# --- what runs


@asynccontextmanager
async def running(house: House, who: Principal, model: str = "b", tokens: int = 2000) -> AsyncIterator[Answer]:
    async with house.serving.open(who, Ask(CHAT, model, generate(tokens))) as answer:
        await anext(answer)
        yield answer


async def rest(answer: Answer) -> Event:
    """Its last event, which comes soon."""
    async with asyncio.timeout(5):
        return [event async for events in answer for event in events][-1]


async def test_a_policy_that_takes_a_model_away_ends_what_runs_and_nothing_else(house: House) -> None:
    house.hold('[[grants]]\nto = ["*"]\nmodels = ["*"]')
    async with running(house, ALICE) as one, running(house, BOB, tokens=40) as other, running(house, LOCAL) as local:
        house.hold('[[grants]]\nto = ["bob"]\nmodels = ["b"]')
        end = await rest(one)
        assert isinstance(end, Failed) and (end.code, end.param) == ("model_not_found", "model")
        assert end.message == "there is no such model any more" and house.serving.cut == 1
        assert isinstance(await rest(other), Finished) and local.outcome() == ("cancelled", None)
    finish = next(row for row in await house.rows("finish") if row["principal"] == "alice")
    assert finish["outcome"] == "error" and finish["rule"] == f"policy 2: no grant gives alice b by {CHAT}"
    assert all("rule" not in row for row in await house.rows("finish") if row["principal"] != "alice")


async def test_what_runs_when_its_hours_end_may_finish_but_not_when_the_policy_closes_them(house: House) -> None:
    hours = '[[limits]]\nof = ["*"]\nhours = ["{}"]\nzone = "UTC"'
    house.hold(ONE + hours.format("Mon 08:00-18:00"))
    async with running(house, ALICE, tokens=60) as answer:
        house.now[0] = MONDAY_NOON.replace(hour=19)
        house.hold(ONE + "# a change of something else\n" + hours.format("Mon 08:00-18:00"))
        assert isinstance(await rest(answer), Finished)
    house.now[0] = MONDAY_NOON
    async with running(house, ALICE) as answer:
        house.hold(ONE + hours.format("Tue"))
        end = await rest(answer)
        assert isinstance(end, Failed) and end.code == "outside_hours" and "Tue UTC" in end.message


async def test_a_longest_output_that_comes_while_it_runs_ends_it_there(house: House) -> None:
    house.hold(ONE)
    async with running(house, ALICE, tokens=30) as short, running(house, ALICE) as long:
        house.hold(ONE + '[[limits]]\nof = ["alice"]\nlongest_output = 40')
        end = await rest(long)
        assert isinstance(end, Failed) and end.code == "context_length_exceeded"
        assert 40 < long.completion_tokens <= 42, "the one that goes beyond it is the last"
        assert isinstance(await rest(short), Finished)
    house.hold(ONE)
    async with running(house, ALICE, tokens=30) as answer:
        house.hold(ONE + '[[limits]]\nof = ["alice"]\nlongest_context = 20')
        assert isinstance(await rest(answer), Failed) and answer.completion_tokens <= 18 + 2


async def test_a_request_that_waits_is_judged_by_the_policy_that_holds_when_it_begins(house: House) -> None:
    """Between its first look and its row on disk there is time for another policy."""
    house.hold(ONE)
    admitted = house.audit.admit

    async def slow(*given: Any, **fields: Any) -> None:
        await admitted(*given, **fields)
        house.hold('[[grants]]\nto = ["bob"]\nmodels = ["*"]')

    house.audit.admit = slow  # type: ignore[method-assign]
    assert isinstance(await house.refused(ALICE, "b"), ModelNotFound)
    finish = (await house.rows("finish"))[0]
    assert finish["outcome"] == "error" and finish["rule"] == f"policy 2: no grant gives alice b by {CHAT}"


async def test_prompts_of_texts_are_bounded_too(house: House) -> None:
    house.hold(ONE + '[[limits]]\nof = ["alice"]\nlongest_context = 3')
    work = Generate((RawText("a b c d e f g h i j k l m"),), SamplingWish(5))
    with pytest.raises(LlmdError, match="maximum context length is 3 tokens"):
        await house.ask(ALICE, "b", work)
