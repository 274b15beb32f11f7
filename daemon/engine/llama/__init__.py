"""The engine of GGUF models, on llama-cpp-python's low-level API.

runner.py      the runner: one model, one context
vocabulary.py  text to tokens and back
passes.py      pure: how a step's chunks are dealt to calls
sampling.py    pure: chooses tokens for many sequences at once
chains.py      llama.cpp's own samplers, for what that cannot choose
"""
