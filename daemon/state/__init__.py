"""What is kept across restarts, but for the audit log and the CA: `state.db`.

store.py     clients, models, deployments, jobs: read and written in one thread
database.py  its file: opened, brought up to date, rows as records
records.py   a row each
tables.py    the tables
versions.py  from one version of llmd to the next, and back
damage.py    whether a model's stored file is what was put there
"""
