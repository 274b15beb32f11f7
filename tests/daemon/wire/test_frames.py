"""Frames: whole messages out of any bytes, and nothing that is not one."""

import msgspec
import pytest

from llmd.daemon.wire import frames
from llmd.daemon.wire.control import (
    Beat,
    Busy,
    Cancel,
    Fake,
    Fatal,
    FromWorker,
    Llama,
    Load,
    Open,
    Ready,
    Step,
    ToWorker,
)
from llmd.daemon.wire.events import (
    ChosenLogprob,
    Counted,
    Detokenized,
    Failed,
    Finished,
    Started,
    Text,
    Tokenized,
    TokenLogprob,
)
from llmd.daemon.wire.work import (
    Chat,
    ChatMessage,
    Count,
    Detokenize,
    Generate,
    RawText,
    SamplingWish,
    Tokenize,
    Tokens,
)

PARAMS = SamplingWish(8, seed=2**32 - 1, logit_bias=((5, -1.5),), stop=("a", "é"), logprobs=2)
DOWN: list[ToWorker] = [
    Load(Llama("model", 2, 256, 64, 32, 1, gpus=("GPU-1",), ubatch=512)),
    Load(Fake("", 2, 256, 64, 32, 1, says={"text": "a"})),
    Open(1, "alice", Generate((Chat((ChatMessage("user", "hi"),)),), PARAMS, 2)),
    Open(2, "alice", Generate((RawText("hi"),), SamplingWish(1))),
    Open(3, "", Generate((Tokens((1, 2)),), SamplingWish(1))),
    Open(4, "bob", Tokenize("x", True)),
    Open(5, "bob", Detokenize((1,))),
    Open(6, "bob", Count((RawText("hi"), Tokens((1,))))),
    Cancel(1),
]
LOGPROBS = (ChosenLogprob(TokenLogprob(b"\xff", -0.5), (TokenLogprob(b"\xff", -0.5), TokenLogprob(b"a", -1.0))),)
UP: list[FromWorker] = [
    Ready(256, 2, 1000, 10, 20, "tiny", True),
    Step((Started(1, 7), Text(1, 0, "é", 1, 0, LOGPROBS), Finished(1, 0, "stop", 2, 0)), Busy(1, 0, 9)),
    Step((Failed(1, "invalid_request", "no", "prompt"), Tokenized(4, (1,)), Detokenized(5, "x"), Counted(6, (2, 1)))),
    Beat(0.5, 1.0),
    Fatal("model_invalid", "it is damaged"),
]


def test_messages_survive_any_cut() -> None:
    for decoder, sent in ((frames.from_daemon, DOWN), (frames.from_worker, UP)):
        data = b"".join(frames.encode(m) for m in sent)
        for cut in range(len(data)):
            of = decoder()
            assert [*of.feed(data[:cut]), *of.feed(data[cut:])] == sent


@pytest.mark.parametrize(
    "data",
    [
        (frames.MAX_FRAME + 1).to_bytes(4, "big"),
        b"\0\0\0\x01\xc1",
        b"\0\0\0\x00",
        frames.encode(Cancel(1)),  # the other direction's
        b"\0\0\0\x11" + msgspec.msgpack.encode(["Beat", "long", 1.0])[:17].ljust(17, b"\0"),
    ],
    ids=["too large", "not msgpack", "empty", "foreign", "wrong types"],
)
def test_what_is_no_message_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="not a frame"):
        list(frames.from_worker().feed(data))
