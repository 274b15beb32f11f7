"""The model files that the daemon has.

names.py     what a model may be called
checking.py  the checks of a file in child processes
files.py     content-addressed files: import, list, remove
"""
