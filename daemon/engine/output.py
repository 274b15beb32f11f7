"""Tokens to text, as a client may see it: whole UTF-8 characters, and never a part of a stop string. Log-probabilities
show the same text, no more and no sooner."""

import codecs
from collections import deque
from dataclasses import dataclass

from llmd.daemon.engine.answers.stops import Stops
from llmd.daemon.wire.events import ChosenLogprob, TokenLogprob


class TextOutput:
    """One sequence's text. `push` takes a token's bytes and returns what may be shown now; `stopped` is the
    stop string that came, after which nothing more is shown ("": none has).

    Counters are characters: `decoded` have come whole, `shown` were returned. `partial` are the bytes of one that has
    come in part; a text that ends there ends before it.
    """

    def __init__(self, stop: tuple[str, ...] = ()) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._stops = Stops(stop)
        self.decoded = self.shown = 0

    @property
    def stopped(self) -> str:
        return self._stops.found

    @property
    def partial(self) -> bytes:
        return self._decoder.getstate()[0]

    def push(self, data: bytes) -> str:
        text = self._decoder.decode(data)
        self.decoded += len(text)
        text = self._stops.push(text)
        self.shown += len(text)
        return text

    def flush(self) -> str:
        """What was held back, at the end of a text that no stop string ended."""
        text = self._stops.flush()
        self.shown += len(text)
        return text


@dataclass(frozen=True, slots=True)
class _Entry:
    """A token's log-probability until its text is shown: characters `begin` to `end` hold it, and `before` are the
    bytes of the first one that came with earlier tokens."""

    logprob: ChosenLogprob
    before: bytes
    begin: int
    end: int


class LogprobOutput:
    """One sequence's log-probabilities, which wait until all of their token's text is shown."""

    def __init__(self) -> None:
        self._waiting: deque[_Entry] = deque()

    def push(self, text: TextOutput, logprob: ChosenLogprob) -> None:
        """Before the same token is pushed to `text`."""
        data, before = logprob.chosen.token, text.partial
        whole, rest = _decoded(before + data)
        begin = text.decoded
        self._waiting.append(_Entry(logprob, before, begin, begin + whole + bool(rest)))

    def release(self, shown: int) -> tuple[ChosenLogprob, ...]:
        """Those of the tokens whose text is among the `shown` characters."""
        out = []
        while self._waiting and self._waiting[0].end <= shown:
            out.append(self._waiting.popleft().logprob)
        return tuple(out)

    def rest(self, shown: int) -> tuple[ChosenLogprob, ...]:
        """At the end of the text: what is due, and of a token that the end cuts the part that is shown."""
        out = self.release(shown)
        if self._waiting and self._waiting[0].begin < shown:
            out += (_cut(self._waiting[0], shown),)
        self._waiting.clear()
        return out


def _decoded(data: bytes) -> tuple[int, bytes]:
    """How many characters these bytes are, and the bytes of one that has not come whole."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    text = decoder.decode(data)
    return len(text), decoder.getstate()[0]


def _cut(entry: _Entry, shown: int) -> ChosenLogprob:
    """The token's first bytes, those of the shown characters; also where it stands among the likeliest."""
    whole = entry.logprob.chosen.token
    wanted = shown - entry.begin
    sizes = range(1, len(whole))
    kept = next((whole[:n] for n in sizes if _decoded(entry.before + whole[:n]) == (wanted, b"")), b"")
    top = tuple(TokenLogprob(kept, t.logprob) if t.token == whole else t for t in entry.logprob.top)
    return ChosenLogprob(TokenLogprob(kept, entry.logprob.chosen.logprob), top)
