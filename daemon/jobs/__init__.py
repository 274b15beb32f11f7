"""Jobs: what takes a while, and goes on whoever goes away. Which kinds there are, the rooms that do the work say.

queue.py  the queue in `state.db`, and the one job that runs
"""
