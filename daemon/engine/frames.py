"""Messages between the daemon and its workers: msgpack maps, one after the other, over a Unix socket.

To the worker: `load` (first), `generate`, `cancel`, `tokenize`, `detokenize`, `template`. From it: `ready` or `fatal`,
then `step` (one frame carries the events of one engine step), `reply`, `beat` (once a second). An event is a list:

    [id, START, prompt_tokens]
    [id, TEXT, choice, text, tokens, cached, finish, logprobs]   tokens: generated so far; finish: None, "stop",
    "length"
    [id, ERROR, code, message, param]

Every request ends with a finish of each choice, or with one ERROR.
"""

from collections.abc import Iterator
from typing import Any

import msgpack

START, TEXT, ERROR = 0, 1, 2
# a request body's limit and what msgpack adds; a frame that is larger is a broken peer
MAX_FRAME = 64 * 1024 * 1024


def encode(message: dict[str, Any]) -> bytes:
    return bytes(msgpack.packb(message))


class Decoder:
    """Bytes in, whole messages out. Raises ValueError on what is not msgpack or larger than MAX_FRAME."""

    def __init__(self) -> None:
        self._unpacker = msgpack.Unpacker(max_buffer_size=MAX_FRAME, strict_map_key=False)

    def feed(self, data: bytes) -> Iterator[dict[str, Any]]:
        try:
            self._unpacker.feed(data)
            yield from self._unpacker
        except (msgpack.UnpackException, msgpack.BufferFull, UnicodeDecodeError) as e:
            raise ValueError("not a frame") from e
