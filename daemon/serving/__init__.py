"""Requests to models: it knows no HTTP, so every dialect, batch or job asks the same way.

ask.py         what somebody wants of a model
admission.py   who is let in: a count of what runs and waits
answer.py      one request from its `admit` row to its `finish` row
schemas.py     asks a process whether answers can be held to the schemas that requests bring, and whether they fit
holding.py     pure: what a request's whole answers are held against
routing.py     pure: which of a model's replicas answers
rollout.py     pure: which replicas a deployment has, and how they follow each other
lifecycle.py   pure: a replica's life, events in and effects out
deployment.py  a model that should serve, and its replicas
pool.py        the deployed models: carries out what rollout and lifecycle decide
poison.py      requests that end the process that answers them
aborts.py      pure: what llama.cpp prints as it gives up
stream.py      one request's events on their way
trials.py      what a worker is asked by nobody but us
worker.py      one worker process seen from the daemon: frames, heartbeats, streams
"""
