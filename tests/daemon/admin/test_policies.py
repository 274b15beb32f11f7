"""A policy as an admin sets it: whole or not at all, audited, kept, and never one that a start opens."""

import asyncio
import os
import sqlite3
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from llmd.daemon.admin.policies import Wanted
from llmd.daemon.audit.log import AuditLog
from llmd.daemon.composition import Daemon
from llmd.daemon.config import Config
from llmd.daemon.errors import AuditUnavailable, BadRequest, Conflict, NotFound, PolicyInvalid
from llmd.daemon.identity.policy_text import BEGIN
from llmd.daemon.state.records import Info
from llmd.daemon.state.store import Store

ALL = '[[grants]]\nto = ["*"]\nmodels = ["*"]\n'
ALICES = '[[grants]]\nto = ["alice"]\nmodels = ["m"]\n'


@pytest.fixture
async def house(daemon: Daemon) -> Daemon:
    for name, role in (("alice", "infer"), ("bob", "infer"), ("ops", "operator")):
        await daemon.service.clients.issue(name, 30, "me", role=role)
    daemon.store.add_model("m", "0" * 64, 1, "m.gguf", Info(file_type="Q4_K_M"))
    return daemon


async def change(house: Daemon, text: str | None = None, **more: Any) -> dict[str, Any]:
    wanted = Wanted(text, *(more.pop(name, None) for name in ("revert", "group")), **more.pop("group_", {}))
    return await house.service.policies.change(wanted, "me", **more)


async def group(house: Daemon, name: str, **what: Any) -> dict[str, Any]:
    return await change(house, group=name, group_=what)


async def acts(house: Daemon) -> list[dict[str, Any]]:
    return [row["body"] for row in await house.audit.tail(200) if row["kind"] == "admin.policy"]


def start_again(house: Daemon) -> Daemon:
    """The same files, as another start of the daemon."""
    for part in (house.state, house.store, house.audit):
        part.close()
    os.close(house._lock)
    again = Daemon(Config(state_dir=str(house.config.state), node="test"))
    for name in ("state", "store", "audit", "_lock", "serving", "service", "pool"):
        setattr(house, name, getattr(again, name))  # the fixture ends this one
    return again


async def test_a_change_has_two_rows_with_the_text_before_and_after(house: Daemon) -> None:
    assert (await change(house, ALL))["version"] == 1
    done = await change(house, ALICES)
    assert (done["version"], done["before"], done["ended"]) == (2, 1, 0)
    takes = {one["clients"]: one["takes"] for one in done["changes"]}
    probes = ("/livez", "/health", "/readyz", "/openapi.json")
    assert takes == {
        ("alice",): ("other models",), ("bob",): (*probes, "m", "other models"),
        ("ops",): ("/livez", "/health", "/readyz", "/metrics", "/openapi.json", "m", "other models"),
    }  # fmt: skip
    assert all(one["gives"] == () for one in done["changes"])
    rows = await acts(house)
    assert [(row["version"], row["result"], row["before"], row["after"]) for row in rows] == [
        (1, "begun", "", ALL), (1, "done", "", ALL), (2, "begun", ALL, ALICES), (2, "done", ALL, ALICES),
    ]  # fmt: skip
    assert rows[-1]["ended"] == 0 and rows[-1]["actor"] == "me"
    assert [one["version"] for one in await house.service.policies.history()] == [1, 2]


async def test_what_is_only_tried_and_what_changes_nothing_leaves_nothing(house: Daemon) -> None:
    tried = await change(house, ALICES, dry=True)
    assert tried["version"] == 1 and tried["changes"] and not house.service.policies.now.exists
    await change(house, ALICES)
    again = await change(house, ALICES)
    assert again["version"] == again["before"] == 1 and len(await acts(house)) == 2


async def test_one_that_cannot_be_is_refused_and_what_held_holds(house: Daemon) -> None:
    await change(house, ALICES)
    for text in ("[[grants", ALICES + '[[grants]]\nto = ["carol"]\nmodels = ["m"]', ""):
        with pytest.raises((PolicyInvalid, BadRequest)):
            await change(house, text)
    assert house.service.policies.now.text == ALICES and len(await acts(house)) == 2


