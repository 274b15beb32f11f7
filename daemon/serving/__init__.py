"""Requests to models: it knows no HTTP, so every dialect, batch or job asks the same way.

ask.py         what somebody wants of a model
access.py      what a client may use of what is deployed
tools.py       which tools an answer may call, in whatever dialect it was asked for
admission.py   who is let in, and whose turn it is
quotas.py      what clients have asked in a minute and a day, and may
queued.py      what a request holds in a model's queue
answer.py      one request from its `admit` row to its `finish` row
begun.py       one that is being answered: what its client reads, what of it has not begun
metering.py    what was used: tokens, seconds, energy
books.py       what is written and counted of it
judging.py     asks a process whether answers can be held to the schemas that requests bring, and whether they fit
holding.py     pure: what a request's whole answers are held against
poison.py      requests that end the process that answers them
"""
