"""The CA: what it issues, revokes and renews, and what its files and its clock survive."""

import itertools
import stat
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from llmd.daemon import atomic
from llmd.daemon.errors import BadRequest, Conflict, Forbidden, NoSpace, Unavailable
from llmd.daemon.identity import folder
from llmd.daemon.identity.pki import Authority, Revocation, peer_identity
from llmd.daemon.identity.tls import ServerTls

DAY = timedelta(days=1)


class Clock:
    def __init__(self) -> None:
        self.time = datetime.now(UTC)

    def __call__(self) -> datetime:
        return self.time


def certificate(file: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(file.read_bytes())


def lists(at: Path) -> list[x509.CertificateRevocationList]:
    return list(folder.read(at).lists)


def listed(at: Path) -> set[int]:
    """Serial numbers on every list."""
    return set.intersection(*({entry.serial_number for entry in one} for one in lists(at)))


def test_it_makes_everything_once_and_keeps_keys_to_itself(tmp_path: Path) -> None:
    first = Authority.open(tmp_path / "pki", "node")
    made = (tmp_path / "pki" / "ca.crt").read_bytes()
    again = Authority.open(tmp_path / "pki", "node")
    assert (tmp_path / "pki" / "ca.crt").read_bytes() == made == first.ca_pem == again.ca_pem
    assert first.healed == again.healed == () and again.damages() == [] and again.maintain() == []
    for key in (tmp_path / "pki").glob("*.key"):
        assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "pki").stat().st_mode) == 0o700


def test_a_clients_certificate_names_it_once(tmp_path: Path) -> None:
    issued = Authority.open(tmp_path, "node").issue_client("alice", 10)
    leaf = x509.load_pem_x509_certificate(issued.certificate_pem)
    peer = peer_identity(leaf.public_bytes(serialization.Encoding.DER))
    assert (peer.uri, peer.name, peer.serial) == ("llmd://node/client/alice", "alice", issued.serial)
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
    server = certificate(tmp_path / "server.crt")
    for der in (b"", b"garbage", server.public_bytes(serialization.Encoding.DER)):
        with pytest.raises(Forbidden):
            peer_identity(der)


# --- the node and the names


@pytest.mark.parametrize("node", ["first", "n" * 63])
def test_the_node_is_the_one_that_the_ca_was_made_for(tmp_path: Path, node: str) -> None:
    assert Authority.open(tmp_path, node).node == node
    again = Authority.open(tmp_path, "second")
    assert again.node == node and again.issue_client("a").uri == f"llmd://{node}/client/a"


def test_new_server_names_make_a_new_certificate(tmp_path: Path) -> None:
    Authority.open(tmp_path, "node")
    before = (tmp_path / "server.crt").read_bytes()
    Authority.open(tmp_path, "node")
    assert (tmp_path / "server.crt").read_bytes() == before
    authority = Authority.open(tmp_path, "node", ["llm.example", "10.0.0.7"])
    assert authority.names == ["localhost", "127.0.0.1", "::1", "llm.example", "10.0.0.7"]
    names = certificate(tmp_path / "server.crt").extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert "llm.example" in names.get_values_for_type(x509.DNSName)


def test_a_ca_from_before_issuers_were_renewed_goes_on(tmp_path: Path) -> None:
    """Its issuer had two files, its root's key stood alone, and the root had no URI."""
    first = Authority.open(tmp_path, "node")
    alice = first.issue_client("alice")
    first.revoke({alice.serial: alice.not_after})
    key, _, certificate_pem = (tmp_path / "issuers.key").read_bytes().partition(b"-----BEGIN CERTIFICATE")
    (tmp_path / "issuer.key").write_bytes(key)
    (tmp_path / "issuer.key").chmod(0o600)
    (tmp_path / "issuer.crt").write_bytes(b"-----BEGIN CERTIFICATE" + certificate_pem)
    (tmp_path / "clients-ca.crt").write_bytes(first.trust_pem)
    (tmp_path / "issuers.key").unlink()
    root = (tmp_path / "root.key").read_bytes().partition(b"-----BEGIN CERTIFICATE")[0]
    (tmp_path / "root.key").write_bytes(root)
    again = Authority.open(tmp_path, "other")
    assert again.trust_pem == first.trust_pem and again.revoked == {alice.serial} and again.healed == ()
    assert not list(tmp_path.glob("issuer.*")) and not (tmp_path / "clients-ca.crt").exists()


# --- revocation


