"""Every token that ends a text: those of a Hugging Face folder, in the file that is made of it, and where it serves."""

import json
from pathlib import Path
from typing import Any

import pytest
from gguf_writer import STR, U32, tiny
from hf_folder import LLAMA, Folder
from small_models import write

from llmd.daemon.engine.llama.vocabulary import of_file
from llmd.daemon.errors import ModelInvalid
from llmd.daemon.models.checking import trial
from llmd.quantize.checkpoints.ends import ends, named
from llmd.quantize.header import ENDS, end_tokens


def folder(path: Path, generation: Any = None, config: Any = 2, **files: Any) -> tuple[Path, dict[str, Any]]:
    told = {**LLAMA, "eos_token_id": config}
    more = {name.replace("__", "."): json.dumps(value).encode() for name, value in files.items()}
    if generation is not None:
        more["generation_config.json"] = json.dumps(generation).encode()
    return Folder(told, files=dict(more)).write(path), told


@pytest.mark.parametrize(
    ("generation", "config", "found"),
    [
        (None, 2, [2]),
        (None, [2, 7], [2, 7]),
        ({"eos_token_id": [9, 2]}, 2, [9, 2]),
        ({"eos_token_id": 9}, [2, 7], [9, 2, 7]),
        ({}, None, []),
        ({"eos_token_id": ["2", True, -1, 32, 1 << 70, 31, None, [3]]}, {"a": 1}, [31]),
        ({"eos_token_id": [*range(32)] * 9}, 2, [*range(32)]),
    ],
)
def test_those_of_a_folder(tmp_path: Path, generation: Any, config: Any, found: list[int]) -> None:
    assert ends(*folder(tmp_path, generation, config), vocabulary=32) == found


def test_the_part_about_text_of_a_model_that_takes_pictures_too(tmp_path: Path) -> None:
    path, told = folder(tmp_path, config=None)
    assert ends(path, {**told, "text_config": {"eos_token_id": [1, 3]}}, 32) == [1, 3]
    (path / "generation_config.json").write_text("[")
    with pytest.raises(ModelInvalid, match=r"generation_config.json is damaged"):
        ends(path, told, 32)


def test_what_ends_a_turn_or_a_message_has_a_key_of_its_own(tmp_path: Path) -> None:
    added = [{"id": 8, "content": "<|eom_id|>"}, {"id": 9, "content": "<|eot_id|>"}, {"id": "x"}, 5]
    path, _ = folder(tmp_path / "a", tokenizer__json={"added_tokens": added})
    eot, eom = "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"
    assert named(path, [1, 8, 9]) == {eot: 9, eom: 8} and named(path, [1]) == {}
    decoder = {"2": {"content": "<|im_end|>"}, "x": {}, "3": 5}
    path, _ = folder(tmp_path / "b", tokenizer_config__json={"added_tokens_decoder": decoder})
    assert named(path, [2, 3]) == {eot: 2}


def test_what_a_file_says_is_believed_as_far_as_it_can_be() -> None:
    assert end_tokens("2,7", 32) == {2, 7} and end_tokens(None, 32) == end_tokens("", 32) == frozenset()
    assert end_tokens("2,,x,-1,32,31,²," + "9" * 99, 32) == {2, 31}


async def test_each_of_them_ends_a_text_and_is_told(tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    plain = write(tmp_path / "plain", tiny())
    file = tiny()
    texts = file.keys["tokenizer.ggml.tokens"][1][1]
    file.keys |= {ENDS: (STR, "2,200,7,99999"), "tokenizer.ggml.eot_token_id": (U32, 201)}
    path = write(tmp_path, file)
    assert of_file(str(path)).ends == of_file(str(plain)).ends | {2, 7, 200, 201}
    found = await trial(path, path.stat().st_size)
    assert found["ends"] == [texts[token] for token in sorted(of_file(str(path)).ends)]
