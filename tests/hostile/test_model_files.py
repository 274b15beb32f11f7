"""Model files. Damaged ones stand in tests/quantize/test_check.py, one a kind of damage."""

import asyncio
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gguf_writer import ARR, F32, I32, STR, U32, File, tiny
from real_daemon import Llmd

from llmd.daemon.errors import ModelInvalid
from llmd.daemon.models.checking import check, trial

Change = Callable[[File], Any]


def key(name: str, kind: int, content: Any) -> Change:
    return lambda file: file.keys.update({name: (kind, content)})


def of_type(name: str, kind: int) -> Change:
    return lambda file: file.tensors.update({name: (file.tensors[name][0], kind)})


# what a file claims that its data does not hold, and what the verdict names
CLAIMS: dict[str, tuple[Change, str]] = {
    "BPE without merges": (key("tokenizer.ggml.model", STR, "gpt2"), "merges"),
    "SentencePiece without scores": (lambda f: f.keys.pop("tokenizer.ggml.scores"), "scores"),
    "SentencePiece without types": (lambda f: f.keys.pop("tokenizer.ggml.token_type"), "token_type"),
    "scores of fewer tokens": (key("tokenizer.ggml.scores", ARR, (F32, [0.0])), "scores"),
    "an end that is no token": (key("tokenizer.ggml.eos_token_id", U32, 260), "eos_token_id"),
    "a beginning that is no token": (key("tokenizer.ggml.bos_token_id", I32, -1), "bos_token_id"),
    "a tokenizer that is none": (key("tokenizer.ggml.model", STR, "wizard"), "wizard"),
    "weights of whole numbers": (of_type("blk.0.attn_q.weight", 26), "I32"),
    "weights of doubles": (of_type("blk.0.attn_q.weight", 28), "F64"),
    "a tensor of another shape": (lambda f: f.tensors.update({"blk.0.attn_q.weight": ((32, 16), 0)}), "wrong shape"),
    "more blocks than there are": (key("llama.block_count", U32, 2), "blk.1"),
    "a template that is not UTF-8": (key("tokenizer.chat_template", STR, b"{{ messages }}\xff"), "chat template"),
}


@pytest.mark.parametrize("row", CLAIMS)
def test_claims_are_held_against_the_data(tmp_path: Path, row: str) -> None:
    file, (change, says) = tiny(), CLAIMS[row]
    change(file)
    path = tmp_path / "x.gguf"
    path.write_bytes(file.bytes())
    with pytest.raises(ModelInvalid) as refused:
        asyncio.run(_both(path))
    assert says in refused.value.message and str(tmp_path) not in refused.value.message


async def _both(path: Path) -> dict[str, Any]:
    await check(path)
    return await trial(path, path.stat().st_size)


def test_what_is_right_answers_a_token(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(tiny().bytes())
    assert asyncio.run(_both(path)) == {"conversations": {}, "laid": {}, "syntax": "", "ends": ["</s>"], "tried": True}


def test_weights_that_are_no_numbers(tmp_path: Path) -> None:
    """The bytes after the header are the weights, here all zeros: one of them becomes NaN."""
    file = tiny()
    data = bytearray(file.bytes())
    at = len(data) - file.layout()[1] + file.layout()[0]["output_norm.weight"]
    data[at : at + 4] = struct.pack("<f", float("nan"))
    path = tmp_path / "x.gguf"
    path.write_bytes(data)
    with pytest.raises(ModelInvalid, match="not a number"):
        asyncio.run(_both(path))


def test_a_hostile_import_harms_nobody(llmd: Llmd, tmp_path: Path) -> None:
    for row, (change, says) in CLAIMS.items():
        file = tiny()
        change(file)
        (tmp_path / "hostile.gguf").write_bytes(file.bytes())
        said = llmd.llmctl("model", "import", str(tmp_path / "hostile.gguf"), code=1)
        assert says in said["error"]["message"], row
    assert [m["name"] for m in llmd.llmctl("model", "list")] == ["smol"]
