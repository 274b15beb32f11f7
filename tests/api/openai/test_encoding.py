"""A stream's bytes: valid events, the JSON around them, log-probabilities."""

import asyncio
import json
from typing import Any

import pytest

from llmd.api.http.streams import PIECE_BYTES, WholeJson
from llmd.api.openai.answers import ChatCompletion, Completion
from llmd.api.openai.encoding import SLICE, Counts, EventEncoder, Shape, whole
from llmd.daemon.wire.events import ChosenLogprob, Event, Failed, Finished, Reasoning, Text, TokenLogprob, ToolCalled


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


def test_each_event_may_have_the_usage_so_far() -> None:
    class Asked:
        prompt_tokens, completion_tokens, cached_tokens, reasoning_tokens, choices = 7, 99, 2, 0, 2

    events: list[Event] = [
        Text(1, 0, "a", 1, 2), Text(1, 1, "b", 3, 2), Reasoning(1, 0, "c", 4, 2),
        ToolCalled(1, 0, 0, "f", "", 5, 2), Finished(1, 1, "stop", 4, 2), Finished(1, 0, "length", 6, 2),
    ]  # fmt: skip
    for chat in (True, False):
        for usage in (True, False):
            counts = Counts(Asked())  # type: ignore[arg-type]
            encoder = EventEncoder(Shape(chat, "id", "m", False), usage=usage, counts=counts)
            data = encoder.first(2) + b"".join(map(encoder.event, events)) + encoder.end({"total_tokens": 1})
            chunks = [json.loads(e.removeprefix("data: ")) for e in data.decode().split("\n\n")[:-2]]
            assert len(chunks) == (2 if chat else 0) + len(events) + usage
            if usage:
                assert chunks.pop()["usage"] == {"total_tokens": 1}
            generated = [chunk["usage"]["completion_tokens"] for chunk in chunks]
            assert generated == [0, 0][: 2 * chat] + [1, 4, 7, 8, 9, 10]
            assert all(c["usage"]["total_tokens"] == 7 + c["usage"]["completion_tokens"] for c in chunks)


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


def test_a_token_that_is_part_of_a_character_shows_its_bytes_and_begins_where_the_character_does() -> None:
    smile = "🙂".encode()
    tokens = [b"a", smile[:1], smile[1:], b"\xc3\xa9b"]
    entries = tuple(ChosenLogprob(TokenLogprob(t, -0.1), (TokenLogprob(t, -0.1),)) for t in tokens)
    plain, chat = Shape(False, "id", "m", True), Shape(True, "id", "m", True)
    shown = plain.show_logprobs(entries[:2], 0)
    rest = plain.show_logprobs(entries[2:], 0)
    assert shown and rest
    assert shown["tokens"] + rest["tokens"] == ["a", "bytes:\\xf0", "bytes:\\x9f\\x99\\x82", "éb"]
    assert shown["text_offset"] + rest["text_offset"] == [0, 1, 1, 2]
    assert list(rest["top_logprobs"][0]) == ["bytes:\\x9f\\x99\\x82"]
    content = (chat.show_logprobs(entries, 0) or {})["content"]
    assert [c["token"] for c in content] == ["a", "\\xf0", "\\x9f\\x99\\x82", "éb"]
    assert b"".join(bytes(c["bytes"]) for c in content).decode() == "a🙂éb"


class Queued:
    """An answer whose events a test gives."""

    choices, prompt_tokens, completion_tokens, cached_tokens, reasoning_tokens = 2, 1, 2, 0, 0

    def __init__(self, *events: Event) -> None:
        self._events = list(events)

    def __aiter__(self) -> "Queued":
        return self

    async def __anext__(self) -> list[Event]:
        if not self._events:
            raise StopAsyncIteration
        return [self._events.pop(0)]


@pytest.mark.parametrize("chat", [True, False])
@pytest.mark.parametrize("tokens", [0, 1, 3 * SLICE + 1])
async def test_a_large_answer_is_encoded_in_slices_and_is_the_same_json(chat: bool, tokens: int) -> None:
    chosen = tuple(
        ChosenLogprob(TokenLogprob(b"%d" % i, -0.5), (TokenLogprob(b"%d" % i, -0.5),)) for i in range(tokens)
    )
    answer: Any = Queued(
        Text(1, 1, "x", tokens, 0, chosen), Finished(1, 0, "stop", 0, 0), Finished(1, 1, "length", 1, 0)
    )
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    beside = asyncio.create_task(others())
    parts = await whole(answer, Shape(chat, "id", "m", True))
    beside.cancel()
    assert turns >= tokens // SLICE, "others have their turn between two slices"
    value = json.loads(b"".join(parts))
    (ChatCompletion if chat else Completion).model_validate(value, strict=True)
    empty, full = value["choices"]
    assert empty["logprobs"] is None and (full["finish_reason"], empty["finish_reason"]) == ("length", "stop")
    assert full["logprobs"] == Shape(chat, "id", "m", True).show_logprobs(chosen, 1)


async def test_a_long_body_goes_out_in_pieces() -> None:
    sent: list[dict[str, Any]] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> dict[str, str]:
        return {"type": "http.disconnect"}

    parts = [b"x" * 10_000] * 50
    await WholeJson(parts, {"X-Request-Id": "r"})({"type": "http"}, receive, send)
    start, *bodies = sent
    headers = dict(start["headers"])
    assert headers[b"content-length"] == b"500000" and headers[b"content-type"] == b"application/json"
    assert b"".join(b["body"] for b in bodies) == b"".join(parts)
    assert max(len(b["body"]) for b in bodies) < PIECE_BYTES + 10_000 and not bodies[-1]["more_body"]


def test_log_probabilities_count_in_a_streams_backlog() -> None:
    chosen = ChosenLogprob(TokenLogprob(b"a", -0.5), (TokenLogprob(b"a", -0.5),) * 20)
    assert Text(1, 0, "abc", 1, 0).weight() == 3
    assert Text(1, 0, "abc", 1, 0, (chosen,)).weight() > 21 * 100
