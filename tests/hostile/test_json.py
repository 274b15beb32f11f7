"""JSON that no field should have to expect."""

import json
from typing import Any

import pytest
from real_daemon import Llmd

CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}


def with_field(raw: str) -> bytes:
    return b'{"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1, ' + raw.encode() + b"}"


def said(text: str) -> bytes:
    return json.dumps({"messages": [{"role": "user", "content": text}], "max_tokens": 1}).encode()


NUMBERS = (
    "temperature",
    "top_p",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "repeat_penalty",
    "seed",
    "n",
    "top_k",
)
REFUSED: dict[str, bytes] = {
    "empty": b"",
    "null": b"null",
    "a list": b"[]",
    "a text": b'"x"',
    "trailing data": b"{} {}",
    "100,000 brackets": b"[" * 100_000,
    "33 objects": b'{"a":' * 33 + b"1" + b"}" * 33,
    "200,000 keys": b"{" + b",".join(b'"%d":1' % i for i in range(200_000)) + b"}",
    "a list of a million": with_field('"stop": [' + "1," * 1_000_000 + "1]"),
    "10,000 digits": with_field('"seed": ' + "1" * 10_000),
    "4,000 digits": with_field('"seed": ' + "1" * 4_000),
    "2^63": with_field(f'"seed": {2**63}'),
    "2^64": with_field(f'"max_tokens": {2**64}'),
    "half of a pair": b'{"messages": [{"role": "user", "content": "\\ud800"}]}',
    "NUL": said("a\0b"),
    "a key twice": with_field('"n": 1, "n": 1'),
    "not UTF-8": b'{"messages": "\xff"}',
    "a byte order mark": b"\xef\xbb\xbf" + json.dumps(CHAT).encode(),
    "a key of a megabyte": with_field(f'"{"k" * 1_000_000}": 1'),
    "metadata's key of a megabyte": with_field(f'"metadata": {{"{"k" * 1_000_000}": "v"}}'),
    "metadata's value of a megabyte": with_field(f'"metadata": {{"k": "{"v" * 1_000_000}"}}'),
    **{
        f"J4 {value} in {field}": with_field(f'"{field}": {value}')
        for field in NUMBERS
        for value in ("NaN", "Infinity", "-Infinity", "1e999", "-1e999")
    },
}
ANSWERED: dict[str, bytes] = {
    "-0": with_field('"temperature": -0'),
    "-0.0": with_field('"temperature": -0.0'),
    "U+FFFF": said("\uffff"),
    "a right-to-left override": said("\u202eabc"),
    "OpenAI's fields": with_field('"safety_identifier": "a", "prompt_cache_key": "b", "verbosity": "low"'),
}
# J9: a value of another type, for every field of every body
TYPES: dict[str, Any] = {
    "a truth value": True,
    "a number in text": "1",
    "a float": 1.5,
    "an object": {"a": 1},
    "a list": [[]],
    "a text": "x",
}
TAKES = {
    "temperature": {"a float"},
    "top_p": set(),
    "top_k": set(),
    "min_p": set(),
    "seed": set(),
    "n": set(),
    "presence_penalty": {"a float"},
    "frequency_penalty": {"a float"},
    "repeat_penalty": {"a float"},
    "max_tokens": set(),
    "max_completion_tokens": set(),
    "top_logprobs": set(),
    "logit_bias": set(),
    "stream": {"a truth value"},
    "ignore_eos": {"a truth value"},
    "parallel_tool_calls": {"a truth value"},
    "stop": {"a number in text", "a text"},
    "user": {"a number in text", "a text"},
    "messages": set(),
    "stream_options": set(),
    "response_format": set(),
    "metadata": set(),
    "modalities": set(),
    "model": set(),
}


@pytest.mark.parametrize("row", REFUSED)
def test_refused(llmd: Llmd, row: str) -> None:
    status, headers, answer = llmd.post("/v1/chat/completions", REFUSED[row])
    assert 400 <= status < 500 and headers["content-type"] == "application/json"
    assert len(answer["error"]["message"]) < 500


@pytest.mark.parametrize("row", ANSWERED)
def test_answered(llmd: Llmd, row: str) -> None:
    assert llmd.post("/v1/chat/completions", ANSWERED[row])[0] == 200


def test_a_megabyte_of_combining_marks(llmd: Llmd) -> None:
    assert llmd.post("/v1/chat/completions", said("e" + "\u0301" * 500_000))[0] == 400


@pytest.mark.parametrize("field", TAKES)
def test_another_type(llmd: Llmd, field: str) -> None:
    for name, value in TYPES.items():
        if name not in TAKES[field]:
            status, _, answer = llmd.post("/v1/chat/completions", CHAT | {field: value})
            assert 400 <= status < 500, (name, answer)
            assert answer["error"]["param"] == field


@pytest.mark.parametrize(
    "field", ["n_discard", "cache_prompt", "id_slot", "grammar_file", "foo", "Temperature", "", "\u0442op_p"]
)
def test_an_unknown_field_is_named(llmd: Llmd, field: str) -> None:
    status, _, answer = llmd.post("/v1/chat/completions", CHAT | {field: 1})
    assert status == 400 and "there is no parameter" in answer["error"]["message"]


def test_a_form_instead_of_json(llmd: Llmd) -> None:
    assert (
        llmd.post("/v1/chat/completions", b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\nb\r\n--x--')[0]
        == 400
    )
