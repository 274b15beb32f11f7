"""The llmd daemon: identity, audit, serving. It never imports llama, CUDA or torch.

main.py      `llmd`, the command
composition.py builds every part, runs them, drains on SIGTERM
command_line.py what its command line says
banner.py    what `llmd serve` prints once it can answer
config.py    the one frozen dataclass, its TOML file
toml.py      TOML that people write, and its lines
hours.py     hours of the week in a named zone
current.py   what holds now and may be replaced
errors.py    the error tree
atomic.py    atomic writes
fair.py      who is next where several owners share one thing
gate.py      who waits for whom where only a few can be served at once
kept.py      what is kept for each client, and for it alone
limits.py    every limit on what comes in
logs.py      lines to standard error that block nobody
metrics.py   Prometheus metrics
tasks.py     the tasks that live as long as the daemon
timers.py    timers that judge others
admin/       what an admin can do
serving/     a request from its admit row to its finish row
replicas/    the deployed models, and the processes that answer for them
planning/    on which GPUs a model goes, and how it is loaded
gpus/        the GPUs: what they are, how they do
identity/    who asks, and the built-in CA
audit/       the hash-chained log
models/      the model files
jobs/        what takes a while
wire/        what the daemon and its workers say to each other
engine/      what runs in a worker
machine/     the machine that it runs on
state/       what is kept across restarts
"""
