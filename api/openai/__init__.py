"""The dialect of OpenAI's clients: bodies in, JSON and Server-Sent Events out. It keeps no state.

bodies.py    what the routes take
messages.py  a conversation: messages and their parts
wanted.py    what an answer is to be: tools, schemas
given.py     what a client gives the model's chat template
answers.py   what they answer
chat.py      chat and plain completions, tokenize and detokenize
encoding.py  a worker's events as a client reads them
models.py    the list of models
"""
