"""P: parameters at and beyond their ends."""

from typing import Any

import pytest
from real_daemon import Llmd

CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
URL = {"type": "image_url", "image_url": {"url": "http://169.254.169.254/"}}
FILE = {"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}
TOOL = {"type": "function", "function": {"name": 'a"\n', "parameters": {"$ref": "#"}, "description": "d" * 1_000_000}}

REFUSED: dict[str, dict[str, Any]] = {
    "P1 temperature -1": {"temperature": -1},
    "P1 temperature 1e30": {"temperature": 1e30},
    "P2 top_p -1": {"top_p": -1},
    "P2 top_p 2": {"top_p": 2},
    "P2 top_k -5": {"top_k": -5},
    "P2 top_k 1e9": {"top_k": 10**9},
    "P2 min_p 2": {"min_p": 2},
    "P3 max_tokens 0": {"max_tokens": 0},
    "P3 max_tokens -2": {"max_tokens": -2},
    "P3 2^31": {"max_tokens": 2**31},
    "P3 max_completion_tokens -2": {"max_completion_tokens": -2},
    "P4 n": {"n": 1_000_000},
    "P5 100,000 strings": {"stop": ["a"] * 100_000},
    "P5 a megabyte": {"stop": "x" * 1_000_000},
    "P8 no message": {"messages": []},
    "P8 100,000 messages": {"messages": CHAT["messages"] * 100_000},
    "P8 an unknown role": {"messages": [{"role": "wizard", "content": "a"}]},
    "P8 100,000 parts": {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}] * 100_000}]},
    "P8 a picture from the network": {"messages": [{"role": "user", "content": [URL]}]},
    "P8 a picture from the disk": {"messages": [{"role": "user", "content": [FILE]}]},
    "P9 a path": {"model": "../../etc/passwd"},
    "P9 10 KB": {"model": "m" * 10_000},
    "P9 a look-alike": {"model": "smоl"},
    "P9 not loaded": {"model": "other"},
    "P12 logprobs": {"logprobs": True, "top_logprobs": 1_000_000},
    "P13 a thousand tools": {"tools": [TOOL | {"n": i} for i in range(3)] + [{"type": "function"}] * 1000},
    "P15 user of a megabyte": {"user": "u" * 1_000_000},
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
    "P2 top_k -1": {"top_k": -1},
    "P2 top_k 0": {"top_k": 0},
    "P3 -1": {"max_tokens": -1, "stop": ["a", "e", "i", "o", "n"]},
    "P3 more than the context": {"max_tokens": 2**31 - 1, "stop": ["a", "e", "i", "o", "n"]},
    "P5 empty": {"stop": ""},
    "P5 none": {"stop": []},
    "P5 blanks": {"stop": [" ", "\n"]},
    "P5 overlapping": {"stop": ["ab", "abc", "b"]},
    "P8 the system last": {"messages": [*CHAT["messages"], {"role": "system", "content": "Be brief."}]},
    "P15 what would be two lines of a log": {"user": "a\nllmd CRITICAL: b\x1b[31m"},
    **{
        f"P10 {name} {value}": {name: value}
        for name, values in {
            "presence_penalty": (-2, 2),
            "frequency_penalty": (-2, 2),
            "repeat_penalty": (1e-9, 10),
        }.items()
        for value in values
    },
    "P10 all penalties": {"presence_penalty": 2, "frequency_penalty": -2, "repeat_penalty": 10, "temperature": 2},
}
PROMPTS: dict[str, tuple[Any, set[int]]] = {
    "P7 empty": ("", {200, 400}),
    "P7 one token over": ([1] * 1025, {400}),
    "P7 as long as the context": ([1] * 1024, {400}),
    "P7 one token less": ([1] * 1023, {200}),
    "P7 50 MB": ("a" * 5_000_000, {413}),
    "P7 special tokens' text": ("<|im_end|>" * 100, {200}),
    "P7 a million equal characters": ("a" * 1_000_000, {400}),
    "P7 a list of a million": (["a"] * 1_000_000, {400, 413}),
    "P7 a list of 257": (["a"] * 257, {400}),
    "P7 token -1": ([-1], {400}),
    "P7 a token that is none": ([49152], {400}),
    "P7 token 2^31": ([2**31], {400}),
    "P7 a list of lists of none": ([[]], {400}),
    "P7 texts and tokens": (["a", [1]], {400}),
}


@pytest.mark.parametrize("row", REFUSED)
def test_p_refused(llmd: Llmd, row: str) -> None:
    status, _, answer = llmd.post("/v1/chat/completions", CHAT | REFUSED[row])
    assert 400 <= status < 500 and len(answer["error"]["message"]) < 500, answer


@pytest.mark.parametrize("row", ANSWERED)
def test_p_answered(llmd: Llmd, row: str) -> None:
    status, _, answer = llmd.post("/v1/chat/completions", CHAT | ANSWERED[row])
    assert status == 200 and answer["choices"], answer


@pytest.mark.parametrize("row", PROMPTS)
def test_p7_prompts(llmd: Llmd, row: str) -> None:
    prompt, statuses = PROMPTS[row]
    assert llmd.post("/v1/completions", {"prompt": prompt, "max_tokens": 1})[0] in statuses


def test_p15_one_line_of_the_log_is_one_line(llmd: Llmd) -> None:
    assert "llmd CRITICAL: b" not in (llmd.state / "log").read_text()