def test_revocation_outlives_a_restart_and_numbers_only_grow(tmp_path: Path) -> None:
    authority = Authority.open(tmp_path, "node")
    serials = [authority.issue_client("a").serial for _ in range(3)]
    authority.revoke(dict.fromkeys(serials[:2]))
    number = _number(tmp_path)
    again = Authority.open(tmp_path, "node")
    assert again.revoked == frozenset(serials[:2]) == listed(tmp_path)
    again.revoke(dict.fromkeys(serials[2:]))
    assert _number(tmp_path) > number
    (tmp_path / "crl.pem").unlink()
    Authority.open(tmp_path, "node")
    assert _number(tmp_path) > number
    assert again.revoked == frozenset(serials)


def _number(at: Path) -> int:
    return min(one.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number for one in lists(at))


def test_what_the_state_database_knows_is_on_the_list_whatever_became_of_it(tmp_path: Path) -> None:
    now = datetime.now(UTC)
    known = {7: Revocation(now, now + DAY), 8: Revocation(now, now - DAY)}
    Authority.open(tmp_path, "node")
    for damage in (lambda f: f.unlink(), lambda f: f.write_bytes(b"garbage"), lambda f: None):
        damage(tmp_path / "crl.pem")
        authority = Authority.open(tmp_path, "node", revoked=known)
        assert authority.revoked == {7, 8} and listed(tmp_path) == {7}, "one that has ended need not stand there"
    assert Authority.open(tmp_path, "node").revoked == {7}, "and the list alone closes too"


def test_ended_certificates_leave_the_list_with_its_next_renewal_and_come_back_when_the_clock_was_wrong(
    tmp_path: Path,
) -> None:
    clock = Clock()
    authority = Authority.open(tmp_path, "node", now=clock)
    short, long = authority.issue_client("a", 10), authority.issue_client("a", 90)
    authority.revoke({one.serial: one.not_after for one in (short, long)})
    assert listed(tmp_path) == {short.serial, long.serial}
    clock.time += 11 * DAY
    assert authority.maintain() == ["revocation list"] and listed(tmp_path) == {long.serial}
    assert short.serial in authority.revoked
    clock.time -= 11 * DAY
    assert authority.maintain() == ["revocation list"] and listed(tmp_path) == {short.serial, long.serial}


def test_a_revocation_that_cannot_be_written_is_in_force_all_the_same_and_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = Authority.open(tmp_path, "node")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as disk:
        disk.setattr(atomic, "write", full)
        with pytest.raises(NoSpace, match="refused until llmd is restarted"):
            authority.revoke({7: None})
    assert 7 in authority.revoked and listed(tmp_path) == set()
    assert authority.maintain() == ["revocation list"] and listed(tmp_path) == {7}


# --- time


def test_eight_hundred_days_without_a_moment_of_expiry(tmp_path: Path) -> None:
    clock = Clock()
    authority = Authority.open(tmp_path, "node", now=clock)
    renewed: dict[str, int] = {}
    for _ in range(800 * 2):
        clock.time += DAY / 2
        for what in authority.maintain():
            renewed[what] = renewed.get(what, 0) + 1
        for end in authority.ends():
            assert end.not_after - clock.time > 30 * DAY, end
    assert renewed == {"issuer": 2, "server certificate": 10, "revocation list": 800}
    assert len(lists(tmp_path)) == len(folder.read(tmp_path).issuers) == 3
    again = Authority.open(tmp_path, "node", now=clock)
    assert again.healed == () and again.maintain() == []


def test_an_issuer_that_has_ended_keeps_nothing_from_starting(tmp_path: Path) -> None:
    clock = Clock()
    authority = Authority.open(tmp_path, "node", now=clock)
    clock.time += 1000 * DAY
    later = Authority.open(tmp_path, "node", now=clock)
    assert min(end.not_after for end in later.ends()) > clock.time + 30 * DAY
    assert later.issue_client("a").not_after > clock.time + 89 * DAY
    # the root's key is kept elsewhere
    (tmp_path / "root.key").rename(tmp_path / "root.key.away")
    assert later.damages() == [] and authority.root_key_here
    clock.time += 1000 * DAY
    last = Authority.open(tmp_path, "node", now=clock)
    assert not last.root_key_here and ServerTls(last, tmp_path)
    with pytest.raises(Unavailable, match=r"put back root\.key"):
        last.issue_client("a")
    (tmp_path / "root.key.away").rename(tmp_path / "root.key")
    last.reload()
    assert "issuer" in last.maintain() and last.issue_client("a")


