"""What is kept across restarts, but for the audit log and the CA: `state.db`.

store.py     clients, models, deployments, jobs: read and written in one thread
records.py   a row each
schema.py    the tables
versions.py  from one version of llmd to the next, and back
damage.py    whether a model's stored file is what was put there
"""
