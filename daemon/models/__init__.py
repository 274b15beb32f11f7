"""The model files that the daemon has.

checking.py  the check of a file in a child process
files.py     content-addressed files: import, list, remove
"""
