"""Certificates, keys and revocation lists: how they are made, and read from PEM. No files and no clock.

Root → issuer → the server's and the clients' certificates, all on P-256. The root's certificate names the node for
ever. This is the only file that imports cryptography.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from ipaddress import ip_address

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from llmd.daemon.errors import ClientUnknown

Key = ec.EllipticCurvePrivateKey
Certificate = x509.Certificate
RevocationList = x509.CertificateRevocationList
CLIENT, SERVER = ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH

SCHEME = "llmd://"
_ROOT = "llmd root "
_PEM = re.compile(rb"-----BEGIN ([A-Z0-9 ]+)-----.*?-----END \1-----", re.DOTALL)


@dataclass(frozen=True, slots=True)
class PeerIdentity:
    """Who a certificate names. `serial` is its number, `not_after` its end (UTC)."""

    uri: str
    serial: int
    not_after: datetime

    @property
    def name(self) -> str:
        """As the certificate claims it; whether it is ours, and known, `principal.py` says."""
        return self.uri.rpartition("/client/")[2]


@dataclass(frozen=True, slots=True)
class Span:
    """A certificate's life (UTC)."""

    begin: datetime
    end: datetime


@dataclass(frozen=True, slots=True)
class Signer:
    """A certificate with its key: a root, an issuer, a server."""

    key: Key
    certificate: Certificate

    @property
    def span(self) -> Span:
        return Span(self.certificate.not_valid_before_utc, self.certificate.not_valid_after_utc)

    def valid(self, at: datetime) -> bool:
        return self.span.begin <= at < self.span.end

    @property
    def pem(self) -> bytes:
        """The key, then the certificate: one file, so that no crash leaves a key that does not fit."""
        return key_pem(self.key) + pem(self.certificate)


def peer_identity(der: bytes) -> PeerIdentity:
    """The identity in a client's certificate. Raises ClientUnknown when it does not hold exactly one `llmd` URI."""
    try:
        certificate = x509.load_der_x509_certificate(der)
        uris = _uris(certificate)
    except (ValueError, x509.DuplicateExtension) as e:
        raise ClientUnknown("this client certificate holds no identity") from e
    if len(uris) != 1:
        raise ClientUnknown("this client certificate must hold exactly one llmd:// URI")
    return PeerIdentity(uris[0], certificate.serial_number, certificate.not_valid_after_utc)


def node(root: Certificate) -> str:
    """The node that a root was made for: its URI, `llmd://NODE`; of an older root without one, its name's end."""
    uris = _uris(root)
    if uris:
        return uris[0].removeprefix(SCHEME)
    names = root.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value).removeprefix(_ROOT) if names else ""


def server_names(given: Sequence[str]) -> list[x509.GeneralName]:
    """DNS names and addresses, each once, in order."""
    names: list[x509.GeneralName] = []
    for name in dict.fromkeys(given):
        try:
            names.append(x509.IPAddress(ip_address(name)))
        except ValueError:
            names.append(x509.DNSName(name))
    return names


def alternative_names(certificate: Certificate) -> list[x509.GeneralName]:
    """Empty where it has none."""
    try:
        return list(certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
    except x509.ExtensionNotFound:
        return []


def _uris(certificate: Certificate) -> list[str]:
    names = x509.GeneralNames(alternative_names(certificate))
    return [uri for uri in names.get_values_for_type(x509.UniformResourceIdentifier) if uri.startswith(SCHEME)]


# --- making


def new_root(of: str, span: Span) -> Signer:
    """The root of node `of`."""
    key, name = ec.generate_private_key(ec.SECP256R1()), _named(_ROOT + of)
    builder = _builder(key.public_key(), name, name, span, key.public_key())
    names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(SCHEME + of)])
    return Signer(key, _authority(builder, 1).add_extension(names, critical=False).sign(key, hashes.SHA256()))


