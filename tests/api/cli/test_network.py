"""`llmctl network` and what it writes. systemctl is scripted here; packaging/test_appliance.sh has the real one, and
what the kernel makes of it."""

import ipaddress
import json
import os
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from llmd.api.cli import network, unit
from llmd.api.cli.connection import DaemonError
from llmd.api.cli.main import main


class Systemd:
    """What `systemctl show` says of units with these drop-ins."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.reloads = folder, 0
        self.loaded, self.deny, self.listens = "loaded", "0.0.0.0/0 ::/0", "127.0.0.1:8443 (Stream)"

    def lines(self, name: str) -> list[str]:
        file = self.folder / f"{name}.d" / "network.conf"
        return file.read_text().splitlines() if file.exists() else []

    def __call__(self, command: str, *rest: str) -> str:
        if command == "daemon-reload":
            self.reloads += 1
            return ""
        found = {"LoadState": self.loaded, "IPAddressDeny": self.deny, "Listen": self.listens}
        named = [line.partition("=")[2] for line in self.lines(rest[0]) if line.startswith("IPAddressAllow=")]
        every = ["127.0.0.0/8", "::1/128", *(network.ANY if "any" in named else named)]
        found["IPAddressAllow"] = " ".join(every)
        asked = [one.removeprefix("--property=") for one in rest[1:]]
        return "".join(f"{name}={found[name]}\n" for name in asked if name in found)


@pytest.fixture
def systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Systemd:
    fake = Systemd(tmp_path)
    monkeypatch.setattr(unit, "RUNS", tmp_path)
    monkeypatch.setattr(unit, "SYSTEM", tmp_path)
    monkeypatch.setattr(unit, "_systemctl", fake)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    return fake


def run(*arguments: str, code: int = 0) -> str:
    done = CliRunner().invoke(main, ["network", *arguments])
    assert done.exit_code == code, done.output
    return done.output


def told() -> tuple[bool | None, str]:
    (check,) = network.checks()
    return check["ok"], f"{check['message']} | {check['fix']}"


def test_allow_show_and_remove(systemd: Systemd) -> None:
    assert run().startswith("this machine only") and run("show").startswith("this machine only")
    assert (
        run("allow", "10.0.0.0/8", "fd00::/8") == "llmd may be reached from this machine and 10.0.0.0/8 and fd00::/8\n"
    )
    run("allow", "192.0.2.7", "10.0.0.0/8")
    wanted = ["10.0.0.0/8", "fd00::/8", "192.0.2.7/32"]
    assert json.loads(run("show", "--json")) == {"networks": wanted}
    lines = [f"IPAddressAllow={one}" for one in wanted]
    assert systemd.lines("llmd.service") == ["# written by llmctl", "[Service]", *lines]
    assert systemd.lines("llmd.socket") == ["# written by llmctl", "[Socket]", *lines]
    assert systemd.reloads == 2, "what is written holds at once"
    assert "192.0.2.8/32 is not allowed; allowed: 10.0.0.0/8" in run("remove", "192.0.2.8", code=1)
    run("remove", *wanted)
    assert not list(systemd.folder.rglob("*.conf")) and run("show").startswith("this machine only")


@pytest.mark.parametrize(
    ("text", "says"),
    [("10.0.0.1/8", "10.0.0.0/8, or 10.0.0.1"), ("intranet", "is no network"), ("10.0.0.0/33", "is no network"),
     ("10.0.0.0/8\nExecStartPre=+/bin/sh", "is no network")],
)  # fmt: skip
def test_what_is_no_network_is_refused(systemd: Systemd, text: str, says: str) -> None:
    assert says in run("allow", text, code=2) and not list(systemd.folder.rglob("*.conf"))


def test_only_root_and_only_where_it_is_installed(systemd: Systemd, monkeypatch: pytest.MonkeyPatch) -> None:
    systemd.loaded = "not-found"
    for command in (("show",), ("allow", "any")):
        assert "for the installed package" in run(*command, code=1)
    assert network.checks() == []
    systemd.loaded = "loaded"
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert "only root" in run("allow", "any", code=1)


def test_a_file_that_cannot_be_written_leaves_the_old_one(systemd: Systemd, monkeypatch: pytest.MonkeyPatch) -> None:
    run("allow", "10.0.0.0/8")
    before = systemd.lines("llmd.service")

    def full(*_: Any, **__: Any) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    assert "No space left" in run("allow", "10.1.0.0/16", code=1)
    assert systemd.lines("llmd.service") == before and not list(systemd.folder.rglob("*.part"))


def test_doctor(systemd: Systemd) -> None:
    assert told() == (True, "this machine may reach llmd | ")
    systemd.listens = "0.0.0.0:8443 (Stream)"
    ok, said = told()
    assert ok is False and "no other machine may reach llmd | llmctl network allow" in said
    run("allow", "10.0.0.0/8")
    assert told() == (True, "this machine and 10.0.0.0/8 may reach llmd | ")
    run("allow", "any")
    assert told()[0] is None and "any network" in told()[1]
    run("remove", "any")
    systemd.deny = ""
    assert told()[0] is None, "somebody took the unit's own away"


def test_systemctl_that_fails_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(unit, "RUNS", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DaemonError, match="systemctl does not answer"):
        unit.told(unit.SERVICE)
    program = tmp_path / "systemctl"
    program.write_text("#!/bin/sh\necho 'it is away' >&2\nexit 1\n")
    program.chmod(0o755)
    with pytest.raises(DaemonError, match="systemctl show: it is away"):
        unit.told(unit.SERVICE)


def test_networks_are_as_systemd_writes_them() -> None:
    for text in ("10.0.0.0/8", "192.0.2.7", "fd00::/8", "::1"):
        assert network._network(text) == str(ipaddress.ip_network(text))
