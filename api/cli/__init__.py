"""`llmctl`: it speaks to the daemon over the admin socket and opens none of its files.

main.py        the command, its exit codes, the daemon's own subcommands
model.py       `llmctl model`
deploy.py      `llmctl deploy`
sources.py     a GGUF file or a Hugging Face folder, imported or deployed
jobs.py        `llmctl jobs`
client.py      `llmctl client`
policy.py      `llmctl policy` and `llmctl group`
usage.py       `llmctl usage`
audit.py       `llmctl audit`, offline verification too
bench.py       how fast a deployed model answers
chat.py        `llmctl chat`
gpu.py         `llmctl gpus`
plan.py        `llmctl plan`
doctor.py      `llmctl doctor`
network.py     `llmctl network`
credential.py  `llmctl ca-key`
unit.py        what systemd knows of the installed service, and drop-ins to its units
completion.py  what the shell completes
connection.py  HTTP over the admin socket
terminal.py    tables, progress bars, text that is safe to print
"""
