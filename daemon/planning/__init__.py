"""On which GPUs a model goes and how it is loaded, from what was asked to a worker's settings.

placement.py     pure: the first choice that fits
plan.py          pure: what was asked, and a worker's settings
leases.py        what the GPUs' memory was promised for
planner.py       the same as the GPUs are now
engines.py       what an engine's models take, and which interpreter runs it
gpu_code.py      which of them the engine has code for
measurements.py  what they were measured to hold, kept
"""
