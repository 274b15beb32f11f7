"""Who asks, and how they prove it.

principal.py     from a connection's peer to a principal
register.py      the certificates that were issued here
connections.py   the register of open connections: what a revocation cuts
pki.py           the built-in CA: issue, revoke, renew
folder.py        the CA's files: what they hold, and whether they belong together
certificates.py  certificates, keys and revocation lists, made and read
tls.py           the server's SSL context and its reload
"""
