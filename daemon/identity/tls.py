"""The server's side of mutual TLS: TLS 1.3 and a client certificate always."""

import ssl
from pathlib import Path

from llmd.daemon.errors import Conflict
from llmd.daemon.identity import folder
from llmd.daemon.identity.pki import Authority


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
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
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
