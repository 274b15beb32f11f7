"""Who may use what: the decision, a policy as people write it, and what a change of it takes from whom."""

import random
import re
import textwrap
from collections.abc import Sequence
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from llmd.daemon.errors import PolicyInvalid
from llmd.daemon.identity.policy import ALL, Bounds, Grant, InForce, Models, Pattern, Policy
from llmd.daemon.identity.policy_changes import OTHER, changes
from llmd.daemon.identity.policy_text import BEGIN, Known, read, remarks, with_group
from llmd.daemon.identity.principal import Principal

CHAT, COMPLETIONS, TOKENIZE, MODELS = "/v1/chat/completions", "/v1/completions", "/tokenize", "/v1/models"
ASKING = frozenset({CHAT, COMPLETIONS, TOKENIZE, MODELS})
ROLES = {
    **dict.fromkeys((CHAT, COMPLETIONS, TOKENIZE), frozenset({"infer", "admin"})),
    MODELS: frozenset({"infer", "operator", "admin"}), "/metrics": frozenset({"operator", "admin"}),
    "/livez": frozenset({"infer", "operator", "admin", "auditor"}),
}  # fmt: skip
CLIENTS = {"alice": "infer", "bob": "infer", "carol": "infer", "ops": "operator", "boss": "admin"}
KNOWN = Known(tuple(CLIENTS), ROLES, ASKING)
NOW = datetime(2026, 11, 30, 12, tzinfo=UTC)  # a Monday
Q4, BOTH = frozenset({"Q4_K_M"}), frozenset({"Q4_K_M", "Q8_0"})


def policy(text: str, version: int = 7) -> Policy:
    return read(text, version, KNOWN)


def whole(grants: str, limits: str = "") -> Policy:
    return policy(f'[groups]\nteam = ["alice", "bob"]\n{grants}\n{limits}')


# --- names