@pytest.mark.parametrize("ahead", [200 * DAY, 400 * DAY, 1500 * DAY, 10_000 * DAY])
def test_a_clock_that_was_ahead_heals(tmp_path: Path, ahead: timedelta) -> None:
    clock = Clock()
    authority = Authority.open(tmp_path, "node", now=clock)
    alice, start = authority.issue_client("alice"), clock.time
    authority.revoke({1: start + 90 * DAY})
    for restarts in (False, True):
        clock.time = start + ahead
        authority = Authority.open(tmp_path, "node", now=clock) if restarts else authority
        authority.maintain()
        clock.time = start + DAY
        authority = Authority.open(tmp_path, "node", now=clock) if restarts else authority
        authority.maintain()
        assert all(end.not_after > clock.time + 30 * DAY for end in authority.ends())
        server = certificate(tmp_path / "server.crt")
        issuer = x509.load_pem_x509_certificates((tmp_path / "server.crt").read_bytes())[1]
        for one in (server, issuer):
            assert one.not_valid_before_utc <= clock.time < one.not_valid_after_utc
        assert all(one.last_update_utc <= clock.time for one in lists(tmp_path)) and 1 in listed(tmp_path)
        assert alice.certificate_pem.split(b"-----END")[1].strip()[-64:] in authority.trust_pem
        assert authority.damages() == []


def test_outside_the_roots_life_nothing_is_made(tmp_path: Path) -> None:
    clock = Clock()
    authority = Authority.open(tmp_path, "node", now=clock)
    before, start = _contents(tmp_path), clock.time
    for shift in (-400 * DAY, 4000 * DAY):
        clock.time = start + shift
        assert authority.maintain() == [] and Authority.open(tmp_path, "node", now=clock).maintain() == []
        assert _contents(tmp_path) == before and "clock" in authority.clock_problem()
        with pytest.raises(Unavailable, match="clock"):
            authority.issue_client("a")
    clock.time = start
    assert authority.clock_problem() == "" and authority.issue_client("a")


def _contents(at: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in at.iterdir() if file.is_file()}


# --- damage

OTHER = "another CA's"


def _other(name: str) -> Callable[[Path, Path], None]:
    def put(at: Path, other: Path) -> None:
        (at / name).write_bytes((other / name).read_bytes())

    return put


def _write(name: str, data: bytes) -> Callable[[Path, Path], None]:
    def put(at: Path, _: Path) -> None:
        (at / name).write_bytes(data)

    return put


def _mixed(at: Path, other: Path) -> None:
    """The server's certificate with another server's key."""
    key = (other / "server.key").read_bytes().partition(b"-----BEGIN CERTIFICATE")[0]
    (at / "server.key").write_bytes(key + (at / "server.crt").read_bytes())


def _issuer_mixed(at: Path, other: Path) -> None:
    key = (other / "issuers.key").read_bytes().partition(b"-----BEGIN CERTIFICATE")[0]
    own = (at / "issuers.key").read_bytes().partition(b"-----BEGIN CERTIFICATE")
    (at / "issuers.key").write_bytes(key + own[1] + own[2])


def _client_as_server(at: Path, _: Path) -> None:
    issued = Authority.open(at, "node").issue_client("a")
    (at / "server.key").write_bytes(issued.key_pem + issued.certificate_pem)


