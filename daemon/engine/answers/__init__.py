"""What an answer may be and what it says: calls of tools, what is thought, JSON.

formats.py    how models write calls and thoughts, as data
detecting.py  which of that a chat template is for
arguments.py  pure: a call's arguments, however they are written, as JSON
stops.py      pure: stop strings
reader.py     pure: what a model writes, as what it says, thinks and calls
places.py     pure: where schemas stand in a schema, and where references lead
schemas.py    pure: JSON schemas: which an answer can be held to
validating.py whether an answer fits one
loosening.py  pure, but for who refuses: what of a schema that need not hold answers are held to
least.py      pure: how many characters JSON that fits a schema has at least
rewriting.py  pure: what a schema says in words that no grammar has, in words that grammars have
holdable.py   what grammars are made of for schemas
grammar.py    pure: what an answer may be, as a grammar's text
spelling.py   pure: arguments that are no JSON, as rules of a grammar
matching.py   llguidance: grammars compiled, followed, and which tokens may come next
answering.py  one request's answers: the parts above together
judge.py      a program: can answers be held to these schemas?
"""
