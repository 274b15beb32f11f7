"""Grammars in llguidance: compiled once, followed token by token, and which tokens may come next.

This and an engine's vocabulary are the only files that import llguidance. What it is given to compile has been tried in
a process of its own before (`judge.py`), and every step is bounded by LIMITS.
"""

import os
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import llguidance
import numpy as np

from llmd.daemon.engine.answers.schemas import line
from llmd.daemon.engine.types import Lexicon
from llmd.daemon.errors import AnswerInvalid, BadRequest, SchemaUnsupported
from llmd.daemon.kept import Kept

KEPT, KEPT_EACH = 64, 32  # grammars: of all clients, and of one
MAX_THREADS = 8
# no text of a client in what it says
LIMITS = llguidance.LLParserLimits(verbose_errors=False)


class Grammars:
    """The compiled grammars of one vocabulary. Any thread. Raises BadRequest for one that none can be made for."""

    def __init__(self, lexicon: Lexicon) -> None:
        try:
            self._tokenizer = _tokenizer(lexicon)
        except ValueError as e:
            raise BadRequest(f"this model's answers cannot be held to anything: {line(str(e))}") from e
        self._kept = Kept[llguidance.LLMatcher](KEPT, KEPT_EACH)
        self._lock = threading.Lock()

    def compiled(self, text: str, param: str | None = None, owner: str = "") -> "Grammar":
        """Raises SchemaUnsupported, for that field of a request of `owner`."""
        with self._lock:
            if matcher := self._kept.get(owner, text):
                return Grammar(matcher)
        matcher = llguidance.LLMatcher(self._tokenizer, text, log_level=0, limits=LIMITS)
        begun = matcher.deep_copy()
        begins = not begun.is_error() and any(begun.compute_bitmask())
        if not begins or begun.is_error():
            why = line(begun.get_error()) or "no token may begin one"
            raise SchemaUnsupported(f"no answer can be held to this: {why}", param=param)
        with self._lock:
            self._kept.put(owner, text, matcher)
        return Grammar(matcher)


class Grammar:
    """One that is compiled."""

    def __init__(self, matcher: llguidance.LLMatcher) -> None:
        self._matcher = matcher

    def start(self) -> "Matcher":
        return Matcher(self._matcher.deep_copy())


class Matcher:
    """One answer on its way through a grammar."""

    def __init__(self, matcher: llguidance.LLMatcher) -> None:
        self.matcher = matcher
        self.broken: BaseException | None = None  # what it met: nothing more can be said of it

    @property
    def ended(self) -> bool:
        """The answer is whole, and nothing may follow."""
        return bool(self.matcher.is_stopped())

    @property
    def whole(self) -> bool:
        """It may end here."""
        return bool(self.matcher.is_accepting())

    def accept(self, token: int) -> None:
        """Raises AnswerInvalid where the grammar leaves no way on, or takes too much to follow, and what broke it."""
        if self.broken:
            raise self.broken
        if not self.matcher.consume_token(token):
            raise AnswerInvalid(
                "the answer cannot go on: the schema leaves no way, or takes too long to follow; write it more simply"
            )


class Masks:
    """Of `slots` sequences over a vocabulary of `vocab` tokens: which tokens may come next, by slot. The arrays are
    used again by every step."""

    def __init__(self, slots: int, vocab: int) -> None:
        self._words = np.zeros((slots, (vocab + 31) // 32), np.uint32)
        self._executor = llguidance.LLExecutor(max(1, min(MAX_THREADS, len(os.sched_getaffinity(0)))))

    def of(self, matchers: Sequence[tuple[Matcher, int]]) -> Mapping[int, Any]:
        """A mask a slot."""
        words = self._words
        size = words.shape[1] * words.itemsize
        if len(matchers) == 1:
            ((matcher, slot),) = matchers
            matcher.matcher.unsafe_compute_mask_ptr(words[slot].ctypes.data, size)
        else:
            wanted = [(matcher.matcher, slot) for matcher, slot in matchers]
            self._executor.unsafe_compute_mask_ptr(wanted, words.ctypes.data, size, len(words))
        return {slot: words[slot] for _, slot in matchers}


def refusal(schema: str) -> str:
    """Why no answer can be held to a JSON schema, which is `prepared`, in the library's words; "" where one can."""
    grammar = llguidance.LLMatcher.grammar_from_json_schema(schema)
    wrong, said = llguidance.LLMatcher.validate_grammar_with_warnings(grammar, limits=LIMITS)
    return str(said[0]) if wrong else ""


def _tokenizer(lexicon: Lexicon) -> llguidance.LLTokenizer:
    marked = [b"\xff" + piece if token in lexicon.control else piece for token, piece in enumerate(lexicon.pieces)]
    ends = sorted(lexicon.ends)
    if lexicon.tokenizer:
        made: llguidance.LLTokenizer = lexicon.tokenizer(marked, ends)
        return made
    greedy: Any = _Greedy(marked, ends)
    return llguidance.LLTokenizer(greedy, eos_token=ends)


class _Greedy:
    """A vocabulary without a tokenizer: the longest tokens first."""

    def __init__(self, tokens: Sequence[bytes], ends: Sequence[int]) -> None:
        self.tokens, self.eos_token_id, self.bos_token_id = tokens, ends[0], None
        self.is_tokenizer_wrapper = True  # by which llguidance knows one
        self.special_token_ids = [token for token, piece in enumerate(tokens) if piece.startswith(b"\xff")]
        self._by_piece = {piece: token for token, piece in enumerate(tokens)}
        self._longest = max(map(len, tokens))

    def __call__(self, text: str | bytes) -> list[int]:
        data, out = text.encode() if isinstance(text, str) else text, []
        while data:
            size = next(n for n in range(min(self._longest, len(data)), 0, -1) if data[:n] in self._by_piece)
            out.append(self._by_piece[data[:size]])
            data = data[size:]
        return out
