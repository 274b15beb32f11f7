"""The admin socket: the kernel says who calls.

routes.py  what `llmctl` calls
"""
