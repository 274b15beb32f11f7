"""The built-in certificate authority: it works for years without internet, and its clock may be wrong meanwhile.

Root (10 years) → issuer (2 years; the next one comes at half of that, and both hold until the older ends) → the
server's certificate (120 days, renewed at two thirds) and clients' certificates. Nothing of it comes within 30 days of
its end on a healthy machine, so that whatever does is worth an alarm.

Identity is one URI in a certificate's subject alternative names, `llmd://NODE/client/NAME`; the common name means
nothing. Roles live in the state database, never in a certificate. The node is the root's: it is fixed when the CA is
made.

Revocation: `revoked` is what a connection and every request are held against. The lists in crl.pem are the first
record of it and the state database the second; at a start each completes the other. OpenSSL is not given the lists: one
that has ended, or is not valid yet, refuses everybody, and a refusal inside the handshake names nobody.
"""

import errno
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from llmd.daemon import atomic
from llmd.daemon.errors import BadRequest, Conflict, NoSpace, Unavailable
from llmd.daemon.identity import certificates, folder
from llmd.daemon.identity.certificates import Certificate, PeerIdentity, RevocationList, Signer, Span, peer_identity
from llmd.daemon.identity.folder import Contents, Damage

__all__ = ["Authority", "End", "IssuedClient", "PeerIdentity", "Revocation", "peer_identity"]

ROOT_LIFE = timedelta(days=3650)
ISSUER_LIFE = timedelta(days=730)
SERVER_LIFE = timedelta(days=120)
LIST_LIFE = timedelta(days=60)
LIST_RENEW = timedelta(hours=24)
MAX_CLIENT_DAYS = 825
# clocks of clients and server may differ by this much
BACKDATE = timedelta(minutes=5)
# a new certificate must last longer than the old one by this much
WORTH = timedelta(hours=12)
OWN_NAMES = ("localhost", "127.0.0.1", "::1")

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


@dataclass(frozen=True, slots=True)
class IssuedClient:
    """A new client certificate (PEM: leaf, then issuer) and its private key (PEM), which is kept nowhere else."""

    name: str
    uri: str
    serial: int
    not_before: datetime
    not_after: datetime
    certificate_pem: bytes
    key_pem: bytes


@dataclass(frozen=True, slots=True)
class Revocation:
    """`not_after`: when the certificate would have ended; None where only a list names it."""

    when: datetime
    not_after: datetime | None


@dataclass(frozen=True, slots=True)
class End:
    """Something of the CA's that ends. `kind` is root, issuer, server or list."""

    kind: str
    not_after: datetime


