"""The server's side of mutual TLS: TLS 1.3, a client certificate always, the revocation list checked at every
handshake."""

import ssl
from pathlib import Path

from llmd.daemon.errors import Conflict


def server_context(folder: Path) -> ssl.SSLContext:
    """A context over the CA's folder. Raises Conflict when its files do not work together."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF | ssl.VERIFY_X509_STRICT
    # a resumed session is not checked against the revocation list: a revoked client would come back with its ticket
    context.num_tickets = 0
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_verify_locations(cafile=folder / "clients-ca.crt")
    except (ssl.SSLError, OSError) as e:
        raise Conflict("the CA's certificates cannot be read") from e
    reload(context, folder)
    return context


def reload(context: ssl.SSLContext, folder: Path) -> None:
    """New handshakes use the server certificate and the revocation list on disk; open connections are not touched.

    Raises Conflict when a file does not work; what was loaded before stays in use.
    """
    try:
        # the key's file holds the chain too: key and certificate are replaced together or not at all
        context.load_cert_chain(folder / "server.key")
        # of several lists the newest counts
        context.load_verify_locations(cafile=folder / "crl.pem")
    except (ssl.SSLError, OSError) as e:
        raise Conflict(
            "the server's certificate or the revocation list cannot be read; the old ones stay in use"
        ) from e
