"""What `status` and `doctor` tell of what ends, and of what is wrong."""

import dataclasses
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from llmd.daemon.admin import doctor
from llmd.daemon.audit.offline import verify_file
from llmd.daemon.composition import Daemon
from llmd.daemon.config import Config, ConfigError
from llmd.daemon.machine import confined
from llmd.daemon.machine.groups import Groups

DAY = 86400.0


async def named(daemon: Daemon) -> dict[str, tuple[bool | None, str]]:
    return {
        check["name"]: (check["ok"], check["message"] + " | " + check["fix"])
        for check in await daemon.service.doctor.checks()
    }


async def test_whether_what_reads_models_is_confined(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    ok, said = (await named(daemon))["confinement"]
    assert ok is True and f"(Landlock {confined.landlock()}, seccomp)" in said
    assert (await daemon.service.status())["confinement"] == {
        "landlock": confined.landlock(), "lacks": [], "required": False,
    }  # fmt: skip
    monkeypatch.setattr(confined, "landlock", lambda: 0)
    ok, said = (await named(daemon))["confinement"]
    assert ok is None and "no Landlock" in said and "lsm=landlock" in said


async def test_what_ends_within_thirty_days_is_told_and_nothing_else(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, days in (("long", 400), ("short", 29), ("gone", 1), ("twice", 2), ("twice", 400)):
        await daemon.service.clients.issue(name, days, "test", again=name in daemon.service.clients.roles)
    await daemon.service.clients.issue("revoked", 5, "test")
    await daemon.service.clients.revoke("revoked", "test")
    told = await daemon.state.run(daemon.service.doctor.soon)
    assert sorted((e.kind, e.client) for e in told) == [("client", "gone"), ("client", "short"), ("client", "twice")]
    assert {e.kind for e in await daemon.service.doctor.endings()} == {"root", "issuer", "server", "list", "client"}
    later = time.time() + 3 * DAY
    monkeypatch.setattr(time, "time", lambda: later)
    told = await daemon.state.run(daemon.service.doctor.soon)
    assert sorted(e.client for e in told) == ["gone", "short"], "who has no good one, and not who has another"
    ok, said = (await named(daemon))["client certificates"]
    assert ok is None and "gone" in said and "short" in said and "--again" in said


@pytest.mark.parametrize(
    ("days", "wrong"),
    [(0, set()), (35, {"revocation list"}), (95, {"revocation list", "server certificate"}),
     (3300, {"revocation list", "server certificate", "issuer", "root certificate"})],
)  # fmt: skip
async def test_what_was_not_renewed_is_told_thirty_days_before_its_end(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch, days: float, wrong: set[str]
) -> None:
    class Later(datetime):
        @classmethod
        def now(cls, tz: object = None) -> datetime:  # type: ignore[override]
            return datetime.fromtimestamp(time.time(), UTC) + timedelta(days=days)

    monkeypatch.setattr(doctor, "datetime", Later)
    names = {"root certificate", "issuer", "server certificate", "revocation list"}
    assert {name for name, (ok, _) in (await named(daemon)).items() if name in names and ok is False} == wrong


async def test_what_is_wrong_with_files_is_told_with_what_to_do(daemon: Daemon) -> None:
    state = daemon.config.state
    (state / "audit.key").chmod(0o644)
    (state / "pki" / "ca.crt").write_bytes(b"")
    (state / "pki" / "crl.pem").write_bytes(b"garbage")
    (state / "pki" / "issuers.key").chmod(0o604)
    found = await named(daemon)
    for name, said in (("audit.key", "chmod 600"), ("ca.crt", "is empty | restart llmd"), ("crl.pem", "is damaged"),
                       ("issuers.key", "chmod 600")):  # fmt: skip
        assert found[name][0] is False and said in found[name][1], found[name]
    (state / "audit.key").unlink()
    assert "is missing | put back a copy before" in (await named(daemon))["audit.key"][1]
    (state / "pki" / "ca.crt").write_bytes(daemon.authority.ca_pem)
    (state / "pki" / "issuers.key").chmod(0o600)
    (state / "pki" / "root.key").unlink()
    (state / "pki" / "crl.pem").unlink()
    daemon.authority.revoke({})
    daemon.tls.reload()
    ok, said = (await named(daemon))["root.key"]
    assert ok is None and "it is not here; the issuer ends at 20" in said


async def test_rows_of_the_future_and_a_clock_before_the_ca_are_told(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "clock" not in await named(daemon)
    daemon.audit._stamp = lambda: "2099-01-01T00:00:00.000000Z"
    daemon.audit.event("note")
    ok, said = (await named(daemon))["clock"]
    assert ok is None and "2099-01-01" in said
    monkeypatch.setattr(daemon.authority, "_now", lambda: datetime(1990, 1, 1, tzinfo=UTC))
    ok, said = (await named(daemon))["clock"]
    assert ok is False and "before the CA was made" in said


async def test_an_audit_log_that_is_broken_or_cannot_be_checked(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = verify_file(daemon.config.state / "none")

    async def unread() -> object:
        return report

    monkeypatch.setattr(daemon.audit, "verify", unread)
    ok, said = (await named(daemon))["audit"]
    assert ok is False and "could not be checked" in said


async def test_the_configuration_file_as_it_is_now(daemon: Daemon) -> None:
    assert "configuration" not in await named(daemon)
    now = dataclasses.replace(daemon.config, queue=9)
    daemon.current.read = lambda: now
    ok, said = (await named(daemon))["configuration"]
    assert ok is None and said == "changed and not read yet: queue | llmctl reload"
    now = dataclasses.replace(daemon.config, listen="0.0.0.0:1")
    assert "for the next start: listen | systemctl daemon-reload" in (await named(daemon))["configuration"][1]

    def broken() -> Config:
        raise ConfigError("llmd.toml:3: there is no setting 'quue'")

    daemon.current.read = broken
    ok, said = (await named(daemon))["configuration"]
    assert ok is False and "no setting 'quue'; the next start would fail | correct it" in said


@pytest.mark.parametrize("groups", [Groups(), Groups(reason="the kernel does not")], ids=["limits", "none"])
async def test_limits_on_memory_that_there_are_not(daemon: Daemon, groups: Groups) -> None:
    found = (await named(daemon)).get("memory limits")
    assert found is None if not groups.reason else found and found[0] is None and groups.reason in found[1]


async def test_a_key_that_is_handed_in_and_lies_here_too(
    daemon: Daemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = daemon.config.state / "pki" / "root.key"
    (tmp_path / "root.key").write_bytes(key.read_bytes())
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    ok, said = (await named(daemon))["root.key"]
    assert ok is False and said.endswith(f"| rm {key}")
