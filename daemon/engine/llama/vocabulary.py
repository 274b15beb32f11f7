"""A model's vocabulary in llama.cpp: text to tokens and back, and what the file says of both."""

import ctypes
import sys
from collections import abc
from functools import cached_property
from typing import Any

import llama_cpp.llama_cpp as lib

from llmd.daemon.engine.types import Lexicon
from llmd.daemon.errors import LlmdError, ModelInvalid
from llmd.quantize import backends
from llmd.quantize.header import ENDS, end_tokens, generation_defaults

# tokenizers of whose tokens' texts the whole text consists
LOSSLESS = {
    lib.LLAMA_VOCAB_TYPE_SPM, lib.LLAMA_VOCAB_TYPE_BPE, lib.LLAMA_VOCAB_TYPE_RWKV, lib.LLAMA_VOCAB_TYPE_PLAMO2,
}  # fmt: skip

MAX_TOKENS = 1 << 28  # of a text; a refusal is a greater number
PIECE_BYTES = 4096  # of a token's text
VALUE_BYTES = 1024  # of a key's value, as far as it is looked at

_log_lines: list[str] = []


def _log(level: int, text: bytes, _user: Any) -> None:
    if level == 4:  # GGML_LOG_LEVEL_ERROR: the daemon reads what is said before an abort (replicas/aborts.py)
        print(text.decode(errors="replace").rstrip("\n"), file=sys.stderr, flush=True)
    if level >= 4:
        _log_lines.append(text.decode(errors="replace").strip())
        del _log_lines[:-20]


_log_callback = lib.llama_log_callback(_log)  # kept alive: llama.cpp holds the pointer


def prepare(*, gpus: bool) -> None:
    """llama.cpp, before anything is asked of it. Raises Unavailable where a library of its own cannot be loaded."""
    lib.llama_log_set(_log_callback, None)
    backends.load(gpus=gpus)
    lib.llama_backend_init()


def load(path: str, params: Any) -> Any:
    """llama.cpp's model, once it is prepared. Raises ModelInvalid with its reason."""
    model = lib.llama_model_load_from_file(path.encode(), params)
    if not model:
        reason = _log_lines[-1] if _log_lines else "no reason given"
        raise ModelInvalid(f"llama.cpp cannot load this model: {reason.replace(path, 'the file')}")
    return model


def of_file(path: str) -> "Vocabulary":
    """The vocabulary alone, without the weights and without a GPU. Raises ModelInvalid."""
    prepare(gpus=False)
    params = lib.llama_model_default_params()
    params.vocab_only = True
    return Vocabulary(load(path, params))


def _value(model: Any, key: str) -> str | None:
    text = ctypes.create_string_buffer(VALUE_BYTES)
    found = lib.llama_model_meta_val_str(model, key.encode(), text, VALUE_BYTES) > 0
    return text.value.decode(errors="replace") if found else None


