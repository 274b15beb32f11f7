"""Hugging Face folders: read, converted to GGUF, and what was converted held against the original. All of it is
untrusted bytes, worked on in child processes.

safetensors.py  reads the header of a safetensors file; believes no size in it
checkpoint.py   judges a folder; run as a child process
converting.py   a folder as GGUF; run as a child process of the interpreter that has torch
packing.py      how its weights are packed
ends.py         which tokens end a text
original.py     the first logits of a folder's model, in the same process
proof.py        holds a converted file against them; run as a child process
"""
