"""The machine that llmd runs on: its processors, its memory, its kernel, and the processes that are started on it.

children.py  the one way to start a child process
confined.py  what a child that works on a stranger's files may reach
cores.py     who computes on how many cores: a page of memory that children share
verdicts.py  the one way to ask a program for a verdict
telling.py   that program's side
seats.py     the daemon's side of that page
cpu.py       which of the engine's libraries runs on this CPU
memory.py    what a new process can have
groups.py    control groups that limit workers' memory
process.py   what a daemon takes of its machine before it begins
systemd.py   what systemd is told
"""