class Vocabulary:
    """Of a loaded model, which must outlive it; a `Vocabulary` of `protocols.py`. `samples`: the model continues texts;
    one that embeds them does not."""

    def __init__(self, model: Any) -> None:
        self._vocab = lib.llama_model_get_vocab(model)
        self.size: int = lib.llama_vocab_n_tokens(self._vocab)
        self.bos: int = lib.llama_vocab_bos(self._vocab)
        eos = lib.llama_vocab_eos(self._vocab)
        self.bos_text, self.eos_text = self._text_of(self.bos), self._text_of(eos)
        self.chat_template, self.tool_template = (
            template.decode(errors="replace") if template else None
            for template in (lib.llama_model_chat_template(model, name) for name in (None, b"tool_use"))
        )
        self._added_at_end = eos if lib.llama_vocab_get_add_eos(self._vocab) else -1
        self._pieces: dict[int, bytes] = {}
        spaces = _value(model, "tokenizer.ggml.add_space_prefix") != "false"
        self._blank = lib.llama_vocab_type(self._vocab) == lib.LLAMA_VOCAB_TYPE_SPM and spaces
        self._ends = end_tokens(_value(model, ENDS), self.size)
        self.defaults = generation_defaults(lambda key: _value(model, key))
        causal = _value(model, f"{_value(model, 'general.architecture')}.attention.causal") != "false"
        self.samples = causal and bool(lib.llama_model_has_decoder(model))

    @cached_property
    def ends(self) -> frozenset[int]:
        """What llama.cpp knows of, the ends of a turn and of a message too, and what the file says beside."""
        return self._ends.union(t for t in range(self.size) if lib.llama_vocab_is_eog(self._vocab, t))

    @property
    def end_texts(self) -> list[str]:
        return [self._text_of(token) for token in sorted(self.ends)]

    @cached_property
    def longest(self) -> int:
        """0 where the tokenizer drops blanks, or makes one token of a word that it does not know."""
        if lib.llama_vocab_type(self._vocab) not in LOSSLESS:
            return 0
        # a buffer that is too small is answered with the size that is needed, as a negative number
        sizes = (lib.llama_token_to_piece(self._vocab, t, None, 0, 0, True) for t in range(self.size))
        return max(abs(int(size)) for size in sizes)

    def _text_of(self, token: int) -> str:
        text = lib.llama_vocab_get_text(self._vocab, token) if token >= 0 else None
        return text.decode(errors="replace") if text else ""

    def piece(self, token: int) -> bytes:
        """The bytes that a token stands for; nothing for a control token."""
        found = self._pieces.get(token)
        if found is None:
            text = ctypes.create_string_buffer(256)
            size = lib.llama_token_to_piece(self._vocab, token, text, 256, 0, False)
            found = self._pieces[token] = text.raw[: max(size, 0)]
        return found

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        data = text.encode()
        size = len(data) + 8
        out = (lib.llama_token * size)()
        count = lib.llama_tokenize(self._vocab, data, len(data), out, size, add_special, parse_special)
        if -MAX_TOKENS < count < 0:  # a blank may be three tokens, where a vocabulary has none for it
            size = -count
            out = (lib.llama_token * size)()
            count = lib.llama_tokenize(self._vocab, data, len(data), out, size, add_special, parse_special)
        if count < 0:
            raise LlmdError("the tokenizer could not read this text")
        # what a model is to continue has no end, whatever its file says of texts to learn from
        if add_special and count and out[count - 1] == self._added_at_end:
            count -= 1
        return list(out[:count])

    def continued(self, text: str, *, parse_special: bool) -> list[int]:
        """Behind a line's end, which is taken away again, no blank is put before a text."""
        if self._blank:
            line = self.tokenize("\n", add_special=False, parse_special=False)
            tokens = self.tokenize("\n" + text, add_special=False, parse_special=parse_special)
            if tokens[: len(line)] == line:
                return tokens[len(line) :]
        return self.tokenize(text, add_special=False, parse_special=parse_special)

    def detokenize(self, tokens: abc.Sequence[int]) -> str:
        given = (lib.llama_token * len(tokens))(*tokens)
        size = 64 + 32 * len(tokens)
        while True:
            text = ctypes.create_string_buffer(size)
            count = lib.llama_detokenize(self._vocab, given, len(tokens), text, size, False, True)
            if count >= 0:
                return text.raw[:count].decode(errors="replace")
            size = -count + 8

    def special_texts(self) -> list[str]:
        """The texts of the control tokens, longest first."""
        found = {self._text_of(t) for t in range(self.size) if lib.llama_vocab_is_control(self._vocab, t)}
        return sorted(found - {""}, key=len, reverse=True)

    def lexicon(self) -> Lexicon:
        """As grammars see it."""
        text, pieces = ctypes.create_string_buffer(PIECE_BYTES), []
        for token in range(self.size):
            size = lib.llama_token_to_piece(self._vocab, token, text, PIECE_BYTES, 0, True)
            pieces.append(text.raw[: max(size, 0)])
        control = frozenset(t for t in range(self.size) if lib.llama_vocab_is_control(self._vocab, t))
        return Lexicon(pieces, control, self.ends, self._tokenizer)

    def _tokenizer(self, marked: list[bytes], ends: list[int]) -> Any:
        """Of addresses: the library calls llama.cpp itself."""
        from llguidance import LLTokenizer  # here: a model's trial follows no grammar

        at = ctypes.cast(lib._lib.llama_tokenize, ctypes.c_void_p).value
        return LLTokenizer.from_llamacpp(  # type: ignore[attr-defined]
            tokens=marked, vocab_ptr=self._vocab, tokenize_fptr=at, eos_token=ends, slices=None
        )
