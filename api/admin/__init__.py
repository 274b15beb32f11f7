"""The admin socket: the kernel says who calls.

table.py        what `llmctl` calls, all of it
machine.py      the machine and its daemon
imported.py     the models that are imported
forms.py        their forms, and jobs
deployments.py  what serves
clients.py      who may connect
policy.py       who may use what
usage.py        what clients have used
audit.py        the audit log
parts.py        what these share
"""