async def test_two_who_change_it_at_once_do_not_undo_each_other(house: Daemon) -> None:
    await change(house, ALL, base=0)
    with pytest.raises(Conflict, match="version 1 now"):
        await change(house, ALICES, base=0)
    both = await asyncio.gather(
        *(change(house, text, base=1) for text in (ALICES, ALL + ALICES)), return_exceptions=True
    )
    assert [type(one) for one in both] == [dict, Conflict]


async def test_what_held_holds_again_and_zero_is_none(house: Daemon) -> None:
    await change(house, ALICES)
    await change(house, ALL)
    assert (await change(house, revert=1))["version"] == 3 and house.service.policies.now.text == ALICES
    gone = await change(house, revert=0)
    assert gone["version"] == 4 and not house.service.policies.now.exists
    assert [one["takes"] for one in gone["changes"]] == [()] * 3 and all(one["gives"] for one in gone["changes"])
    with pytest.raises(NotFound, match="there is 1, 2, 3, 4"):
        await change(house, revert=9)
    shown = [(one["version"], one["exists"], one["holds"]) for one in await house.service.policies.history()]
    assert shown == [(1, True, False), (2, True, False), (3, True, False), (4, False, True)]


async def test_the_first_group_makes_a_policy_that_takes_nothing_from_anybody(house: Daemon) -> None:
    made = await group(house, "team", add=("alice", "bob"))
    assert made["changes"] == [] and house.service.policies.groups == {"team": ("alice", "bob")}
    assert made["text"] == BEGIN.replace("\n[groups]\n", '\n[groups]\nteam = ["alice", "bob"]\n')
    await group(house, "team", add=("ops", "bob"), remove=("alice",))
    assert house.service.policies.groups == {"team": ("bob", "ops")}
    with pytest.raises(NotFound, match="no client in team of that name; there is bob, ops"):
        await group(house, "team", remove=("alice",))
    with pytest.raises(BadRequest, match="nobody would be left in team"):
        await group(house, "team", remove=("bob", "ops"))
    with pytest.raises(PolicyInvalid, match="no client 'carol'; there is alice, bob, ops"):
        await group(house, "team", add=("carol",))
    with pytest.raises(NotFound, match="no group of that name; there is team"):
        await group(house, "other", gone=True)
    await group(house, "team", gone=True)
    assert house.service.policies.groups == {} and house.service.policies.now.of("alice").may_call("/livez")


async def test_no_client_gets_a_groups_name(house: Daemon) -> None:
    await group(house, "team", add=("alice",))
    with pytest.raises(Conflict, match="the policy has a group team"):
        await house.service.clients.issue("team", 30, "me")


async def test_a_start_finds_what_held(house: Daemon) -> None:
    await change(house, ALL)
    await change(house, ALICES)
    again = start_again(house)
    held = again.serving.policy.now
    assert (held.version, held.text) == (2, ALICES) and not held.of("bob").may_call("/livez")
    assert (await again.service.policies.show())["actor"] == "me"


async def test_an_older_copy_of_the_database_opens_nothing_that_was_closed(
    house: Daemon, caplog: pytest.LogCaptureFixture
) -> None:
    """The audit log has what was decided since."""
    file = house.config.state / "state.db"
    await change(house, ALL)
    with closing(sqlite3.connect(file)) as live, closing(sqlite3.connect(file.with_name("older"))) as copy:
        live.backup(copy)
    await change(house, ALICES)
    for part in (house.state, house.store):
        part.close()
    for one in file.parent.glob("state.db*"):
        one.unlink()
    file.with_name("older").rename(file)
    house.store = Store(None)
    again = start_again(house)
    assert again.serving.policy.now.text == ALICES and again.serving.policy.now.version == 2
    assert "policy 2 holds again" in caplog.text
    assert (await again.service.policies.history())[-1]["actor"] == "audit log"


