"""The engine: a worker process with continuous batching over one model.

__main__.py    the worker process
types.py       the nouns that the engine shares
protocols.py   what it asks of its parts that come in several kinds
prefixes.py    pure: which slots hold how much of a prompt
pace.py        pure: how many prompt tokens a step computes beside the streams
spending.py    how long a device has computed for whom
threads.py     pure: on how many of its cores a step computes
scheduler.py   pure: which tokens the next step computes
slots.py       pure: which slot holds them
pages.py       pure: or which pages
sharing.py     pure: what a sequence shares with others
loop.py        the engine thread
runners.py     which runner settings ask for
deadline.py    a deadline for work that nothing else can stop
failures.py    what is told of an exception that nobody expected
reach.py       what a worker and a trial may reach
prompts.py     messages or text to tokens
rendering.py   a chat as its template lays it out, and the one error of a prompt that is too long
renderers.py   the processes in which that is done
templates.py   chat templates in a sandbox, in transformers' dialect: what they show of a conversation
layouts.py     pure: conversations laid out anew where a template does not take them as they came
turns.py       a conversation as a template gets it
output.py      tokens to text: whole UTF-8, stop strings
trial.py       a program: does a model's template work, and does it answer a token
selftest.py    a program: does one of them run on this CPU?
answers/       what an answer may be and what it says
llama/         the engine of GGUF models
torch/         the engine of safetensors, packed with GPTQ or in full precision
fake.py        a runner without a model, for tests and for measuring the gateway
"""
