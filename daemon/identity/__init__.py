"""Who asks, how they prove it, and what they may use.

principal.py     from a connection's peer to a principal
policy.py        who may use which models, by which routes, how much and when: pure
policy_text.py   a policy as people write it
policy_changes.py what a change of it takes from whom: pure
register.py      the certificates that were issued here
connections.py   the register of open connections: what a revocation cuts
pki.py           the built-in CA: issue, revoke, renew
folder.py        the CA's files: what they hold, and whether they belong together
certificates.py  certificates, keys and revocation lists, made and read
tls.py           the server's SSL context and its reload
"""
