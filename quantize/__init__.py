"""What reads and makes model files. Untrusted bytes are worked on in a child process.

header.py  reads a GGUF header; believes no size in it
check.py   judges a GGUF file; run as a child process
"""
