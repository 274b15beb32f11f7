"""The engine of GPTQ's weights and of full precision, from safetensors, on torch. It runs in the interpreter of the
package `llmd-torch`.

architecture.py  what a configuration says of a model, and whether it is computed; needs no torch
weights.py       a checkpoint's weights, unpacked; run as a child process that looks at all of them
rope.py          how positions are turned, and scaled
ops.py           what layers are computed with: the place for a device's own kernels
transformer.py   the Llama family over it
sampling.py      which token comes next
runner.py        the runner: passes over pages
borrowed.py      llama.cpp's library, for the vocabulary
"""
