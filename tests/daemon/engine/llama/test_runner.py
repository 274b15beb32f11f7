"""llama.cpp's runner: what is its own (`../test_runners.py` has what all do), and vocabularies."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf_writer as gguf
import pytest
from saying import FRANCE, ask, ids, texts

from llmd.daemon.engine.llama import runner as runner_module
from llmd.daemon.engine.llama import vocabulary as vocabulary_module
from llmd.daemon.engine.llama.passes import BLOCK, Call
from llmd.daemon.engine.llama.runner import LlamaRunner
from llmd.daemon.engine.llama.sampling import Sampling
from llmd.daemon.engine.llama.vocabulary import of_file
from llmd.daemon.engine.prompts import Prompts, terms
from llmd.daemon.engine.rendering import Rendering
from llmd.daemon.errors import ModelInvalid
from llmd.daemon.models.checking import trial
from llmd.daemon.wire.work import Chat, ChatMessage
from llmd.quantize import footprint


def test_sampling_in_threads_gives_what_sampling_in_turn_gives(
    runner: LlamaRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    def say() -> list[list[int]]:
        out = texts(runner, [ask(runner, i, f"{i} {FRANCE}", temperature=1.0, seed=i) for i in range(4)])
        return [ids(out[i, 0]) for i in range(4)]

    monkeypatch.setattr(runner, "_sampling", Sampling(runner.info.slots))
    in_turn = say()
    monkeypatch.setattr(runner, "_sampling", Sampling(runner.info.slots, 4))
    assert say() == in_turn


def test_prompts_that_are_filled_up_for_a_gpu_say_what_they_would_say(
    runner: LlamaRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a GPU gets them: calls of one pass, with filling that is cut off again."""
    asked = [ask(runner, i, f"{FRANCE}{' and' * i} of", owner=str(i), max_tokens=4) for i in range(3)]
    alone = [ids(texts(runner, [one])[one.id, 0]) for one in asked]
    calls: list[list[int]] = []
    decode = runner._decode

    def noted(call: Call) -> list[tuple[int, int]]:
        calls.append([call.filling.get(chunk.slot, 0) for chunk in call.chunks])
        return decode(call)

    monkeypatch.setattr(runner, "_gpu", True)
    monkeypatch.setattr(runner, "info", replace(runner.info, exact_block=0, overlaps=True))
    monkeypatch.setattr(runner, "_decode", noted)
    together = texts(runner, asked)
    assert [ids(together[one.id, 0]) for one in asked] == alone
    lengths = [len(one.prompt) for one in asked]
    assert calls[0] == [max(lengths) - n for n in lengths], "one call, filled up"
    assert calls[1:] == [[0, 0, 0]] * 3


def test_no_prompt_ends_with_the_token_that_ends_texts(tmp_path: Path) -> None:
    """Whatever a file for training asks for."""
    seen = []
    for wanted in (False, True):
        file = gguf.tiny()
        file.keys["tokenizer.ggml.add_eos_token"] = (gguf.BOOL, wanted)
        path = tmp_path / f"{wanted}.gguf"
        path.write_bytes(file.bytes())
        vocabulary = of_file(str(path))
        seen.append(vocabulary.tokenize("aa", add_special=True, parse_special=True))
        assert vocabulary.tokenize("a</s>", add_special=True, parse_special=True)[-1] in vocabulary.ends
    assert seen[0] == seen[1] and seen[0][0] == 1


def test_what_is_escaped_has_no_blank_before_it(tmp_path: Path) -> None:
    """SentencePiece puts one before a text, and a message with the text of a special token comes in several."""
    file = gguf.tiny()
    file.keys["tokenizer.chat_template"] = (gguf.STR, "{{ messages[0].content }}")
    path = tmp_path / "x.gguf"
    path.write_bytes(file.bytes())
    runner = LlamaRunner(str(path), slots=1, context=64)
    assert runner.vocabulary._blank
    prompts = Prompts(runner.vocabulary, Rendering(terms(runner.vocabulary, 64)))
    tokens, _ = prompts.from_chat(Chat((ChatMessage("user", "a</s>a"),)))
    assert runner.vocabulary.detokenize(tokens) == "<s>▁a</s>a"
    assert not runner.info.eos & set(tokens)
    runner.close()


def test_a_text_may_be_more_tokens_than_bytes(tmp_path: Path) -> None:
    """Where a vocabulary has no blank, each is the three bytes that stand for it."""
    path = tmp_path / "x.gguf"
    path.write_bytes(gguf.tiny().bytes())
    runner = LlamaRunner(str(path), slots=1, context=64)
    tokens = runner.vocabulary.tokenize(" " * 40, add_special=False, parse_special=False)
    assert len(tokens) == 3 * 41 and set(runner.vocabulary.detokenize(tokens)) == {"▁"}
    runner.close()


def test_the_memory_arithmetic_knows_how_long_a_pass_may_be() -> None:
    assert footprint.BEYOND == 2 * BLOCK


@pytest.mark.parametrize("reorder", [True, False])
def test_who_computes_one_token_leaves_the_weights_in_their_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reorder: bool
) -> None:
    """Gigabytes are copied otherwise, by one thread, and held beside the file."""
    path = tmp_path / "x.gguf"
    path.write_bytes(gguf.tiny().bytes())
    orders: list[bool] = []

    def load(path: str, params: Any) -> Any:
        orders.append(params.use_extra_bufts)
        return vocabulary_module.load(path, params)

    monkeypatch.setattr(runner_module, "load", load)
    LlamaRunner(str(path), slots=1, context=64, reorder=reorder).close()
    assert orders == [reorder]


async def test_a_model_that_embeds_texts_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    for causal in (True, False):
        file = gguf.tiny()
        file.keys["llama.attention.causal"] = (gguf.BOOL, causal)
        path.write_bytes(file.bytes())
        assert of_file(str(path)).samples is causal
    with pytest.raises(ModelInvalid, match="gives no text"):
        await trial(path, path.stat().st_size)


def test_a_file_that_is_no_model_is_refused_without_its_path(tmp_path: Any) -> None:
    file = tmp_path / "secret-name.gguf"
    file.write_bytes(b"GGUF" + b"\0" * 100)
    with pytest.raises(ModelInvalid) as e:
        LlamaRunner(str(file), slots=1)
    assert "secret-name" not in e.value.message
