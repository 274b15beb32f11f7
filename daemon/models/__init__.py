"""The model files that the daemon has.

names.py     what a model may be called
checking.py  the checks of a file in child processes
copying.py   the steps of copying a file in
files.py     content-addressed files: import, list, remove, forms
running.py   a program in a child process that says how it does
making.py    other forms of a model, quantized in a child process
importing.py  models that come as a Hugging Face folder: converted in child processes, as a job
"""