def new_issuer(of: str, root: Signer, span: Span) -> Signer:
    """Its name is its own: two issuers of one root are never taken for each other."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = _named(f"llmd issuer {x509.random_serial_number():x}"[:20] + f" {of}")
    builder = _builder(key.public_key(), name, root.certificate.subject, span, root.key.public_key())
    return Signer(key, _authority(builder, 0).sign(root.key, hashes.SHA256()))


def new_client(uri: str, name: str, issuer: Signer, span: Span) -> Signer:
    return _leaf(issuer, name, [x509.UniformResourceIdentifier(uri)], CLIENT, span)


def new_server(names: Sequence[x509.GeneralName], issuer: Signer, span: Span) -> Signer:
    return _leaf(issuer, "llmd server", names, SERVER, span)


def new_list(issuer: Signer, revoked: Mapping[int, datetime], number: int, span: Span) -> RevocationList:
    """`revoked`: serial number to the moment of its revocation. `number` only ever grows."""
    authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.key.public_key())
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(issuer.certificate.subject)
        .last_update(span.begin)
        .next_update(span.end)
        .add_extension(x509.CRLNumber(number), critical=False)
        .add_extension(authority, critical=False)
    )
    for serial, when in revoked.items():
        entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(when).build()
        builder = builder.add_revoked_certificate(entry)
    return builder.sign(issuer.key, hashes.SHA256())


def _leaf(
    issuer: Signer, name: str, names: Sequence[x509.GeneralName], purpose: x509.ObjectIdentifier, span: Span
) -> Signer:
    key = ec.generate_private_key(ec.SECP256R1())
    builder = _builder(key.public_key(), _named(name), issuer.certificate.subject, span, issuer.key.public_key())
    certificate = (
        builder.add_extension(x509.BasicConstraints(False, None), critical=True)
        .add_extension(_usage(digital_signature=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(issuer.key, hashes.SHA256())
    )
    return Signer(key, certificate)


def _authority(builder: x509.CertificateBuilder, path_length: int) -> x509.CertificateBuilder:
    usage = _usage(key_cert_sign=True, crl_sign=True)
    return builder.add_extension(x509.BasicConstraints(True, path_length), critical=True).add_extension(
        usage, critical=True
    )


def _builder(
    key: ec.EllipticCurvePublicKey, subject: x509.Name, issuer: x509.Name, span: Span, signer: ec.EllipticCurvePublicKey
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(span.begin)
        .not_valid_after(span.end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer), critical=False)
    )


def _usage(**given: bool) -> x509.KeyUsage:
    kinds = ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
             "key_cert_sign", "crl_sign", "encipher_only", "decipher_only")  # fmt: skip
    return x509.KeyUsage(**{kind: given.get(kind, False) for kind in kinds})


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])])


# --- PEM, and what belongs together


def pem(certificate: Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def key_pem(key: Key) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def list_pem(revoked: RevocationList) -> bytes:
    return revoked.public_bytes(serialization.Encoding.PEM)


def read(data: bytes) -> list[Key | Certificate | RevocationList]:
    """What PEM text holds, in order. Raises ValueError for damage, for nothing, and for what is none of the three."""
    found: list[Key | Certificate | RevocationList] = []
    for block in _PEM.finditer(data):
        match block[1]:
            case b"CERTIFICATE":
                found.append(x509.load_pem_x509_certificate(block[0]))
            case b"X509 CRL":
                found.append(x509.load_pem_x509_crl(block[0]))
            case b"PRIVATE KEY" | b"EC PRIVATE KEY":
                key = serialization.load_pem_private_key(block[0], None)
                if not isinstance(key, Key):
                    raise ValueError("not an elliptic-curve key")
                found.append(key)
            case _:
                raise ValueError("neither a key, a certificate nor a revocation list")
    if not found or _PEM.sub(b"", data).strip():
        raise ValueError("not PEM, or cut off")
    return found


def fits(key: Key, certificate: Certificate) -> bool:
    return key.public_key() == certificate.public_key()


def signed_by(certificate: Certificate, issuer: Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def list_signed_by(revoked: RevocationList, issuer: Certificate) -> bool:
    key = issuer.public_key()
    return (
        revoked.issuer == issuer.subject
        and isinstance(key, ec.EllipticCurvePublicKey)
        and revoked.is_signature_valid(key)
    )


def list_number(revoked: RevocationList) -> int:
    """0 where it has none."""
    try:
        return revoked.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
    except x509.ExtensionNotFound:
        return 0


def is_authority(certificate: Certificate) -> bool:
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        return False


def serves(certificate: Certificate) -> bool:
    """Whether it is a server's."""
    try:
        return SERVER in certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return False