@pytest.mark.parametrize("seed", range(20))
def test_a_pattern_fits_as_a_shells_does(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(500):
        text = "".join(rng.choice("ab*") for _ in range(rng.randrange(7)))
        name = "".join(rng.choice("ab") for _ in range(rng.randrange(9)))
        assert Pattern(text).fits(name) == fnmatchcase(name, text), (text, name)


def test_a_pattern_of_many_stars_takes_no_time() -> None:
    """What backtracks would not come to an end."""
    assert not Pattern("*a" * 30 + "*b").fits("a" * 64) and Pattern("*a" * 30 + "*").fits("a" * 64)


def test_a_form_is_named_in_whatever_case() -> None:
    def given(text: str) -> frozenset[str]:
        return Grant((ALL,), (Models.of(text),)).forms("m", BOTH)

    assert given("m@q4_k_m") == Q4 and given("m") == BOTH and given("*@Q8*") == {"Q8_0"} and given("n*") == frozenset()


# --- the decision


def test_what_no_grant_gives_is_denied_and_the_rule_says_so() -> None:
    held = whole(f'[[grants]]\nto = ["team"]\nmodels = ["m"]\nroutes = ["{CHAT}", "/livez"]')
    alice, carol = held.of("alice"), held.of("carol")
    assert alice.forms("m", Q4, CHAT) == Q4 and alice.why("m", Q4, CHAT, NOW) == ""
    assert alice.forms("m", Q4, COMPLETIONS) == alice.forms("n", Q4, CHAT) == carol.forms("m", Q4, CHAT) == frozenset()
    assert alice.why("n", Q4, CHAT, NOW) == f"policy 7: no grant gives alice n by {CHAT}"
    assert alice.may_call("/livez") and not alice.may_call("/metrics") and not carol.may_call("/livez")
    assert alice.forms("m", Q4) == Q4, "by any route"


def test_a_grant_of_a_form_gives_no_other_form() -> None:
    """The model that answers is judged, however it was asked for."""
    alice = whole('[[grants]]\nto = ["alice"]\nmodels = ["m@Q4_K_M"]').of("alice")
    assert alice.forms("m", BOTH, CHAT) == Q4 and alice.forms("m", frozenset({"Q8_0"}), CHAT) == frozenset()
    assert alice.forms("m", frozenset({""}), CHAT) == frozenset(), "one whose type nobody knows is none of them"


def test_the_local_admin_is_never_judged() -> None:
    held = InForce(whole('[[grants]]\nto = ["carol"]\nmodels = ["m"]'))
    local = Principal("uid:0", "admin", "", "local")
    assert held.of(local).forms("n", Q4, CHAT) and not held.of(Principal("boss", "admin", "1f", "::1")).may_call(CHAT)


def test_without_a_policy_everything_is_given() -> None:
    anybody = Policy.none().of("whoever")
    assert (
        anybody.forms("m", BOTH, "/any") == BOTH
        and anybody.may_call("/any")
        and anybody.decide("m", Q4).bounds == Bounds()
    )
    assert not Policy.none().exists


def test_of_several_limits_the_tightest_holds() -> None:
    held = whole(
        '[[grants]]\nto = ["*"]\nmodels = ["*"]',
        '[[limits]]\nof = ["team"]\nlongest_output = 100\n[[limits]]\nof = ["alice"]\nlongest_output = 200\n'
        'longest_context = 4096\n[[limits]]\nof = ["*"]\nmodels = ["big*"]\nlongest_context = 1024',
    )
    assert held.of("alice").decide("m", Q4).bounds == Bounds(4096, 100) and held.of("bob").decide(
        "m", Q4
    ).bounds == Bounds(None, 100)
    assert (
        held.of("alice").decide("big", Q4).bounds == Bounds(1024, 100)
        and held.of("carol").decide("m", Q4).bounds == Bounds()
    )


def test_hours_are_those_of_every_limit_that_names_the_client() -> None:
    held = whole(
        '[[grants]]\nto = ["*"]\nmodels = ["*"]',
        '[[limits]]\nof = ["team"]\nhours = ["Mon-Fri 08:00-18:00"]\nzone = "UTC"\n'
        '[[limits]]\nof = ["bob"]\nmodels = ["m"]\nhours = ["Sat"]\nzone = "UTC"',
    )
    assert held.of("alice").why("m", Q4, CHAT, NOW) == held.of("carol").why("m", Q4, CHAT, NOW) == ""
    assert held.of("bob").why("m", Q4, CHAT, NOW) == "policy 7: limit 2, the hours Sat UTC"
    assert held.of("bob").why("n", Q4, CHAT, NOW) == ""
    evening = NOW.replace(hour=18)
    assert held.of("alice").why("m", Q4, CHAT, evening) == "policy 7: limit 1, the hours Mon-Fri 08:00-18:00 UTC"


def test_a_group_that_has_a_clients_name_is_not_that_client() -> None:
    """It could come to be where a client is issued after the policy was read."""
    held = Policy(1, "x", {"alice": ["bob"]}, read('[[grants]]\nto = ["alice"]\nmodels = ["*"]', 1).grants)
    assert held.of("bob").may_call(CHAT) and not held.of("alice").may_call(CHAT)


@pytest.mark.parametrize("seed", range(30))
def test_the_decision_is_the_one_that_the_words_say(seed: int) -> None:
    """Random policies, each judged in the plainest way as well."""
    rng = random.Random(seed)
    models = ["a", "b", "ab", "a-1"]
    groups = {f"g{n}": rng.sample(sorted(CLIENTS), rng.randrange(1, 4)) for n in range(rng.randrange(4))}
    grants = [
        (rng.sample([*groups, *CLIENTS, ALL], rng.randrange(1, 3)),
         rng.sample(["a", "b*", "*b", "a@Q8_0", "*@Q4*", ALL], rng.randrange(1, 3)),
         rng.choice([None, [CHAT], ["/v1/*"], [CHAT, "/livez"]]))
        for _ in range(rng.randrange(1, 5))
    ]  # fmt: skip
    lines = ["[groups]", *(f"{name} = {_listed(members)}" for name, members in groups.items())]
    for to, of, routes in grants:
        lines += ["[[grants]]", f"to = {_listed(to)}", f"models = {_listed(of)}"]
        lines += [f"routes = {_listed(routes)}"] if routes else []
    held = policy("\n".join(lines))
    for client in CLIENTS:
        names = {client, ALL, *(name for name, members in groups.items() if client in members)}
        mine = [(of, routes) for to, of, routes in grants if names & set(to)]
        for route in ROLES:
            by = [of for of, routes in mine if routes is None or any(fnmatchcase(route, one) for one in routes)]
            assert held.of(client).may_call(route) == bool(by)
            for model in models:
                wanted = {form for form in BOTH if any(_gives(one, model, form) for of in by for one in of)}
                assert held.of(client).forms(model, BOTH, route) == wanted


def _listed(names: Sequence[str]) -> str:
    return "[" + ", ".join(f'"{name}"' for name in names) + "]"


def _gives(one: str, model: str, form: str) -> bool:
    name, _, kind = one.partition("@")
    return fnmatchcase(model, name) and fnmatchcase(form, kind or "*")


# --- as people write it

GRANT = '[[grants]]\nto = ["alice"]\nmodels = ["m"]\n'
MISTAKES = [
    ("grants = [", 1, "Expected|Unclosed|Invalid|list|array"),
    ("", 1, "grants nobody anything"),
    ('[groups]\nteam = ["alice"]', 1, "grants nobody anything"),
    (GRANT + 'why = "x"', 4, "a grant has no 'why'; it has to, models, routes"),
    ("[rules]\n" + GRANT, 1, "there is no 'rules'; a policy has groups, grants and limits"),
    ('[groups]\nteam = ["alice",\n"bobb"]\n' + GRANT, 3, "there is no client 'bobb'; there is alice, bob"),
    ('[groups]\nteam = []\n' + GRANT, 2, "empty: it names nobody"),
    ('[groups]\nteam = "alice"\n' + GRANT, 2, "takes a list of texts"),
    ('[groups]\nteam = ["alice", "alice"]\n' + GRANT, 2, "'alice' stands in it twice"),
    ('[groups]\n"Team A" = ["alice"]\n' + GRANT, 2, "a group's name has 1 to 64"),
    ('[groups]\nbob = ["alice"]\n' + GRANT, 2, "bob is a client: give the group another name"),
    ('[groups]\none = ["alice"]\ntwo = [\n"one"]\n' + GRANT, 4, "one is a group: a group has clients"),
    ('groups = ["alice"]\n' + GRANT, 1, "groups are written as"),
    ('[grants]\nto = ["alice"]', 1, "grants are written as"),
    ('[[grants]]\nmodels = ["m"]', 1, "it names nobody"),
    ('[[grants]]\nto = []\nmodels = ["m"]', 2, "empty"),
    ('[[grants]]\nto = ["nobody"]\nmodels = ["m"]', 2, "there is no client or group 'nobody'"),
    ('[[grants]]\nto = [1]\nmodels = ["m"]', 2, "takes a list of texts"),
    ('[[grants]]\nto = ["alice"]', 1, "it gives no model"),
    (f'[[grants]]\nto = ["alice"]\nroutes = ["{CHAT}"]', 1, "it gives no model"),
    ('[[grants]]\nto = ["alice"]\nmodels = ["m"]\nroutes = ["/livez"]', 1, "models and no route that asks them"),
    (GRANT + 'routes = ["/v2/chat"]', 4, "there is no route '/v2/chat'; there is"),
    ('[[grants]]\nto = ["alice"]\nmodels = ["Big Model"]', 3, "'Big Model' is no model"),
    ('[[grants]]\nto = ["alice"]\nmodels = ["m@"]', 3, "'m@' is no model"),
    (GRANT + '[[limits]]\nof = ["alice"]', 4, "it limits nothing"),
    (GRANT + "[[limits]]\nlongest_output = 5", 4, "it names nobody"),
    (GRANT + '[[limits]]\nof = ["alice"]\nlongest_output = 0', 6, "longest_output takes a whole number, 1 or more"),
    (GRANT + '[[limits]]\nof = ["alice"]\nlongest_context = 1', 6, "longest_context takes a whole number, 2 or more"),
    (GRANT + '[[limits]]\nof = ["alice"]\nstreams = true', 6, "streams takes a whole number"),
    (GRANT + '[[limits]]\nof = ["alice"]\nstreams = 1.5', 6, "streams takes a whole number"),
    (GRANT + '[[limits]]\nof = ["alice"]\npriority = "high"', 6, 'priority takes "batch", "normal", "interactive"'),
    (GRANT + '[[limits]]\nof = ["alice"]\nlongest_context = 10\nlongest_output = 11', 7, "more than longest_context"),
    (GRANT + '[[limits]]\nof = ["alice"]\ntokens_per_day = 1\ntokens_per_minute = 2', 7, "more than tokens_per_day"),
    (GRANT + '[[limits]]\nof = ["alice"]\nhours = ["Mon"]', 4, "stand together"),
    (GRANT + '[[limits]]\nof = ["alice"]\nhours = ["Mon",\n"8-9"]\nzone = "UTC"', 7, "'8-9': hours are written as"),
    (GRANT + '[[limits]]\nof = ["alice"]\nhours = ["Mon"]\nzone = "Berlin"', 7, "no time zone 'Berlin'"),
    (GRANT + '[[limits]]\nof = ["alice"]\nhours = ["Mon"]\nzone = 1', 7, "zone takes a text"),
    (GRANT + '[[limits]]\nof = ["alice"]\nhours = ["Mon"]\nzone = "UTC"\n[[limits]]\nof = ["*"]\nhours = ["Tue"]\n'
     'zone = "UTC"', 8, "with the limits before it this leaves alice no hour"),
    ("# " + "x" * (1 << 18), None, "at most 262,144 characters"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "line", "words"), MISTAKES)
def test_a_policy_that_cannot_be_is_refused_whole_with_line_and_reason(text: str, line: int | None, words: str) -> None:
    with pytest.raises(PolicyInvalid) as refused:
        policy(text)
    message = refused.value.message
    assert message.startswith(f"line {line}: ") if line else True
    assert re.search(re.escape(words) if "|" not in words else words, message), message
    assert len(message) < 500 and "Traceback" not in message


def test_what_was_read_before_is_read_again_whoever_is_there_now() -> None:
    """At a start: a route that a later version has no more, say, does not keep the policy from holding."""
    text = '[groups]\ng = ["gone"]\n[[grants]]\nto = ["g"]\nmodels = ["m"]\nroutes = ["/v0/old"]'
    assert read(text, 3).of("gone").may_call("/v0/old")


def test_the_one_that_a_policy_begins_as_takes_nothing_from_anybody() -> None:
    begun = policy(BEGIN)
    assert changes(Policy.none(), begun, CLIENTS, {"m": BOTH}, KNOWN) == [] and list(_remarks(begun)) == []


def _remarks(of: Policy, models: Sequence[str] = ("m",)) -> list[str]:
    return list(remarks(of, KNOWN, CLIENTS, models))


def test_the_policy_in_the_documentation_is_one() -> None:
    page = (Path(__file__).parents[3] / "docs" / "security.md").read_text()
    block = page[page.index("    [groups]\n") :].partition("\n\nThere are")[0]
    held = read(textwrap.dedent(block), 1)
    alice, moment = held.of("alice"), datetime(2026, 12, 5, 12, tzinfo=UTC)
    assert alice.decide("llama-3-70b", Q4, CHAT).bounds == Bounds(8192, 1024) and held.of("wiki").may_call(CHAT)
    assert (
        alice.why("llama-3-70b", Q4, CHAT, moment) == "policy 1: limit 1, the hours Mon-Fri 08:00-18:00 Europe/Berlin"
    )
    assert held.of("prometheus").may_call("/metrics") and not held.of("prometheus").may_call(CHAT)


def test_what_may_not_be_meant_is_remarked() -> None:
    held = whole(
        '[[grants]]\nto = ["ops"]\nmodels = ["m", "n*"]\nroutes = ["/v1/chat/*", "/v1/models"]',
        '[[limits]]\nof = ["ops"]\nstreams = 2\npriority = "batch"\nlongest_output = 4',
    )
    assert _remarks(held) == [
        "no grant is to the group team",
        "grant 1: there is no model n* now",
        "grant 1: none of its clients has a role that may call /v1/chat/*",
    ]


# --- groups

COMMENTED = """\
# ours
[groups]
team = [
  "alice",  # she
  "bob",
]
"other.team" = ["carol"]  # they

[[grants]]
to = ["team"]  # all of them
models = ["*"]
"""


@pytest.mark.parametrize(
    ("text", "name", "members", "changed"),
    [
        (COMMENTED, "team", ["alice"], ('team = [\n  "alice",  # she\n  "bob",\n]', 'team = ["alice"]')),
        (COMMENTED, "other.team", ["bob"], ('"other.team" = ["carol"]  # they', '"other.team" = ["bob"]')),
        (COMMENTED, "other.team", None, ('"other.team" = ["carol"]  # they\n', "")),
        (COMMENTED, "new", ["bob"], ("[groups]\n", '[groups]\nnew = ["bob"]\n')),
        (GRANT, "new.one", ["bob"], (GRANT, GRANT + '\n[groups]\n"new.one" = ["bob"]\n')),
        (BEGIN, "new", ["bob", "alice"], ("\n[groups]\n", '\n[groups]\nnew = ["bob", "alice"]\n')),
    ],
)
def test_a_change_of_a_group_leaves_the_rest_as_it_was_written(
    text: str, name: str, members: list[str] | None, changed: tuple[str, str]
) -> None:
    made = with_group(text, name, members)
    assert made.replace("\n\n[groups]", "\n[groups]") == text.replace(*changed).replace("\n\n[groups]", "\n[groups]")
    assert policy(made).groups.get(name) == (None if members is None else tuple(members))


@pytest.mark.parametrize("text", ['groups = { team = ["alice"] }\n' + GRANT, 'groups.team = ["alice"]\n' + GRANT])
def test_groups_that_are_written_in_another_way_are_changed_right_or_refused(text: str) -> None:
    for name, members in (("team", ["alice", "bob"]), ("new", ["bob"]), ("team", None)):
        try:
            made = with_group(text, name, members)
        except PolicyInvalid as e:
            assert "llmctl policy edit" in e.message
        else:
            assert policy(made).groups.get(name) == (members and tuple(members))


# --- what a change takes from whom


def _changes(was: Policy, new: Policy) -> dict[str, tuple[list[str], list[str]]]:
    found = changes(was, new, CLIENTS, {"m": BOTH, "n": Q4}, KNOWN)
    return {" ".join(one.clients): (list(one.takes), list(one.gives)) for one in found}


def test_whom_it_takes_what_away_is_told_in_names() -> None:
    narrow = whole(
        '[[grants]]\nto = ["team"]\nmodels = ["m"]\n[[grants]]\nto = ["carol"]\nmodels = ["m@Q8_0", "n"]\n'
        f'routes = ["{CHAT}"]\n[[grants]]\nto = ["ops"]\nroutes = ["/metrics"]'
    )
    others = f"{COMPLETIONS}, {TOKENIZE}, {MODELS}"
    assert _changes(Policy.none(), narrow) == {
        "alice bob": (["n", OTHER], []),
        "carol": (["/livez", f"m@Q4_K_M by {CHAT}", f"m by {others}", f"n by {others}", OTHER], []),
        "ops": (["/livez", "m", "n", OTHER], []),
        "boss": (["/metrics", "/livez", "m", "n", OTHER], []),
    }
    assert _changes(narrow, Policy.none())["alice bob"] == ([], ["n", OTHER])
    assert _changes(narrow, narrow) == {}


def test_limits_that_become_tighter_are_told_and_others_are_given() -> None:
    grant = '[[grants]]\nto = ["*"]\nmodels = ["*"]'
    limit = '[[limits]]\nof = ["alice"]\nzone = "UTC"\n'
    was = whole(grant, limit + 'longest_output = 100\nstreams = 4\nhours = ["Mon-Fri"]')
    new = whole(
        grant,
        limit + 'longest_output = 200\nlongest_context = 500\nhours = ["Mon"]\npriority = "batch"\n'
        '[[limits]]\nof = ["bob"]\nmodels = ["n"]\nlongest_context = 8',
    )
    assert _changes(was, new) == {
        "alice": (
            ["longest_context 500", "priority batch instead of normal", "hours Mon UTC instead of Mon-Fri UTC"],
            ["longest_output 200 instead of 100", "no streams any more, it was 4"],
        ),
        "bob": (["longest_context 8 for n"], []),
    }
