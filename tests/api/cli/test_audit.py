"""`llmctl audit query`: what it leaves out is told, and it goes on; and what spreadsheets make of it."""

import csv
import io
import json
import sqlite3
import time
from pathlib import Path

import pytest
from fake_nvml import FakeNvml
from real_daemon import Llmd, llmctl
from scripted_admin import scripted

from llmd.api.cli import audit
from llmd.api.cli.connection import Client
from llmd.daemon.audit.chain import KINDS, OUTCOMES


def query(llmd: Llmd, *arguments: str, code: int = 0) -> tuple[str, str]:
    done = llmctl(llmd.state / "admin.sock", "audit", "query", *arguments)
    assert done.exit_code == code, done.stderr
    return done.stdout, done.stderr


def rows(text: str) -> list[int]:
    return [int(line.split()[0]) for line in text.splitlines()]


def test_it_says_what_it_left_out_and_goes_on(llmd: Llmd) -> None:
    for _ in range(3):
        llmd.llmctl("reload")
    every = rows(query(llmd, "--kind", "reload", "--limit", "0")[0])
    newest, told = query(llmd, "--kind", "reload", "--limit", "2")
    assert rows(newest) == every[-2:]
    assert (
        told
        == "llmctl: these are the newest: older rows match too; --after 0 begins with the first, --limit 0 shows all\n"
    )
    first, told = query(llmd, "--kind", "reload", "--limit", "4", "--after", "0")
    assert rows(first) == every[:4] and told == f"llmctl: more rows match: --after {every[3]} goes on\n"
    rest, told = query(llmd, "--kind", "reload", "--limit", "0", "--after", str(every[3]))
    assert rows(rest) == every[4:] and told == ""
    assert query(llmd, "--kind", "reload", "--after", str(every[-1])) == ("", "llmctl: no row matches\n")


def test_more_rows_than_a_page_come_one_page_after_the_other(llmd: Llmd, monkeypatch: pytest.MonkeyPatch) -> None:
    daemon = Client(str(llmd.state / "admin.sock"))
    asked: list[dict[str, object]] = []

    def call(method: str, route: str, **given: object) -> dict[str, object]:
        asked.append(given)
        after = int(str(given["after"] or 40))
        last = after + min(20, int(str(given["limit"])) or 20)
        found = [{"seq": seq} for seq in range(after + 1, min(last, 90) + 1)]
        return {"rows": found, "older": given["after"] is None, "after": last if last < 90 else None}

    monkeypatch.setattr(daemon, "call", call)
    found = [row["seq"] for page in audit.pages(daemon, limit=50, kind="refused") for row in page["rows"]]
    assert found == [*range(41, 91)]
    assert [(one["limit"], one["after"]) for one in asked] == [(50, None), (30, 60), (10, 80)]
    found = [row["seq"] for page in audit.pages(daemon, limit=0, after=50) for row in page["rows"]]
    assert found == [*range(51, 91)]
    assert len([*audit.pages(daemon, limit=3)]) == 1


def test_a_kind_and_an_outcome_that_there_is_not_are_errors_with_the_list(llmd: Llmd) -> None:
    said = query(llmd, "--kind", "deploy", code=1)[1]
    assert said.startswith("llmctl: there is no kind 'deploy'; there is admin.client_issue, ")
    assert all(kind in said for kind in KINDS)
    said = query(llmd, "--outcome", "x" * 250, code=1)[1]
    assert all(outcome in said for outcome in OUTCOMES) and len(said) < 320


def test_a_moment_that_is_shown_is_understood(llmd: Llmd, monkeypatch: pytest.MonkeyPatch) -> None:
    """The daemon's zone is not the admin's: what names none is the admin's."""
    llmd.llmctl("reload")
    for zone in ("America/New_York", "Asia/Kathmandu", "UTC"):
        monkeypatch.setenv("TZ", zone)
        time.tzset()
        (line,) = query(llmd, "--kind", "reload", "--limit", "1")[0].splitlines()
        seq, moment = line.split()[:2]
        assert rows(query(llmd, "--kind", "reload", "--since", moment)[0])[-1] == int(seq)
        plain = moment[:19]  # without its zone
        assert rows(query(llmd, "--kind", "reload", "--since", plain)[0])[-1] == int(seq)
        assert int(seq) not in rows(query(llmd, "--kind", "reload", "--limit", "0", "--until", moment)[0])
    monkeypatch.undo()
    time.tzset()


def test_a_spreadsheet_gets_texts_and_no_formulas(llmd: Llmd, tmp_path: Path) -> None:
    tls = llmd.issue("sheets", tmp_path)  # of what is refused each client has a few rows a minute
    for name in ("=1+1", "+1", "-1", "@SUM(A1)", "  =1+1", "a\n=1"):
        llmd.post("/v1/completions", {"model": name, "prompt": "x", "max_tokens": 1}, tls)
    text, _ = query(llmd, "--format", "csv", "--limit", "0")
    found = [*csv.DictReader(io.StringIO(text))]
    kept = {row["model"] for row in found}
    assert {"'=1+1", "'+1", "'-1", "'@SUM(A1)", "'  =1+1", "a\\n=1"} <= kept
    assert not any(cell.lstrip().startswith(("=", "+", "-", "@")) for row in found for cell in row.values())
    assert [int(row["seq"]) for row in found] == [*range(1, len(found) + 1)]
    line = json.loads(query(llmd, "--format", "jsonl", "--after", found[3]["seq"], "--limit", "1")[0])
    assert json.loads(found[4]["body"]) == line["body"] and found[4]["ts"] == line["ts"] and line["ts"].endswith("Z")
    assert found[4]["hash"] == line["hash"]
    assert "give one of them" in query(llmd, "--format", "csv", "--json", code=2)[1]


async def test_where_the_chain_breaks_the_running_daemon_says(tmp_path: Path) -> None:
    async with scripted(tmp_path) as admin:
        admin.end()
        with sqlite3.connect(admin.daemon.config.state / "audit.db") as db:
            db.execute("UPDATE audit SET kind = 'admit' WHERE seq = 1")
        db.close()
        admin.start(FakeNvml.without_driver())
        told = await admin.json("audit", "verify", code=1)
        assert told["verdict"] == "broken" and told["broken"]["seq"] == 1 and told["broken"]["detail"]
