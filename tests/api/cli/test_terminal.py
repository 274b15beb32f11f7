"""What a person sees: tables whose names stay apart, bars that fit, moments that are understood again."""

import os
import re
import time
from collections.abc import Iterator
from datetime import datetime

import pytest

from llmd.api.cli import terminal

LABEL = "importing Qwen2.5-Coder-7B-Instruct-Q4_1.gguf"


@pytest.fixture
def zone(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    yield monkeypatch
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize("name", ["UTC", "America/New_York", "Asia/Kathmandu", "Pacific/Kiritimati"])
def test_a_moment_names_its_zone(zone: pytest.MonkeyPatch, name: str) -> None:
    zone.setenv("TZ", name)
    time.tzset()
    # the second one of an hour that New York has twice
    for stored in ("2026-11-23T18:00:59.123456Z", "2026-11-01T06:30:00Z"):
        whole = datetime.fromisoformat(stored).replace(microsecond=0)
        assert datetime.fromisoformat(terminal.moment(stored, seconds=True)) == whole
        assert datetime.fromisoformat(terminal.moment(stored)) == whole.replace(second=0)
        assert " " not in terminal.moment(stored)
    assert terminal.moment("2026-11-23T18:00:59Z").endswith("Z") == (name == "UTC")
    assert terminal.moment(None) == "" and terminal.moment("2020\n") == "2020\\n"


def test_names_that_differ_look_different(capsys: pytest.CaptureFixture[str]) -> None:
    long = "qwen2.5-coder-7b-instruct-of-the-department-of-" + "x" * 17
    names = [long[:-1] + "a", long[:-1] + "b", long[:31] + "y" + long[32:], "a" * 41, "short", "short", ""]
    terminal.table(("name", "state"), [(name, "ready") for name in names])
    lines = capsys.readouterr().out.splitlines()
    cells = [line[: lines[0].index("STATE")].rstrip() for line in lines[1:]]
    assert len(set(cells)) == len(set(names))
    assert all(len(cell) < 64 for cell in cells) and "a" * 41 not in cells
    assert {line.index("ready") for line in lines[1:]} == {lines[0].index("STATE")}
    terminal.table(("name", "state"), [])
    assert capsys.readouterr().out == "NAME  STATE\n"


def test_what_is_cut_shows_both_its_ends() -> None:
    assert terminal.short("abcdefghij", 10) == "abcdefghij"
    assert terminal.short("abcdefghijk", 10) == "abcde…hijk"
    assert [len(terminal.short("abcdefghijk", most)) for most in range(1, 11)] == [*range(1, 11)]
    assert terminal.begins("0123456789abcdef0") == "0123456789abcde…"  # a serial number is named by its beginning


def test_a_bar_fits_its_terminal() -> None:
    told = (" 48 %", "  45.0 MiB of 93.8 MiB", "  1234 s left")
    for label in (LABEL, "importing 通义千问二五编码模型七十亿参数指令版.gguf", "x", ""):
        for room in range(0, 130):
            line = terminal._bar(label, 0.48, told, room)
            assert terminal._width(line) <= room or room < 5
            assert "48 %" in line or room < 6
    whole = terminal._bar(LABEL, 0.5, told, 200)
    assert whole == f"{LABEL} [{'#' * 15}{'.' * 15}] {''.join(told)}"
    at_80 = terminal._bar(LABEL, 0.48, told, 79)
    assert at_80.startswith("importing Qwen") and at_80.endswith(told[2]) and "Q4_1.gguf" in at_80
    at_40 = terminal._bar(LABEL, 0.48, told, 39)
    assert at_40.startswith("importing") and ".gguf" in at_40 and "48 %" in at_40 and len(at_40) <= 39


def test_a_bar_is_drawn_over_itself(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setattr(terminal, "_columns", lambda: 60)
    bar = terminal.Progress(LABEL)
    for done in range(0, 1001, 100):
        bar.at(done << 20, 1000 << 20)
    bar.end()
    drawn = re.sub(r"\x1b\[K", "", capsys.readouterr().err).split("\r")
    assert len(drawn) == 13 and all(len(line) < 60 for line in drawn)
    monkeypatch.setattr(os, "get_terminal_size", lambda _: os.terminal_size((0, 0)))
    monkeypatch.undo()
    assert terminal._columns() > 0
