"""Requests to models: it knows no HTTP, so every dialect, batch or job asks the same way.

ask.py        what somebody wants of a model
admission.py  who is let in: a count of what runs and waits
answer.py     one request from its `admit` row to its `finish` row
lifecycle.py  pure: a deployment's life, events in and effects out
placement.py  pure: on which GPUs a model goes, and how it is loaded
plan.py       pure: from what was asked to a worker's settings
planner.py    the same as the GPUs are now, and what they have been promised
pool.py       the deployed models: carries out what the lifecycle decides
worker.py     one worker process seen from the daemon: frames, heartbeats, streams
"""
