"""The llmd daemon: identity, audit, serving. It never imports llama, CUDA or torch.

main.py      `llmd serve`: builds every part, runs them, drains on SIGTERM
arguments.py what its command line says
banner.py    what `llmd serve` prints once it can answer
children.py  the one way to start a child process
confined.py  what a child that works on a stranger's files may reach
config.py    the one frozen dataclass, its TOML file
cores.py     who computes on how many cores: a page of memory that children share
cpu.py       which of the engine's libraries runs on this CPU
errors.py    the error tree
files.py     atomic writes
gate.py      who waits for whom where only a few can be served at once
groups.py    control groups that limit workers' memory
kept.py      what is kept for each client, and for it alone
limits.py    every limit on what comes in
logs.py      lines to standard error that block nobody
memory.py    what a new process can have
metrics.py   Prometheus metrics
process.py   what a daemon takes of its machine before it begins
seats.py     the daemon's side of that page
systemd.py   what systemd is told
tasks.py     the tasks that live as long as the daemon
timers.py    timers that judge others
records.py   what `state.db` holds, a row each
schema.py    the tables of `state.db`
stored.py    whether a model's stored file is what was put there
store.py     `state.db`: clients, models, deployments
versions.py  `state.db` from one version of llmd to the next, and back
admin/       what an admin can do
serving/     a request from its admit row to its finish row
replicas/    the deployed models, and the processes that answer for them
planning/    on which GPUs a model goes, and how it is loaded
gpus/        the GPUs: what they are, how they do
identity/    who asks, and the built-in CA
audit/       the hash-chained log
models/      the model files
wire/        what the daemon and its workers say to each other
engine/      what runs in a worker
"""
