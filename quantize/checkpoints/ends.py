"""Which tokens end a text: every id of `eos_token_id`, which a model's configuration and its defaults of generation
give as a number or a list. A GGUF has room for one, and for what ends a turn or a message: the rest stands in a key of
llmd's own (`quantize/header.py: ENDS`)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmd.quantize.checkpoints.checkpoint import document, text_part

MOST = 64
# what llama.cpp's own keys are for, by the texts that models give them
KEYS = {
    "tokenizer.ggml.eot_token_id": {"<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<turn|>", "<|eot|>"},
    "tokenizer.ggml.eom_token_id": {"<|eom_id|>", "<|eom|>"},
}


def ends(folder: Path, config: Mapping[str, Any], vocabulary: int) -> list[int]:
    """The ids of a Hugging Face folder, those of its defaults of generation first. Raises ModelInvalid for a file that
    is damaged."""
    generation = document(folder, "generation_config.json") if (folder / "generation_config.json").exists() else {}
    found: dict[int, None] = {}
    for source in (generation, config, text_part(config)):
        given = source.get("eos_token_id")
        for one in given if isinstance(given, list) else [given]:
            if type(one) is int and 0 <= one < vocabulary:
                found[one] = None
    return list(found)[:MOST]


def named(folder: Path, ids: list[int]) -> dict[str, int]:
    """Which of llama.cpp's keys they are for, by their texts in the tokenizer's files."""
    texts: dict[int, str] = {}
    for name in ("tokenizer_config.json", "tokenizer.json"):
        known = document(folder, name) if (folder / name).exists() else {}
        decoder, added = known.get("added_tokens_decoder"), known.get("added_tokens")
        for key, token in decoder.items() if isinstance(decoder, dict) else ():
            if key.isdecimal() and isinstance(token, dict):
                texts[int(key)] = str(token.get("content"))
        for token in added if isinstance(added, list) else ():
            if isinstance(token, dict) and type(token.get("id")) is int:
                texts[token["id"]] = str(token.get("content"))
    return {key: one for key, words in KEYS.items() for one in ids[::-1] if texts.get(one) in words}
