"""`llmctl doctor` where the daemon does not answer: why, as systemd has it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from scripted_systemd import Systemd

from llmd.api.cli import doctor, unit
from llmd.api.cli.main import main


@pytest.fixture
def away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """Doctor's first check; the unit has these properties."""
    fake = Systemd.installed(tmp_path, monkeypatch)
    monkeypatch.setattr(doctor, "LOOK_SECONDS", 0.0)
    monkeypatch.setattr(doctor, "WORDS_SECONDS", 0.05)

    def ask(**properties: str) -> dict[str, Any]:
        fake.properties = properties
        done = CliRunner().invoke(main, ["--socket", str(tmp_path / "none"), "doctor", "--json"])
        assert done.exit_code == 3, done.output
        check: dict[str, Any] = json.loads(done.output)["checks"][0]
        assert check["name"] == "daemon" and check["ok"] is False and check["fix"]
        return check

    return ask


@pytest.mark.parametrize(
    ("properties", "message", "fix"),
    [({"ActiveState": "inactive"}, "it is stopped", "systemctl start llmd"),
     ({"ActiveState": "activating", "StatusText": "failed: the disk is full"}, "the disk is full", "do what it says"),
     ({"ActiveState": "activating", "ExecMainStatus": "243"}, "systemd cannot hand in the CA's key", "--none"),
     ({"ActiveState": "activating", "Result": "watchdog"}, "it does not come up (watchdog)", "journalctl"),
     ({"ActiveState": "failed", "Result": "signal"}, "it does not come up (signal)", "journalctl"),
     ({"ActiveState": "active", "StatusText": "ready: a"}, "no daemon here", "systemctl start llmd")],
)  # fmt: skip
def test_why_nobody_answers(
    away: Callable[..., dict[str, Any]], properties: dict[str, str], message: str, fix: str
) -> None:
    check = away(**properties)
    assert check["message"].startswith(message) and fix in check["fix"]


def test_without_systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, away: Callable[..., dict[str, Any]]) -> None:
    monkeypatch.setattr(unit, "RUNS", tmp_path / "none")
    assert away()["message"].startswith("no daemon here")
