"""Requests to models: it knows no HTTP, so every dialect, batch or job asks the same way.

ask.py         what somebody wants of a model
access.py      what a client may use of what is deployed
tools.py       which tools an answer may call, in whatever dialect it was asked for
admission.py   who is let in: a count of what runs and waits
answer.py      one request from its `admit` row to its `finish` row
books.py       what is written and counted of it
judging.py     asks a process whether answers can be held to the schemas that requests bring, and whether they fit
holding.py     pure: what a request's whole answers are held against
poison.py      requests that end the process that answers them
"""
