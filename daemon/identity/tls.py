"""The server's side of mutual TLS: TLS 1.3 and a client certificate always.

Who shows none, or a foreign one, is told so by TLS's own alert. asyncio and uvloop close a connection whose handshake
has failed before that is sent: so what is left to say is handed to whoever runs the handshake (`HANDSHAKE`).
"""

import ssl
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Protocol

from llmd.daemon.errors import Conflict
from llmd.daemon.identity import folder
from llmd.daemon.identity.pki import Authority

NO_CERTIFICATE = "PEER_DID_NOT_RETURN_A_CERTIFICATE"


class Handshake(Protocol):
    """What is told to whoever runs a handshake."""

    def heard(self) -> None:
        """The client has sent something."""

    def computed(self) -> None:
        """It was answered, which costs a signature."""

    def farewell(self, words: bytes, certificate: bool) -> None:
        """It has failed, and this is left to say. `certificate`: for the client's, or for want of one."""


# the one that runs in this context
HANDSHAKE: ContextVar[Handshake | None] = ContextVar("handshake", default=None)


class _Object(ssl.SSLObject):
    outgoing: ssl.MemoryBIO
    incoming: ssl.MemoryBIO

    def do_handshake(self) -> None:
        handshake = HANDSHAKE.get()
        if handshake and self.incoming.pending:
            handshake.heard()
        try:
            super().do_handshake()
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            if handshake and self.outgoing.pending:
                handshake.computed()
            raise
        except ssl.SSLError as e:
            said = self.outgoing.read()
            if handshake and said:
                handshake.farewell(said, isinstance(e, ssl.SSLCertVerificationError) or e.reason == NO_CERTIFICATE)
            raise


class _Context(ssl.SSLContext):
    sslobject_class = _Object

    def wrap_bio(self, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO, *given: Any, **named: Any) -> ssl.SSLObject:
        made = super().wrap_bio(incoming, outgoing, *given, **named)
        assert isinstance(made, _Object)
        made.incoming, made.outgoing = incoming, outgoing
        return made


class ServerTls:
    """`context` is what new handshakes use. A change makes a new one: nothing is ever added to one that is in use, and
    open connections keep theirs."""

    def __init__(self, authority: Authority, at: Path) -> None:
        self._authority, self._at = authority, at
        self.renewed()

    def renewed(self) -> None:
        """The CA has renewed what new handshakes use. Raises Conflict; the context before stays in use."""
        self.context = server_context(self._authority.trust_pem, self._at)

    def reload(self) -> None:
        """The CA and the context take over what is on disk, both or neither. Raises Conflict with what is wrong."""
        made: list[ssl.SSLContext] = []
        self._authority.reload(lambda trust: made.append(server_context(trust, self._at)))
        self.context = made[0]


def server_context(trust: bytes, at: Path) -> ssl.SSLContext:
    """A context with the server's certificate in the folder `at`. `trust`: PEM, what clients' certificates are held
    against. Raises Conflict when they do not work."""
    context = _Context(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    # a resumed session's certificate is not looked at again
    context.num_tickets = 0
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_verify_locations(cadata=trust.decode())
        # the key's file holds the chain too: key and certificate are replaced together or not at all
        context.load_cert_chain(at / folder.SERVER_KEY)
    except (ssl.SSLError, OSError) as e:
        raise Conflict("the server's certificate cannot be used; what was loaded before stays in use") from e
    return context
