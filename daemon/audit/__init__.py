"""The tamper-evident log.

log.py       the log as the daemon calls it
acts.py      what an admin does: a row before it, and one with its result
refusals.py  who was refused, without filling the disk
writer.py    its one writer thread: group commit, full disks
schema.py    its tables, and how an older file gets them
starts.py    starts that fail again and again: counted, not written
offline.py   a log's file checked without its daemon
chain.py     what an audit database holds and a row's hash covers; verification
"""
