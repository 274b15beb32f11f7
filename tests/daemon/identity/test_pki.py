"""The CA: what it issues, revokes and renews, and what its files survive."""

import ssl
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from llmd.daemon.errors import BadRequest, Conflict, Forbidden, Unavailable
from llmd.daemon.identity import tls
from llmd.daemon.identity.pki import Authority, peer_identity


class Clock:
    def __init__(self) -> None:
        self.time = datetime.now(UTC)

    def __call__(self) -> datetime:
        return self.time


def test_it_makes_everything_once_and_keeps_keys_to_itself(tmp_path: Path) -> None:
    first = Authority.open(tmp_path / "pki", "node")
    made = (tmp_path / "pki" / "ca.crt").read_bytes()
    again = Authority.open(tmp_path / "pki", "node")
    assert (tmp_path / "pki" / "ca.crt").read_bytes() == made == first.ca_pem == again.ca_pem
    for key in (tmp_path / "pki").glob("*.key"):
        assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "pki").stat().st_mode) == 0o700


def test_a_clients_certificate_names_it_once(tmp_path: Path) -> None:
    issued = Authority.open(tmp_path, "node").issue_client("alice", 10)
    certificate = x509.load_pem_x509_certificate(issued.certificate_pem)
    peer = peer_identity(certificate.public_bytes(serialization.Encoding.DER))
    assert (peer.uri, peer.serial) == ("llmd://node/client/alice", issued.serial)
    assert timedelta(days=9) < peer.not_after - datetime.now(UTC) <= timedelta(days=10)


@pytest.mark.parametrize("name", ["", "A", "a b", "-a", "../x", "a" * 65, "é", "a\n", "a/b"])
def test_names_that_could_be_something_else_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(BadRequest):
        Authority.open(tmp_path, "node").issue_client(name)


@pytest.mark.parametrize("days", [0, -1, 826])
def test_lives_are_bounded(tmp_path: Path, days: int) -> None:
    with pytest.raises(BadRequest, match="days"):
        Authority.open(tmp_path, "node").issue_client("a", days)


def test_what_is_no_identity_is_refused(tmp_path: Path) -> None:
    Authority.open(tmp_path, "node")
    server = x509.load_pem_x509_certificate((tmp_path / "server.crt").read_bytes())
    for der in (b"", b"garbage", server.public_bytes(serialization.Encoding.DER)):
        with pytest.raises(Forbidden):
            peer_identity(der)


def test_revocation_outlives_a_restart_and_numbers_only_grow(tmp_path: Path) -> None:
    authority = Authority.open(tmp_path, "node")
    serials = [authority.issue_client("a").serial for _ in range(3)]
    authority.revoke(serials[:2])
    number = _crl_number(tmp_path)
    again = Authority.open(tmp_path, "node")
    assert again.revoked == frozenset(serials[:2])
    again.revoke(serials[2:])
    assert _crl_number(tmp_path) > number
    assert again.revoked == frozenset(serials)


def _crl_number(folder: Path) -> int:
    crl = x509.load_pem_x509_crl((folder / "crl.pem").read_bytes())
    return crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number


def test_two_hundred_days_without_a_moment_of_expiry(tmp_path: Path) -> None:
    clock = Clock()
    authority = Authority.open(tmp_path, "node", now=clock)
    for _ in range(200 * 2):
        clock.time += timedelta(hours=12)
        authority.maintain()
        crl = x509.load_pem_x509_crl((tmp_path / "crl.pem").read_bytes())
        assert crl.next_update_utc is not None and crl.next_update_utc - clock.time > timedelta(days=5)
        assert authority.server_not_after - clock.time > timedelta(days=9)


def test_new_server_names_make_a_new_certificate(tmp_path: Path) -> None:
    Authority.open(tmp_path, "node")
    before = (tmp_path / "server.crt").read_bytes()
    Authority.open(tmp_path, "node")
    assert (tmp_path / "server.crt").read_bytes() == before
    Authority.open(tmp_path, "node", ["llm.example", "10.0.0.7"])
    server = x509.load_pem_x509_certificate((tmp_path / "server.crt").read_bytes())
    names = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert "llm.example" in names.get_values_for_type(x509.DNSName)


def test_a_clock_before_the_ca_issues_nothing(tmp_path: Path) -> None:
    clock = Clock()
    authority = Authority.open(tmp_path, "node", now=clock)
    clock.time -= timedelta(days=400)
    with pytest.raises(Unavailable, match="clock"):
        authority.issue_client("a")


@pytest.mark.parametrize("file", ["issuer.key", "issuer.crt", "crl.pem", "server.crt"])
def test_damaged_files_are_named_as_such(tmp_path: Path, file: str) -> None:
    Authority.open(tmp_path, "node")
    (tmp_path / file).write_bytes(b"garbage")
    with pytest.raises(Conflict, match="damaged"):
        Authority.open(tmp_path, "node")


def test_a_reload_that_fails_keeps_the_old(tmp_path: Path) -> None:
    Authority.open(tmp_path, "node")
    context = tls.server_context(tmp_path)
    assert context.minimum_version is ssl.TLSVersion.TLSv1_3 and context.num_tickets == 0
    (tmp_path / "crl.pem").write_bytes(b"garbage")
    with pytest.raises(Conflict):
        tls.reload(context, tmp_path)
