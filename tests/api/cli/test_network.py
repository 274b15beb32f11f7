"""`llmctl network` and `llmctl ca-key`, and what they write. systemctl is scripted here; packaging/test_appliance.sh
has the real one, and what the kernel makes of it."""

import ipaddress
import json
import os
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from scripted_systemd import Systemd

from llmd.api.cli import credential, network, unit
from llmd.api.cli.connection import DaemonError
from llmd.api.cli.main import main


@pytest.fixture
def systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Systemd:
    return Systemd.installed(tmp_path, monkeypatch)


def run(*arguments: str, code: int = 0, command: str = "network") -> str:
    done = CliRunner().invoke(main, [command, *arguments])
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
    service = systemd.folder / "llmd.service.d" / "network.conf"
    service.write_text(service.read_text() + "IPAddressAllow=10.1.0.0/16\n")
    assert told()[0] is False and "than llmd may answer | take drop-ins" in told()[1]
    run("remove", "10.1.0.0/16")
    (systemd.folder / "llmd.socket.d" / "network.conf").unlink()
    assert told()[0] is False and "than llmd may answer" in told()[1]
    run("remove", "10.0.0.0/8")
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


def test_the_roots_key_from_elsewhere(systemd: Systemd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = tmp_path / "root.key"
    key.write_text("-----BEGIN PRIVATE KEY-----\n")
    key.chmod(0o640)
    assert f"chown root: {key} && chmod 600 {key}" in run(str(key), code=1, command="ca-key")
    key.chmod(0o600)
    assert "systemctl restart llmd" in run(str(key), command="ca-key")
    file = tmp_path / "llmd.service.d" / "credential.conf"
    assert file.read_text().splitlines()[1:] == ["[Service]", f"LoadCredential=root.key:{key}"]
    assert credential.checks()[0]["message"] == f"systemd hands it in from {key}"
    run("--none", command="ca-key")
    assert not file.exists() and credential.checks() == []


@pytest.mark.parametrize(
    ("name", "code", "says"),
    [("none.key", 1, "No such file"), ("", 1, "is no file"), ("a b", 2, "FILE begins at /"),
     ("ca.crt", 1, "holds no private"), ("%h", 2, "FILE begins at /")],
)  # fmt: skip
def test_what_is_no_key_is_refused(systemd: Systemd, tmp_path: Path, name: str, code: int, says: str) -> None:
    (tmp_path / "ca.crt").write_text("-----BEGIN CERTIFICATE-----\n")
    assert says in run(str(tmp_path / name), code=code, command="ca-key")
    assert not list(systemd.folder.rglob("*.conf"))


def test_a_file_or_none(systemd: Systemd) -> None:
    assert "give FILE, or --none" in run(code=2, command="ca-key")
