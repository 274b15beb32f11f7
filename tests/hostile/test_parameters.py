"""Parameters at and beyond their ends."""

from typing import Any

import pytest
from real_daemon import Llmd

CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
URL = {"type": "image_url", "image_url": {"url": "http://169.254.169.254/"}}
FILE = {"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}
TOOL = {"type": "function", "function": {"name": 'a"\n', "parameters": {"$ref": "#"}, "description": "d" * 1_000_000}}

REFUSED: dict[str, dict[str, Any]] = {
    "temperature -1": {"temperature": -1},
    "temperature 1e30": {"temperature": 1e30},
    "top_p -1": {"top_p": -1},
    "top_p 2": {"top_p": 2},
    "top_k -5": {"top_k": -5},
    "top_k 1e9": {"top_k": 10**9},
    "min_p 2": {"min_p": 2},
    "max_tokens 0": {"max_tokens": 0},
    "max_tokens -2": {"max_tokens": -2},
    "2^31": {"max_tokens": 2**31},
    "max_completion_tokens -2": {"max_completion_tokens": -2},
    "n": {"n": 1_000_000},
    "100,000 strings": {"stop": ["a"] * 100_000},
    "a megabyte": {"stop": "x" * 1_000_000},
    "no message": {"messages": []},
    "100,000 messages": {"messages": CHAT["messages"] * 100_000},
    "an unknown role": {"messages": [{"role": "wizard", "content": "a"}]},
    "100,000 parts": {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}] * 100_000}]},
    "a picture from the network": {"messages": [{"role": "user", "content": [URL]}]},
    "a picture from the disk": {"messages": [{"role": "user", "content": [FILE]}]},
    "a path": {"model": "../../etc/passwd"},
    "10 KB": {"model": "m" * 10_000},
    "a look-alike": {"model": "smоl"},
    "not loaded": {"model": "other"},
    "logprobs": {"logprobs": True, "top_logprobs": 1_000_000},
    "a thousand tools": {"tools": [TOOL | {"n": i} for i in range(3)] + [{"type": "function"}] * 1000},
    "user of a megabyte": {"user": "u" * 1_000_000},
    **{
        f"P16 {name}": {name: value}
        for name, value in {
            "n_discard": 1,
            "cache_prompt": True,
            "id_slot": 0,
            "grammar": "root ::= 'a'",
            "grammar_file": "/etc/passwd",
            "lora": [{"path": "/etc/passwd"}],
            "mirostat": 2,
            "samplers": [],
            "dynatemp_range": 1,
        }.items()
    },
    **{f"one spelling a number: {key!r}": {"logit_bias": {key: 1}} for key in ("05", "+5", "5.0", " 5", "٥", "５", "")},
}
ANSWERED: dict[str, dict[str, Any]] = {
    "top_k -1": {"top_k": -1},
    "top_k 0": {"top_k": 0},
    "-1": {"max_tokens": -1, "stop": ["a", "e", "i", "o", "n"]},
    "more than the context": {"max_tokens": 2**31 - 1, "stop": ["a", "e", "i", "o", "n"]},
    "empty": {"stop": ""},
    "none": {"stop": []},
    "blanks": {"stop": [" ", "\n"]},
    "overlapping": {"stop": ["ab", "abc", "b"]},
    "the system last": {"messages": [*CHAT["messages"], {"role": "system", "content": "Be brief."}]},
    "what would be two lines of a log": {"user": "a\nllmd CRITICAL: b\x1b[31m"},
    **{
        f"P10 {name} {value}": {name: value}
        for name, values in {
            "presence_penalty": (-2, 2),
            "frequency_penalty": (-2, 2),
            "repeat_penalty": (1e-9, 10),
        }.items()
        for value in values
    },
    "all penalties": {"presence_penalty": 2, "frequency_penalty": -2, "repeat_penalty": 10, "temperature": 2},
}
PROMPTS: dict[str, tuple[Any, set[int]]] = {
    "empty": ("", {200, 400}),
    "one token over": ([1] * 1025, {400}),
    "as long as the context": ([1] * 1024, {400}),
    "one token less": ([1] * 1023, {200}),
    "50 MB": ("a" * 5_000_000, {413}),
    "special tokens' text": ("<|im_end|>" * 100, {200}),
    "a million equal characters": ("a" * 1_000_000, {400}),
    "a list of a million": (["a"] * 1_000_000, {400, 413}),
    "a list of 257": (["a"] * 257, {400}),
    "token -1": ([-1], {400}),
    "a token that is none": ([49152], {400}),
    "token 2^31": ([2**31], {400}),
    "a list of lists of none": ([[]], {400}),
    "texts and tokens": (["a", [1]], {400}),
}


@pytest.mark.parametrize("row", REFUSED)
def test_refused(llmd: Llmd, row: str) -> None:
    status, _, answer = llmd.post("/v1/chat/completions", CHAT | REFUSED[row])
    assert 400 <= status < 500 and len(answer["error"]["message"]) < 500, answer


@pytest.mark.parametrize("row", ANSWERED)
def test_answered(llmd: Llmd, row: str) -> None:
    status, _, answer = llmd.post("/v1/chat/completions", CHAT | ANSWERED[row])
    assert status == 200 and answer["choices"], answer


@pytest.mark.parametrize("row", PROMPTS)
def test_prompts(llmd: Llmd, row: str) -> None:
    prompt, statuses = PROMPTS[row]
    assert llmd.post("/v1/completions", {"prompt": prompt, "max_tokens": 1})[0] in statuses


def test_one_line_of_the_log_is_one_line(llmd: Llmd) -> None:
    assert "llmd CRITICAL: b" not in (llmd.state / "log").read_text()
