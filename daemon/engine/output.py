"""Tokens to text, as a client may see it: whole UTF-8 characters, and never a part of a stop string."""

import codecs


class TextOutput:
    """One sequence's text. `push` takes a token's bytes and returns what may be shown now; `finished` tells that a stop
    string came, after which nothing more is shown."""

    def __init__(self, stop: tuple[str, ...] = ()) -> None:
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        self._stop = stop
        self._held = ""
        self.finished = False

    def push(self, data: bytes) -> str:
        text = self._decode(data)
        return self._release(text) if self._stop else text

    def flush(self) -> str:
        """What was held back, at the end of a text that no stop string ended."""
        text = self._decode(b"", True)
        if self._stop:
            text = self._release(text)
        if self.finished:
            return text
        text, self._held = text + self._held, ""
        return text

    def _release(self, text: str) -> str:
        text = self._held + text
        self._held = ""
        found = [at for at in (text.find(s) for s in self._stop) if at >= 0]
        if found:
            self.finished = True
            return text[: min(found)]
        keep = max(_overlap(text, s) for s in self._stop)
        if keep:
            self._held = text[-keep:]
            return text[:-keep]
        return text


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of `text` that `stop` begins with."""
    for size in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:size]):
            return size
    return 0
