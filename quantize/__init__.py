"""What reads and makes model files, and knows what they take. Untrusted bytes are worked on in a child process.

backends.py  ggml's libraries, where the engine is for many kinds of CPU
header.py    reads a GGUF header; believes no size in it
architectures.py  the architectures that llama.cpp loads, and the checkpoints that its converter reads
check.py     judges a GGUF file; run as a child process
shape.py     what a model's memory depends on, from its header
compute.py   the compute buffer's size, as ggml's allocator finds it
quantizing.py  other forms of a file, and what they would take; run as a child process
footprint.py the bytes of a model on each device, from its shape alone
checkpoints/  Hugging Face folders: read, converted, held against the original
"""
