"""The CA's folder: what its files hold, and whether they belong together.

root.key     the root's key and certificate; without it everything works until a new issuer is due. systemd may hand it
             in instead (LoadCredential=root.key:FILE), from where only root reads
ca.crt       the root's certificate: what clients trust
issuers.key  every issuer's key and certificate, the oldest first
server.key   the server's key, its certificate and that one's issuer
server.crt   the same without the key
crl.pem      each issuer's revocation list

Where two things must be replaced together, one file holds both: no crash leaves a key that does not fit.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llmd.daemon import atomic
from llmd.daemon.identity import certificates
from llmd.daemon.identity.certificates import Certificate, Key, RevocationList, Signer
from llmd.daemon.machine import systemd

ROOT_KEY, CA, ISSUERS, SERVER_KEY, SERVER, LISTS = (
    "root.key", "ca.crt", "issuers.key", "server.key", "server.crt", "crl.pem",
)  # fmt: skip
_KEYS = (ROOT_KEY, ISSUERS, SERVER_KEY)
_ISSUERS_FIX = "put back a copy; or move it away and restart llmd, which makes a new issuer"


@dataclass(frozen=True, slots=True)
class Damage:
    """A file that does not do, and what to type or do. `heals`: the next start makes it anew. `stops`: llmd does not
    start with it."""

    file: str
    what: str
    fix: str
    heals: bool = False
    stops: bool = False

    def __str__(self) -> str:
        return f"{self.file} {self.what}: {self.fix}"


@dataclass(frozen=True, slots=True)
class Contents:
    """What could be read, and what is wrong with the rest."""

    root: Certificate | None
    root_key: Key | None
    issuers: tuple[Signer, ...]
    server: Signer | None
    lists: tuple[RevocationList, ...]
    damages: tuple[Damage, ...]

    @property
    def signer(self) -> Signer | None:
        """The root, where its key is here."""
        return Signer(self.root_key, self.root) if self.root and self.root_key else None


class _Wrong(Exception):
    """Why a file does not do, as in `is empty`."""


def is_new(folder: Path) -> bool:
    """No CA was ever made here."""
    own = (CA, ISSUERS, "issuer.key", "issuer.crt")
    return not root_key(folder).exists() and not any((folder / name).exists() for name in own)


def root_key(folder: Path) -> Path:
    """Where the root's key is, or would be."""
    return systemd.credential(ROOT_KEY) or folder / ROOT_KEY


def read(folder: Path) -> Contents:
    """Every file, held against the others. Raises OSError when the folder cannot be read."""
    damages = [
        Damage(name, "may be read or written by others", f"chmod 600 {folder / name}", stops=True)
        for name in _KEYS
        if (folder / name).exists() and atomic.exposed(folder / name)
    ]
    key, kept, root_damages = _root_key(folder)
    issuers, issuer_damages = _issuers(folder)
    if kept and issuers and _has_root_of(folder, issuers) and not _all_of(issuers, kept):
        key, kept, root_damages = None, None, [_root_damage("is another CA's")]
    root, ca_damages = _root(folder, kept)
    if root and key and not certificates.fits(key, root):
        root_damages, key = [_root_damage("does not belong to ca.crt")], None
    if root and not _all_of(issuers, root):
        issuers, issuer_damages = (), [Damage(ISSUERS, "is another CA's", _ISSUERS_FIX, stops=True)]
    server, server_damages = _server(folder, issuers)
    lists, list_damages = _lists(folder, issuers)
    found = (*damages, *ca_damages, *root_damages, *issuer_damages, *server_damages, *list_damages)
    return Contents(root, key, issuers, server, lists, found)


def _root_key(folder: Path) -> tuple[Key | None, Certificate | None, list[Damage]]:
    if not root_key(folder).exists():
        return None, None, []
    try:
        match _objects(root_key(folder)):
            case [Key() as key]:  # of a CA made before the certificate stood beside it
                return key, None, []
            case [Key() as key, Certificate() as root] if certificates.fits(key, root):
                return key, root, []
        raise _Wrong("does not hold the root's key and certificate")
    except _Wrong as e:
        return None, None, [_root_damage(str(e))]


def _root_damage(what: str) -> Damage:
    return Damage(ROOT_KEY, what, "put back a copy: without it no new issuer can be made")


