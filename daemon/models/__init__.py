"""The model files that the daemon has.

files.py  content-addressed files: import, list, remove
"""