# what is done, to which file, and whether the next start makes it anew
DAMAGES = [
    *[(_write(name, data), name, heals)
      for name, heals in (("ca.crt", True), ("issuers.key", False), ("server.key", True), ("server.crt", True),
                          ("crl.pem", True))
      for data in (b"", b"garbage", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")],
    *[(_other(name), name, heals)
      for name, heals in (("ca.crt", True), ("issuers.key", False), ("server.key", True), ("server.crt", True),
                          ("crl.pem", True))],
    (_mixed, "server.key", True), (_issuer_mixed, "issuers.key", False), (_client_as_server, "server.key", True),
    (_write("root.key", b"garbage"), "root.key", None), (_other("root.key"), "root.key", None),
    *[(lambda at, _, name=name: (at / name).unlink(), name, True)
      for name in ("ca.crt", "issuers.key", "server.key", "server.crt", "crl.pem")],
    *[(lambda at, _, name=name: (at / name).chmod(0o640), name, False)
      for name in ("root.key", "issuers.key", "server.key")],
]  # fmt: skip


@pytest.mark.parametrize(("damage", "name", "heals"), DAMAGES, ids=itertools.count())
def test_a_damaged_or_foreign_file_is_found_kept_out_and_repaired_where_it_can_be(
    tmp_path: Path, damage: Callable[[Path, Path], None], name: str, heals: bool | None
) -> None:
    at, other = tmp_path / "pki", tmp_path / "other"
    authority = Authority.open(at, "node")
    Authority.open(other, "node")
    tls = ServerTls(authority, at)
    context, trust, alice = tls.context, authority.trust_pem, authority.issue_client("alice")
    authority.revoke({alice.serial: alice.not_after})
    good = _contents(at)
    damage(at, other)
    assert name in [found.file for found in authority.damages()]
    with pytest.raises(Conflict, match=f"{name} .*; what was loaded before stays in use"):
        tls.reload()
    assert authority.trust_pem == trust and authority.revoked == {alice.serial} and tls.context is context
    if heals is False:
        with pytest.raises(Conflict, match=f"{name} .*: (put back a copy|chmod 600 )"):
            Authority.open(at, "node")
        return
    again = Authority.open(at, "node", revoked=authority.revocations)
    assert name in [found.file for found in again.healed]
    assert ServerTls(again, at) and again.revoked == {alice.serial} == listed(at)
    assert (at / "ca.crt").read_bytes() == good["ca.crt"], "what clients trust stays"
    assert [found.file for found in again.damages()] == (["root.key"] if heals is None else [])
    again.issue_client("bob")


def test_a_ca_certificate_that_nothing_can_make_anew_stops_the_start(tmp_path: Path) -> None:
    Authority.open(tmp_path, "node")
    (tmp_path / "root.key").unlink()
    (tmp_path / "ca.crt").write_bytes(b"")
    with pytest.raises(Conflict, match=r"ca\.crt is empty: put back a copy; every client has one"):
        Authority.open(tmp_path, "node")
    assert (tmp_path / "ca.crt").read_bytes() == b""


def test_a_reload_takes_nothing_of_another_ca(tmp_path: Path) -> None:
    """All of it fits together, but no client of ours has a certificate of it."""
    at, other = tmp_path / "pki", tmp_path / "other"
    authority = Authority.open(at, "node")
    Authority.open(other, "node")
    for name in _contents(other):
        (at / name).write_bytes((other / name).read_bytes())
    with pytest.raises(Conflict, match="another CA's than the one that runs"):
        authority.reload()
    assert authority.ca_pem != (at / "ca.crt").read_bytes()
    with pytest.raises(Conflict):
        authority.reload()


def test_a_reload_makes_a_context_of_its_own_and_keeps_the_old_where_it_fails(tmp_path: Path) -> None:
    authority = Authority.open(tmp_path, "node")
    tls = ServerTls(authority, tmp_path)
    first, seen = tls.context, set()
    for _ in range(20):
        authority.revoke({len(authority.revoked) + 1: None})
        tls.reload()
        stored = tls.context.cert_store_stats()
        assert stored == {"x509": 2, "crl": 0, "x509_ca": 2}, "the root and the issuer: nothing grows"
        seen.add(id(tls.context))
    assert first.cert_store_stats() == stored and id(first) not in seen
    last = tls.context
    (tmp_path / "server.key").write_bytes(b"")
    with pytest.raises(Conflict):
        tls.reload()
    with pytest.raises(Conflict):
        tls.renewed()
    assert tls.context is last


def test_what_openssl_does_not_take_is_not_taken_by_the_ca_either(tmp_path: Path) -> None:
    authority = Authority.open(tmp_path, "node")
    before = authority.trust_pem
    (tmp_path / "away").mkdir()
    Authority.open(tmp_path, "node", now=lambda: datetime.now(UTC) + 400 * DAY)  # another process renewed the issuer

    def refuse(trust: bytes) -> None:
        assert trust != before
        raise Conflict("no")

    with pytest.raises(Conflict):
        authority.reload(refuse)
    assert authority.trust_pem == before
    authority.reload()
    assert authority.trust_pem != before


def test_the_roots_key_may_be_handed_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By systemd, from where only root reads: a new CA's folder gets all but the key from it, too."""
    at, handed = tmp_path / "pki", tmp_path / "credentials"
    handed.mkdir()
    first = Authority.open(at, "node")
    client = first.issue_client("ann")
    (at / "root.key").rename(handed / "root.key")
    assert not Authority.open(at, "node").root_key_here
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(handed))
    assert Authority.open(at, "node").root_key_here and not (at / "root.key").exists()
    for file in at.iterdir():
        file.unlink()
    again = Authority.open(at, "another")
    assert again.ca_pem == first.ca_pem and again.node == "node" and not (at / "root.key").exists()
    assert again.issue_client("ann").uri == client.uri