class Authority:
    """The CA in `folder`. Every file is replaced whole and is on disk when a method returns; a crash leaves the old or
    the new one.

    `revoked`: the serial numbers that are refused. `node`: the name in clients' identities. `healed`: what the start
    found damaged and made anew. Every method that writes raises NoSpace and Unavailable.
    """

    def __init__(
        self,
        at: Path,
        node: str,
        server_names: Sequence[str],
        now: Callable[[], datetime],
        revoked: Mapping[int, Revocation],
    ) -> None:
        self._folder, self._now = at, now
        self._names = certificates.server_names([*OWN_NAMES, *server_names])
        new = folder.is_new(at)
        if new:
            self._make_root(node)
        found = folder.read(at)
        stops = [str(damage) for damage in found.damages if damage.stops]
        if stops or found.root is None:
            raise Conflict("; ".join(stops))
        self.healed: tuple[Damage, ...] = () if new else found.damages
        self._root, self.node = found.root, certificates.node(found.root)
        self.revocations = dict(revoked)
        self._issuers: tuple[Signer, ...] = ()
        self._server: Signer | None = None
        self._lists: tuple[RevocationList, ...] = ()
        self._take(found)
        if found.signer and any(damage.file == folder.CA for damage in found.damages):
            self._write(folder.CA, certificates.pem(found.root), 0o644)
        self.maintain()

    @classmethod
    def open(
        cls,
        at: Path,
        node: str,
        server_names: Sequence[str] = (),
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        revoked: Mapping[int, Revocation] | None = None,
    ) -> "Authority":
        """The CA in the folder `at`, made for `node` on first use. `server_names`: DNS names and addresses of the
        server besides localhost's. `revoked`: what the state database knows.

        Raises Conflict when files are damaged that cannot be made anew, or that others may read; it says which, and
        what to do.
        """
        at.mkdir(parents=True, exist_ok=True)
        at.chmod(0o700)
        _adopt(at)
        return cls(at, node, server_names, now, revoked or {})

    # --- what it gives

    @property
    def ca_pem(self) -> bytes:
        """The root's certificate: what clients trust."""
        return certificates.pem(self._root)

    @property
    def trust_pem(self) -> bytes:
        """What clients' certificates are held against: the root, and every issuer."""
        return _trust(self._root, self._issuers)

    @property
    def names(self) -> list[str]:
        """The names and addresses in the server's certificate."""
        held = certificates.alternative_names(self._server.certificate) if self._server else []
        return [str(name.value) for name in held]

    @property
    def root_key_here(self) -> bool:
        return self._signer is not None

    def ends(self) -> list[End]:
        """What is in use: the root, the issuer that signs, the server's certificate, the list that ends first."""
        issuer = self._issuer(self._now()) or (self._issuers[-1] if self._issuers else None)
        lists = [one.next_update_utc for one in self._lists if one.next_update_utc]
        found = [End("root", self._root.not_valid_after_utc)]
        found += [End("issuer", issuer.span.end)] if issuer else []
        found += [End("server", self._server.span.end)] if self._server else []
        return found + ([End("list", min(lists))] if lists else [])

    def end(self, kind: str) -> datetime:
        """Of the root, where there is no such thing."""
        return next((end.not_after for end in self.ends() if end.kind == kind), self._root.not_valid_after_utc)

    def damages(self) -> list[Damage]:
        """What is wrong with the files as they are now. Raises OSError."""
        found = folder.read(self._folder)
        foreign = found.root is not None and found.root != self._root
        return [*found.damages, *([_other_ca()] if foreign else [])]

    def clock_problem(self) -> str:
        """Why nothing can be made or checked now; empty where all is well."""
        now = self._now()
        if now < self._root.not_valid_before_utc:
            return "this machine's clock is before the CA was made; set it"
        if now >= self._root.not_valid_after_utc:
            return "the CA's root certificate has ended, or this machine's clock is ahead; set it"
        return ""

    def issue_client(self, name: str, days: int = 90) -> IssuedClient:
        """A certificate for `name`, which ends with its issuer at the latest. Raises BadRequest for a name or days it
        does not take, Unavailable for a wrong clock and without an issuer."""
        if not _NAME.fullmatch(name):
            raise BadRequest(
                "a client's name is 1 to 64 lower-case letters, digits, dots, hyphens and underscores", param="name"
            )
        if not 1 <= days <= MAX_CLIENT_DAYS:
            raise BadRequest(f"days takes 1 to {MAX_CLIENT_DAYS}", param="days")
        issuer = self._issuer(self._now())
        if issuer is None:
            raise Unavailable(self.clock_problem() or "the issuer has ended; put back root.key, then try again")
        uri = f"{certificates.SCHEME}{self.node}/client/{name}"
        made = certificates.new_client(uri, name, issuer, self._span(timedelta(days=days), issuer.span.end))
        return IssuedClient(
            name,
            uri,
            made.certificate.serial_number,
            made.span.begin,
            made.span.end,
            certificates.pem(made.certificate) + certificates.pem(issuer.certificate),
            certificates.key_pem(made.key),
        )

    def revoke(self, serials: Mapping[int, datetime | None]) -> None:
        """Refuse certificates for ever: serial number to the moment at which it would have ended. They are on the list
        and on disk when it returns; where that fails, they are refused all the same until llmd is restarted."""
        now = self._now()
        for serial, not_after in serials.items():
            self.revocations.setdefault(serial, Revocation(now, not_after))
        self.revoked = frozenset(self.revocations)
        self._changed = True
        try:
            self._sign_lists()
        except Unavailable as e:
            raise type(e)(
                f"{e.message}; the certificates are refused until llmd is restarted, and not for ever: repair it, "
                "then revoke them again"
            ) from e

    def reload(self, accept: Callable[[bytes], None] = lambda _: None) -> None:
        """Take over what is on disk, all of it or nothing. `accept` gets what clients' certificates would be held
        against (`trust_pem`), and raises Conflict where that does not work. Raises Conflict with what is wrong."""
        found = folder.read(self._folder)
        damages = [*found.damages, *([_other_ca()] if found.root and found.root != self._root else [])]
        if damages:
            raise Conflict("; ".join(str(damage) for damage in damages) + "; what was loaded before stays in use")
        accept(_trust(found.root or self._root, found.issuers))
        self._take(found)

    # --- renewal

    def maintain(self) -> list[str]:
        """Renew what is due, and say what was: `issuer`, `server certificate`, `revocation list`. In this order:

        1. outside the root's life nothing is made: the clock is wrong, or nobody can be helped;
        2. an issuer, where none is valid or the newest has lived half its life; the others stay, since a clock that
           was ahead may make one of them the right one again;
        3. the server's certificate, where there is none, its issuer or itself is not valid (ended, or made while the
           clock was ahead), its names are others, or two thirds of its life are over;
        4. the lists, where an issuer has none, one is of the future, somebody was revoked, or a day is over.
        """
        now, done = self._now(), []
        if self.clock_problem():  # 1
            return []
        if self._issuer_due(now) and self._signer is not None:  # 2
            made = certificates.new_issuer(self.node, self._signer, self._span(ISSUER_LIFE, self._signer.span.end))
            issuers = (*self._issuers, made)
            self._write(folder.ISSUERS, b"".join(one.pem for one in issuers), 0o600)
            self._issuers = issuers
            done.append("issuer")
        issuer = self._issuer(now)
        if issuer is not None and self._server_due(now, issuer):  # 3
            self._make_server(issuer)
            done.append("server certificate")
        if self._lists_due(now):  # 4
            self._sign_lists()
            done.append("revocation list")
        return done

    def _issuer(self, now: datetime) -> Signer | None:
        """The newest that is valid."""
        return max((one for one in self._issuers if one.valid(now)), key=lambda one: one.span.begin, default=None)

    def _issuer_due(self, now: datetime) -> bool:
        issuer = self._issuer(now)
        if issuer is None:
            return True
        later = min(now + ISSUER_LIFE, self._root.not_valid_after_utc) - issuer.span.end
        return now >= issuer.span.end - ISSUER_LIFE / 2 and later >= WORTH

    def _server_due(self, now: datetime, issuer: Signer) -> bool:
        server = self._server
        if server is None or not server.valid(now):
            return True
        own = [one for one in self._issuers if certificates.signed_by(server.certificate, one.certificate)]
        if not own or not own[0].valid(now) or certificates.alternative_names(server.certificate) != self._names:
            return True
        later = min(now + SERVER_LIFE, issuer.span.end) - server.span.end
        return now >= server.span.begin + (server.span.end - server.span.begin) * 2 / 3 and later >= WORTH

    def _lists_due(self, now: datetime) -> bool:
        if self._changed or len(self._lists) != len(self._issuers):
            return True
        return any(not one.last_update_utc <= now < one.last_update_utc + LIST_RENEW for one in self._lists)

    def _make_root(self, node: str) -> None:
        root = certificates.new_root(node, self._span(ROOT_LIFE))
        # it stands beside its key, so that ca.crt, which people copy and move, can be made anew
        self._write(folder.ROOT_KEY, root.pem, 0o600)
        self._write(folder.CA, certificates.pem(root.certificate), 0o644)

    def _make_server(self, issuer: Signer) -> None:
        made = certificates.new_server(self._names, issuer, self._span(SERVER_LIFE, issuer.span.end))
        chain = certificates.pem(made.certificate) + certificates.pem(issuer.certificate)
        self._write(folder.SERVER_KEY, certificates.key_pem(made.key) + chain, 0o600)
        self._write(folder.SERVER, chain, 0o644)
        self._server = made

    def _sign_lists(self) -> None:
        """One that has ended leaves the lists: OpenSSL and everybody else refuses it by its date."""
        now = self._now()
        entries = {
            serial: one.when for serial, one in self.revocations.items() if one.not_after is None or one.not_after > now
        }
        # the time keeps it growing where the lists were lost
        number = max([int(1000 * now.timestamp()), *(certificates.list_number(one) + 1 for one in self._lists)])
        span = self._span(LIST_LIFE)
        lists = tuple(certificates.new_list(issuer, entries, number, span) for issuer in self._issuers)
        self._write(folder.LISTS, b"".join(map(certificates.list_pem, lists)), 0o644)
        self._lists, self._changed = lists, False

    # --- what it holds

    def _take(self, found: Contents) -> None:
        self._signer, self._issuers = found.signer, found.issuers
        self._server, self._lists = found.server, found.lists
        listed = _entries(found.lists)
        for serial, when in listed.items():
            self.revocations.setdefault(serial, Revocation(when, None))
        self.revoked = frozenset(self.revocations)
        now = self._now()
        due = {s for s, one in self.revocations.items() if one.not_after is None or one.not_after > now}
        self._changed = any(due - set(_entries([one])) for one in found.lists)

    def _span(self, life: timedelta, end: datetime | None = None) -> Span:
        now = self._now().replace(microsecond=0)
        return Span(now - BACKDATE, min(now + life, end) if end else now + life)

    def _write(self, name: str, data: bytes, mode: int) -> None:
        try:
            atomic.write(self._folder / name, data, mode)
        except OSError as e:
            kind = NoSpace if e.errno in (errno.ENOSPC, errno.EDQUOT) else Unavailable
            raise kind(f"the CA's files cannot be written ({e.strerror})") from e


def _trust(root: Certificate, issuers: Sequence[Signer]) -> bytes:
    return b"".join([certificates.pem(root), *(certificates.pem(issuer.certificate) for issuer in issuers)])


def _entries(lists: Sequence[RevocationList]) -> dict[int, datetime]:
    return {entry.serial_number: entry.revocation_date_utc for one in lists for entry in one}


def _other_ca() -> Damage:
    return Damage(folder.CA, "is another CA's than the one that runs", "put back a copy; or restart llmd to change it")


def _adopt(at: Path) -> None:
    """A CA from before issuers were renewed."""
    key, certificate = at / "issuer.key", at / "issuer.crt"
    if key.exists() and certificate.exists() and not (at / folder.ISSUERS).exists():
        atomic.write(at / folder.ISSUERS, key.read_bytes() + certificate.read_bytes(), 0o600)
    for old in (key, certificate, at / "clients-ca.crt"):
        if (at / folder.ISSUERS).exists():
            old.unlink(missing_ok=True)
