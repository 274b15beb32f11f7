"""Messages as they travel: a frame is a message's length, 4 bytes big-endian, and its msgpack."""

from collections.abc import Iterator
from typing import Any, Generic, TypeVar

import msgspec

from llmd.daemon.wire.control import FromWorker, ToWorker
from llmd.daemon.wire.work import Chat

# a request body's limit and what msgpack adds; a frame that is larger is a broken peer
MAX_FRAME = 64 * 1024 * 1024

_encoder = msgspec.msgpack.Encoder()
_M = TypeVar("_M")


def encode(message: ToWorker | FromWorker) -> bytes:
    body = _encoder.encode(message)
    return len(body).to_bytes(4, "big") + body


class Decoder(Generic[_M]):
    """Bytes in, whole messages of `kind` out. Raises ValueError on what is none of them, or larger than MAX_FRAME."""

    def __init__(self, kind: Any) -> None:
        self._decode = msgspec.msgpack.Decoder(kind).decode
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[_M]:
        self._buffer += data
        while len(self._buffer) >= 4:
            size = int.from_bytes(self._buffer[:4], "big")
            if size > MAX_FRAME:
                raise ValueError("not a frame")
            if len(self._buffer) < 4 + size:
                return
            body = bytes(self._buffer[4 : 4 + size])
            del self._buffer[: 4 + size]
            try:
                message: _M = self._decode(body)
            except msgspec.DecodeError as e:
                raise ValueError("not a frame") from e
            yield message


def encode_chat(chat: Chat) -> bytes:
    return _encoder.encode(chat)


def decode_chat(data: bytes) -> Chat:
    """Raises ValueError."""
    return msgspec.msgpack.decode(data, type=Chat)


def from_daemon() -> Decoder[ToWorker]:
    return Decoder(ToWorker)


def from_worker() -> Decoder[FromWorker]:
    return Decoder(FromWorker)