async def test_one_that_cannot_be_read_any_more_gives_nobody_anything(
    house: Daemon, caplog: pytest.LogCaptureFixture
) -> None:
    """And an admin sets another one: nobody is locked out of the admin socket."""
    await change(house, ALL)
    house.store._file.write("UPDATE policies SET text = 'grants = 7'")
    again = start_again(house)
    assert not again.serving.policy.now.of("alice").may_call("/livez") and "every client is denied" in caplog.text
    assert again.serving.policy.now.problem == "policy 1 cannot be read, so every client is denied"
    told = {one["name"]: one for one in await again.service.doctor.checks()}
    assert told["policy"]["ok"] is False and told["policy"]["fix"]
    await again.service.policies.change(Wanted(ALICES), "me")
    assert again.serving.policy.now.of("alice").may_call("/livez") and again.serving.policy.now.problem == ""


async def test_while_the_log_cannot_be_written_only_what_takes_away_is_done(
    house: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    await change(house, ALL)

    async def full(*_: Any, **__: Any) -> None:
        raise AuditUnavailable("the disk is full")

    monkeypatch.setattr(AuditLog, "event_durable", full)
    await change(house, ALICES)
    with pytest.raises(AuditUnavailable):
        await change(house, ALL)
    assert house.service.policies.now.text == ALICES


async def test_a_change_whose_asker_has_gone_holds_if_it_is_stored(
    house: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = asyncio.ensure_future(change(house, ALICES))
    stored = house.store.add_policy

    def slow(*given: Any) -> Any:
        asyncio.run_coroutine_threadsafe(_cancel(task), loop).result(5)
        return stored(*given)

    loop = asyncio.get_running_loop()
    monkeypatch.setattr(house.store, "add_policy", slow)
    with pytest.raises(asyncio.CancelledError):
        await task
    found = house.store.policy()
    assert found and found.text == ALICES == house.service.policies.now.text


async def _cancel(task: "asyncio.Task[Any]") -> None:
    task.cancel()


# --- what would happen

CHAT = "/v1/chat/completions"
TESTED = (
    f'[groups]\nteam = ["alice"]\n[[grants]]\nto = ["team"]\nmodels = ["m@Q4_K_M"]\nroutes = ["{CHAT}", "/livez"]\n'
    '[[limits]]\nof = ["team"]\nlongest_output = 9\nhours = ["Mon 08:00-18:00"]\nzone = "UTC"'
)


@pytest.mark.parametrize(
    ("client", "model", "route", "allowed", "rule", "note"),
    [
        ("alice", "m", CHAT, True, "", "it is not deployed"),
        ("alice", "m@q4_k_m", CHAT, True, "", "it is not deployed"),
        ("alice", "m@Q8_0", CHAT, False, "there is no form Q8_0 of m that would answer", "it is not deployed"),
        ("alice", "n", CHAT, False, f"policy 1: no grant gives alice n by {CHAT}", "there is no such model now"),
        ("alice", "m", "/v1/completions", False, "policy 1: no grant gives alice /v1/completions", ""),
        ("alice", "m", "/livez", True, "", "this route asks no model"),
        ("alice", "m", "/metrics", False, "the role infer may not call /metrics", ""),
        ("bob", "m", "/livez", False, "policy 1: no grant gives bob /livez", ""),
    ],
)  # fmt: skip
async def test_a_test_says_allowed_or_the_rule_that_forbids(
    house: Daemon, client: str, model: str, route: str, allowed: bool, rule: str, note: str
) -> None:
    await change(house, TESTED)
    noon = datetime(2026, 11, 30, 12, tzinfo=UTC)
    found = await house.service.policies.test(client, model, route, noon)
    assert (found["allowed"], found["rule"], found["note"]) == (allowed, rule, note)
    if allowed and route != "/livez":
        assert found["forms"] == ["Q4_K_M"] and found["output"] == 9 and found["context"] is None
        late = await house.service.policies.test(client, model, route, noon.replace(hour=20))
        assert (late["allowed"], late["rule"]) == (False, "policy 1: limit 1, the hours Mon 08:00-18:00 UTC")


async def test_a_test_of_nobody_or_nothing_says_what_there_is(house: Daemon, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no client of that name; there is alice, bob, ops"):
        await house.service.policies.test("carol", "m", "/livez", None)
    with pytest.raises(NotFound, match="no route of clients of that name; there is .*/v1/chat/completions"):
        await house.service.policies.test("alice", "m", "/v1/x", None)
