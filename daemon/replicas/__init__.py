"""The deployed models, and the processes that answer for them.

routing.py     pure: which of a model's replicas answers
residency.py   pure: whether a deployment is loaded, and which go where another one needs room
rollout.py     pure: which replicas a deployment has, and how they follow each other
lifecycle.py   pure: a replica's life, events in and effects out
deployment.py  a model that should serve, and its replicas
pool.py        the deployed models: carries out what residency, rollout and lifecycle decide
runs.py        a replica's runs: one process each, from its start to its end
aborts.py      pure: what llama.cpp prints as it gives up
stream.py      one request's events on their way
trials.py      what a worker is asked by nobody but us
worker.py      one worker process seen from the daemon: frames, heartbeats, streams
"""
