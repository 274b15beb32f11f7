"""The tamper-evident log.

log.py     the log as the daemon calls it
writer.py  its one writer thread: group commit, full disks
chain.py   what an audit database holds and a row's hash covers; verification, offline too
"""
