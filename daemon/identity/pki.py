"""The built-in certificate authority: it works for years without internet.

Root (10 years) → issuer (2 years) → the server's certificate (30 days, renewed at two thirds) and clients'
certificates. The issuer's revocation list is valid for 7 days and signed anew every day: one that ran out would lock
every client out.

Identity is one URI in a certificate's subject alternative names, `llmd://NODE/client/NAME`; the common name means
nothing. Roles live in the state database, never in a certificate. This is the only file that imports cryptography.
"""

import ipaddress
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from llmd.daemon import files
from llmd.daemon.errors import BadRequest, Conflict, Forbidden, Unavailable

ROOT_LIFE = timedelta(days=3650)
ISSUER_LIFE = timedelta(days=730)
SERVER_LIFE = timedelta(days=30)
CRL_LIFE = timedelta(days=7)
CRL_RENEW = timedelta(hours=24)
MAX_CLIENT_DAYS = 825
# clocks of clients and server may differ by this much
BACKDATE = timedelta(minutes=5)

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


@dataclass(frozen=True, slots=True)
class PeerIdentity:
    """Who a certificate names. `serial` is its number, `not_after` its end (UTC)."""

    uri: str
    serial: int
    not_after: datetime


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


def peer_identity(der: bytes) -> PeerIdentity:
    """The identity in a client's certificate. Raises Forbidden when it does not hold exactly one `llmd` URI."""
    try:
        certificate = x509.load_der_x509_certificate(der)
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = [uri for uri in names.get_values_for_type(x509.UniformResourceIdentifier) if uri.startswith("llmd://")]
    except (ValueError, x509.ExtensionNotFound, x509.DuplicateExtension) as e:
        raise Forbidden("this client certificate holds no identity") from e
    if len(uris) != 1:
        raise Forbidden("this client certificate must hold exactly one llmd:// URI")
    return PeerIdentity(uris[0], certificate.serial_number, certificate.not_valid_after_utc)