def _root(folder: Path, kept: Certificate | None) -> tuple[Certificate | None, list[Damage]]:
    """`kept`: the certificate that stands beside the root's key."""
    heal = "restart llmd: it is made anew" if kept else "put back a copy; every client has one"
    try:
        match _objects(folder / CA):
            case [Certificate() as root] if certificates.is_authority(root) and certificates.signed_by(root, root):
                if kept and root != kept:
                    raise _Wrong("is another CA's")
                return root, []
        raise _Wrong("does not hold a root's certificate")
    except _Wrong as e:
        return kept, [Damage(CA, str(e), heal, heals=kept is not None, stops=kept is None)]


def _has_root_of(folder: Path, issuers: Sequence[Signer]) -> bool:
    """Whether ca.crt is the root of the issuers: what differs from both is the stranger."""
    root, _ = _root(folder, None)
    return root is not None and _all_of(issuers, root)


def _all_of(issuers: Sequence[Signer], root: Certificate) -> bool:
    return all(certificates.signed_by(issuer.certificate, root) for issuer in issuers)


def _issuers(folder: Path) -> tuple[tuple[Signer, ...], list[Damage]]:
    if not (folder / ISSUERS).exists():
        heal = "put back a copy; or restart llmd: it makes a new issuer"
        return (), [Damage(ISSUERS, "is missing", heal, heals=True)]
    try:
        return tuple(_signers(_objects(folder / ISSUERS))), []
    except _Wrong as e:
        return (), [Damage(ISSUERS, str(e), _ISSUERS_FIX, stops=True)]


def _signers(found: Sequence[object]) -> list[Signer]:
    signers = []
    for key, certificate in zip(found[::2], found[1::2], strict=False):
        if not isinstance(key, Key) or not isinstance(certificate, Certificate):
            raise _Wrong("does not hold a key and a certificate in turn")
        if not certificates.fits(key, certificate):
            raise _Wrong("holds a key that does not belong to its certificate")
        signers.append(Signer(key, certificate))
    if len(found) % 2:
        raise _Wrong("is cut off")
    return signers


def _server(folder: Path, issuers: Sequence[Signer]) -> tuple[Signer | None, list[Damage]]:
    fix = "restart llmd: it is made anew"
    try:
        match _objects(folder / SERVER_KEY):
            case [Key() as key, Certificate() as certificate, Certificate() as issuer]:
                pass
            case _:
                raise _Wrong("does not hold a key, its certificate and that one's issuer")
        if not certificates.fits(key, certificate):
            raise _Wrong("holds a key that does not belong to its certificate")
        if not certificates.serves(certificate) or not certificates.signed_by(certificate, issuer):
            raise _Wrong("does not hold a server's certificate")
        if issuer not in [own.certificate for own in issuers]:
            raise _Wrong("is another CA's")
    except _Wrong as e:
        return None, [Damage(SERVER_KEY, str(e), fix, heals=True)]
    try:
        if _objects(folder / SERVER) != [certificate, issuer]:
            raise _Wrong("is not the certificate of server.key")
    except _Wrong as e:
        return None, [Damage(SERVER, str(e), fix, heals=True)]
    return Signer(key, certificate), []


def _lists(folder: Path, issuers: Sequence[Signer]) -> tuple[tuple[RevocationList, ...], list[Damage]]:
    fix = "restart llmd: it is made anew from the state database"
    try:
        found = _objects(folder / LISTS)
        lists = tuple(one for one in found if isinstance(one, RevocationList))
        if len(lists) != len(found):
            raise _Wrong("holds more than revocation lists")
        for one in lists:
            if not any(certificates.list_signed_by(one, issuer.certificate) for issuer in issuers):
                raise _Wrong("is another CA's")
        if len({one.issuer for one in lists}) < len(lists):
            raise _Wrong("holds two lists of one issuer")
    except _Wrong as e:
        return (), [Damage(LISTS, str(e), fix, heals=True)]
    return lists, []


def _objects(file: Path) -> list[Key | Certificate | RevocationList]:
    """Raises _Wrong."""
    try:
        data = file.read_bytes()
    except FileNotFoundError:
        raise _Wrong("is missing") from None
    except OSError as e:
        raise _Wrong(f"cannot be read ({e.strerror})") from None
    if not data.strip():
        raise _Wrong("is empty")
    try:
        return certificates.read(data)
    except ValueError:
        raise _Wrong("is damaged") from None
