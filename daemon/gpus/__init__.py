"""The GPUs: what they are, how they do, and what follows from what they report. The only room that imports pynvml.

asking.py     one guarded query at a time, and what NVML's errors mean
links.py      how two GPUs reach each other
event_set.py  NVML's event set
inventory.py  what is known of them at one moment: plain values
nvml.py       asks for it, and waits for events
faults.py     what follows from a fault: a pure table
watch.py      a thread that asks and waits, and each device's health
"""