class Authority:
    """The CA in `folder`. Keys are 0600 and every file is replaced whole, so that a crash leaves the old or the new
    one.

    `revoked` holds the serial numbers on the revocation list."""

    def __init__(self, folder: Path, node: str, server_names: Sequence[str], now: Callable[[], datetime]) -> None:
        self._folder, self._node, self._now = folder, node, now
        self._names = _server_names(server_names)
        if not (folder / "issuer.crt").exists():
            self._create()
        self._issuer_key = _load_key(folder / "issuer.key")
        self._issuer = _load_certificate(folder / "issuer.crt")
        self._revoked, self._crl_number, self._crl_made = self._read_crl()
        self.revoked = frozenset(self._revoked)
        self.maintain()

    @classmethod
    def open(
        cls,
        folder: Path,
        node: str,
        server_names: Sequence[str] = (),
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> "Authority":
        """The CA in `folder`, made on first use. `server_names`: DNS names and addresses of the server besides
        localhost's.

        Raises Conflict when its files are damaged or not a CA's.
        """
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)
        try:
            return cls(folder, node, server_names, now)
        except (ValueError, FileNotFoundError) as e:
            raise Conflict("the certificate authority's files are damaged; put back a copy of the pki folder") from e

    # --- what it gives

    @property
    def ca_pem(self) -> bytes:
        """The root's certificate: what clients trust."""
        return (self._folder / "ca.crt").read_bytes()

    @property
    def server_not_after(self) -> datetime:
        return _load_certificate(self._folder / "server.crt").not_valid_after_utc

    @property
    def crl_not_after(self) -> datetime:
        return self._crl_made + CRL_LIFE

    def issue_client(self, name: str, days: int = 90) -> IssuedClient:
        """A certificate for `name`. Raises BadRequest for a name or days it does not take, Unavailable for a wrong
        clock."""
        if not _NAME.fullmatch(name):
            raise BadRequest(
                "a client's name is 1 to 64 lower-case letters, digits, dots, hyphens and underscores", param="name"
            )
        if not 1 <= days <= MAX_CLIENT_DAYS:
            raise BadRequest(f"days takes 1 to {MAX_CLIENT_DAYS}", param="days")
        self._check_clock()
        uri = f"llmd://{self._node}/client/{name}"
        key = ec.generate_private_key(ec.SECP256R1())
        end = min(self._now() + timedelta(days=days), self._issuer.not_valid_after_utc)
        certificate = self._leaf(key, name, [x509.UniformResourceIdentifier(uri)], ExtendedKeyUsageOID.CLIENT_AUTH, end)
        return IssuedClient(
            name,
            uri,
            certificate.serial_number,
            certificate.not_valid_before_utc,
            certificate.not_valid_after_utc,
            _pem(certificate) + _pem(self._issuer),
            _key_pem(key),
        )

    def revoke(self, serials: Iterable[int]) -> None:
        """Put certificates on the revocation list, for ever. On disk when it returns; the caller reloads TLS."""
        now = self._now()
        for serial in serials:
            self._revoked.setdefault(serial, now)
        self.revoked = frozenset(self._revoked)
        self._sign_crl()

    def maintain(self) -> bool:
        """Renew what is due: the revocation list daily, the server's certificate at two thirds of its life or when its
        names change. True: files changed, and the caller reloads TLS."""
        changed = False
        if self._now() - self._crl_made >= CRL_RENEW or not (self._folder / "crl.pem").exists():
            self._sign_crl()
            changed = True
        if self._server_due():
            self._issue_server()
            changed = True
        return changed

    # --- making certificates

    def _create(self) -> None:
        root_key, issuer_key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
        root_name = _named(f"llmd root {self._node}")
        root = self._authority(root_key.public_key(), root_name, root_key, root_name, None, ROOT_LIFE, 1)
        issuer = self._authority(
            issuer_key.public_key(), _named(f"llmd issuer {self._node}"), root_key, root_name, root, ISSUER_LIFE, 0
        )
        files.write(self._folder / "root.key", _key_pem(root_key), 0o600)
        files.write(self._folder / "ca.crt", _pem(root), 0o644)
        files.write(self._folder / "clients-ca.crt", _pem(root) + _pem(issuer), 0o644)
        files.write(self._folder / "issuer.key", _key_pem(issuer_key), 0o600)
        # last: its presence says that all the others are there
        files.write(self._folder / "issuer.crt", _pem(issuer), 0o644)

    def _authority(
        self,
        key: ec.EllipticCurvePublicKey,
        subject: x509.Name,
        signer: ec.EllipticCurvePrivateKey,
        issuer: x509.Name,
        parent: x509.Certificate | None,
        life: timedelta,
        path_length: int,
    ) -> x509.Certificate:
        usage = _usage(key_cert_sign=True, crl_sign=True)
        builder = self._builder(key, subject, issuer, self._now() + life, signer.public_key())
        return (
            builder.add_extension(x509.BasicConstraints(True, path_length), critical=True)
            .add_extension(usage, critical=True)
            .sign(signer, hashes.SHA256())
        )

    def _leaf(
        self,
        key: ec.EllipticCurvePrivateKey,
        name: str,
        names: Sequence[x509.GeneralName],
        purpose: x509.ObjectIdentifier,
        end: datetime,
    ) -> x509.Certificate:
        builder = self._builder(
            key.public_key(), _named(name), self._issuer.subject, end, self._issuer_key.public_key()
        )
        return (
            builder.add_extension(x509.BasicConstraints(False, None), critical=True)
            .add_extension(_usage(digital_signature=True), critical=True)
            .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .sign(self._issuer_key, hashes.SHA256())
        )

    def _builder(
        self,
        key: ec.EllipticCurvePublicKey,
        subject: x509.Name,
        issuer: x509.Name,
        end: datetime,
        signer: ec.EllipticCurvePublicKey,
    ) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(self._now() - BACKDATE)
            .not_valid_after(end)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer), critical=False)
        )

    def _check_clock(self) -> None:
        if self._now() < self._issuer.not_valid_before_utc:
            raise Unavailable("this machine's clock is before the CA was made; set it, then try again")
        if self._now() >= self._issuer.not_valid_after_utc:
            raise Unavailable("the CA's issuing certificate has run out")

    # --- the server's certificate

    def _server_due(self) -> bool:
        file = self._folder / "server.crt"
        if not file.exists() or not (self._folder / "server.key").exists():
            return True
        certificate = _load_certificate(file)
        life = certificate.not_valid_after_utc - certificate.not_valid_before_utc
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        return self._now() >= certificate.not_valid_before_utc + life * 2 / 3 or list(names) != self._names

    def _issue_server(self) -> None:
        self._check_clock()
        key = ec.generate_private_key(ec.SECP256R1())
        end = min(self._now() + SERVER_LIFE, self._issuer.not_valid_after_utc)
        certificate = self._leaf(key, "llmd server", self._names, ExtendedKeyUsageOID.SERVER_AUTH, end)
        # one file holds both: a crash between two files would leave a key that does not fit
        pem = _key_pem(key) + _pem(certificate) + _pem(self._issuer)
        files.write(self._folder / "server.key", pem, 0o600)
        files.write(self._folder / "server.crt", _pem(certificate) + _pem(self._issuer), 0o644)

    # --- the revocation list

    def _read_crl(self) -> tuple[dict[int, datetime], int, datetime]:
        """Revoked serials with their times, the list's number, and when it was made."""
        file = self._folder / "crl.pem"
        if not file.exists():
            return {}, 0, datetime.fromtimestamp(0, UTC)
        crl = x509.load_pem_x509_crl(file.read_bytes())
        number = crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
        return {r.serial_number: r.revocation_date_utc for r in crl}, number, crl.last_update_utc

    def _sign_crl(self) -> None:
        now = self._now().replace(microsecond=0)
        # OpenSSL takes the list with the later date, in whole seconds: two lists of one second would leave the older in
        # force
        made = max(now - BACKDATE, self._crl_made + timedelta(seconds=1))
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self._issuer.subject)
            .last_update(made)
            .next_update(made + CRL_LIFE)
            .add_extension(x509.CRLNumber(self._crl_number + 1), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._issuer_key.public_key()), critical=False
            )
        )
        for serial, when in self._revoked.items():
            entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(when).build()
            builder = builder.add_revoked_certificate(entry)
        pem = builder.sign(self._issuer_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
        files.write(self._folder / "crl.pem", pem, 0o644)
        self._crl_number, self._crl_made = self._crl_number + 1, made


def _server_names(given: Sequence[str]) -> list[x509.GeneralName]:
    names: list[x509.GeneralName] = []
    for name in dict.fromkeys(["localhost", "127.0.0.1", "::1", *given]):
        try:
            names.append(x509.IPAddress(ipaddress.ip_address(name)))
        except ValueError:
            names.append(x509.DNSName(name))
    return names


def _usage(**given: bool) -> x509.KeyUsage:
    kinds = ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
             "key_cert_sign", "crl_sign", "encipher_only", "decipher_only")  # fmt: skip
    return x509.KeyUsage(**{kind: given.get(kind, False) for kind in kinds})


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])])


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _load_certificate(file: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(file.read_bytes())


def _load_key(file: Path) -> ec.EllipticCurvePrivateKey:
    key = serialization.load_pem_private_key(file.read_bytes(), None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ValueError("not an elliptic-curve key")
    return key
