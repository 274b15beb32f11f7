"""A stream's bytes: valid events, the JSON around them, log-probabilities."""

import json

from llmd.api.openai.stream import EventEncoder, Shape
from llmd.daemon.engine.messages import ChosenLogprob, Failed, Finished, Text, TokenLogprob


def test_every_event_is_json_and_the_stream_ends_with_done() -> None:
    encoder = EventEncoder(Shape(True, "chatcmpl-1", "m", False), usage=True)
    data = (
        encoder.first(1) + encoder.text(Text(1, 0, 'a "quoted"\n\u2028 🙂', 1, 0)) + encoder.text(Text(1, 0, "b", 2, 0))
    )
    data += encoder.finished(Finished(1, 0, "stop", 2, 0)) + encoder.end({"total_tokens": 1})
    assert data.endswith(b"data: [DONE]\n\n")
    chunks = [json.loads(e.removeprefix("data: ")) for e in data.decode().split("\n\n")[:-2]]
    assert "".join(c["choices"][0]["delta"].get("content", "") for c in chunks if c["choices"]) == (
        'a "quoted"\n\u2028 🙂b'
    )
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    assert chunks[-1]["usage"] == {"total_tokens": 1} and chunks[-2]["choices"][0]["finish_reason"] == "stop"


def test_what_is_encoded_once_a_stream_looks_like_what_is_encoded_each_time() -> None:
    for chat in (True, False):
        for usage in (True, False):
            encoder = EventEncoder(Shape(chat, "id", "m", False), usage=usage)
            assert encoder.text(Text(1, 2, "é", 1, 0)) == encoder._chunk(2, encoder._content("é"), None, None)


def test_an_error_after_the_first_byte_is_an_error_event() -> None:
    text = EventEncoder(Shape(True, "id", "m", False), usage=True).failed(Failed(1, "worker_lost", "lost")).decode()
    assert "event: error\ndata: " in text and '"code":"worker_lost"' in text and text.endswith("data: [DONE]\n\n")


def test_logprobs_of_plain_completions_count_characters() -> None:
    encoder = EventEncoder(Shape(False, "req-1", "m", True), usage=False)
    a = TokenLogprob(b" a", -0.1)
    entries = (ChosenLogprob(a, (a,)), ChosenLogprob(TokenLogprob(b"bc", -0.2), ()))
    body = encoder.text(Text(1, 0, " abc", 2, 0, entries))
    shown = json.loads(body.removeprefix(b"data: "))["choices"][0]["logprobs"]
    assert shown["tokens"] == [" a", "bc"] and shown["text_offset"] == [0, 2]
